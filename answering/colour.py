"""A decoded frame as a person sees it: one field's lines filled in, SDR, square pixels, upright; RGB.

Frames here are av.VideoFrame, as PyAV decodes them.
"""

import numpy as np

# numbers of ITU-T H.273, as files carry them
PQ = 16  # transfer characteristics: SMPTE ST 2084
HLG = 18  # ARIB STD-B67
UNTAGGED = (0, 2, 3)  # matrix coefficients: 0 is RGB, which swscale knows by the pixel format
HD_HEIGHT = 720  # untagged pictures of so many lines are BT.709, smaller ones BT.601, as players guess
SDR_WHITE = 203.0  # nits of diffuse white in HDR, ITU-R BT.2408
HDR_PEAK = 1000.0  # nits that become white
KNEE = 0.3  # of SDR white; up to here the curve is a straight line
BT2020_TO_BT709 = np.array(  # linear light, ITU-R BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
COMB = 0.03  # share of pixels with combs, above which an unflagged frame is taken as interlaced


def to_rgb(frame, aspect: float = 1.0, longest_side: int | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a decoded frame. aspect: of one pixel, width / height. longest_side: reduce to it, pixels."""
    from av.video.reformatter import ColorRange, Interpolation

    if is_interlaced(frame):
        frame = deinterlace(frame)
    width, height = shown_size(frame.width, frame.height, aspect, longest_side)
    hdr = frame.color_trc in (PQ, HLG)
    reduced = frame.reformat(
        width=width,
        height=height,
        format="rgb48le" if hdr else "rgb24",
        src_colorspace=_matrix(frame),
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND,
        threads=1,
    )
    rgb = reduced.to_ndarray()
    if hdr:
        rgb = tone_map(rgb, frame.color_trc)
    return np.ascontiguousarray(turn(rgb, display_matrix(frame)))


def shown_size(width: int, height: int, aspect: float, longest_side: int | None) -> tuple[int, int]:
    """(Width, height) in square pixels, reduced so that the longer one is at most longest_side."""
    shown = width * aspect
    scale = 1.0
    if longest_side:
        scale = min(1.0, longest_side / max(shown, height))
    return max(1, round(shown * scale)), max(1, round(height * scale))


def _matrix(frame) -> int | None:
    """The matrix to read YUV with where the file has no tag, else None."""
    from av.video.reformatter import Colorspace

    if frame.format.is_rgb or frame.colorspace not in UNTAGGED:
        return None
    return Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601


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
    return frame.interlaced_frame or comb_share(frame) > COMB


def comb_share(frame) -> float:
    """Share of pixels that differ from the lines above and below alike, while these two agree; 0.0 where unknown."""
    if not frame.format.is_planar or frame.format.is_rgb or frame.height < 32:
        return 0.0
    plane = frame.planes[0]
    dtype = np.uint8 if frame.format.components[0].bits == 8 else np.dtype("<u2")
    luma = np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width : 4].astype(np.int32)
    luma >>= frame.format.components[0].bits - 8
    above = luma[1:-1] - luma[:-2]
    below = luma[1:-1] - luma[2:]
    apart = np.abs(luma[2:] - luma[:-2])
    combed = (above * below > 100) & (apart < 10)
    return float(combed.mean())


def deinterlace(frame):
    """The frame with one field's lines kept and the other's filled in from them (ffmpeg's estdif)."""
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or "1/1000"
    )
    graph.link_nodes(source, graph.add("estdif", "mode=frame"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()


# -------------------------------------------------------------------------------------------------- orientation


def display_matrix(frame) -> tuple[int, int, int, int]:
    """(a, b, c, d) of the display matrix: x' = ax + cy, y' = bx + dy, of a picture whose y points down."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    values = np.frombuffer(side_data, np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def turn(rgb: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The picture [H, W, 3] turned and mirrored in quarter turns, nearest to the matrix (a, b, c, d)."""
    a, b, c, d = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        rgb = rgb.swapaxes(0, 1)
        a, d = c, b
    if a < 0:
        rgb = rgb[:, ::-1]
    if d < 0:
        rgb = rgb[::-1]
    return rgb
