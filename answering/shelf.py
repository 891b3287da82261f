"""What films a set of files and folders are: copies, pieces and discs put together, extras and junk passed over."""

import csv
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from answering.console import UserError
from answering.stills import find_films, is_image, natural_key
from answering.titles import VideoName, name_video, normalise_title, read_name, split_title, tidy
from answering.video import VIDEO_SUFFIXES, read_duration

JUNK_FOLDERS = frozenset(
    [
        "__macosx",
        "@eadir",
        "#recycle",
        "@recycle",
        "$recycle.bin",
        "recycler",
        "lost+found",
        "#snapshot",
        "system volume information",
    ]
)
INCOMPLETE = frozenset([".part", ".crdownload", ".!qb", ".!ut", ".!bt", ".bc!", ".partial", ".download", ".aria2"])
DISC_IMAGES = frozenset([".iso", ".img", ".nrg", ".mdf"])
# names that Plex, Jellyfin and Kodi give to what is no film
EXTRAS_FOLDER = re.compile(
    r"(?i)extras?|trailers?|samples?|featurettes?|behind[ ._-]?the[ ._-]?scenes|deleted([ ._-]?scenes?)?|interviews"
    r"|bonus([ ._-]?(features?|disc|material|content))?|special[ ._-]?features|backdrops|theme-(music|videos)"
    r"|making[ ._-]?of|proof|extrafanart|extrathumbs"
)
EXTRAS_FOLDER_OF_FILM = re.compile(r"(?i)scenes?|shorts?|others?|clips?|teasers?|interview|specials?")  # else a genre
EXTRA = re.compile(
    r"(?i)(^|[-_(\[]\s?)((official[ ._-]|theatrical[ ._-])?(trailer|teaser)|sample|behind[ ._-]?the[ ._-]?scenes"
    r"|deleted([ ._-]?scenes?)?|featurette|interview|making[ ._-]?of)[ ._-]?\d*[)\]]?$"
    r"|^sample[-_]|^(rarbg(\.com)?|etrg)$"
)
EXTRA_OF_FILM = re.compile(
    r"(?i)[-.](scene|short|other|clip|extra|theme|teaser)\d*$"
    r"|[ .](trailer|sample|featurette|deleted[ .]scenes?)[ .]?\d*$"
)
SAME_DURATION = 0.02  # of the longer; two copies of a film differ by no more
MAX_FOLDERS = 1_000_000
MAX_PLAYLISTS = 2_000
MAX_PLAYLIST_BYTES = 1_000_000
MAX_DISC_SECONDS = 24 * 3600


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
    """A video that may be a film: a file, the pieces of one, or a disc."""

    parts: tuple[Path, ...]
    name: VideoName
    size: int = 0  # bytes of all parts
    place: Path = Path()  # the folder that it lies in; of a disc, the folder that the disc is
    number: int | None = None  # as CD or disc
    is_extra: bool = False
    is_overruled: bool = False  # the user's list named it


def find_shelf(
    sources: list[Path],
    *,
    title: str | None = None,
    titles: Path | None = None,
    with_extras: bool = False,
    with_stills: bool = False,
) -> Shelf:
    """The films of video files and folders of them, and with_stills of folders of stills as well.

    title: of the only film that the sources hold. titles: a csv file of file, title, which overrules what names say.
    with_extras: trailers, samples, deleted scenes and the like are films too. Raises UserError where nothing is found.
    """
    shelf = Shelf()
    items: list[Item] = []
    for source in sources:
        found = scan_source(Path(source), shelf, with_extras=with_extras)
        items += found.items
        if with_stills:
            add_stills(Path(source), found, shelf, title)
    items = drop_links(items, shelf)
    if titles is not None:
        items = overrule(items, read_titles(titles), sources, shelf)
    if title is not None:
        items = [replace(item, name=given_name(title)) for item in items]
    items = join_pieces(items, shelf)
    add_films(items, shelf)
    if title is not None and len(shelf.films) > 1:
        raise UserError(f"--title names one film, and these are {len(shelf.films)}", 2)
    if not shelf.films:
        raise UserError(nothing_found(sources, shelf), 2)
    shelf.films.sort(key=lambda film: natural_key(film.title))
    return shelf


