"""Whether a picture shows enough to tell a film by: black frames, fades, title cards and credits don't."""

import numpy as np
from PIL import Image

from answering.screenshots import find_bars

LONG_SIDE = 480  # pixels, about; pictures are looked at in this size
CELLS = 40  # along the longer side
CELLS_A_BLOCK = 4  # along a side, about
WINDOW = 13  # neighbouring levels of 0..255 that count as one, where the most frequent one is sought
NEAR = 20  # of 255; a pixel that differs less from the background in all channels belongs to it
FAR = 42  # of 255; letters are seen, so most of their pixels differ more
STEP = 18  # of 255; the background of a block differs less from its neighbour's
COVERED = 0.08  # a cell with a smaller share of background is covered by something thicker than letters
MOST_COVERED = 0.015  # share of such cells
LEAST_BACKGROUND = 0.5  # share of pixels
LEAST_FAR = 0.3  # share of the pixels that are no background
LEAST_LETTERS = 0.001  # share of all pixels


def is_flat(rgb: np.ndarray) -> bool:
    """Whether a picture is black, a fade, a title card or credits: it belongs to no film. rgb: uint8 [H, W, 3].

    Black bars are cut off first. A picture is flat if almost nothing in it is lit, if it has almost no contrast, or
    if it is a card (_is_card). web/worker.js does the same.
    """
    left, top, right, bottom = find_bars(rgb)
    small = Image.fromarray(rgb[top:bottom, left:right])
    small = small.reduce(max(1, round(max(small.size) / LONG_SIDE)))
    return _is_dim(small) or _is_card(np.asarray(small))


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


def _is_card(rgb: np.ndarray) -> bool:
    """Whether what stands before a smooth background is as thin as letters and differs from it as they do.

    The picture is divided into square cells, and these into blocks. The background of a block is its most frequent
    colour, which may change slowly from block to block. Between letters it can be seen, in nearly every cell; what
    scenes are made of is larger than a cell and covers it. rgb: uint8 [H, W, 3].
    """
    side = max(4, round(max(rgb.shape[:2]) / CELLS))  # of a cell, pixels
    rows = rgb.shape[0] // side
    columns = rgb.shape[1] // side
    if not rows or not columns:
        return False
    block_rows = _blocks(rows)
    block_columns = _blocks(columns)
    rgb = rgb[: rows * side, : columns * side]
    backgrounds = _backgrounds(rgb, block_rows.repeat(side), block_columns.repeat(side))
    steps = [np.abs(np.diff(backgrounds, axis=axis)).max(initial=0) for axis in (0, 1)]
    if max(steps) > STEP:
        return False
    behind = backgrounds[block_rows[:, None], block_columns].astype(np.uint8)
    behind = behind.repeat(side, axis=0).repeat(side, axis=1)
    distance = (np.maximum(rgb, behind) - np.minimum(rgb, behind)).max(axis=2)
    near = distance <= NEAR
    shares = near.reshape(rows, side, columns, side).mean(axis=(1, 3))
    background = near.mean()
    far = (distance > FAR).mean()
    return bool(
        background >= LEAST_BACKGROUND
        and (shares < COVERED).mean() <= MOST_COVERED
        and far >= max(LEAST_LETTERS, LEAST_FAR * (1 - background))
    )


def _blocks(cells: int) -> np.ndarray:
    """The block of each of so many cells in a row, int [cells]."""
    return np.arange(cells) * max(1, round(cells / CELLS_A_BLOCK)) // cells


def _backgrounds(rgb: np.ndarray, block_rows: np.ndarray, block_columns: np.ndarray) -> np.ndarray:
    """The most frequent level of each channel in each block, of every second pixel; int [rows, columns, 3] of blocks.

    block_rows, block_columns: the blocks of the rows and columns of pixels.
    """
    shape = (block_rows[-1] + 1, block_columns[-1] + 1)
    place = (block_rows[::2, None] * shape[1] + block_columns[::2]) * 256
    channels = []
    for channel in range(3):
        places = (place + rgb[::2, ::2, channel]).ravel()
        sums = np.bincount(places, minlength=shape[0] * shape[1] * 256).reshape(*shape, 256).cumsum(axis=2)
        sums = np.pad(sums, ((0, 0), (0, 0), (WINDOW // 2 + 1, WINDOW // 2)), mode="edge")
        sums[:, :, : WINDOW // 2 + 1] = 0
        channels.append((sums[:, :, WINDOW:] - sums[:, :, :-WINDOW]).argmax(axis=2))
    return np.stack(channels, axis=2)
