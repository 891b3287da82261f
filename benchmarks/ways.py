"""The fixed ways in which `bench.py robust` degrades frames before it asks for their film."""

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from answering.wear import SMOOTH, compress, crop, photo, resize

COMMENTS = ["no idea", "great scene", "seen it twice", "who plays her?", "thanks", "the ending!"]


def subtitle(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With two lines of text at the bottom."""
    image = image.copy()
    size = max(10, image.height // 14)
    ImageDraw.Draw(image).multiline_text(
        (image.width // 2, int(0.88 * image.height)),
        "We have been here before,\nand you know how it ends.",
        fill="white",
        font=ImageFont.load_default(size),
        anchor="mm",
        align="center",
        stroke_width=max(1, size // 12),
        stroke_fill="black",
    )
    return image


def add_bars(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With black bars above and below, of 8 to 14% of the whole each."""
    framed = Image.new("RGB", (image.width, int(image.height * rng.uniform(1.2, 1.4))))
    framed.paste(image, (0, (framed.height - image.height) // 2))
    return framed


def middle_square(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The largest square in the middle."""
    return ImageOps.fit(image, (min(image.size),) * 2, SMOOTH)


def turn_4_degrees(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turned to the left or to the right."""
    return image.rotate(4 * rng.choice([-1, 1]), Image.Resampling.BICUBIC)


def brighten(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brighter by 30%, with 40% more contrast."""
    image = ImageEnhance.Brightness(image).enhance(1.3)
    return ImageEnhance.Contrast(image).enhance(1.4)


def screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A phone's screen of 540 x 1170 with a player, and comments below it."""
    is_dark = rng.random() < 0.5
    ground = "#121212" if is_dark else "#ffffff"
    ink = "#e6e6e6" if is_dark else "#141414"
    grey = "#3c3c3c" if is_dark else "#e1e1e1"
    font = ImageFont.load_default(15)
    screen = Image.new("RGB", (540, 1170), ground)
    image = resize(image, 540)
    top = int(rng.integers(60, 300))
    bottom = top + image.height
    draw = ImageDraw.Draw(screen)
    draw.text((24, 10), "21:07", fill=ink, font=font)
    draw.rectangle((480, 12, 510, 26), outline=ink)  # the battery
    screen.paste(image, (0, top))
    draw.rectangle((0, bottom - 4, int(540 * rng.uniform(0.1, 0.9)), bottom), fill="#e61e1e")  # how far it has played
    draw.text((16, bottom + 12), "What is this film called?", fill=ink, font=font)
    for x in range(16, 500, 125):  # buttons
        draw.rounded_rectangle((x, bottom + 44, x + 110, bottom + 78), 16, fill=grey)
    for y in range(bottom + 104, 1090, 84):
        draw_comment(draw, y, ink, font, rng)
    draw.rectangle((0, 1110, 540, 1170), fill=grey)
    return screen


def draw_comment(draw: ImageDraw.ImageDraw, y: int, ink: str, font, rng: np.random.Generator) -> None:
    """Somebody's round picture at this height, and one to three lines of text beside it."""
    draw.ellipse((16, y, 50, y + 34), fill=tuple(rng.integers(40, 220, 3).tolist()))
    for line in range(int(rng.integers(1, 4))):
        words = rng.permutation(COMMENTS)[:3]
        draw.text((62, y + 20 * line), ", ".join(words), fill=ink, font=font)


# {name in tables: function of an RGB image and a random generator}; the generator is used where something is drawn
WAYS = {
    "as it is": lambda image, rng: image,
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "bars added": add_bars,
    "subtitled": subtitle,
    "crop, 80% of the sides": lambda image, rng: crop(image, 0.8, 0.8, rng),
    "crop, 60% of the sides": lambda image, rng: crop(image, 0.6, 0.6, rng),
    "crop, 40% of the sides": lambda image, rng: crop(image, 0.4, 0.4, rng),
    "square from the middle": middle_square,
    "turned by 4 degrees": turn_4_degrees,
    "JPEG at quality 15": lambda image, rng: compress(image, 15),
    "240 pixels wide": lambda image, rng: compress(resize(image, 240), 80),
    "brighter, more contrast": brighten,
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "photo of a screen": photo,
    "a phone's screenshot": screenshot,
}