def nothing_found(sources: list[Path], shelf: Shelf) -> str:
    """Why there is no film, in a line."""
    where = ", ".join(map(str, sources[:3]))
    passed = "; ".join(f"{count} {kind}" for kind, count in shelf.passed_over.most_common())
    if shelf.notes:
        passed = "; ".join([passed, *shelf.notes[:3]]).strip("; ")
    kinds = ", ".join(sorted(suffix.lstrip(".") for suffix in VIDEO_SUFFIXES))
    return f"{where}: no video file nor a folder of them ({kinds})" + (f"; passed over: {passed}" if passed else "")


# ------------------------------------------------------------------------------------------ walk folders


@dataclass
class Folder:
    """A folder of a source, with what it holds directly."""

    path: Path
    below: tuple[str, ...]  # names from the source down to it
    in_extras: bool = False
    through_link: bool = False
    videos: list[os.DirEntry] = field(default_factory=list)
    folders: list[os.DirEntry] = field(default_factory=list)
    images: int = 0


@dataclass
class Found:
    """What a source holds."""

    items: list[Item] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)


def scan_source(source: Path, shelf: Shelf, *, with_extras: bool) -> Found:
    """The videos of a file or folder. Raises UserError where it is missing."""
    found = Found()
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}", 2) from None
    except ValueError:
        raise UserError(f"{source!r}: not a path", 2) from None
    if stat.S_ISDIR(mode):
        for folder in walk(source, shelf):
            found.folders.append(folder)
            found.items += items_of_folder(source, folder, shelf, with_extras=with_extras)
    elif not stat.S_ISREG(mode):
        raise UserError(f"{source}: not a file; give a video file or a folder", 2)
    elif source.suffix.lower() in DISC_IMAGES:
        raise UserError(disc_image_line([source]), 2)
    else:
        above = source.absolute().parent.name
        name = name_video(source.name, above)
        found.items.append(Item((source,), name, source.stat().st_size, source.parent, name.piece))
    return found


def walk(source: Path, shelf: Shelf) -> Iterator[Folder]:
    """Each folder of a source in natural order; a linked one once, and no folder that systems keep for themselves."""
    seen: set[tuple[int, int, bool]] = set()
    waiting = [Folder(source, ())]
    images: list[Path] = []
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder.path)
            mark = (status.st_dev, status.st_ino, folder.through_link)
            if mark in seen:
                shelf.passed_over["linked folders that were seen before"] += 1
                continue
            seen.add(mark)
            entries = sorted(os.scandir(folder.path), key=lambda entry: natural_key(entry.name))
        except OSError as error:
            shelf.notes.append(f"{folder.path}: passed over: {error.strerror or error}")
            continue
        for entry in entries:
            sort_entry(entry, folder, shelf, images)
        yield folder
        for entry in reversed(folder.folders):
            below = (*folder.below, entry.name)
            extras = folder.in_extras or is_extras_folder(entry.name, folder)
            through_link = folder.through_link or entry.is_symlink()
            waiting.append(Folder(Path(entry.path), below, extras, through_link))
    if images:
        shelf.notes.append(disc_image_line(images))
        shelf.passed_over["disc images"] += len(images)


