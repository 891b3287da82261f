"""The films that files and folders are: copies, pieces and discs put together, extras and junk passed over."""

import csv
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from answering.console import UserError
from answering.discs import ASIDE, DISC_FOLDERS, Disc, disc_place, find_bluray, find_dvd, is_vob
from answering.stills import find_films, is_image, natural_key
from answering.titles import (
    SEASON_FOLDER,
    VideoName,
    folder_name,
    name_video,
    normalise_title,
    read_name,
    split_title,
    tidy,
)
from answering.video import VIDEO_SUFFIXES, read_duration

JUNK_FOLDERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "@recycle",
        "$recycle.bin",
        "recycler",
        "lost+found",
        "#snapshot",
        "system volume information",
    }
)
INCOMPLETE = frozenset([".part", ".crdownload", ".!qb", ".!ut", ".!bt", ".bc!", ".partial", ".download", ".aria2"])
DISC_IMAGES = frozenset([".iso", ".img", ".nrg", ".mdf"])
# names that Plex, Jellyfin and Kodi give to what is no film
EXTRAS_FOLDER = re.compile(
    r"(?i)extras?|trailers?|samples?|featurettes?|behind[ ._-]?the[ ._-]?scenes|deleted([ ._-]?scenes?)?|interviews"
    r"|bonus([ ._-]?(features?|disc|material|content))?|special[ ._-]?features|backdrops|theme-(music|videos)"
    r"|making[ ._-]?of|proof|extrafanart|extrathumbs"
)
EXTRAS_FOLDER_OF_FILM = re.compile(r"(?i)scenes?|shorts?|others?|clips?|teasers?|interview")  # else it may be a genre
EXTRA = re.compile(
    r"(?i)(^|[-_(\[]\s?)((official|theatrical)[ ._-])?(trailer|teaser|sample)[ ._-]?\d*[)\]]?$"
    r"|(^|(?<=\S)\s?-\s?)(behind[ ._-]?the[ ._-]?scenes|deleted([ ._-]?scenes?)?|featurettes?|making[ ._-]?of)"
    r"[ ._-]?\d*$"
    r"|(?<=[^\s-])-(interview|deletedscene)\d*$|^sample[-_]|^(rarbg(\.com)?|etrg)$"
)
EXTRA_OF_FILM = re.compile(  # where a film lies beside it
    r"(?i)(?<=[^\s-])-(scene|short|other|clip|extras?|theme)\d*$|^(the )?making of |^deleted scene"
)
EXTRA_AFTER_TITLE = re.compile(r"(?i)[ .](trailer|teaser|sample|featurette|(deleted)[ .]scenes?|interview)[ .]?\d*$")
PICTURES_FOLDER = re.compile(
    r"(?i)posters?|covers?|fan-?art|art(work)?|images?|pictures|screens(hots)?|thumbs?|metadata"
)
SAME_DURATION = 0.02  # of the longer; two copies of a film differ by no more
MAX_NAMED = 5  # files in a note
MAX_LIST_BYTES = 10_000_000  # of the user's list of titles


@dataclass(frozen=True)
class ShelfFilm:
    """A film: its video files or its folder of stills."""

    title: str  # "Title (Year)", NFC
    parts: tuple[Path, ...] = ()  # video files in order of play; empty for a film of stills
    stills: Path | None = None  # its folder of stills
    copies: tuple[tuple[Path, ...], ...] = ()  # parts of other encodings of the same film, to try if this one is broken


@dataclass
class Shelf:
    """The films of some files and folders, and what was passed over."""

    films: list[ShelfFilm] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)  # kind in words -> how many
    notes: list[str] = field(default_factory=list)  # lines for the user


@dataclass(frozen=True)
class Item:
    """What may be a film: a file, the pieces of one, or a disc."""

    parts: tuple[Path, ...]
    name: VideoName
    size: int  # bytes of all parts
    place: Path  # the folder that it lies in, or that the disc is
    label: str = ""  # its own name, where the title is its folder's
    is_extra: bool = False


