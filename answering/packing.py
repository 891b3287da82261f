"""What a collection keeps of a still, in few bytes: its embedding, and a small picture."""

import io

import numpy as np
from PIL import Image

FEW = 64  # rows: with so few, a projection has dimensions in which they hardly differ, where coarse steps would tell
THUMBNAIL = 200  # pixels of the longer side: enough to tell a scene, in 3 KB
WEBP_QUALITY = 60


def pack_embedding(embedding: np.ndarray) -> bytes:
    """Finite embeddings [n, D] in 8 bits a number: each dimension in 255 steps from its least to its greatest.

    Of fewer than FEW rows 16 bits and 65,535 steps. First comes the size of a number, uint32, then the least and the
    step, float32 [2, D], then the numbers [n, D].
    """
    embedding = embedding.astype(np.float32)
    if not len(embedding):
        return b""
    kind = np.uint16 if len(embedding) < FEW else np.uint8
    steps = np.iinfo(kind).max
    least = embedding.min(0)
    step = np.maximum((embedding.max(0) - least) / steps, 1e-12)
    numbers = np.round((embedding - least) / step).clip(0, steps).astype(kind)
    return np.uint32(numbers.itemsize).tobytes() + np.stack([least, step]).tobytes() + numbers.tobytes()


def unpack_embedding(packed: bytes, dims: int) -> np.ndarray:
    """What pack_embedding made of rows of so many dimensions, float32 [n, D]. Raises ValueError for other bytes."""
    if not packed:
        return np.zeros((0, dims), np.float32)
    size = int(np.frombuffer(packed, np.uint32, 1)[0])
    if size not in (1, 2):
        raise ValueError("size of a number")
    least, step = np.frombuffer(packed, np.float32, 2 * dims, offset=4).reshape(2, dims)
    numbers = np.frombuffer(packed, f"u{size}", offset=4 + 8 * dims).reshape(-1, dims)
    return least + numbers * step


def make_thumbnail(image: Image.Image, shape: tuple[int, int] | None = None) -> bytes:
    """A small WebP. shape: width and height that the picture had before it was squashed, if it was."""
    small = image.convert("RGB")
    if shape:
        small = small.resize((max(1, round(small.height * shape[0] / shape[1])), small.height))
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    small.save(packed, "WEBP", quality=WEBP_QUALITY)
    return packed.getvalue()