def sort_entry(entry: os.DirEntry, folder: Folder, shelf: Shelf, images: list[Path]) -> None:
    """Note an entry of a folder as a folder, video or image of it, or count it as passed over."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if re.match(r"\.(?!\.)", entry.name) or entry.name.lower() in JUNK_FOLDERS:  # "...And Justice for All" is no junk
        return
    try:
        if entry.is_dir():
            folder.folders.append(entry)
            return
        if not entry.is_file():
            shelf.passed_over["broken links" if entry.is_symlink() else "pipes, sockets and devices"] += 1
            return
        if suffix in VIDEO_SUFFIXES and entry.stat().st_size == 0:
            shelf.passed_over["empty files"] += 1
            return
    except OSError:
        shelf.passed_over["broken links" if entry.is_symlink() else "files that can't be read"] += 1
        return
    if suffix in VIDEO_SUFFIXES:
        folder.videos.append(entry)
    elif suffix in INCOMPLETE:
        shelf.passed_over["incomplete downloads"] += 1
    elif suffix in DISC_IMAGES:
        images.append(Path(entry.path))
    elif is_image(entry.name):
        folder.images += 1
    elif entry.name == "frames.jsonl":  # tells of the images beside it
        pass
    else:
        shelf.passed_over["other files"] += 1


def disc_image_line(images: list[Path]) -> str:
    """What to do with images of discs."""
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{images[0]}{more}: an image of a disc can't be read; mount or unpack it and give the folder that is in it"


def is_extras_folder(name: str, folder: Folder) -> bool:
    """Whether a folder in another holds trailers and the like, by its name."""
    name = tidy(name)
    return bool(EXTRAS_FOLDER.fullmatch(name) or (folder.videos and EXTRAS_FOLDER_OF_FILM.fullmatch(name)))


def is_extra(stem: str, *, has_film: bool) -> bool:
    """Whether a file is a trailer, a sample or the like, by its name. has_film: others lie beside it."""
    if re.match(r".+[(\[]\d{4}[)\]]$", stem):
        return False
    text = tidy(stem)
    return bool(EXTRA.search(text) or (has_film and EXTRA_OF_FILM.search(text)))


# --------------------------------------------------------------------------------------- files and discs


def items_of_folder(source: Path, folder: Folder, shelf: Shelf, *, with_extras: bool) -> list[Item]:
    """The items that lie in a folder directly: a disc, or files."""
    above = source.absolute().name
    last = (folder.below[-1] if folder.below else above).lower()
    dvd = [entry for entry in folder.videos if re.fullmatch(r"(?i)vts_\d\d_\d\.vob|video_ts\.vob", entry.name)]
    items = []
    if dvd:
        items = items_of_dvd(folder, dvd, above, shelf)
        folder_videos = [entry for entry in folder.videos if entry not in dvd]
    elif last == "stream" and any(entry.name.lower().endswith(".m2ts") for entry in folder.videos):
        items = items_of_bluray(folder, above, shelf)
        folder_videos = []
    elif last in ("backup", "playlist", "clipinf", "bdjo", "jar", "auxdata"):
        folder_videos = []
    else:
        folder_videos = folder.videos
    plain = [entry for entry in folder_videos if not is_extra(os.path.splitext(entry.name)[0], has_film=False)]
    for entry in folder_videos:
        stem = os.path.splitext(entry.name)[0]
        extra = folder.in_extras or is_extra(stem, has_film=len(plain) > 1)
        name = name_video(Path(*folder.below, entry.name), above, alone=len(plain) == 1 and bool(folder.below))
        if extra and with_extras:
            name = replace(name, title=f"{name.title}, {read_name(stem).title}") if name.is_generic else name
        item = Item((Path(entry.path),), name, entry.stat().st_size, folder.path, name.piece, extra)
        items.append(item)
    if not with_extras:
        shelf.passed_over["extras, trailers and samples"] += sum(item.is_extra for item in items)
        items = [item for item in items if not item.is_extra]
    return items


def disc_name(folder: Folder, above: str) -> VideoName:
    """The name of a disc, by the folders above it."""
    return name_video(Path(*folder.below, "main"), above)


def items_of_dvd(folder: Folder, files: list[os.DirEntry], above: str, shelf: Shelf) -> list[Item]:
    """The title set with most bytes of a DVD's folder; its menus (VTS_01_0.VOB) are no film."""
    sets: dict[str, list[os.DirEntry]] = {}
    for entry in files:
        found = re.fullmatch(r"(?i)vts_(\d\d)_([1-9])\.vob", entry.name)
        if found:
            sets.setdefault(found[1], []).append(entry)
    if not sets:
        return []
    sizes = {number: sum(entry.stat().st_size for entry in entries) for number, entries in sets.items()}
    best = max(sorted(sizes), key=sizes.__getitem__)
    if len(sets) > 1:
        shelf.passed_over["shorter titles of discs"] += len(sets) - 1
    parts = tuple(Path(entry.path) for entry in sorted(sets[best], key=lambda entry: entry.name.lower()))
    name = disc_name(folder, above)
    return [Item(parts, name, sizes[best], disc_place(folder), name.piece, folder.in_extras)]


