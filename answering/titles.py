"""Titles of films: how lists and files write them, when two are the same, and how a folder can be named."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import PurePath

from answering.console import UserError

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


# ---------------------------------------------------------------------------------- names of video files

YEAR = r"(?:18[89]\d|19\d\d|20[0-4]\d)"
BRACKETED_YEAR = re.compile(  # (1999), and (Some Director, 1999) or [1999, country, genre]
    rf"(?:\([^()]*\)\s*)?\[({YEAR}),[^\]]*\]|[(\[{{](?:[^()\[\]]*,)?\s*({YEAR})\s*[)\]}}]"
)
BARE_YEAR = re.compile(rf"(?<![^\s._-])({YEAR})г?(?![^\s._,-])")
YEAR_FIRST = re.compile(rf"({YEAR})(?:\s*[-–]\s+|_{{2,}})(?=\S)")
SXXEYY = re.compile(
    r"(?i)(?<![^\W_])s(\d{1,4})[\s._-]*e(?:p[\s._]?)?(\d{1,4})(?:(?:[\s._]*-?[\s._]*e|-)(\d{1,4})(?!\w))?"
    r"|(?<![^\W_])(\d{1,2})x(\d{2,3})(?![^\W_])"
    r"|(?<![^\W_])season[\s._-]*(\d{1,4})[\s._-]*episode[\s._-]*(\d{1,4})"
)
DATE = re.compile(
    r"(?<!\d)(?:(19\d\d|20\d\d)([\s._-])(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])"
    r"|(0[1-9]|[12]\d|3[01])([\s._-])(0[1-9]|1[0-2])\6(19\d\d|20\d\d))(?!\d)"
)
ANIME_EPISODE = re.compile(r"^\[[^\]]+\].*?\s-\s(?:ep?\.?\s?)?(\d{2,4})(?:v\d)?(?=\s*(?:$|[\[(]|-\s))", re.IGNORECASE)
SEASON_FOLDER = re.compile(
    r"(?i)(?:season|series|staffel|saison|temporada|stagione|сезон|s)[\s._-]*(\d{1,4})|(specials)|(\d{1,2})[\s._-]*сезон"
)
EPISODE_IN_SEASON = re.compile(
    r"(?i)(?:^|(?<![^\W_])(?:episode|ep|e|folge|серия)[\s._#-]*|\s-\s)(\d{1,3})(?![\dpix])|(?<!\d)(\d{1,3})[\s._-]*серия"
)
BARE_EPISODE = re.compile(r"(?i)(?<![^\W_])ep?[\s._]?(\d{2,3})(?![^\W_])")
ANIME_SHOW = re.compile(r" (?:S(\d{1,2})|(\d)(?:st|nd|rd|th) Season|\(?Season (\d{1,2})\)?)$")
SITE = r"(?:www\.[\w.-]+|[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|info|ws|to|tv|mx|me|cc|io|site|xyz))"
FRAME_BEFORE = re.compile(
    rf"(?i)\s*(?:[\[【](?!rec\])[^\]】]*[\]】][\s._-]*|[({{]?\s*{SITE}\s*[)}}]?\s*[-–_]+\s*|\d{{1,2}}[.)]\s+|0[1-9](?:\s*-\s+|_+|[.](?=\D)))"
)
IMDB = re.compile(r"(?<=\w)[\s._-]+tt\d{7,8}(?!\w)")
SITE_AFTER = re.compile(rf"(?i)(?<=\S)\s*[-–\[(]\s*{SITE}\s*[)\]]?$")
COPY_MARK = re.compile(r"(?i)(?<=\S)(?: - (?:copy|kopie|copie|copia|копия)(?: ?\(\d+\))?| \(\d\)| copy(?: \d)?)$")
PIECE = re.compile(
    r"(?i)[\s._(\[-]*(?<![^\W_])(?:cd|disc|disk|dvd|dvdisc)[\s._-]?(\d{1,2})(?:\s?of\s?\d{1,2})?(?![^\W_])[)\]]?"
)
QUALITY = re.compile(r"(?i)(?<![^\W_])(\d{3,4}[pi]|[48]k|uhd)(?![^\W_])")
PIECE_AFTER_YEAR = re.compile(
    r"(?i)^[\s._(\[-]*(?:(?:part|pt|cd|disc|disk|dvd|серия|часть)[\s._-]?(\d{1,2})|(\d)[\s._-]*(?:серия|часть))[)\]]?$"
)
GENERIC = re.compile(
    r"(?i)(the )?(main )?(full )?(movies?|films?|videos?|features?|main|index|title|untitled|output|default|stream)"
    r"|video ts|vts( \d+)+|title t?\d+|(\w+ )?t\d\d|\d{5}|0\d*|track ?\d+|clip ?\d*"
    r"|(cd|dis[ck]|dvd|part|pt) ?\d*|tt\d{6,}|(?=.*\d)[0-9a-f]{8,}|downloads?|media|data|bdmv|playlist|new folder"
    r"|\d{3,4}[pi]|filme?|фильмы?|кино|видео"
)
EDITION_WORDS = (
    r"director'?s?|final|theatrical|extended|ultimate|special|collector'?s?|international|unrated|original|uncut"
)
EDITION_WORDS += r"|anniversary|\d+th[\s._]anniversary|criterion|rogue|assembly|producer'?s|alternat(?:iv)?e|complete"
EDITION_PHRASE = rf"(?:the[\s._]+)?(?:(?:{EDITION_WORDS})[\s._]+(?:and[\s._]+)?)+(?:cut|edition|version)"
EDITION = re.compile(rf"(?i){EDITION_PHRASE}|remastered|imax(?:[\s._]edition)?|redux|unrated|extended|theatrical|uncut")
EDITION_AT_END = re.compile(  # of a title before its year, where "Uncut", "Limited" and "Redux" belong to the title
    rf"(?i)[\s._([-]+(?:{EDITION_PHRASE}|(?:extended|unrated|theatrical|remastered|imax|(?-i:DC)))[\s._)\]-]*$"
)
TAG_HINT = re.compile(  # no name without one of these holds a technical tag
    r"(?i)\d{3,4}[pix]|\d{3,4}\s?x\s?\d{3}|\dk|rip|ray|b[dr]|dvd|web|tv|[xh][._ ]?26|hevc|avc|xvid|divx|mp[34]|ac-?3"
    r"|aac|dts|flac|mux|hd|dolby|atmos|ddp?|cam|t[sc]|scr|r\d|vhs|vcd|multi|dual|vo|sub|bit|av1|vp\d|vc|mpe?g|fps|ch"
    r"|dl|ld|pal|ntsc"
)
TECHNICAL = {  # what guessit calls what is never a part of a title
    "screen_size",
    "source",
    "video_codec",
    "audio_codec",
    "audio_channels",
    "video_profile",
    "audio_profile",
    "color_depth",
    "frame_rate",
    "crc32",
    "container",
}
TECHNICAL_VALUES = {  # of "other" and "language", likewise
    "Ultra HD",
    "HDR10",
    "Dolby Vision",
    "Remux",
    "Rip",
    "Screener",
    "Half Side By Side",
    "Dual Audio",
    "mul",
}
TAGS = {
    "other",
    "edition",
    "language",
    "subtitle_language",
    "streaming_service",
}  # it may be, unless it is beside the former


@dataclass(frozen=True)
class VideoName:
    """What the name of a video file, or of a folder, means."""

    title: str  # without the year; "Show S01E02" for an episode
    year: int | None = None
    piece: int | None = None  # number of its CD or disc, where the film is in pieces
    edition: str = ""  # such as Director's Cut
    quality: str = ""  # such as 1080p
    episode: str = ""  # S01E02, or a date

    @property
    def full(self) -> str:
        """ "Title (Year)", "Title", "Show S01E02" or "Show (Year) S01E02"."""
        text = f"{self.title} ({self.year})" if self.year else self.title
        return f"{text} {self.episode}" if self.episode else text

    @property
    def is_generic(self) -> bool:
        """Whether the name says nothing of the film: movie, 00000, VTS_01_1."""
        return self.year is None and (not self.title or GENERIC.fullmatch(self.title) is not None)


def tidy(text: str) -> str:
    """NFC, without control characters and what UTF-8 can't write; spaces single."""
    text = text.encode(errors="replace").decode() if not text.isascii() else text
    text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in unicodedata.normalize("NFC", text))
    return " ".join(text.split())