def find_shelf(
    sources: list[Path],
    *,
    title: str | None = None,
    titles: Path | None = None,
    with_extras: bool = False,
    with_stills: bool = False,
    known: Mapping[str, str] | None = None,
) -> Shelf:
    """The films of video files and folders of them, and with_stills of folders of stills as well.

    title: of the only film that the sources hold. titles: a csv file of file, title, which overrules what names say.
    with_extras: trailers, samples, deleted scenes and the like are films too. known: {absolute path of a film's first
    part: title} of an earlier run, so that a film keeps its title when another of that title comes.
    Raises UserError where a source is missing or no film is found.
    """
    shelf = Shelf()
    items: list[Item] = []
    for source in map(Path, sources):
        folders = list(walk(source, shelf)) if is_folder(source) else []
        found = [item for folder in folders for item in items_of_folder(folder, shelf)]
        items += found if folders else [item_of_file(source)]
        if with_stills and folders:
            add_stills(source, folders, shelf, title)
    items = drop_links(items, shelf)
    wanted = match_titles(items, read_titles(titles), sources, shelf) if titles else {}
    items = keep_films(items, wanted, shelf, with_extras=with_extras)
    if title is not None:
        items = [replace(item, name=given_name(title, item.name.piece)) for item in items]
    add_films(join_pieces(items, shelf), shelf, known or {})
    if title is not None and len(shelf.films) > 1:
        names = ", ".join(film.parts[0].name if film.parts else str(film.stills) for film in shelf.films[:MAX_NAMED])
        raise UserError(f"--title names one film, and these are {len(shelf.films)}: {names}", 2)
    if not shelf.films:
        raise UserError(nothing_found(sources, shelf, with_stills=with_stills), 2)
    shelf.films = without_doubles(sorted(shelf.films, key=lambda film: natural_key(film.title)), shelf)
    shelf.notes = [tidy(note) for note in shelf.notes]  # names may hold line feeds, or commands to a terminal
    return shelf


def nothing_found(sources: list[Path], shelf: Shelf, *, with_stills: bool) -> str:
    """Why there is no film, in a line."""
    kinds = ", ".join(sorted(suffix.lstrip(".") for suffix in VIDEO_SUFFIXES))
    text = f"{', '.join(map(str, sources[:MAX_NAMED]))}: no video file ({kinds})"
    if with_stills:
        text += " and no folder of stills"
    passed = [f"{count} {kind}" for kind, count in shelf.passed_over.most_common()] + shelf.notes[:MAX_NAMED]
    if passed:
        text += f"; passed over: {'; '.join(passed)}"
    if shelf.passed_over["extras"]:
        text += "; --with-extras takes them"
    return text


def keep_films(items: list[Item], wanted: dict[Item, str], shelf: Shelf, *, with_extras: bool) -> list[Item]:
    """The items that are films, by the titles that the user's list gives them; extras only if they are wanted."""
    kept = []
    for item in items:
        if item in wanted:
            kept.append(replace(item, name=given_name(wanted[item], item.name.piece), label=""))
        elif with_extras or not item.is_extra:
            kept.append(item)
        else:
            shelf.passed_over["extras"] += 1
    return kept


# ------------------------------------------------------------------------------------------ walk folders


@dataclass
class Folder:
    """A folder of a source, with what it holds directly."""

    path: Path
    names: tuple[str, ...]  # of it and the folders above it up to the source and its own folders, the nearest first
    below: int = 0  # how many of names lie below the source
    in_extras: bool = False
    through_link: bool = False
    videos: dict[Path, int] = field(default_factory=dict)  # {path: bytes}
    folders: list[os.DirEntry] = field(default_factory=list)
    images: int = 0


def is_folder(source: Path) -> bool:
    """Whether a source is a folder, and not a file. Raises UserError for what is neither, or not there."""
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: {getattr(error, 'strerror', None) or error}", 2) from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f"{source}: neither a file nor a folder", 2)
    if stat.S_ISREG(mode) and source.suffix.lower() in DISC_IMAGES:
        raise UserError(disc_image_line([source]), 2)
    return stat.S_ISDIR(mode)