def items_of_bluray(folder: Folder, above: str, shelf: Shelf) -> list[Item]:
    """The longest playlist of a Blu-ray, or its largest stream where no playlist can be read."""
    streams = {entry.name[:5]: entry for entry in folder.videos if entry.name.lower().endswith(".m2ts")}
    sizes = {name: entry.stat().st_size for name, entry in streams.items()}
    clips = longest_playlist(folder.path.parent / "PLAYLIST", sizes, shelf)
    if not clips:
        clips = (max(sorted(sizes), key=sizes.__getitem__),)
    if len(streams) > len(clips):
        shelf.passed_over["shorter titles of discs"] += len(streams) - len(clips)
    parts = tuple(Path(streams[clip].path) for clip in clips)
    name = disc_name(folder, above)
    return [Item(parts, name, sum(sizes[clip] for clip in clips), disc_place(folder), name.piece, folder.in_extras)]


def disc_place(folder: Folder) -> Path:
    """The folder that a disc is, above VIDEO_TS or BDMV/STREAM."""
    path = folder.path
    while path.name.lower() in ("video_ts", "stream", "bdmv") and path.parent != path:
        path = path.parent
    return path


def longest_playlist(folder: Path, sizes: dict[str, int], shelf: Shelf) -> tuple[str, ...]:
    """Names of the clips of the longest playlist (*.mpls) whose clips are all there; none where none can be read."""
    best: tuple[float, int, tuple[str, ...]] = (0, 0, ())
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".mpls")[:MAX_PLAYLISTS]
    except OSError:
        return ()
    for path in files:
        try:
            clips = read_playlist(path)
        except (OSError, ValueError) as error:
            shelf.notes.append(f"{path}: passed over, not a playlist that can be read ({error})")
            continue
        seconds = sum(clips.values())
        if clips and seconds <= MAX_DISC_SECONDS and all(clip in sizes for clip in clips):
            best = max(best, (round(seconds), sum(sizes[clip] for clip in clips), tuple(clips)))
    return best[2]


