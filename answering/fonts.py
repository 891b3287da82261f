"""Letters of any script in a picture: each by a font of this machine that has it, or the name of its script."""

import functools
import importlib.util
import shutil
import subprocess
import unicodedata
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

# tried by name in the system's folders, in this order; Windows and macOS have no fontconfig that could be asked
PLAIN = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf", "LiberationSans-Regular.ttf")
BOLD = ("DejaVuSans-Bold.ttf", "NotoSans-Bold.ttf", "segoeuib.ttf", "Arial Bold.ttf", "LiberationSans-Bold.ttf")
OTHERS = ("NotoSansCJK-Regular.ttc", "YuGothM.ttc", "msgothic.ttc", "msyh.ttc", "malgun.ttf", "Nirmala.ttf")
OTHERS += ("tahoma.ttf", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "PingFang.ttc", "Arial Unicode.ttf")
OTHERS += ("DejaVuSans.ttf",)
NO_LETTER = "\U0010fffe"  # no character, so every font draws its sign for a missing one
Font = ImageFont.FreeTypeFont


@functools.cache
def open_font(name: str, size: int) -> Font | None:
    """A font by its path, or by the name of its file in the system's folders; None where it can't be used."""
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ValueError):
        return None


@functools.cache
def base_font(size: int, bold: bool) -> Font:
    """The font of most letters: the system's, matplotlib's, or Pillow's own, which has Latin ones alone."""
    for name in BOLD if bold else PLAIN:
        if font := open_font(name, size):
            return font
    package = importlib.util.find_spec("matplotlib")
    if package and package.origin:
        own = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / (BOLD if bold else PLAIN)[0]
        if font := open_font(str(own), size):
            return font
    return ImageFont.load_default(size)


@functools.cache
def ask_fontconfig(character: str) -> str | None:
    """Path of the font that fontconfig would take for a character; None where it is not installed."""
    program = shutil.which("fc-match")
    if not program:
        return None
    pattern = f"sans:charset={ord(character):x}"
    ran = subprocess.run([program, "-f", "%{file}", pattern], capture_output=True, text=True, timeout=10)
    return ran.stdout or None


def has_letter(font: Font, character: str) -> bool:
    """Whether a font draws a character otherwise than one that it lacks."""
    masks = [font.getmask(text) for text in (character, NO_LETTER)]
    drawn, missing = [(mask.size, bytes(mask)) for mask in masks]
    return drawn != missing


def is_bare(character: str) -> bool:
    """Whether a character is nothing by itself: a space, a sign of direction, an accent on the one before."""
    return character.isspace() or unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc")


@functools.cache
def find_font(character: str, size: int, bold: bool) -> Font | None:
    """A font of this machine that has a character; None where there is none."""
    base = base_font(size, bold)
    if has_letter(base, character):
        return base
    for name in (ask_fontconfig(character), *OTHERS):
        font = open_font(name, size) if name else None
        if font and has_letter(font, character):
            return font
    return None


def name_script(character: str) -> str:
    """The script of a letter, as Unicode calls it, such as Hiragana or CJK."""
    word = unicodedata.name(character, "UNKNOWN").split()[0]
    return word if word == "CJK" else word.capitalize()


def split_runs(text: str, size: int, bold: bool = False) -> list[tuple[str, Font]]:
    """A text in parts that one font draws each; letters that no font has become the name of their script."""
    base = base_font(size, bold)
    fonts: list[Font | None] = []
    for character in text:
        bare = is_bare(character)
        fonts.append((fonts[-1] if fonts else base) if bare else find_font(character, size, bold))
    runs = []
    for font, letters in groupby(zip(text, fonts, strict=True), key=lambda pair: pair[1]):
        part = "".join(letter for letter, _ in letters)
        spaces = part[len(part.rstrip()) :]
        runs.append((part if font else f"[{name_script(part[0])} letters]{spaces}", font or base))
    return runs


def missing_letters(text: str) -> str:
    """The characters of a text that no font of this machine has."""
    return "".join(letter for letter in text if not is_bare(letter) and find_font(letter, 16, False) is None)


def measure(text: str, size: int, bold: bool = False) -> float:
    """Width of a text in pixels."""
    return sum(font.getlength(part) for part, font in split_runs(text, size, bold))


def wrap(text: str, width: int, size: int, bold: bool = False) -> list[str]:
    """A text in lines of at most so many pixels; words break only where they are longer than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if measure(joined, size, bold) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and measure(lines[-1] + letter, size, bold) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def draw_line(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, fill: str, bold=False) -> None:
    """Draw a line of text. place: its left end, and its baseline."""
    left, baseline = place
    for part, font in split_runs(text, size, bold):
        draw.text((left, baseline), part, fill, font, anchor="ls")
        left += font.getlength(part)
