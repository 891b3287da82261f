"""A mark of a picture, by which one that a user sends again is known although it was made smaller or saved anew."""

import numpy as np
from PIL import Image

NEAR_BITS = 6  # of 64 that may differ; pictures of two films differ in about 32


def mark_picture(rgb: np.ndarray) -> str:
    """16 hexadecimal digits for a picture uint8 [H, W, 3]: where it gets brighter to the right, in 8 x 8 places.

    The difference hash, https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html.
    """
    grey = Image.fromarray(np.ascontiguousarray(rgb)).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey, np.int16)
    return np.packbits(values[:, 1:] > values[:, :-1]).tobytes().hex()


def are_near(some: list[str], others: list[str]) -> bool:
    """Whether a picture of some is a picture of the others, by their marks."""
    return any(differing_bits(one, other) <= NEAR_BITS for one in telling(some) for other in telling(others))


def differing_bits(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def telling(marks: list[str]) -> list[str]:
    """Those of pictures that show something: black ones would all be the same."""
    return [mark for mark in marks if NEAR_BITS < int(mark, 16).bit_count() < 64 - NEAR_BITS]