def names_above(folder: Path) -> tuple[str, ...]:
    """Names of a folder and of those above it, the nearest first, up to the first that says something."""
    names = []
    start = Path(os.path.abspath(folder))  # "." has no name
    for path in (start, *start.parents):
        names.append(path.name)
        if not SEASON_FOLDER.fullmatch(tidy(path.name)) and not read_name(path.name).is_generic:
            break
    return tuple(filter(None, names))


def walk(source: Path, shelf: Shelf) -> Iterator[Folder]:
    """Each folder of a source in natural order; a linked one once, and none that systems keep for themselves."""
    seen: set[tuple[int, int, bool]] = set()
    waiting = [Folder(source, names_above(source))]
    images: list[Path] = []
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder.path)
            mark = (status.st_dev, status.st_ino, folder.through_link)
            if mark in seen:
                shelf.passed_over["links to folders that were seen before"] += 1
                continue
            seen.add(mark)
            with os.scandir(folder.path) as entries:
                ordered = sorted(entries, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            shelf.notes.append(f"{folder.path}: passed over: {error.strerror or error}")
            continue
        for entry in ordered:
            sort_entry(entry, folder, shelf, images)
        yield folder
        # of several links to one folder, the one that says which film it is goes first
        folder.folders.sort(key=lambda entry: entry.is_symlink() and read_name(entry.name).year is None)
        named_film = bool(folder.names) and read_name(folder.names[0]).year is not None
        is_film = named_film or (folder.below > 0 and len(film_titles(folder)) == 1)
        waiting += [folder_in(entry, folder, is_film=is_film) for entry in reversed(folder.folders)]
    if images:
        shelf.notes.append(disc_image_line(images))
        shelf.passed_over["images of discs"] += len(images)


def film_titles(folder: Folder) -> set[str]:
    """Titles of what lies in a folder directly, extras left out, by its own name."""
    stems = [path.stem for path in folder.videos if not is_extra(path.stem, has_film=False)]
    several = len(stems) > 1
    return {normalise_title(read_name(stem).title) for stem in stems if not is_extra(stem, has_film=several)}


def folder_in(entry: os.DirEntry, folder: Folder, *, is_film: bool) -> Folder:
    """A folder that lies in another. is_film: that one holds one film, so that "other" is its extras."""
    name = tidy(entry.name)
    extras = EXTRAS_FOLDER.fullmatch(name) or (is_film and folder.videos and EXTRAS_FOLDER_OF_FILM.fullmatch(name))
    return Folder(
        path=Path(entry.path),
        names=(entry.name, *folder.names),
        below=folder.below + 1,
        in_extras=folder.in_extras or bool(extras),
        through_link=folder.through_link or entry.is_symlink(),
    )


def sort_entry(entry: os.DirEntry, folder: Folder, shelf: Shelf, images: list[Path]) -> None:
    """Note an entry of a folder as a folder, video or image of it, or count it as passed over."""
    if re.match(r"\.(?!\.)", entry.name) or entry.name.lower() in JUNK_FOLDERS:  # "...And Justice for All" is no junk
        return
    suffix = os.path.splitext(entry.name)[1].lower()
    try:
        if entry.is_dir():
            folder.folders.append(entry)
            return
        status = entry.stat()
    except OSError:  # a link in a circle, or to nothing
        shelf.passed_over["broken links"] += 1
        return
    if not stat.S_ISREG(status.st_mode):
        shelf.passed_over["pipes, sockets and devices"] += 1
    elif suffix in VIDEO_SUFFIXES and status.st_size == 0:
        shelf.passed_over["empty files"] += 1
    elif suffix in VIDEO_SUFFIXES:
        folder.videos[Path(entry.path)] = status.st_size
    elif suffix in INCOMPLETE:
        shelf.passed_over["incomplete downloads"] += 1
    elif suffix in DISC_IMAGES:
        images.append(Path(entry.path))
    elif is_image(entry.name):
        folder.images += 1
    elif entry.name != "frames.jsonl":  # which tells of stills
        shelf.passed_over["other files"] += 1


def disc_image_line(images: list[Path]) -> str:
    """What to do with images of discs."""
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{images[0]}{more}: an image of a disc can't be read; mount or unpack it and give the folder that is in it"


# --------------------------------------------------------------------------------------- files and discs


def items_of_folder(folder: Folder, shelf: Shelf) -> list[Item]:
    """The items that lie in a folder directly: a disc, or files."""
    files = folder.videos
    here = folder.path.name.lower()
    if here in ASIDE and any(name.lower() == "bdmv" for name in folder.names[1:]):
        return []
    items = []
    vobs = {path: size for path, size in files.items() if is_vob(path.name)}
    streams = {path: size for path, size in files.items() if path.suffix.lower() == ".m2ts" and here == "stream"}
    for disc in (find_dvd(vobs), find_bluray(folder.path, streams) if streams else None):
        if disc is not None:
            items.append(item_of_disc(disc, folder, files, shelf))
    plain = {path: size for path, size in files.items() if path not in vobs and path not in streams}
    has_film = sum(not is_extra(path.stem, has_film=False) for path in plain) > 1
    alone = len(film_titles(folder)) == 1
    for path, size in plain.items():
        extra = folder.in_extras or is_extra(path.stem, has_film=has_film)
        items.append(item_of_video(path, size, folder, alone=alone and folder.below > 0, is_extra=extra))
    return items


def is_extra(stem: str, *, has_film: bool) -> bool:
    """Whether a file is a trailer, a sample or the like, by its name. has_film: others lie beside it."""
    text = tidy(stem)
    name = read_name(stem)
    if re.search(r"[(\[]\d{4}[)\]]$", text):  # a film that is called Sample (2019)
        return False
    if name.episode:  # which may be called "Trailer"
        return re.search(r"(?i)(?<=\S)[-.](trailer|sample)\d*$", text) is not None
    if (found := EXTRA_AFTER_TITLE.search(text)) and found[1].lower() not in name.title.lower():
        return True
    return bool(EXTRA.search(text) or (has_film and EXTRA_OF_FILM.search(text)))


def item_of_video(path: Path, size: int, folder: Folder, *, alone: bool, is_extra: bool) -> Item:
    """The item of a file in a folder."""
    own = read_name(path.stem)
    name = name_video(path.name, folder.names, alone=alone and not is_extra)
    label = tidy(path.stem) if own.is_generic and name.title != own.title and not own.piece else ""
    if is_extra:  # a title of its own, that of its film before it
        film = name_video("main.mkv", folder.names if not folder.in_extras else folder.names[1:])
        mark = own.title if own.title and normalise_title(own.title) != normalise_title(film.title) else tidy(path.stem)
        name = own if film.is_generic or not folder.below else replace(film, title=f"{film.title}, {mark}", piece=None)
        name = replace(name, title=name.title or tidy(path.stem))
    return Item((path,), name, size, path.parent, label, is_extra)


def item_of_file(path: Path) -> Item:
    """The item of a file that was given itself."""
    name = name_video(path.name, names_above(path.parent))
    return Item((path,), name, path.stat().st_size, path.parent)


def item_of_disc(disc: Disc, folder: Folder, sizes: dict[Path, int], shelf: Shelf) -> Item:
    """The item of a disc, named by the folders above it."""
    shelf.notes += disc.notes
    if disc.shorter:
        shelf.passed_over["shorter titles of discs"] += disc.shorter
    names = [name for name in folder.names if name.lower() not in DISC_FOLDERS]
    name = name_video("main.m2ts", names)
    if name.is_generic:
        name = read_name(names[0] if names else "disc")
    size = sum(sizes[part] for part in disc.parts)
    return Item(disc.parts, name, size, disc_place(folder.path), is_extra=folder.in_extras)


# ------------------------------------------------------------------------------------ which are one film


def drop_links(items: list[Item], shelf: Shelf) -> list[Item]:
    """Each file once: of several names of one, that which says most of the film."""
    chosen: dict[object, Item] = {}
    for item in items:
        try:
            status = os.stat(item.parts[0])
            mark = (status.st_dev, status.st_ino)
        except OSError:  # it went away meanwhile
            continue
        other = chosen.get(mark)
        if other is None or tells_more(item, other):
            chosen[mark] = item
        if other is not None and item.parts != other.parts:
            shelf.passed_over["further names of the same files"] += 1
    return list(chosen.values())


def tells_more(item: Item, other: Item) -> bool:
    """Whether an item's name says more of the film than another's: a year, an episode, not just "movie"."""

    def worth(some: Item) -> tuple[bool, bool, bool]:
        return some.name.year is not None, bool(some.name.episode), not some.name.is_generic

    return worth(item) > worth(other)


def join_pieces(items: list[Item], shelf: Shelf) -> list[Item]:
    """The items, those that are CD1, CD2 of one film in one place joined in order."""
    joined: list[Item] = []
    pieces: dict[tuple, list[Item]] = {}
    for item in items:
        if item.name.piece is None or item.is_extra:
            joined.append(item)
            continue
        in_folder_of_its_own = read_name(item.place.name).piece is not None
        place = item.place.parent if in_folder_of_its_own else item.place
        suffix = item.parts[0].suffix.lower()
        key = (place, *film_key(item.name), item.name.edition, item.name.quality, suffix)
        pieces.setdefault(key, []).append(item)
    return joined + [join_group(group, shelf) for group in pieces.values()]


def join_group(group: list[Item], shelf: Shelf) -> Item:
    """One item of pieces; the larger of two pieces of one number stands, and a gap is said."""
    numbers: dict[int, Item] = {}
    for item in sorted(group, key=lambda item: item.size):
        numbers[item.name.piece] = item
    if sorted(numbers) != list(range(1, len(numbers) + 1)):
        have = ", ".join(map(str, sorted(numbers)))
        shelf.notes.append(f"{group[0].name.full}: of its pieces only {have} are there; times count from the first")
    ordered = [numbers[number] for number in sorted(numbers)]
    parts = tuple(part for item in ordered for part in item.parts)
    return replace(ordered[0], parts=parts, size=sum(item.size for item in ordered))


def film_key(name: VideoName) -> tuple:
    """What two names of one film have in common."""
    return normalise_title(name.title), name.year, name.episode


def duration(item: Item) -> float | None:
    """Seconds of all parts, None where one is unknown."""
    total = 0.0
    for part in item.parts:
        seconds = read_duration(part)
        if not seconds:
            return None
        total += seconds
    return total


def add_films(items: list[Item], shelf: Shelf, known: Mapping[str, str]) -> None:
    """Add a film for each title, or several where what bears one title differs in length."""
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        groups.setdefault(film_key(item.name), []).append(item)
    for group in groups.values():
        if len(group) == 1:
            shelf.films.append(ShelfFilm(group[0].name.full, group[0].parts))
        else:
            shelf.films += films_of_title(group, shelf, known)


@dataclass
class Cut:
    """Copies of one film: items of one title and one duration."""

    items: list[Item]
    seconds: float | None  # of the longest

    def lasts(self, seconds: float) -> bool:
        """Whether this is no more than a copy's difference longer."""
        return self.seconds - seconds <= SAME_DURATION * self.seconds

    def holds(self, item: Item, seconds: float) -> bool:
        """Whether an item, no longer than those that are here, is a copy of them."""
        if not self.lasts(seconds):
            return False
        # title_t01 beside title_t02 is another title of the same disc, whatever it lasts
        return not any(item.label and other.label and item.place == other.place for other in self.items)


def films_of_title(group: list[Item], shelf: Shelf, known: Mapping[str, str]) -> list[ShelfFilm]:
    """The films of one title: items of one duration are copies, the others are films that are told apart."""
    lengths = {item: duration(item) for item in group}
    cuts: list[Cut] = []
    for item in sorted((item for item in group if lengths[item]), key=lambda item: -lengths[item]):
        seconds = lengths[item]
        near = takewhile(lambda cut, seconds=seconds: cut.lasts(seconds), reversed(cuts))
        cut = next((cut for cut in near if cut.holds(item, seconds)), None)
        if cut is None:
            cuts.append(Cut([item], seconds))
        else:
            cut.items.append(item)
    # what other films of the title come later, the plain and longest one bears the bare title
    cuts.sort(key=lambda cut: (all(item.name.edition for item in cut.items), -cut.seconds))
    unknown = [item for item in group if not lengths[item]]  # broken, so that the whole one is kept of the two
    if not cuts:
        cuts = [Cut([], None)]
    cuts[0].items += unknown
    for cut in cuts:
        cut.items.sort(key=lambda item: (lengths[item] is None, -item.size, str(item.parts[0])))
    films = []
    for cut, title in zip(cuts, tell_apart(cuts, known), strict=True):
        copies = tuple(item.parts for item in cut.items[1:])
        films.append(ShelfFilm(title, cut.items[0].parts, None, copies))
    if len(films) > 1:
        names = "; ".join(f"{film.title!r} is {film.parts[0]}" for film in films[:MAX_NAMED])
        more = f"; and {len(films) - MAX_NAMED} more" if len(films) > MAX_NAMED else ""
        shelf.notes.append(f"{len(films)} films bear one title and differ in length, so all are kept: {names}{more}")
    return films


def tell_apart(cuts: list[Cut], known: Mapping[str, str]) -> list[str]:
    """A title for each cut: the one that it is known by, the bare title for the first, others with a mark."""
    bare = cuts[0].items[0].name.full
    titles: dict[int, str] = {}
    taken: set[str] = set()
    for number, cut in enumerate(cuts):
        names = (bare, *marked_titles(cut))
        before = (known.get(os.path.abspath(item.parts[0])) for item in cut.items)
        title = next((title for title in before if title in names and title not in taken), None)
        if title is not None:
            titles[number] = title
            taken.add(title)
    for number, cut in enumerate(cuts):
        if number not in titles:
            free = (title for title in (bare, *marked_titles(cut)) if title not in taken)
            titles[number] = next(free, f"{bare} {number + 1}")
            taken.add(titles[number])
    return [titles[number] for number in range(len(cuts))]


def marked_titles(cut: Cut) -> list[str]:
    """Titles that tell a cut apart, the best first: by its edition, its own name, or how long it is."""
    name = cut.items[0].name
    edition = next((item.name.edition for item in cut.items if item.name.edition), "")
    label = next((item.label for item in cut.items if item.label), "")
    seconds = cut.seconds or 0
    length = f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.0f} s"
    exact = f"{seconds:.1f} s"
    marks = [edition, label, length, f"{edition} {length}", f"{label} {length}", exact, f"{cut.items[0].place.name}"]
    marked = []
    for mark in filter(None, map(str.strip, marks)):
        if name.episode:
            marked.append(f"{name.full}, {mark}")
        else:
            marked.append(replace(name, title=f"{name.title}, {mark}").full)
    return marked


