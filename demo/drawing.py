"""What the rendered films are drawn with: silhouettes, patterns, clouds. For demo/shot.py."""

from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

# a cell of every pattern: a and b run from 0 to 1 across it
PATTERNS = {
    "stripes": lambda a, b: a < 0.5,
    "checks": lambda a, b: (a < 0.5) ^ (b < 0.5),
    "grid": lambda a, b: (a < 0.12) | (b < 0.12),
    "dots": lambda a, b: np.hypot(a - 0.5, b - 0.5) < 0.3,
    "diamonds": lambda a, b: abs(a - 0.5) + abs(b - 0.5) < 0.36,
    "waves": lambda a, b: (b + 0.16 * np.sin(2 * np.pi * a)) % 1 < 0.5,
    "bricks": lambda a, b: ((b * 2) % 1 < 0.16) | ((a + 0.5 * (b > 0.5)) % 1 < 0.08),
    "scallops": lambda a, b: abs(np.hypot(a - 0.5, b) - 0.42) < 0.09,
    "herringbone": lambda a, b: ((b + np.where(a < 0.5, a, -a)) * 2) % 1 < 0.5,
    "sunray": lambda a, b: (np.arctan2(b - 0.5, a - 0.5) / (2 * np.pi) * 10) % 1 < 0.5,
    "key": lambda a, b: (np.maximum(abs(a - 0.5), abs(b - 0.5)) * 6) % 1 < 0.5,
    "hexes": lambda a, b: np.maximum(abs(a - 0.5), abs(a - 0.5) / 2 + abs(b - 0.5)) > 0.42,
    "noise": lambda a, b: cv2.resize(noise_tile(), a.shape[::-1]),
}

Polygon = np.ndarray  # float [n, 2]: x from the middle, y up from the foot, in sizes of what is drawn


@cache
def shapes() -> dict[str, list[Polygon]]:
    """The drawings of silhouettes.svg by id."""
    paths = ElementTree.parse(Path(__file__).with_name("silhouettes.svg")).iter("{http://www.w3.org/2000/svg}path")
    return {path.get("id"): read_path(path.get("d")) for path in paths}


def read_path(text: str) -> list[Polygon]:
    """Polygons of the d of an SVG's path, which has absolute M and z alone, in hundredths, y down."""
    parts = text.replace("z", "").split("M")[1:]
    return [np.float64(part.split()).reshape(-1, 2) / (100, -100) for part in parts]


@cache
def noise_tile() -> np.ndarray:
    """Clouds: float32 [256, 256] in 0..1, the same for every film, wraps around."""
    rng = np.random.default_rng(0)
    tile = 0
    for cells in (4, 8, 16, 32, 64):
        grid = np.pad(rng.random((cells, cells), np.float32), cells // 4, mode="wrap")
        layer = cv2.resize(grid, (384, 384), interpolation=cv2.INTER_CUBIC)[64:320, 64:320]
        tile = tile + layer / len(grid) ** 0.8
    return (tile - tile.min()) / (tile.max() - tile.min())


@cache
def pattern(kind: str, cell: int, turned: int = 0) -> np.ndarray:
    """A tile of 2x2 cells of a pattern, uint8 [2 cell, 2 cell], antialiased."""
    across = (np.arange(8 * cell) + 0.5) / (4 * cell) % 1
    a, b = np.meshgrid(across, across)
    if turned:
        a, b = b, a
    full = np.float32(PATTERNS[kind](a, b))
    return np.uint8(255 * cv2.resize(full, (2 * cell, 2 * cell), interpolation=cv2.INTER_AREA))


def print_pattern(image: np.ndarray, kind: str, cell: float, turned: int, amount: float) -> None:
    """Prints a pattern on an image in place: its light parts make the colour lighter, its dark parts darker."""
    height, width = image.shape[:2]
    tile = pattern(kind, max(3, round(cell)), turned)
    factors = np.uint8(np.clip(200 * (1 + amount * (np.arange(256) / 255 - 0.5)), 0, 255))
    factor = np.tile(factors[tile], (height // len(tile) + 1, width // len(tile) + 1))[:height, :width]
    image[..., :3] = cv2.multiply(image[..., :3].copy(), cv2.cvtColor(factor, cv2.COLOR_GRAY2RGB), scale=1 / 200)


def stamp(image: np.ndarray, shape: str | list[Polygon], x: float, y: float, size, colour: tuple) -> None:
    """Draws a silhouette with its foot at (x, y); size in px, or (width, height)."""
    for polygon in shapes()[shape] if isinstance(shape, str) else shape:
        points = np.array([x, y]) + polygon * size * np.array([1, -1])
        cv2.fillPoly(image, [np.int32(points * 16)], colour, cv2.LINE_AA, 4)


def shift(image: np.ndarray, dx: float, dy: float, width: int, height: int, *, lean: float = 0.0) -> np.ndarray:
    """The window of this size on a layer that moved by (dx, dy) and leans about its foot."""
    matrix = np.float64([[1, -lean, dx + lean * image.shape[0]], [0, 1, dy]])
    return cv2.warpAffine(image, matrix, (width, height))


def over(below: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA laid on an RGB image of the same size."""
    inverse = cv2.cvtColor(255 - rgba[..., 3], cv2.COLOR_GRAY2RGB)
    return cv2.add(cv2.multiply(below, inverse, scale=1 / 255), cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB))
