"""titles"""

import hashlib
import re
import unicodedata
from pathlib import Path

NUMERALS = {"ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6", "vii": "7", "viii": "8", "ix": "9", "x": "10"}


def split_title(line: str) -> tuple[str, int | None]:
    """ "Title (Year)" -> (title, year or None)."""
    match = re.fullmatch(r"(.*?)\s*\((\d{4})\)", line.strip())
    return (match[1], int(match[2])) if match and match[1] else (line.strip(), None)


def normalise_title(title: str) -> str:
    """A key in which spellings of one title meet: case, accents, punctuation, article, & and numerals do not count."""
    text = unicodedata.normalize("NFKD", title.replace("&", " and ")).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    words = re.sub(r"[^\w]|_", " ", re.sub(r"['’`]", "", text)).split()
    if len(words) > 1 and words[-1] in ("the", "a", "an") and re.search(r",\s*\w+\s*$", title):  # "Matrix, The"
        words.pop()
    if len(words) > 1 and words[0] in ("the", "a", "an"):
        words = words[1:]
    return " ".join(NUMERALS.get(word, word) for word in words) or title.strip().casefold()


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]


def folder_name(title: str) -> str:
    """A title as the name of a folder on any system; characters that can't be there become their full-width twins."""
    text = unicodedata.normalize("NFC", title).translate({ord(c): ord(c) + 0xFEE0 for c in '<>:"/\\|?*'})
    text = " ".join("".join(c for c in text if unicodedata.category(c)[0] != "C").split()).rstrip(". ")
    reserved = re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$| )", text)
    text = f"_{text}" if reserved or text.startswith(".") else text  # a leading dot would hide the folder
    if len(text.encode()) > 150:
        text = f"{text.encode()[:139].decode(errors='ignore').strip()} {short_hash(title)}"
    return text or f"untitled {short_hash(title)}"


def name_video(path: Path) -> tuple[str, str]:
    """ "The.Matrix.1999.1080p.BluRay.cd1.mkv" -> ("The Matrix (1999)", which part of it), by guessit."""
    from guessit import guessit

    found = guessit(path.name)
    title = str(found.get("title") or path.stem)
    if found.get("type") == "episode" and isinstance(found.get("episode"), int):
        title += f" S{int(found.get('season') or 1):02}E{found['episode']:02}"
    return f"{title} ({found['year']})" if found.get("year") else title, f"{found.get('cd')} {found.get('part')}"