def without_doubles(films: list[ShelfFilm], shelf: Shelf) -> list[ShelfFilm]:
    """The films, of a video and a folder of stills with one title the video, which knows its times.

    Raises UserError where two folders of stills claim one title.
    """
    kept: dict[str, ShelfFilm] = {}
    for film in sorted(films, key=lambda film: film.stills is not None):
        other = kept.setdefault(film.title, film)
        if other is film:
            continue
        if not other.parts and film.stills.parent == other.stills.parent and tidy(other.stills.name) == film.title:
            continue  # one name composed and decomposed, as macOS leaves them; list_stills joins the two
        if not other.parts:
            message = f"{film.stills}: the title {film.title!r} is also in {other.stills}; rename one of them"
            raise UserError(message, 2)
        where = film.stills or film.parts[0]
        shelf.notes.append(f"{where}: passed over, for {other.parts[0]} is {film.title!r} too")
    return [film for film in films if kept[film.title] is film]


# ---------------------------------------------------------------------------------- titles that are given


def given_name(text: str, piece: int | None = None) -> VideoName:
    """A title that the user gave, as it stands."""
    title, year = split_title(tidy(text))
    return VideoName(title, year, piece)


def read_titles(path: Path) -> dict[str, str]:
    """{file: title} of a csv file; a first line "file,title" is its head. Raises UserError."""
    expected = "expected a csv file in UTF-8, a line file,title for each film"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read(MAX_LIST_BYTES)
        first = text.split("\n", 1)[0]
        separator = max(",;\t", key=first.count)  # spreadsheets write ; where , is for decimals
        rows = list(csv.reader(text.splitlines(), delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--titles {path}: {getattr(error, 'strerror', None) or error}; {expected}", 2) from None
    found = {}
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and [cell.lower() for cell in cells] == ["file", "title"]):
            continue
        if len(cells) != 2 or not all(cells) or not tidy(cells[1]) or not folder_name(cells[1]):
            raise UserError(f"--titles {path}, line {number}: {expected}; what holds a {separator} needs quotes", 2)
        found[cells[0]] = tidy(cells[1])
    return found


def match_titles(items: list[Item], titles: dict[str, str], sources: list[Path], shelf: Shelf) -> dict[Item, str]:
    """{item: title} of the user's list, which names files by path as given, below a source, or by name alone."""
    wanted = {tidy(os.path.normpath(file)): title for file, title in titles.items()}
    matched: dict[Item, str] = {}
    used: dict[str, list[Item]] = {}
    for item in items:
        paths = [*item.parts, item.place] if len(item.parts) > 1 or item.place != item.parts[0].parent else item.parts
        key = next((key for path in paths for key in keys_of(path, sources) if key in wanted), None)
        if key is not None:
            matched[item] = wanted[key]
            used.setdefault(key, []).append(item)
    unused = [key for key in wanted if key not in used]
    if unused:
        more = f" and {len(unused) - MAX_NAMED} more" if len(unused) > MAX_NAMED else ""
        shelf.notes.append(f"--titles: not among the files given: {', '.join(unused[:MAX_NAMED])}{more}")
    for key, several in used.items():
        if len(several) > 1:
            shelf.notes.append(f"--titles: {len(several)} files are called {key}; all are {wanted[key]!r}")
    return matched


def keys_of(path: Path, sources: list[Path]) -> list[str]:
    """How a list may call a file: its path, its path below a source, its name alone."""
    keys = [str(path), str(path.absolute())]
    for source in map(Path, sources):
        if path.is_relative_to(source):
            keys += [str(path.relative_to(source)), str(path.relative_to(source.parent))]
    return [tidy(os.path.normpath(key)) for key in [*keys, path.name]]


# ------------------------------------------------------------------------------------------------ stills


def add_stills(source: Path, folders: list[Folder], shelf: Shelf, title: str | None) -> None:
    """Add the folders of stills of a source: all of it where no video is in it, else the folders in it without one."""
    if not any(folder.images for folder in folders):
        return
    if not any(folder.videos for folder in folders):
        films = find_films([source], title)
        shelf.films += [ShelfFilm(unicodedata.normalize("NFC", name), (), folder) for name, folder in films.items()]
        return
    below: dict[str, list[Folder]] = {}
    for folder in folders:
        below.setdefault(folder.names[folder.below - 1] if folder.below else "", []).append(folder)
    for name, inside in below.items():
        images = sum(folder.images for folder in inside)
        beside = not name or PICTURES_FOLDER.fullmatch(tidy(name)) or any(f.videos or f.in_extras for f in inside)
        if not images:
            continue
        if beside:
            shelf.passed_over["pictures beside videos"] += images
            continue
        try:
            films = find_films([source / name], title)
            shelf.films += [ShelfFilm(unicodedata.normalize("NFC", film), (), folder) for film, folder in films.items()]
        except UserError as error:
            shelf.notes.append(str(error))