def read_playlist(path: Path) -> dict[str, float]:
    """{name of a clip: seconds of it} of a Blu-ray's playlist, each clip once. Raises ValueError, OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a file")
    with open(path, "rb") as file:
        data = file.read(MAX_PLAYLIST_BYTES)
    if data[:4] != b"MPLS":
        raise ValueError("it does not begin with MPLS")
    clips: dict[str, float] = {}
    try:
        (start,) = struct.unpack_from(">I", data, 8)
        (count,) = struct.unpack_from(">H", data, start + 6)
        position = start + 10
        for _ in range(count):
            length, name = struct.unpack_from(">H5s", data, position)
            begin, end = struct.unpack_from(">II", data, position + 14)
            clips.setdefault(name.decode("ascii"), max(0, end - begin) / 45_000)
            position += 2 + length
    except (struct.error, UnicodeDecodeError):
        raise ValueError("damaged or cut off") from None
    return clips


# --------------------------------------------------------------------------------- which are one film


def drop_links(items: list[Item], shelf: Shelf) -> list[Item]:
    """Each file once: of several names of one, that which says most."""
    chosen: dict[tuple[int, int], Item] = {}
    for item in items:
        status = os.stat(item.parts[0])
        mark = (status.st_dev, status.st_ino)
        other = chosen.get(mark)
        if other is None or tells_more(item, other):
            chosen[mark] = item
        if other is not None and item.parts != other.parts:
            shelf.passed_over["further names of the same files"] += 1
    return list(chosen.values())


def tells_more(item: Item, other: Item) -> bool:
    """Whether an item's name says more of the film than another's: a year, and not just "movie"."""

    def worth(some: Item) -> tuple[bool, bool, bool]:
        return some.name.year is not None, bool(some.name.episode), not some.name.is_generic

    return worth(item) > worth(other)


def join_pieces(items: list[Item], shelf: Shelf) -> list[Item]:
    """The items, those that are CD1, CD2 of one film in one place joined in order."""
    joined: list[Item] = []
    pieces: dict[tuple, list[Item]] = {}
    for item in items:
        if item.number is None or item.is_extra:
            joined.append(item)
            continue
        in_own_folder = read_name(item.place.name).piece is not None
        place = item.place.parent if in_own_folder else item.place
        suffix = item.parts[0].suffix.lower()
        key = (place, film_key(item.name), item.name.edition, item.name.quality, suffix)
        pieces.setdefault(key, []).append(item)
    for group in pieces.values():
        joined += join_group(group, shelf)
    return joined


def join_group(group: list[Item], shelf: Shelf) -> list[Item]:
    """One item of pieces; the larger of two pieces of one number stands, and a gap is said."""
    numbers: dict[int, Item] = {}
    for item in group:
        other = numbers.get(item.number)
        if other is None or item.size > other.size:
            numbers[item.number] = item
    ordered = [numbers[number] for number in sorted(numbers)]
    if sorted(numbers) != list(range(1, len(numbers) + 1)):
        have = ", ".join(map(str, sorted(numbers)))
        shelf.notes.append(f"{group[0].name.full}: only pieces {have} are there, so times are counted from the first")
    parts = tuple(part for item in ordered for part in item.parts)
    return [replace(ordered[0], parts=parts, size=sum(item.size for item in ordered), number=None)]


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


def add_films(items: list[Item], shelf: Shelf) -> None:
    """Add a film for each title, or several where one title has several durations."""
    groups: dict[tuple, list[Item]] = {}
    for item in items:
        groups.setdefault(film_key(item.name), []).append(item)
    for group in groups.values():
        if len(group) == 1:
            shelf.films.append(ShelfFilm(group[0].name.full, group[0].parts))
        else:
            shelf.films += films_of_title(group, shelf)


def films_of_title(group: list[Item], shelf: Shelf) -> list[ShelfFilm]:
    """The films of one title: items of one duration are copies, others are films that are told apart."""
    seconds = {item: duration(item) for item in group}
    cuts: list[list[Item]] = []
    for item in sorted((item for item in group if seconds[item]), key=lambda item: -seconds[item]):
        if cuts and seconds[cuts[-1][0]] - seconds[item] <= SAME_DURATION * seconds[cuts[-1][0]]:
            cuts[-1].append(item)
        else:
            cuts.append([item])
    unknown = [item for item in group if not seconds[item]]
    cuts.sort(key=lambda cut: (all(item.name.edition for item in cut), -seconds[cut[0]]))
    if not cuts:
        cuts = [unknown]
    else:
        cuts[0] += unknown
    films = []
    names: set[str] = set()
    for number, cut in enumerate(cuts):
        cut.sort(key=lambda item: (seconds[item] is None, -item.size, str(item.parts[0])))
        name = cut[0].name.full if number == 0 else told_apart(cut, seconds[cut[0]], names)
        names.add(name)
        films.append(ShelfFilm(name, cut[0].parts, None, tuple(item.parts for item in cut[1:])))
    if len(films) > 1:
        others = "; ".join(f"{film.parts[0].name} is {film.title!r}" for film in films)
        shelf.notes.append(
            f"{films[0].title}: {len(films)} files of this title differ in length; all are kept: {others}"
        )
    return films


def told_apart(cut: list[Item], seconds: float | None, taken: Iterable[str]) -> str:
    """A title for a further film of the same title: with its edition, or else how long it is."""
    edition = next((item.name.edition for item in cut if item.name.edition), "")
    length = f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.0f} s"
    for mark in (edition, length, f"{edition} {length}"):
        name = mark_title(cut[0].name, mark)
        if mark.strip() and name not in taken:
            return name
    return mark_title(cut[0].name, f"{seconds:.2f} s")


def mark_title(name: VideoName, mark: str) -> str:
    """ "Title, mark (Year)"."""
    if name.episode:
        return f"{name.full}, {mark}"
    return replace(name, title=f"{name.title}, {mark}").full


# ------------------------------------------------------------------------------------ titles that are given


def given_name(text: str) -> VideoName:
    """A title that the user gave, as it stands."""
    title, year = split_title(tidy(text))
    return VideoName(title, year)


def read_titles(path: Path) -> dict[str, str]:
    """{file: title} of a csv file; a first line "file,title" is its head. Raises UserError."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}; expected a csv file of two columns: file, title", 2) from None
    found = {}
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or [cell.lower() for cell in cells[:2]] == ["file", "title"]:
            continue
        if len(cells) < 2 or not cells[0] or not tidy(cells[1]):
            raise UserError(f"{path}, line {number}: expected file,title", 2)
        found[cells[0]] = tidy(cells[1])
    return found


