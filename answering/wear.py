"""Frames as people send them: cropped, compressed, grey, turned, photographed from a screen, inside a screenshot.

Nothing to run here. index.py learns from random copies what wear changes (vectors.py), train.py fits a head on such
copies (probe.py), and `bench.py robust` asks with the fixed ways, from other seeds. Crops and photos of a screen are
drawn alike in both, so there it asks for no more than what was learned.
"""

import io
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from PIL.Image import open as open_image  # ultralytics replaces Image.open in the whole process

SMOOTH = Image.Resampling.BILINEAR


def compress(image: Image.Image, quality: int) -> Image.Image:
    """As JPEG at this quality, and back."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality)
    return open_image(packed).convert("RGB")


def resize(image: Image.Image, width: int) -> Image.Image:
    """To this width in pixels, aspect ratio kept; no higher than four times that."""
    return image.resize((width, min(4 * width, max(16, round(width * image.height / image.width)))), SMOOTH)


def crop(image: Image.Image, wide: float, high: float, rng: np.random.Generator) -> Image.Image:
    """A part of these shares of width and height, anywhere."""
    width, height = max(16, int(min(wide, 1) * image.width)), max(16, int(min(high, 1) * image.height))
    left, top = int(rng.uniform(0, image.width - width)), int(rng.uniform(0, image.height - height))
    return image.crop((left, top, left + width, top + height))


def photo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photo of a screen: keystone, moire, glare, a tint, blur, noise."""
    image = resize(image, 640)
    across, down = image.size
    corners = [(0, 0), (0, down), (across, down), (across, 0)]  # as Pillow goes round
    quad = (np.array(corners) + rng.uniform(-0.08, 0.06, (4, 2)) * image.size).ravel().tolist()
    image = image.transform(image.size, Image.Transform.QUAD, quad, SMOOTH)
    y, x = np.mgrid[:down, :across].astype(np.float32)
    angle, spot = rng.uniform(0, math.pi), rng.uniform(0, 1, 3)
    waves = np.sin(rng.uniform(0.6, 1.9) * (x * math.cos(angle) + y * math.sin(angle)))
    light = (1 + 0.08 * waves) * (1 - rng.uniform(0, 0.3))
    far = (x / across - spot[0]) ** 2 + (y / down - spot[1]) ** 2
    glare = rng.uniform(30, 100) * np.exp(-far / (0.05 + 0.2 * spot[2])) + 10
    tint = np.float32([1, 1, 1 + rng.uniform(-0.12, 0.06)])
    lit = np.asarray(image, np.float32) * light[..., None] * tint + glare[..., None]
    image = Image.fromarray((lit + rng.normal(0, 3, lit.shape)).clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.8)))
    return compress(ImageEnhance.Color(image).enhance(rng.uniform(0.7, 1.1)), int(rng.integers(40, 75)))


def tone(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Other colours, brightness and contrast; grey in two cases of five."""
    colour = 0.0 if rng.random() < 0.4 else rng.uniform(0.3, 1.6)
    image = ImageEnhance.Brightness(ImageEnhance.Color(image).enhance(colour)).enhance(rng.uniform(0.6, 1.5))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.5))


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side, shape = rng.uniform(0.4, 0.9), math.exp(rng.uniform(-0.2, 0.2))
    return crop(image, side * shape, side / shape, rng)


def shrink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Small, and compressed once or twice."""
    image = resize(image, int(math.exp(rng.uniform(math.log(150), math.log(500)))))
    for _ in range(int(rng.integers(1, 3))):
        image = compress(image, int(rng.integers(10, 45)))
    return image


def turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.rotate(rng.uniform(-8, 8), SMOOTH, expand=bool(rng.random() < 0.3))


COPIES = [photo, random_crop, shrink, tone, turn]  # what is learned from: wear(image, kind, rng)


def wear(image: Image.Image, kind: int, rng: np.random.Generator) -> Image.Image:
    """A random worn copy. image: RGB; kind: number in COPIES."""
    return COPIES[kind](image, rng)