def spell_out(text: str) -> str:
    """A.Title.of.Words or a_title_of_words as words; dots of S.W.A.T. stay, and those of a text that has spaces."""
    text = text.replace("_", " ").strip()
    if " " not in text and not re.fullmatch(r"\W*\d+\.\d+", text):
        text = re.sub(r"(?<![^.])((?:[A-Z]\.){2,})", lambda found: found[1].replace(".", "\0") + ".", text)
        text = text.replace(".", " ").replace("\0", ".")
    text = re.sub(r"\s+", " ", text)
    stripped = re.sub(r"^\.(?!\.)", "", text.strip(" -–—,_")).rstrip(" -–—.,_")
    return stripped + "." * bool(re.search(r"(?:\b\w\.){2,}\s*$", text))


def first_number(found: re.Match) -> int:
    """The number that a pattern has found, in whichever of its groups."""
    return int(next(group for group in found.groups() if group))


def without_frame(text: str) -> str:
    """The name without what sites, groups and systems put before and after it: [Group], www.site.com -, 01 -, (1)."""
    text = COPY_MARK.sub("", SITE_AFTER.sub("", IMDB.sub("", text)))
    while True:
        found = FRAME_BEFORE.match(text)
        if not found or not re.search(r"\w", BRACKETED_YEAR.split(text[found.end() :])[0]):
            return text
        text = text[found.end() :]