def overrule(items: list[Item], titles: dict[str, str], sources: list[Path], shelf: Shelf) -> list[Item]:
    """The items, with the titles that the user's list gives to files and folders."""
    wanted = {tidy(os.path.normpath(file)): title for file, title in titles.items()}
    used: set[str] = set()
    named = []
    for item in items:
        keys = [key for path in (*item.parts, item.place) for key in keys_of(path, sources)]
        key = next((key for key in keys if key in wanted), None)
        if key is None:
            named.append(item)
            continue
        used.add(key)
        named.append(replace(item, name=given_name(wanted[key]), is_overruled=True))
    for key in sorted(set(wanted) - used):
        shelf.notes.append(f"--titles: no file {key!r} is among those given")
    return named


def keys_of(path: Path, sources: list[Path]) -> list[str]:
    """How a list may call a file: its path, relative to a source, or its name alone."""
    paths = [str(path), str(path.absolute())]
    for source in sources:
        if path.is_relative_to(source):
            paths += [str(path.relative_to(source)), str(path.relative_to(source.parent))]
    paths.append(path.name)
    return [tidy(os.path.normpath(text)) for text in paths]


# ------------------------------------------------------------------------------------------------ stills


def add_stills(source: Path, found: Found, shelf: Shelf, title: str | None) -> None:
    """Add the folders of stills of a source: all of it where no video is in it, else the folders in it without one."""
    if not source.is_dir():
        return
    if not found.items and not any(folder.videos for folder in found.folders):
        films = find_films([source], title)
        shelf.films += [ShelfFilm(tidy(name), (), folder) for name, folder in films.items()]
        return
    kinds: dict[str, list[Folder]] = {}
    for folder in found.folders:
        kinds.setdefault(folder.below[0] if folder.below else "", []).append(folder)
    for name, folders in kinds.items():
        images = sum(folder.images for folder in folders)
        if not name or not images or any(folder.videos or folder.in_extras for folder in folders):
            shelf.passed_over["pictures beside videos"] += images
            continue
        shelf.films.append(ShelfFilm(tidy(name), (), source / name))
