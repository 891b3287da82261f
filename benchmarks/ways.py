"""ways"""

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from answering.wear import SMOOTH, compress, crop, photo, resize

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
