"""Whether a picture shows enough to tell a film by: black frames, fades, title cards and credits don't."""

import numpy as np
from PIL import Image, ImageChops

from answering.screenshots import find_bars

LONG_SIDE = 480  # pixels, about; pictures are looked at in this size
CELLS = 40  # along the longer side
NEAR = 14  # of 255; a pixel that differs less from the background in all channels belongs to it
COVERED = 0.08  # a cell with a smaller share of background is covered by something thicker than letters
MOST_COVERED = 0.02  # share of such cells in a title card or a credits roll
LEAST_BACKGROUND = 0.5  # share of its pixels


def is_flat(rgb: np.ndarray) -> bool:
    """Whether a picture is black, a fade, a title card or credits: it belongs to no film. rgb: uint8 [H, W, 3].

    Black bars are cut off first. A picture is flat if almost nothing in it is lit, if it has almost no contrast, or
    if it has one background and all that stands before it is as thin as letters.
    """
    left, top, right, bottom = find_bars(rgb)
    small = Image.fromarray(rgb[top:bottom, left:right])
    small = small.reduce(max(1, round(max(small.size) / LONG_SIDE)))
    return _is_dim(small) or _is_card(small)


def _is_dim(image: Image.Image) -> bool:
    """Whether almost nothing is lit, almost all is of one grey, or there is almost no contrast."""
    counts = np.array(image.convert("L").histogram())
    shares = counts / counts.sum()  # of pixels, by grey level
    levels = np.arange(256)
    mean = shares @ levels
    median = int(np.searchsorted(shares.cumsum(), 0.5))
    lit = shares[29:].sum()
    variance = shares @ (levels - mean) ** 2
    background = shares[max(0, median - 5) : median + 6].sum()
    return bool(lit < 0.05 or variance < 5**2 or background > 0.93)


def _is_card(image: Image.Image) -> bool:
    """Whether the picture has one background that can be seen in nearly all cells, as between letters."""
    colour = tuple(_most_frequent(band.histogram()) for band in image.split())
    red, green, blue = ImageChops.difference(image, Image.new("RGB", image.size, colour)).split()
    distance = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    background = distance.point([255 * (value <= NEAR) for value in range(256)])
    cells = np.asarray(background.reduce(max(4, round(max(image.size) / CELLS)))) / 255
    return bool(cells.mean() >= LEAST_BACKGROUND and (cells < COVERED).mean() <= MOST_COVERED)


def _most_frequent(histogram: list[int]) -> int:
    """The middle of the 13 neighbouring levels that hold the most pixels."""
    return int(np.convolve(histogram, np.ones(13, int), "same").argmax())
