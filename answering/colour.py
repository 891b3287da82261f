"""A decoded frame as a person sees it: one field's lines filled in, SDR, square pixels, upright; RGB.

Frames here are av.VideoFrame, as PyAV decodes them.
"""

from fractions import Fraction

import numpy as np

# numbers of ITU-T H.273, as files carry them
PQ = 16  # transfer characteristics: SMPTE ST 2084
HLG = 18  # ARIB STD-B67
UNTAGGED = (0, 2, 3)  # matrix coefficients that say nothing of YUV
Matrix = tuple[int, int, int, int]  # a, b, c, d of x' = ax + cy, y' = bx + dy, where y points down
UPRIGHT = (1, 0, 0, 1)
SDR_WHITE = 203.0  # nits of diffuse white in HDR, ITU-R BT.2408
HDR_PEAK = 1000.0  # nits that become white
KNEE = 0.3  # of SDR white; up to here the curve is a straight line
BT2020_TO_BT709 = np.array(  # linear light, ITU-R BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
CELL_ROWS = 16  # of a frame, when combs are looked for
COLUMN_STEP = 4  # every fourth column is looked at
CELL_COLUMNS = 8  # of those
COMBED_SHARE = 0.01  # of the cells; above it an unflagged frame is taken as interlaced


def to_rgb(frame, aspect: float, matrix: Matrix, longest_side: int | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a decoded frame.

    aspect: of one pixel, width / height. matrix: of its film, see display_matrix. longest_side: reduce the picture to
    so many pixels, None to leave it.
    """
    from av.video.reformatter import ColorRange, Interpolation

    width, height = shown_size(frame.width, frame.height, aspect, longest_side)
    if is_interlaced(frame):
        frame = deinterlace(frame, height)
    is_hdr = frame.color_trc in (PQ, HLG)
    pixel_format = "rgb48le" if is_hdr else "rgb24"
    has_alpha = not is_hdr and any(component.is_alpha for component in frame.format.components)
    reduced = frame.reformat(
        width=width,
        height=height,
        format="rgba" if has_alpha else pixel_format,
        src_colorspace=_matrix_of_untagged(frame),
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND,
        threads=1,
    )
    rgb = reduced.to_ndarray()
    if is_hdr:
        rgb = tone_map(rgb, frame.color_trc)
    if has_alpha:
        rgb = on_black(rgb)
    return np.ascontiguousarray(turn(rgb, matrix))


def shown_size(width: int, height: int, aspect: float, longest_side: int | None = None) -> tuple[int, int]:
    """(Width, height) in square pixels, reduced so that the longer one is at most longest_side."""
    shown = width * aspect
    scale = 1.0
    if longest_side:
        scale = min(1.0, longest_side / max(shown, height))
    return max(1, round(shown * scale)), max(1, round(height * scale))


def on_black(rgba: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a picture with transparency, uint8 [H, W, 4]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _matrix_of_untagged(frame) -> int | None:
    """The matrix to read YUV with where the file has no tag, as players guess it; None where it has one."""
    from av.video.reformatter import Colorspace

    if frame.format.is_rgb or frame.colorspace not in UNTAGGED:
        return None
    is_hd = frame.width >= 1280 or frame.height > 576
    return Colorspace.ITU709 if is_hd else Colorspace.ITU601


# ---------------------------------------------------------------------------------------------- high dynamic range


def tone_map(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """SDR uint8 [H, W, 3] of an HDR picture, uint16 [H, W, 3]. transfer: PQ or HLG.

    To light in units of SDR white (203 nits), to BT.709's primaries, then a straight line up to the knee and above it
    a Moebius curve that takes 1,000 nits to white. The curve works on the brightest channel, so that hues stay.
    """
    signal = rgb.astype(np.float32) / 65535
    light = _pq_to_nits(signal) if transfer == PQ else _hlg_to_nits(signal)
    light = np.maximum(light @ BT2020_TO_BT709.T, 0) / SDR_WHITE
    brightest = np.maximum(light.max(axis=2, keepdims=True), 1e-6)
    light *= _moebius(brightest) / brightest
    return (np.clip(light, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


def _moebius(light: np.ndarray) -> np.ndarray:
    """Light in units of SDR white, 0 to 1. After ffmpeg's tonemap=mobius."""
    peak = HDR_PEAK / SDR_WHITE
    a = -KNEE * KNEE * (peak - 1) / (KNEE * KNEE - 2 * KNEE + peak)
    b = (KNEE * KNEE - 2 * KNEE * peak + peak) / max(peak - 1, 1e-6)
    scale = (b * b + 2 * b * KNEE + KNEE * KNEE) / (b - a)
    return np.where(light <= KNEE, light, scale * (light + a) / (light + b))


def _pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, signal 0 to 1."""
    root = signal ** (1 / 78.84375)
    return 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)


def _hlg_to_nits(signal: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 on a display of 1,000 nits (ITU-R BT.2100), signal 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal * signal / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    return HDR_PEAK * scene * luminance[..., None] ** 0.2


# ------------------------------------------------------------------------------------------------------- fields


def is_interlaced(frame) -> bool:
    """Whether a frame holds two fields of different moments: by its flag, or because it is combed."""
    return frame.interlaced_frame or combed_share(frame) > COMBED_SHARE


def combed_share(frame) -> float:
    """Share of a frame's cells that are combed; 0.0 for formats that are not planar YUV or grey.

    After ffmpeg's idet: where two fields differ, a line differs more from the next line than from the one after it.
    """
    if not frame.format.is_planar or frame.format.is_rgb or frame.height < 4 * CELL_ROWS:
        return 0.0
    luma = _luma(frame)
    rows = (len(luma) - 2) // CELL_ROWS * CELL_ROWS
    columns = luma.shape[1] // CELL_COLUMNS * CELL_COLUMNS
    luma = luma[: rows + 2, :columns]
    to_next = _cell_sums(_difference(luma[:rows], luma[1 : rows + 1]))
    to_after_next = _cell_sums(_difference(luma[:rows], luma[2 : rows + 2]))
    is_strong = to_next > 6 * CELL_ROWS * CELL_COLUMNS
    return float((is_strong & (to_next > 1.4 * to_after_next)).mean())


def _luma(frame) -> np.ndarray:
    """Some columns of the first plane, uint8 [H, W / COLUMN_STEP]."""
    plane = frame.planes[0]
    bits = frame.format.components[0].bits
    if bits == 8:
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, -1)
        return np.ascontiguousarray(lines[:, : plane.width : COLUMN_STEP])
    lines = np.frombuffer(plane, "<u2").reshape(plane.height, -1)
    return (lines[:, : plane.width : COLUMN_STEP] >> (bits - 8)).astype(np.uint8)


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Absolute difference of uint8 arrays."""
    return np.maximum(one, other) - np.minimum(one, other)


def _cell_sums(values: np.ndarray) -> np.ndarray:
    """Sums over cells of CELL_ROWS x CELL_COLUMNS."""
    height, width = values.shape
    by_row = values.reshape(height // CELL_ROWS, CELL_ROWS, width).sum(axis=1, dtype=np.uint16)
    return by_row.reshape(-1, width // CELL_COLUMNS, CELL_COLUMNS).sum(axis=2, dtype=np.uint32)


def deinterlace(frame, height: int):
    """The frame with the lines of one field alone. height: of the picture to be made from it, pixels.

    bwdif and yadif weave both fields together where they are not shown the frames before and after, which a keyframe
    is read without. So the second field's lines are left out where the picture will be small, else filled in from
    the first field's (ffmpeg's estdif).
    """
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    if 2 * height <= frame.height:
        filled = graph.add("field", "top")
    else:
        filled = graph.add("estdif", "mode=frame:rslope=1:redge=0")
    graph.link_nodes(source, filled, graph.add("buffersink")).configure()
    graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()


# -------------------------------------------------------------------------------------------------- orientation


def read_side_data(frame):
    """What a frame carries beside its pixels, a mapping by FFmpeg's names; read it once a film.

    PyAV never frees a frame whose side data was looked at, so that of a tiny copy is.
    """
    return frame.reformat(width=16, height=16, format="gray", threads=1).side_data


def display_matrix(frame) -> Matrix:
    """The display matrix of a frame's film, as quarter turns; UPRIGHT where there is none."""
    side_data = read_side_data(frame).get("DISPLAYMATRIX")
    if side_data is None:
        return UPRIGHT
    values = np.frombuffer(side_data, np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def turns_sideways(matrix: Matrix) -> bool:
    """Whether a display matrix swaps width and height."""
    a, b, c, d = matrix
    return abs(a) + abs(d) < abs(b) + abs(c)


def turn(rgb: np.ndarray, matrix: Matrix) -> np.ndarray:
    """The picture [H, W, 3] turned and mirrored in the quarter turns that are nearest to the matrix."""
    a, b, c, d = matrix
    if turns_sideways(matrix):
        rgb = rgb.swapaxes(0, 1)
        a, d = c, b
    if a < 0:
        rgb = rgb[:, ::-1]
    if d < 0:
        rgb = rgb[::-1]
    return rgb
