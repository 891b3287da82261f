"""Frames as people send them: cropped, compressed, grey, turned, photographed from a screen, inside a screenshot.

Nothing to run here. index.py learns from random copies what wear changes (vectors.py), train.py fits a head on such
copies (probe.py), and `bench.py robust` asks with the fixed ways, from other seeds. Crops and photos of a screen are
drawn alike in both, so there it asks for no more than what was learned.
"""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps
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


# --------------------------------------------------------------------------------- the ways that bench.py asks


def subtitle(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image, size = image.copy(), max(10, image.height // 14)
    place, font = (image.width // 2, int(0.88 * image.height)), ImageFont.load_default(size)
    text = "We have been here before,\nand you know how it ends."
    how = {"anchor": "mm", "align": "center", "stroke_width": max(1, size // 12), "stroke_fill": "black"}
    ImageDraw.Draw(image).multiline_text(place, text, fill="white", font=font, **how)
    return image


def add_bars(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    framed = Image.new("RGB", (image.width, int(image.height * rng.uniform(1.2, 1.4))))
    framed.paste(image, (0, (framed.height - image.height) // 2))
    return framed


def middle_square(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.fit(image, (min(image.size),) * 2, SMOOTH)


def screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A phone's screen of 540 x 1170 with a player, and comments below it."""
    dark, font = rng.random() < 0.5, ImageFont.load_default(15)
    ground, ink, grey = (("#121212", "#e6e6e6", "#3c3c3c"), ("#ffffff", "#141414", "#e1e1e1"))[0 if dark else 1]
    screen, image, top = Image.new("RGB", (540, 1170), ground), resize(image, 540), int(rng.integers(60, 300))
    draw = ImageDraw.Draw(screen)
    draw.text((24, 10), "21:07", fill=ink, font=font)
    draw.rectangle((480, 12, 510, 26), outline=ink)
    screen.paste(image, (0, top))
    y = top + image.height
    draw.rectangle((0, y - 4, int(540 * rng.uniform(0.1, 0.9)), y), fill="#e61e1e")
    draw.text((16, y + 12), "What is this film called?", fill=ink, font=font)
    for x in range(16, 500, 125):
        draw.rounded_rectangle((x, y + 44, x + 110, y + 78), 16, fill=grey)
    for y in range(top + image.height + 104, 1090, 84):
        draw.ellipse((16, y, 50, y + 34), fill=tuple(rng.integers(40, 220, 3).tolist()))
        for line in range(int(rng.integers(1, 4))):
            words = ["no idea", "great scene", "seen it twice", "who plays her?", "thanks", "the ending!"]
            draw.text((62, y + 20 * line), ", ".join(rng.permutation(words)[:3]), fill=ink, font=font)
    draw.rectangle((0, 1110, 540, 1170), fill=grey)
    return screen


WAYS = {
    "as it is": lambda image, rng: image,
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "bars added": add_bars,
    "subtitled": subtitle,
    "crop, 80% of the sides": lambda image, rng: crop(image, 0.8, 0.8, rng),
    "crop, 60% of the sides": lambda image, rng: crop(image, 0.6, 0.6, rng),
    "crop, 40% of the sides": lambda image, rng: crop(image, 0.4, 0.4, rng),
    "square from the middle": middle_square,
    "turned by 4 degrees": lambda image, rng: image.rotate(4 * rng.choice([-1, 1]), Image.Resampling.BICUBIC),
    "JPEG at quality 15": lambda image, rng: compress(image, 15),
    "240 pixels wide": lambda image, rng: compress(resize(image, 240), 80),
    "brighter, more contrast": lambda image, rng: ImageEnhance.Contrast(
        ImageEnhance.Brightness(image).enhance(1.3)
    ).enhance(1.4),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "photo of a screen": photo,
    "a phone's screenshot": screenshot,
}
