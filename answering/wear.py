"""Degraded copies of frames, as people send them: cropped, compressed, grey, turned, photographed from a screen.

COPIES are random ones to learn from: an index learns which differences to ignore, a head is trained on them.
benchmarks/ways.py has fixed ones to ask with. Crops and photos of a screen are drawn alike in both, so on these the
benchmark is optimistic.
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
    height = max(16, round(width * image.height / image.width))
    return image.resize((width, min(4 * width, height)), SMOOTH)


def crop(image: Image.Image, wide: float, high: float, rng: np.random.Generator) -> Image.Image:
    """A part of these shares of width and height, anywhere; at least 16 pixels a side."""
    width = max(16, int(min(wide, 1) * image.width))
    height = max(16, int(min(high, 1) * image.height))
    left = int(rng.uniform(0, image.width - width))
    top = int(rng.uniform(0, image.height - height))
    return image.crop((left, top, left + width, top + height))


def photo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photo of a screen: keystone, moire, glare, a tint, noise, blur, and JPEG."""
    image = keystone(resize(image, 640), rng)
    lit = light(np.asarray(image, np.float32), rng)
    noisy = lit + rng.normal(0, 3, lit.shape)
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.8)))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.7, 1.1))
    return compress(image, int(rng.integers(40, 75)))


def keystone(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """As seen from a little aside: each corner moves by up to 8% of the sides."""
    width, height = image.size
    corners = [(0, 0), (0, height), (width, height), (width, 0)]  # as Pillow goes round
    quad = np.array(corners) + rng.uniform(-0.08, 0.06, (4, 2)) * image.size
    return image.transform(image.size, Image.Transform.QUAD, quad.ravel().tolist(), SMOOTH)


def light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels [H, W, 3], 0 to 255 and beyond, under moire waves of any direction, a spot of glare and a tint."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    spot_x, spot_y, spot_size = rng.uniform(0, 1, 3)
    waves = np.sin(rng.uniform(0.6, 1.9) * (x * math.cos(angle) + y * math.sin(angle)))
    brightness = (1 + 0.08 * waves) * (1 - rng.uniform(0, 0.3))
    distance = (x / width - spot_x) ** 2 + (y / height - spot_y) ** 2
    glare = rng.uniform(30, 100) * np.exp(-distance / (0.05 + 0.2 * spot_size)) + 10
    tint = np.float32([1, 1, 1 + rng.uniform(-0.12, 0.06)])
    return pixels * brightness[..., None] * tint + glare[..., None]


def tone(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Other colours, brightness and contrast; grey in two cases of five."""
    colour = 0.0 if rng.random() < 0.4 else rng.uniform(0.3, 1.6)
    image = ImageEnhance.Color(image).enhance(colour)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.5))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.5))


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of 40 to 90% of the sides, a little wider or higher."""
    side = rng.uniform(0.4, 0.9)
    shape = math.exp(rng.uniform(-0.2, 0.2))
    return crop(image, side * shape, side / shape, rng)


def shrink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """150 to 500 pixels wide, and compressed once or twice."""
    image = resize(image, int(math.exp(rng.uniform(math.log(150), math.log(500)))))
    for _ in range(int(rng.integers(1, 3))):
        image = compress(image, int(rng.integers(10, 45)))
    return image


def turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turned by up to 8 degrees, the corners cut off or not."""
    return image.rotate(rng.uniform(-8, 8), SMOOTH, expand=bool(rng.random() < 0.3))


COPIES = [photo, random_crop, shrink, tone, turn]  # the kinds of random copies


def wear(image: Image.Image, kind: int, rng: np.random.Generator) -> Image.Image:
    """A random degraded copy. image: RGB; kind: number in COPIES."""
    return COPIES[kind](image, rng)