def find_tags(text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Spans (start, end) of what guessit takes for technical, and of its editions, languages and the like."""
    if not TAG_HINT.search(text):  # guessit takes 8 ms a name
        return [], []
    try:
        from guessit import guessit
    except ImportError:
        raise UserError("names of video files are read with guessit: pip install guessit") from None
    try:
        found = guessit(text, {"type": "movie", "advanced": True, "includes": sorted({"year", *TECHNICAL, *TAGS})})
    except Exception:  # it raises its own kind on names that it can't read
        return [], []
    spans: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for kind, matches in found.items():
        if kind in TECHNICAL or kind in TAGS:
            for match in matches if isinstance(matches, list) else [matches]:
                is_technical = kind in TECHNICAL or str(match.value) in TECHNICAL_VALUES
                spans[is_technical].append(match.span)
    return sorted(spans[True]), sorted(spans[False])


@lru_cache(maxsize=10_000)  # a folder is asked for each of its files
def read_name(name: str) -> VideoName:
    """What a file's name without its suffix, or a folder's name, means."""
    text = without_frame(tidy(name))
    if found := find_episode(text):
        return found
    piece = PIECE.search(text)
    if piece:
        text = text[: piece.start()] + text[piece.end() :]
    if (year := BRACKETED_YEAR.search(text)) and text[: year.start()].strip(" ._-"):
        found = VideoName(drop_notes(text[: year.start()]), first_number(year))
        rest = text[year.end() :]
        piece = piece or PIECE_AFTER_YEAR.search(rest)
    elif year and not text[: year.start()].strip(" ._-"):  # (1999) The Matrix
        rest = text[year.end() :]
        found = replace(read_name(rest), year=first_number(year))
    elif year := YEAR_FIRST.match(text):  # 1999 - The Matrix
        rest = text[year.end() :]
        found = read_name(rest)
        found = replace(found, year=found.year or first_number(year))
    else:
        found, rest = read_scene_name(text)
    edition = EDITION.search(rest)
    quality = QUALITY.search(rest)
    return replace(
        found,
        piece=first_number(piece) if piece else None,
        edition=spell_out(edition[0]) if edition else found.edition,
        quality=quality[1].lower() if quality else found.quality,
    )


def find_episode(text: str) -> VideoName | None:
    """The episode of a series that a name says, by S01E02, 1x02, a date or the number after a group's anime."""
    episode = ""
    if found := SXXEYY.search(text):
        if found[4] and re.match(rf"[\s._-]*[(\[]?{YEAR}\b", text[found.end() :]):  # 10x10 (2018)
            return None
        season, number = (found[1], found[2]) if found[1] else (found[4] or found[6], found[5] or found[7])
        episode = f"S{int(season):02}E{int(number):02}"
        if found[3]:
            episode += f"-E{int(found[3]):02}"
    elif (found := DATE.search(text)) and not BRACKETED_YEAR.search(text[: found.start()]):
        year, month, day = (found[1], found[3], found[4]) if found[1] else (found[8], found[7], found[5])
        episode = f"{year}-{month}-{day}"
    if not episode:
        return None
    show = text[: found.start()].strip(" ._-([")
    if not show:
        return VideoName("", episode=episode)
    return replace(read_name(show), episode=episode)


def drop_notes(title: str) -> str:
    """A title as words, without tags in square brackets and an edition at its end."""
    title = re.sub(r"(?<=\w)([\s._]*)(\[[^\]]*\]|\(\s*\)|\{[^}]*\})", " ", title)
    title = re.sub(r"[\[({][^\])}]*$", "", title)  # a bracket that a tag in it has cut off
    title = re.sub(r"(?i)[\s._-]v\d\s*$", "", title)  # the group's second try
    found = EDITION_AT_END.search(title)
    if found and title[: found.start()].strip().lower() not in ("", *ARTICLES):
        title = title[: found.start()]
    return spell_out(title)


def read_scene_name(text: str) -> tuple[VideoName, str]:
    """(name, the rest after the title) of a name without a year in brackets, such as Title.Year.1080p.BluRay-GROUP."""
    technical, tags = find_tags(text)
    brackets = re.search(r"(?<=\w)[\s._]*[\[{]", text)
    ends = [start for start, _ in technical if start > 0]
    if brackets:
        ends.append(brackets.start())
    end = min(ends, default=len(text))
    last = date.today().year + 1
    years = [found for found in BARE_YEAR.finditer(text) if found.start() > 0 and int(found[1]) <= last]
    before = [found for found in years if found.start() <= end]
    if before:
        stop = min((start for start, _ in tags if start >= before[0].end()), default=end)
        year = [found for found in before if found.start() < stop or found is before[0]][-1]
        end = drop_capitals(text, tags, year.start())
        return VideoName(drop_notes(text[:end]), first_number(year)), text[end : year.start()] + text[year.end() :]
    for start, stop in reversed(tags):
        if start > 0 and stop <= end < len(text) and not re.search(r"\w", text[stop:end]):
            end = start
    if technical and technical[0][0] == 0 and not re.search(r"\w", cut_spans(text, technical + tags)):
        end = 0  # all of it is technical: BluRay, 1080p x264
    return VideoName(drop_notes(text[:end]), int(years[0][1]) if years else None), text[end:]


def cut_spans(text: str, spans: list[tuple[int, int]]) -> str:
    """A text without the characters of some spans."""
    inside = {place for start, stop in spans for place in range(start, stop)}
    return "".join(c for place, c in enumerate(text) if place not in inside)


def drop_capitals(text: str, tags: list[tuple[int, int]], end: int) -> int:
    """Where the title of a text[:end] ends that tags in capitals follow, such as GERMAN and 3D."""
    for start, stop in reversed(tags):
        tag = text[start:stop].strip(" ._-")
        beside = start > 0 and stop <= end and not re.search(r"\w", text[stop:end])
        if beside and tag.isupper() and not text[:start].isupper():
            end = start
    return end


def name_video(path: str | PurePath, above: Sequence[str] = (), *, alone: bool = False) -> VideoName:
    """What a video file is by its path below the folder that was given.

    above: names of that folder and of those above it, the nearest first. alone: it is the only film in its folder, so
    that a folder named Title (Year) names it. A name that says nothing (movie, 00000, VTS_01_1) takes its folder's.
    """
    path = PurePath(path)
    own = read_name(path.stem)
    season = None
    folder = VideoName("")  # the nearest that says something
    for name in [*reversed(path.parts[:-1]), *above]:
        if found := SEASON_FOLDER.fullmatch(tidy(name)):
            season = season or (0 if found[2] else first_number(found))
            continue
        folder = read_name(name)
        own = replace(own, piece=own.piece or folder.piece)
        if not folder.is_generic:
            break
    own = find_numbered_episode(tidy(path.stem.replace("_", " ")), season) or own
    if folder.is_generic:
        return own if own.title else replace(own, title=tidy(path.stem))
    return merge_names(own, folder, alone=alone)


def find_numbered_episode(stem: str, season: int | None) -> VideoName | None:
    """The episode of a file that says a bare number, as in a season's folder and in a group's anime."""
    if read_name(stem).episode:
        return None
    if found := ANIME_EPISODE.match(stem):
        show = stem[: found.start(1)].rstrip(" -")
        if numbered := ANIME_SHOW.search(show):
            show = show[: numbered.start()]
            season = first_number(numbered)
        return replace(read_name(show), episode=f"S{season or 1:02}E{int(found[1]):02}")
    if season is not None and (found := EPISODE_IN_SEASON.search(stem)):
        return VideoName("", episode=f"S{season:02}E{first_number(found):02}")
    if found := BARE_EPISODE.search(stem):
        return replace(read_name(stem[: found.start()]), episode=f"S01E{int(found[1]):02}")
    return None


def merge_names(own: VideoName, folder: VideoName, *, alone: bool) -> VideoName:
    """What a file is by its own name and its folder's."""
    mine, its = (normalise_title(name.title).split() for name in (own, folder))
    takes_folder = own.is_generic or not own.title
    if own.year is None and not takes_folder:
        related = its[: len(mine)] == mine
        says_more = folder.year is not None or (own.episode != "" and len(its) > len(mine))
        takes_folder = related and says_more
        takes_folder |= alone and folder.year is not None and not own.episode
    if own.year is not None and own.year == folder.year and not own.episode:  # grp-title.1999 in title.1999-grp
        takes_folder = takes_folder or mine[-len(its) :] == its
    if not takes_folder:
        return own
    return replace(
        own,
        title=folder.title,
        year=folder.year or own.year,
        edition=own.edition or folder.edition,
        quality=own.quality or folder.quality,
    )
