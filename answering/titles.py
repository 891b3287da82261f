"""Titles of films: how lists and files write them, when two are the same, and how a folder can be named."""

import hashlib
import re
import unicodedata
from pathlib import Path

# "Rocky II" and "Rocky 2" are one title; "I" is left out, for it is a word too
NUMERALS = {"ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6", "vii": "7", "viii": "8", "ix": "9", "x": "10"}
ARTICLES = ("the", "a", "an")


def split_title(line: str) -> tuple[str, int | None]:
    """ "Title (Year)" -> (title, year or None)."""
    line = line.strip()
    match = re.fullmatch(r"(.*?)\s*\((\d{4})\)", line)
    if match and match[1]:
        return match[1], int(match[2])
    return line, None


def normalise_title(title: str) -> str:
    """The same key for all spellings of a title: case, accents, punctuation, article, & and numerals do not count."""
    text = unicodedata.normalize("NFKD", title.replace("&", " and ")).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"['’`]", "", text)
    words = re.sub(r"[^\w]|_", " ", text).split()
    if len(words) > 1 and words[-1] in ARTICLES and re.search(r",\s*\w+\s*$", title):  # "Matrix, The"
        words.pop()
    if len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return " ".join(NUMERALS.get(word, word) for word in words) or title.strip().casefold()


def short_hash(text: str) -> str:
    """Ten hexadecimal digits that tell texts apart."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]


def folder_name(title: str) -> str:
    """A title as the name of a folder on any system; characters that can't be there become their full-width twins."""
    text = unicodedata.normalize("NFC", title).translate({ord(c): ord(c) + 0xFEE0 for c in '<>:"/\\|?*'})
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C")  # no control characters
    text = " ".join(text.split()).rstrip(". ")
    reserved = re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$| )", text)  # names of devices on Windows
    if reserved or text.startswith("."):  # a leading dot would hide the folder
        text = f"_{text}"
    if len(text.encode()) > 150:
        text = f"{text.encode()[:139].decode(errors='ignore').strip()} {short_hash(title)}"
    return text or f"untitled {short_hash(title)}"


def name_video(path: Path) -> tuple[str, str]:
    """(Title, part) of a video by its file name: "The.Matrix.1999.cd1.mkv" is ("The Matrix (1999)", "1 None").

    Read by guessit. part: of the two numbers, of a disc and of a part, as text; "None" for one that is not in the name.
    """
    from guessit import guessit

    found = guessit(path.name)
    title = str(found.get("title") or path.stem)
    if found.get("type") == "episode" and isinstance(found.get("episode"), int):
        title += f" S{int(found.get('season') or 1):02}E{found['episode']:02}"
    if found.get("year"):
        title += f" ({found['year']})"
    return title, f"{found.get('cd')} {found.get('part')}"
