"""What a collection keeps of a still, in few bytes: embeddings in 8 bits, and small pictures."""

import io

import numpy as np
from PIL import Image

THUMBNAIL = 200  # pixels of the longer side: enough to tell a scene, in 3 KB
WEBP_QUALITY = 60


def pack_embedding(embedding: np.ndarray) -> bytes:
    """Finite embeddings [n, D] in 8 bits a number: each dimension in 255 steps from its least to its greatest.

    The least and the step come first, float32 [2, D], then uint8 [n, D].
    """
    embedding = embedding.astype(np.float32)
    if not len(embedding):
        return b""
    least = embedding.min(0)
    step = np.maximum((embedding.max(0) - least) / 255, 1e-12)
    steps = np.round((embedding - least) / step).clip(0, 255).astype(np.uint8)
    return np.stack([least, step]).tobytes() + steps.tobytes()


def unpack_embedding(packed: bytes, dims: int) -> np.ndarray:
    """What pack_embedding made of rows of so many dimensions, float32 [n, D]. Raises ValueError for other bytes."""
    if not packed:
        return np.zeros((0, dims), np.float32)
    least, step = np.frombuffer(packed, np.float32, 2 * dims).reshape(2, dims)
    steps = np.frombuffer(packed, np.uint8, offset=8 * dims).reshape(-1, dims)
    return least + steps * step


def make_thumbnail(image: Image.Image) -> bytes:
    """A small WebP."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    small.save(packed, "WEBP", quality=WEBP_QUALITY)
    return packed.getvalue()
