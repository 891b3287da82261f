"""The picture inside a screenshot, a reel or a player's window, and inside black bars."""

import numpy as np
from PIL import Image, ImageChops

DARK = 24  # of 255; a pixel of a bar has no channel above
BAR_ROW = 0.985  # share of dark pixels in a row of a bar
CELL_SIDE = 8  # pixels of the reduced screenshot; find_still works on cells of this size
MIN_CELLS = 8  # a side of fewer cells is too small for a screenshot
LONG_SIDE = 640  # pixels, about; screenshots are looked at in this size
# of 255, in any channel, in that size
ROUGH = 5  # a pixel that differs more from the one before it is no part of a blurred or plain surrounding
STEP = 8  # a pixel that differs more from the one before it, or the one before that, is part of an edge
EDGE = 0.45  # share of such pixels from which a row or column can be the edge of a still
SURE_EDGE = 0.8  # share from which both edges are those of a window
MAX_EDGES = 10  # rows or columns that are tried, the strongest ones

# ----------------------------------------------------------------------------------------------- black bars


def find_bars(rgb: np.ndarray) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) in pixels of the picture inside black bars; the whole frame where there are none.

    rgb: uint8 [H, W, 3]. Bars come in pairs of nearly the same height (or width), so a night sky alone is not cut; up
    to a fifth of a bar may be lit, as subtitles do. A frame that would lose more than 60% of a side is left as it is.
    """
    height, width = rgb.shape[:2]
    if not rgb.size or not _has_black_edge(rgb):
        return 0, 0, width, height
    red, green, blue = Image.fromarray(rgb).split()  # Pillow and bits: ten times as fast as rgb.max(axis=2) and means
    brightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    dark = np.asarray(brightest) <= DARK
    top, bottom = _bar_pair(_row_shares(dark))
    between = dark[top : height - bottom]
    left, right = _bar_pair(_row_shares(np.ascontiguousarray(between.T)))
    return left, top, width - right, height - bottom


def _has_black_edge(rgb: np.ndarray) -> bool:
    """Whether one of the four outermost rows and columns is black; most frames have none, which is quickly seen."""
    rows = (rgb[[0, -1]] <= DARK).all(axis=2).mean(axis=1)
    columns = (rgb[:, [0, -1]] <= DARK).all(axis=2).mean(axis=0)
    return max(*rows, *columns) >= BAR_ROW


def _row_shares(dark: np.ndarray) -> np.ndarray:
    """Share of True in each row of bool [H, W]."""
    return np.bitwise_count(np.packbits(dark, axis=1)).sum(axis=1, dtype=np.int64) / dark.shape[1]


def _bar_pair(shares: np.ndarray) -> tuple[int, int]:
    """Heights in rows of the upper and the lower bar, (0, 0) where there is no pair. shares: of dark pixels a row."""
    total = len(shares)
    highest = int(total * 0.3)
    solid = shares >= BAR_ROW
    if solid.all():  # a black frame has no bars
        return 0, 0
    upper = int(np.argmin(solid))
    lower = int(np.argmin(solid[::-1]))
    longer = max(upper, lower)
    # a bar with text in it ends early or is not seen at all: it gets the other one's height if it is mostly dark there
    if upper != lower and longer <= highest:
        strip = shares[::-1][:longer] if upper > lower else shares[:longer]
        if _is_lit_bar(strip):
            upper = lower = longer
    if min(upper, lower) < max(2, total * 0.015) or longer > highest:
        return 0, 0
    if abs(upper - lower) > max(3, 0.35 * longer):
        return 0, 0
    edge = -(-total // 250)  # the blurred rows between bar and picture
    return upper + edge, lower + edge


def _is_lit_bar(strip: np.ndarray) -> bool:
    """Whether rows with these shares of dark pixels can be a bar with text in it."""
    return strip.mean() >= 0.8 and (strip >= BAR_ROW).mean() >= 0.4


# -------------------------------------------------------------------------------- the still in a screenshot


def find_still(rgb: np.ndarray) -> tuple[int, int, int, int] | None:
    """Box (left, top, right, bottom) in pixels of the picture inside a screenshot; None where it is no screenshot.

    rgb: uint8 [H, W, 3]. Black bars are cut off first. A still between straight edges that is sharper than what lies
    beyond them is looked for first, as in a reel with blurred sides or a player's window (_find_between_edges); then
    one in an interface of one colour (_find_among_plain_cells).
    """
    x, y, x2, y2 = find_bars(rgb)
    inside = rgb[y:y2, x:x2]
    box = _find_between_edges(inside) or _find_among_plain_cells(inside)
    if box is None:
        return None
    left, top, right, bottom = box
    return x + left, y + top, x + right, y + bottom


def _find_between_edges(rgb: np.ndarray) -> tuple[int, int, int, int] | None:
    """Box of the still between two edges from side to side, or between four; None where there is none.

    rgb: uint8 [H, W, 3].
    """
    height, width = rgb.shape[:2]
    scale = _scale(rgb)
    small = np.asarray(Image.fromarray(rgb).reduce(scale))
    if min(small.shape[:2]) < CELL_SIDE * MIN_CELLS:
        return None
    planes = np.ascontiguousarray(small.transpose(2, 0, 1))  # whole planes of bytes: ten times as fast as pixels
    down = _steps(planes)
    across = _steps(np.ascontiguousarray(planes.swapaxes(1, 2))).swapaxes(1, 2)
    rough = (down[0] > ROUGH) | (across[0] > ROUGH)
    row_edges = down.max(axis=0) > STEP
    column_edges = across.max(axis=0) > STEP
    top, bottom = _edge_pair(row_edges.mean(axis=1), rough.mean(axis=1))
    left, right = _edge_pair(column_edges[top:bottom].mean(axis=0), rough[top:bottom].mean(axis=0))
    if right - left < small.shape[1]:  # its upper and lower edges may be clearer now
        top, bottom = _edge_pair(row_edges[:, left:right].mean(axis=1), rough[:, left:right].mean(axis=1))
    share = (bottom - top) * (right - left) / rough.size
    if share == 1 or share < 0.06 or right - left < bottom - top:
        return None
    # what is left over beside the last whole pixel of the reduced picture belongs to it
    return left * scale, top * scale, min(right * scale, width), min(bottom * scale, height)


def _scale(rgb: np.ndarray) -> int:
    """By how much a picture is reduced."""
    return max(1, round(max(rgb.shape[:2]) / LONG_SIDE))


def _steps(planes: np.ndarray) -> np.ndarray:
    """How much each pixel differs from the first and the second one above it, in any channel; uint8 [2, H, W].

    planes: uint8 [3, H, W]; rows that have none above them differ by 0.
    """
    steps = np.zeros((2, *planes.shape[1:]), np.uint8)
    for rows in (1, 2):
        now = planes[:, rows:]
        before = planes[:, :-rows]
        steps[rows - 1, rows:] = (np.maximum(now, before) - np.minimum(now, before)).max(axis=0)
    return steps


def _edge_pair(edges: np.ndarray, rough: np.ndarray) -> tuple[int, int]:
    """(First row, end) of what lies between two edges and is rougher than what lies beyond; all rows if there are none.

    Of pairs with equally strong edges the widest. edges, rough: shares of pixels a row (or column) that are part of an
    edge, or rough.
    """
    count = len(edges)
    sums = np.concatenate([[0.0], rough.cumsum()])
    rows = _find_edges(edges)
    best = (0, 0)
    pair = (0, count)
    for first in rows:
        for end in rows:
            strength = (int(edges[first] * 20) + int(edges[end] * 20), end - first)
            if end - first < 0.15 * count or strength <= best:
                continue
            before = sums[first] / first
            after = (sums[-1] - sums[end]) / (count - end)
            beyond = (sums[first] + sums[-1] - sums[end]) / (first + count - end)
            between = (sums[end] - sums[first]) / (end - first)
            if min(edges[first], edges[end]) >= SURE_EDGE:  # an interface may have letters and buttons
                fits = max(before, after) <= 0.3 and beyond <= 0.2 and between >= beyond
            else:
                fits = max(before, after) <= 0.075 and beyond <= 0.05 and between >= max(beyond + 0.06, 2 * beyond)
            if fits:
                best = strength
                pair = (first, end)
    return pair


def _find_edges(edges: np.ndarray) -> list[int]:
    """The strongest rows that can be edges, MAX_EDGES at most; the first row of each, for a step is seen in two."""
    margin = len(edges) // 20
    rows: list[int] = []
    for row in range(margin, len(edges) - margin):
        is_highest = edges[row] >= 0.9 * edges[max(0, row - 3) : row + 4].max()
        if edges[row] >= EDGE and is_highest and (not rows or row > rows[-1] + 3):
            rows.append(row)
    return sorted(rows, key=lambda row: -int(edges[row] * 20))[:MAX_EDGES]


def _find_among_plain_cells(rgb: np.ndarray) -> tuple[int, int, int, int] | None:
    """Box of the still in an interface of one colour; None where there is none. rgb: uint8 [H, W, 3].

    The picture is divided into square cells. Interfaces are flat: a cell is plain if it has one colour, and a corner
    of the screenshot has it too (_plain_cells). The still is the rectangle with the largest sum where a plain cell
    counts -2 and any other 1 (_largest_rectangle), if it looks like a still in an interface (_is_still).
    """
    divided = _divide(rgb)
    if divided is None:
        return None
    cells, pixels = divided
    plain = _plain_cells(cells)
    if not plain.any():
        return None
    left, top, right, bottom = _largest_rectangle(np.where(plain, -2, 1))
    if not _is_still(plain, left, top, right, bottom):
        return None
    rows, columns = plain.shape
    return (
        left * pixels,
        top * pixels,
        rgb.shape[1] if right == columns else right * pixels,  # what is left over beside the last cells is theirs
        rgb.shape[0] if bottom == rows else bottom * pixels,
    )


def _divide(rgb: np.ndarray) -> tuple[np.ndarray, int] | None:
    """(Cells int16 [rows, columns, pixels, 3], side of a cell in pixels of rgb); None if there are too few cells.

    The picture is reduced to about LONG_SIDE first.
    """
    height, width = rgb.shape[:2]
    scale = _scale(rgb)
    rows = height // scale // CELL_SIDE
    columns = width // scale // CELL_SIDE
    if min(rows, columns) < MIN_CELLS:
        return None
    small = np.asarray(Image.fromarray(rgb).reduce(scale))[: rows * CELL_SIDE, : columns * CELL_SIDE].astype(np.int16)
    cells = small.reshape(rows, CELL_SIDE, columns, CELL_SIDE, 3).swapaxes(1, 2)
    return cells.reshape(rows, columns, -1, 3), CELL_SIDE * scale


def _plain_cells(cells: np.ndarray) -> np.ndarray:
    """Cells of one colour that a corner cell of one colour has too, and at least 3% of all cells; bool [rows, columns].

    cells: int16 [rows, columns, pixels, 3].
    """
    corners = cells[[0, 0, -1, -1], [0, -1, 0, -1]]
    if (np.ptp(corners, axis=1).max(-1) > 12).all():  # as in nearly all frames that are no screenshot
        return np.zeros(cells.shape[:2], bool)
    flat = np.ptp(cells, axis=2).max(-1) <= 12
    colour = cells.mean(2)
    plain = np.zeros_like(flat)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        alike = flat & (np.abs(colour - colour[row, column]).max(-1) <= 5)
        if flat[row, column] and alike.mean() >= 0.03:
            plain |= alike
    return plain


def _largest_rectangle(values: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the rectangle with the largest sum in int [rows, columns], right, bottom excluded.

    Kadane's maximum subarray (Bentley, Programming Pearls, 1984) over the rows, for all pairs of columns at once. For a
    pair of columns, a row is one number: the sum between them. The best run of rows that ends in a row is this row
    alone, or joined to the best run that ends in the row above, if that one's sum is positive. Where no rectangle has
    a positive sum, it is the whole.
    """
    rows, columns = values.shape
    sums = np.pad(values.cumsum(1), ((0, 0), (1, 0)))  # up to each column; differences are sums between two
    run = np.zeros((columns, columns), int)  # sum of the best run that ends in this row, by first and last column
    start = np.zeros((columns, columns), int)  # the row where that run begins
    largest = 0
    box = 0, 0, columns, rows
    for row in range(rows):
        start[run <= 0] = row
        between = np.triu(sums[row, 1:] - sums[row, :-1, None])  # no pair has its last column before its first
        run = np.maximum(run, 0) + between
        first, last = divmod(int(run.argmax()), columns)
        if run[first, last] > largest:
            largest = run[first, last]
            box = first, int(start[first, last]), last + 1, row + 1
    return box


def _is_still(plain: np.ndarray, left: int, top: int, right: int, bottom: int) -> bool:
    """Whether a box of cells can be a still: 6 to 80% of all, not taller than wide, 60% of the others plain."""
    inside = (bottom - top) * (right - left)
    around = plain.size - inside
    plain_around = plain.sum() - plain[top:bottom, left:right].sum()
    share = inside / plain.size
    return bool(0.06 <= share <= 0.8 and plain_around >= 0.6 * around and right - left >= bottom - top)


def cut_still(rgb: np.ndarray) -> np.ndarray:
    """The picture inside a screenshot, or rgb as it is."""
    left, top, right, bottom = find_still(rgb) or (0, 0, rgb.shape[1], rgb.shape[0])
    return rgb[top:bottom, left:right]
