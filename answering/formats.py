"""Files of pictures: which kinds are read, by what, and how much of a cut-off one is still there."""

import importlib
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image
from PIL.Image import open as open_image  # ultralytics replaces Image.open in the whole process

from answering.console import UserError

MAX_BYTES = 20_000_000  # of one image file
MAX_PIXELS = 50_000_000  # of one decoded image
MIN_SIDE = 16  # pixels; less than this is an icon, not a frame
# names of Pillow's openers; JPEG's opens MPO too, and at a name that it doesn't know Pillow fails
OPENERS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")
READABLE = "JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, HEIC, JPEG XL"  # for people
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"heif"}
ISO_BRANDS = {b"mif1", b"msf1", b"mif2", b"miaf"}  # of any picture in such a box: HEIC, AVIF
AVIF_BRANDS = {b"avif", b"avis"}
JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a")
MUST_BE_DECODED = 0.9  # share of a cut-off picture's rows


def open_bytes(data: bytes) -> Image.Image:
    """The picture in a file's bytes; only its size is read yet.

    Raises UserError for what is empty, too large, or needs a package that is not installed, and whatever Pillow's
    openers raise for what is no picture.
    """
    if not data:
        raise UserError("the file is empty")
    if len(data) > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES // 1_000_000} MB")
    openers = OPENERS
    if is_heif(data):
        openers = (_heif_opener(),)
    elif data.startswith(JXL_STARTS):
        openers = (_jxl_opener(),)
        check_pixels(*jxl_size(data))  # the plugin decodes at once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own bomb warning comes before our cap
        return open_image(io.BytesIO(data), formats=openers)


def is_heif(data: bytes) -> bool:
    """Whether a file is HEIC or HEIF, by the brands in its first box (ISO/IEC 14496-12), and no AVIF."""
    if data[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(data[:4], "big"), 512)
    brands = {data[at : at + 4] for at in range(8, length, 4) if at != 12}  # 12: the version
    return bool(brands & (HEIF_BRANDS | ISO_BRANDS)) and not brands & AVIF_BRANDS


def _heif_opener() -> str:
    try:
        import pillow_heif
    except ImportError:
        raise UserError("HEIC needs one more package: pip install pillow-heif") from None
    if "HEIF" not in Image.OPEN:
        # the small pictures beside the one that is shown would be decoded too
        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return "HEIF"


def _jxl_opener() -> str:
    """The name that a plugin for JPEG XL registers."""
    for plugin in ("pillow_jxl", "jxlpy.JXLImagePlugin"):
        try:
            importlib.import_module(plugin)
        except ImportError:
            continue
        return next(name for name in Image.OPEN if name in ("JXL", "JPEG XL", "JPEGXL"))
    raise UserError("JPEG XL needs one more package: pip install pillow-jxl-plugin")


def jxl_size(data: bytes) -> tuple[int, int]:
    """(width, height) that the header of a JPEG XL states (ISO/IEC 18181-1, SizeHeader). Raises UserError for none."""
    start = data.find(b"\xff\x0a", 0, 4096)  # the codestream stands in boxes, or alone
    if start < 0:
        raise UserError(f"not an image that can be read ({READABLE})")
    bits = int.from_bytes(data[start + 2 : start + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def take_side() -> int:
        return (take(5) + 1) * 8 if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    is_small = take(1)
    height = take_side()
    ratio = take(3)
    if ratio == 0:
        return take_side(), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height


def check_pixels(width: int, height: int) -> None:
    """Raises UserError for a picture that is too large."""
    if width * height > MAX_PIXELS:
        raise UserError(f"{width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels")


def check_size(image: Image.Image) -> None:
    """Raises UserError for a picture that is too large or too small."""
    check_pixels(*image.size)
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{image.width}x{image.height} is too small to be a frame")


# --------------------------------------------------------------------------------------- files that lack their end


def mend(data: bytes) -> bytes | None:
    """A file that lacks its last bytes, so that it can be decoded as far as it goes; None where nothing helps.

    Raises UserError if less than MUST_BE_DECODED of it is there; of a JPEG only check_tail knows that.
    """
    if data.startswith(b"\xff\xd8"):
        return data + b"\xff\xd9"  # the decoder fills what is missing before this end with grey
    if data.startswith(b"\x89PNG"):
        return _mend_png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        whole = 8 + int.from_bytes(data[4:8], "little")
        if len(data) >= whole or whole > MAX_BYTES:
            return None
        _check_share(len(data) / whole)
        return data.ljust(whole, b"\0")
    return None


def _check_share(share: float) -> None:
    if share < MUST_BE_DECODED:
        raise UserError(f"damaged or cut off: {share:.0%} of it is there")


def _mend_png(data: bytes) -> bytes | None:
    """A PNG whose missing rows are black; None for one that is interlaced or has no rows."""
    header = data[16:29]
    if len(header) < 13:
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if interlaced or not samples or not width or width * height > MAX_PIXELS:
        return None
    row = 1 + -(-width * depth * samples // 8)  # bytes, with the one that names its filter
    packed = []
    kept = []  # chunks before the pixels, such as the palette
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        elif not packed and kind not in (b"acTL", b"fcTL"):
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    rows = zlib.decompressobj().decompress(b"".join(packed), row * height)
    there = len(rows) // row
    _check_share(there / height)
    pixels = zlib.compress(rows[: there * row].ljust(row * height, b"\0"), 1)
    return data[:8] + b"".join(kept) + _png_chunk(b"IDAT", pixels) + _png_chunk(b"IEND", b"")


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def check_tail(image: Image.Image) -> None:
    """Raises UserError if a mended JPEG, decoded, ends in more rows of the decoder's grey than may be missing."""
    if image.format not in ("JPEG", "MPO"):
        return
    values = np.asarray(image)
    grey = (np.abs(values.reshape(len(values), -1).astype(np.int16) - 128) <= 2).all(axis=1)
    missing = len(grey) if grey.all() else int(np.argmin(grey[::-1]))
    _check_share(1 - missing / len(grey))
