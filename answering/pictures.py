"""Pictures: read what people send, and prepare it for a model."""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from answering.console import UserError
from answering.flat import is_flat
from answering.formats import MAX_BYTES, MAX_PIXELS, READABLE, check_size, check_tail, mend, open_bytes
from answering.screenshots import find_bars

# of files in folders, lower case; the content decides how they are read
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
IMAGE_SUFFIXES |= {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl"}
MAX_FRAMES = 600  # of an animation that are decoded
MAX_FRAMES_PIXELS = 1_000_000_000  # of all frames of an animation that are decoded
MAX_FRAMES_SECONDS = 4.0  # for decoding an animation
# what a model must know about an image; carried by the checkpoint and by every exported file
PREPROCESSING = {
    "size": 224,  # pixels, square
    "resize": "squash",  # the whole picture to size x size, aspect ratio not kept
    "interpolation": "bilinear",  # antialiased, as Pillow and torchvision do it
    "crop_bars": True,  # black bars are cut off before the resize
    "draft": True,  # a large picture may be decoded at a fraction of its size, but not under twice the model's
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}

# ---------------------------------------------------------------------------------------------- reading


def read_image(source, draft: int | None = None) -> np.ndarray:
    """Decode an image to RGB uint8 [H, W, 3], upright (EXIF); of an animation the first frame that is not flat.

    source: path, bytes, PIL image or RGB uint8 array [H, W, 3]. draft: a large picture may be read at a fraction of its
    size as long as its shorter side keeps this many pixels. A file that lacks its last bytes is read if nine tenths of
    it are there. Raises UserError for what is no image, too large, or damaged.
    """
    with _errors_named(source):
        frames = _decode_frames(source, draft)
        first = next(frames)
        shown = first
        while is_flat(shown):
            shown = next(frames, None)
            if shown is None:  # a still picture, or an animation of nothing
                return first
        return shown


def open_frames(source, most: int, draft: int | None = None) -> list[np.ndarray]:
    """Up to `most` frames of an animation that are not flat, evenly over its length; of a still picture that one.

    Takes what read_image takes, and raises what it raises. Where all frames are flat there is none.
    """
    with _errors_named(source):
        found = [rgb for rgb in _decode_frames(source, draft, 3 * most) if not is_flat(rgb)]
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[place] for place in places]


@contextlib.contextmanager
def _errors_named(source) -> Iterator[None]:
    """Turn what Pillow raises, and its plugins raise anything on hostile bytes, into a UserError that names source."""
    name = str(source) if isinstance(source, (str, Path)) else "image"
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"damaged or cut off ({str(error) or type(error).__name__})"
        raise UserError(f"{name}: {reason}") from None


def _decode_frames(source, draft: int | None, most: int = MAX_FRAMES) -> Iterator[np.ndarray]:
    """RGB uint8 [H, W, 3] of a picture, or in turn of up to `most` frames of an animation, evenly over its length."""
    data = _read(source)
    image = _open(data)
    yield _decode_first(image, data, draft)
    count = min(image.n_frames, MAX_FRAMES) if _is_animation(image) else 1
    step = -(-count // most)
    end = time.monotonic() + MAX_FRAMES_SECONDS
    for place in range(1, count):
        pixels = (place + 1) * image.width * image.height
        if pixels > MAX_FRAMES_PIXELS or time.monotonic() > end:
            return
        try:
            image.seek(place)  # in turn: a frame is what came before it and its own changes
            rgb = _decode(image, draft) if place % step == 0 else None
        except Exception:  # the file ends in this frame
            return
        if rgb is not None:
            yield rgb


def _read(source):
    """A file's bytes, one more than MAX_BYTES at most; what is no path as it is."""
    if not isinstance(source, (str, Path)):
        return source
    if not stat.S_ISREG(os.stat(source).st_mode):  # reading a pipe could wait forever
        raise UserError("not a file")
    with open(source, "rb") as file:
        return file.read(MAX_BYTES + 1)


def _open(source) -> Image.Image:
    """bytes, PIL image or array as a PIL image, which need not be decoded yet."""
    try:
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        elif isinstance(source, Image.Image):
            image = source
        else:
            image = open_bytes(source)
    except (UserError, Image.DecompressionBombError):
        raise
    except Exception:
        raise UserError(f"not an image that can be read ({READABLE})") from None
    check_size(image)
    return image


def _decode_first(image: Image.Image, data, draft: int | None) -> np.ndarray:
    """The pixels of an opened picture; if data, the bytes of its file, lack their end, as much of it as there is."""
    if not isinstance(data, bytes):  # never draft a caller's own image
        return _decode(image, draft)
    _draft(image, draft)
    try:
        return _decode(image, draft)
    except Exception:
        mended = mend(data)
        if mended is None:
            raise
        image = _open(mended)
        _draft(image, draft)
        check_tail(image)
        return _decode(image, draft)


def _is_animation(image: Image.Image) -> bool:
    """Whether its frames follow each other in time, unlike the pages of a TIFF and the views of an MPO."""
    return getattr(image, "is_animated", False) and image.format not in ("TIFF", "MPO")


def _draft(image: Image.Image, shorter_side: int | None) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth of its size, no smaller than shorter_side asks."""
    if shorter_side and image.format in ("JPEG", "MPO"):
        scale = shorter_side / min(image.size)
        image.draft("RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def _decode(image: Image.Image, draft: int | None) -> np.ndarray:
    """The pixels, RGB uint8 [H, W, 3]; reduced by a whole number where draft allows it."""
    rgb = _to_rgb(image)
    if draft and min(rgb.size) >= 2 * draft:
        rgb = rgb.reduce(min(rgb.size) // draft)
    return np.asarray(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any image as RGB, upright, on black where it is transparent."""
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF alone is no reason to refuse
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bits(image)
    if image.mode == "LAB":
        image = _lab_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits and more as a grey one of 8; Pillow would clip instead of scale."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    white = max(float(values.max()), 1.0)
    if image.mode.startswith("I") and values.max() <= 65535:
        white = 65535.0
    return Image.fromarray((values.clip(0, white) * (255.0 / white)).astype(np.uint8))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    """An image of CIE L*a*b* as RGB."""
    from PIL import ImageCms

    return ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


# --------------------------------------------------------------------------------------- for the model


def preprocess(rgb: np.ndarray, spec: dict = PREPROCESSING, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> what the model takes, RGB uint8 [S, S, 3]; size (width, height) overrules the spec's."""
    if spec["crop_bars"]:
        left, top, right, bottom = find_bars(rgb)
        rgb = rgb[top:bottom, left:right]  # cut first: Pillow's resize(box=...) would mix the bars into the edges
    interpolation = Image.Resampling[spec["interpolation"].upper()]
    return np.asarray(Image.fromarray(rgb).resize(size or (spec["size"],) * 2, interpolation))
