"""Pictures and files, for all scripts: read what people send, cut black bars, write whole files, fail in one line."""

import contextlib
import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps
from PIL.Image import open as open_image  # ultralytics replaces Image.open in the whole process

from answering.console import UserError

MAX_BYTES = 20_000_000  # of one image file
MAX_PIXELS = 50_000_000  # of one decoded image
MAX_SECONDS = 10.0  # for one image, where the system can interrupt us
MIN_SIDE = 16  # pixels; less than this is an icon, not a frame
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "MPO", "TIFF", "AVIF")  # by content; the name is not believed
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


# ---------------------------------------------------------------------------------------------- the image


def read_image(source, draft: int | None = None) -> np.ndarray:
    """Decode an image to RGB uint8 [H, W, 3], upright (EXIF), first frame of an animation.

    source: path, bytes, PIL image or RGB uint8 array [H, W, 3]. draft: a large picture may be read at a fraction of its
    size as long as its shorter side keeps this many pixels. Raises UserError for what is no image, too large, cut off.
    """
    name = str(source) if isinstance(source, (str, Path)) else "image"
    try:
        if isinstance(source, (str, Path)):
            if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would let us wait for ever
                raise UserError(f"{name}: not a file")
            with open(source, "rb") as file:
                source = file.read(MAX_BYTES + 1)
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        elif isinstance(source, Image.Image):
            image = source
        elif not source or len(source) > MAX_BYTES:
            raise UserError(f"{name}: {f'larger than {MAX_BYTES // 1_000_000} MB' if source else 'the file is empty'}")
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own bomb warning comes before our cap
                image = open_image(io.BytesIO(source), formats=IMAGE_FORMATS)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Exception as error:  # Pillow's plugins raise anything on hostile bytes
        what = getattr(error, "strerror", None) or f"not an image that can be read ({', '.join(IMAGE_FORMATS)})"
        raise UserError(f"{name}: {what}") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name}: {image.width}x{image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{name}: {image.width}x{image.height} is too small to be a frame")
    try:
        if draft and image.format in ("JPEG", "MPO") and isinstance(source, bytes):  # never a caller's own image
            scale = draft / min(image.size)
            image.draft("RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale))))
        rgb = _to_rgb(image)
        if draft and min(rgb.size) >= 2 * draft:
            rgb = rgb.reduce(min(rgb.size) // draft)
        return np.asarray(rgb)
    except Exception as error:
        raise UserError(f"{name}: damaged or cut off ({str(error) or type(error).__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF alone is no reason to refuse
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow would clip instead of scale
        values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        full = 65535.0 if image.mode.startswith("I") and values.max() <= 65535 else max(float(values.max()), 1.0)
        image = Image.fromarray((values.clip(0, full) * (255.0 / full)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def find_bars(rgb: np.ndarray) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) in pixels of the picture inside black bars; the whole frame where there are none.

    rgb: uint8 [H, W, 3]. Bars come in pairs of nearly the same height (or width), so a night sky alone is not cut; up
    to a fifth of a bar may be lit, as subtitles do. A frame that would lose more than 60% of a side is left as it is.
    """
    height, width = rgb.shape[:2]
    if not rgb.size:
        return 0, 0, width, height
    ends, sides = (rgb[[0, -1]] <= 24).all(axis=2).mean(axis=1), (rgb[:, [0, -1]] <= 24).all(axis=2).mean(axis=0)
    if max(*ends, *sides) < 0.985:  # most frames: no edge is black, so there are no bars
        return 0, 0, width, height
    red, green, blue = Image.fromarray(rgb).split()  # Pillow and bits: ten times as fast as rgb.max(axis=2) and means
    dark = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue)) <= 24
    top, bottom = _bar_pair(_row_shares(dark))
    left, right = _bar_pair(_row_shares(np.ascontiguousarray(dark[top : height - bottom].T)))
    return left, top, width - right, height - bottom


def _row_shares(dark: np.ndarray) -> np.ndarray:
    """Share of True in each row of bool [H, W]."""
    return np.bitwise_count(np.packbits(dark, axis=1)).sum(axis=1, dtype=np.int64) / dark.shape[1]


def _bar_pair(rows: np.ndarray) -> tuple[int, int]:
    """Heights in rows of the upper and lower bar. rows: share of dark pixels a row."""
    total, limit = len(rows), int(len(rows) * 0.3)
    solid = rows >= 0.985
    first = int(np.argmin(solid)) if not solid.all() else total
    last = int(np.argmin(solid[::-1])) if not solid.all() else total
    if first >= total:  # a black frame has no bars
        return 0, 0
    # a bar with text in it ends early or is not seen at all: take the other one's height if the strip is mostly dark
    for a, b, strip in ((first, last, rows[::-1]), (last, first, rows)):
        if a > b and a <= limit and strip[:a].mean() >= 0.8 and (strip[:a] >= 0.985).mean() >= 0.4:
            first = last = a
            break
    pair = min(first, last)
    if pair < max(2, total * 0.015) or max(first, last) > limit or abs(first - last) > max(3, 0.35 * max(first, last)):
        return 0, 0
    edge = -(-total // 250)  # the blurred rows between bar and picture
    return first + edge, last + edge


def find_still(rgb: np.ndarray) -> tuple[int, int, int, int] | None:
    """Box (left, top, right, bottom) in pixels of the picture inside a screenshot; None where it is no screenshot.

    rgb: uint8 [H, W, 3]. Interfaces are flat: cells of one colour that a corner of the screenshot has, too, count -2,
    all others 1, and the rectangle of the largest sum is the still, to a cell. It must not be taller than wide, and at
    least half of what lies around it flat.
    """
    x, y, x2, y2 = find_bars(rgb)
    rgb, (width, height) = rgb[y:y2, x:x2], (x2 - x, y2 - y)
    scale, side = max(1, round(max(height, width) / 640)), 8
    rows, columns = height // scale // side, width // scale // side
    if min(rows, columns) < 8:
        return None
    small = np.asarray(Image.fromarray(rgb).reduce(scale))[: rows * side, : columns * side].astype(np.int16)
    cells = small.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows, columns, -1, 3)
    flat, mean = np.ptp(cells, axis=2).max(-1) <= 12, cells.mean(2)
    plain = np.zeros_like(flat)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        alike = flat & (np.abs(mean - mean[row, column]).max(-1) <= 5)
        plain |= alike & flat[row, column] & (alike.mean() >= 0.03)
    sums = np.pad(np.where(plain, -2, 1).cumsum(1), ((0, 0), (1, 0)))
    run, start = np.zeros((columns, columns), int), np.zeros((columns, columns), int)  # by first and last column
    largest, left, top, right, bottom = 0, 0, 0, columns, rows
    for row in range(rows):  # Kadane's best run of rows, for all pairs of columns at once
        start[run <= 0] = row
        run = np.maximum(run, 0) + np.triu(sums[row, 1:] - sums[row, :-1, None])
        first, last = divmod(int(run.argmax()), columns)
        if run[first, last] > largest:
            largest, left, top = run[first, last], first, int(start[first, last])
            right, bottom = last + 1, row + 1
    inside, around = (bottom - top) * (right - left), plain.sum() - plain[top:bottom, left:right].sum()
    share = inside / (rows * columns)
    if not 0.06 <= share <= 0.8 or around < 0.5 * (rows * columns - inside) or right - left < bottom - top:
        return None
    pixels = side * scale
    return (
        x + left * pixels,
        y + top * pixels,
        x2 if right == columns else x + right * pixels,
        y2 if bottom == rows else y + bottom * pixels,
    )


def cut_still(rgb: np.ndarray) -> np.ndarray:
    """The picture inside a screenshot, or rgb as it is."""
    left, top, right, bottom = find_still(rgb) or (0, 0, rgb.shape[1], rgb.shape[0])
    return rgb[top:bottom, left:right]


def preprocess(rgb: np.ndarray, spec: dict = PREPROCESSING, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> what the model takes, RGB uint8 [S, S, 3]; size (width, height) overrules the spec's."""
    if spec["crop_bars"]:
        left, top, right, bottom = find_bars(rgb)
        rgb = rgb[top:bottom, left:right]  # cut first: Pillow's resize(box=...) would mix the bars into the edges
    interpolation = Image.Resampling[spec["interpolation"].upper()]
    return np.asarray(Image.fromarray(rgb).resize(size or (spec["size"],) * 2, interpolation))


def is_flat(rgb: np.ndarray) -> bool:
    """Fades, black frames and title cards: almost nothing lit, or almost no contrast. rgb: uint8 [H, W, 3], no bars."""
    counts = np.array(Image.fromarray(rgb[::4, ::4]).convert("L").histogram())
    shares, levels = counts / counts.sum(), np.arange(256)
    median, mean = int(np.searchsorted(shares.cumsum(), 0.5)), shares @ levels
    contrast, background = shares @ (levels - mean) ** 2, shares[max(0, median - 5) : median + 6].sum()
    return bool(shares[29:].sum() < 0.05 or contrast < 5**2 or background > 0.93)
