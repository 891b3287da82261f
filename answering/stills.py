"""Folders of stills: which film a folder is, which images it holds, and when in the film they come."""

import contextlib
import csv
import functools
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from answering.console import UserError
from answering.pictures import IMAGE_SUFFIXES

SIDECAR = "frames.jsonl"  # of a film's folder: when each still comes
# lower case; what begins with a dot is hidden anyway
JUNK = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "$recycle.bin"}
JUNK |= {"recycler", "lost+found", "#snapshot", "system volume information"}
# parts of data sets, lower case; one that holds folders is no film
NESTS = {"train", "training", "test", "testing", "val", "valid", "validation", "archive", "images", "data"}
NESTS |= {"dataset", "datasets", "frames", "stills", "movies", "films", "raw"}


def natural_key(path: str | Path) -> list:
    """Sort key that puts 2.jpg before 10.jpg, the order in which stills are numbered."""
    parts = re.split(r"(\d+)", str(path))
    key = [int(part) if part.isdecimal() else part.casefold() for part in parts]
    return [*key, str(path)]


def is_image(name: str | Path) -> bool:
    """Whether a file's name ends as that of an image, and it is none of what systems leave in folders (is_junk)."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not is_junk(Path(name).name)


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden ("...And Justice for All" is not), or left by macOS, Windows or a NAS."""
    return bool(re.match(r"\.(?!\.)", name)) or name.lower() in JUNK


def walk_files(folder: str | Path) -> Iterator[os.DirEntry]:
    """Files in a folder and its folders, in no order, junk among them (is_junk), but nothing that lies in junk.

    Each folder is looked into once, by whatever link; a link to a folder above this one is not followed.
    """
    seen = {os.path.realpath(folder)}
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError:  # no right to look in
            continue
        for entry in entries:
            if not entry.is_dir() or is_junk(entry.name):
                yield entry
            elif is_new_folder(entry, seen, folder):
                waiting.append(entry.path)


def is_new_folder(entry: os.DirEntry, seen: set[str], root: str | Path) -> bool:
    """Whether a folder, or what a link leads to, is not above root and not seen; then it is added to the seen ones."""
    real = os.path.realpath(entry.path)
    above = entry.is_symlink() and Path(os.path.realpath(root)).is_relative_to(real)
    if real in seen or above:
        return False
    seen.add(real)
    return True


def walk_images(folder: str | Path) -> list[str]:
    """Paths of the images in a folder and its folders, in no order."""
    return [entry.path for entry in walk_files(folder) if is_image(entry.name) and not entry.is_dir()]


def expand(paths: list[str]) -> list[str]:
    """Files as they are, folders as the images in them in natural order, "-" as stdin."""
    files = []
    for path in paths:
        inside = sorted(walk_images(path), key=natural_key) if os.path.isdir(path) else [path]
        if not inside:
            raise UserError(f"{path}: no images in this folder", 2)
        files += inside
    return files


def count_passed_over(paths: Iterable[str | Path]) -> Counter[str]:
    """{kind in words: how many} of the files in folders that are no images; frames.jsonl is read, so it is not counted.

    paths: folders, and files, which are not counted.
    """
    found: Counter[str] = Counter()
    for path in paths:
        for entry in walk_files(path) if os.path.isdir(path) else ():
            if is_junk(entry.name):
                found["hidden or of the system"] += 1
            elif not is_image(entry.name) and entry.name != SIDECAR:
                found[Path(entry.name).suffix.lower() or "without a suffix"] += 1
    return found


def describe_passed_over(paths: Iterable[str | Path]) -> str | None:
    """One line for people about the files in folders that are no images; None where there are none."""
    found = count_passed_over(paths)
    if not found:
        return None
    kinds = [f"{count} {kind}" for kind, count in found.most_common(6)]
    rest = sum(found.values()) - sum(count for _, count in found.most_common(6))
    if rest:
        kinds.append(f"{rest} others")
    return f"passed over in folders: {', '.join(kinds)}"


@functools.cache
def read_shapes(manifest: Path) -> dict[str, tuple[int, int]]:
    """{path relative to filter.py's manifest.csv: (width, height) of the frame before it was squashed}; empty for none.

    A file that is no such manifest has none.
    """
    shapes = {}
    with contextlib.suppress(OSError, ValueError, csv.Error), open(manifest, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                shapes[row["path"]] = (max(1, int(row["width"])), max(1, int(row["height"])))
    return shapes


def shape_before(path: str | Path | None) -> tuple[int, int] | None:
    """(width, height) that a frame of filter.py's had before it was squashed; None for any other file."""
    if path is None:
        return None
    path = Path(path).absolute()
    if len(path.parents) < 3:
        return None
    root = path.parents[2]
    return read_shapes(root / "manifest.csv").get(path.relative_to(root).as_posix())


# ---------------------------------------------------------------------------------------- raw folders


def find_films(raw: list[Path], title: str | None = None) -> dict[str, Path]:
    """{title: folder} for folders of folders of images; a folder that holds images itself is one film.

    title: used in place of the folder's name. Folders side by side whose names are one title, composed and decomposed
    (macOS), are one film: list_stills joins them.
    Raises UserError where nothing is found, two folders claim one title, or a folder is no film but holds films.
    """
    films: dict[str, Path] = {}
    for root in raw:
        for folder in film_folders(root):
            name = unicodedata.normalize("NFC", title) if title else folder_title(folder)
            if name in films and folder in twin_folders(films[name]):
                continue
            if name in films:
                raise UserError(f"{folder}: the title {name!r} is also in {films[name]}; rename one of them", 2)
            films[name] = folder
    if not films:
        raise UserError(f"{raw[0]}: no folders of images in it", 2)
    return dict(sorted(films.items()))


def folder_title(folder: Path) -> str:
    """The name of a folder, or of the link to it, in composed characters (NFC)."""
    return unicodedata.normalize("NFC", os.path.basename(os.path.abspath(folder)))


def twin_folders(folder: Path) -> list[Path]:
    """Other folders beside this one whose names are the same title in other characters; macOS decomposes names."""
    if folder.name.isascii():
        return []
    title = folder_title(folder)
    beside = [place for place in sorted(folder.parent.iterdir()) if place.name != folder.name and place.is_dir()]
    return [place for place in beside if folder_title(place) == title]


def film_folders(root: Path) -> list[Path]:
    """The folders in root, or root alone where it holds images itself.

    Raises UserError where it holds both, or a folder that is no film but holds films (check_nests).
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", 2)
    entries = [entry for entry in os.scandir(root) if not is_junk(entry.name)]
    entries.sort(key=lambda entry: (entry.is_symlink(), entry.name))
    stills = [entry.name for entry in entries if entry.is_file() and is_image(entry.name)]
    seen = {os.path.realpath(root)}
    folders = [Path(entry.path) for entry in entries if entry.is_dir() and is_new_folder(entry, seen, root)]
    if stills and folders:
        raise UserError(f"{root}: holds {stills[0]} beside folders; move it away, or name the film folders", 2)
    check_nests(folders)
    return [root] if stills else folders


def check_nests(folders: list[Path]) -> None:
    """Raises UserError where one of them is named as data sets name their parts, such as train, and holds folders."""
    nests = [folder for folder in folders if is_nest(folder)]
    if not nests:
        return
    meant = [inner for folder in nests for inner in innermost_nests(folder)]
    meant.sort(key=lambda folder: not folder.name.lower().startswith("train"))  # the largest part, mostly
    places = " or ".join(str(place) for place in meant[:3])
    raise UserError(f"{nests[0]}: holds folders, so it is no film; did you mean {places}? Name that one", 2)


def is_nest(folder: Path) -> bool:
    """Whether a folder is named as a part of a data set and holds folders and no images of its own."""
    if folder.name.lower() not in NESTS:
        return False
    entries = [entry for entry in os.scandir(folder) if not is_junk(entry.name)]
    stills = any(entry.is_file() and is_image(entry.name) for entry in entries)
    return not stills and any(entry.is_dir() for entry in entries)


def innermost_nests(folder: Path) -> list[Path]:
    """The folders in this one that hold films, or this one."""
    nests = [place for place in sorted(folder.iterdir()) if place.is_dir() and is_nest(place)]
    return [inner for place in nests for inner in innermost_nests(place)] or [folder]


@dataclass(frozen=True)
class Still:
    """One image of a film, as its folder, its file name and frames.jsonl tell."""

    file: str  # relative to the film's folder, with / between parts
    path: Path | None = None  # where it lies; None where it is a picture in memory
    shot: int | str | None = None
    time_ms: float | None = None  # into the film
    source: str = "folder"
    imdb: object = None  # an id of IMDb, as frames.jsonl has it
    picture: bytes | None = None  # the file itself, of one that lies nowhere

    @property
    def name(self) -> str:
        """The file, with what UTF-8 can't write replaced."""
        return self.file.encode(errors="replace").decode()

    @property
    def milliseconds(self) -> int:
        """Time into the film, -1 where it is not known."""
        known = self.time_ms is not None and 0 <= self.time_ms < 1e12
        return int(self.time_ms) if known else -1


def list_stills(folder: Path) -> list[Still]:
    """A film's stills in film order: by time where all have one, else by natural order of the file names.

    Those of folders beside it with the same title in other characters (twin_folders) are joined to them.
    """
    stills = []
    for place in (folder, *twin_folders(folder)):
        sidecar = read_sidecar(place / SIDECAR)
        for path in walk_images(place):
            own = os.path.relpath(path, place).replace(os.sep, "/")
            file = os.path.relpath(path, folder).replace(os.sep, "/")
            stills.append(describe_still(folder, file, sidecar.get(own, {})))
    stills.sort(key=lambda still: natural_key(still.file))
    if all(still.time_ms is not None for still in stills):
        stills.sort(key=lambda still: still.time_ms)
    return stills


def read_sidecar(path: Path) -> dict[str, dict]:
    """{file: its object} of a frames.jsonl; empty where there is none."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        # a line may be cut off by a kill; the image itself still counts
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            found[str(entry["file"])] = entry
    return found


def describe_still(folder: Path, file: str, entry: dict) -> Still:
    """A file of a film's folder, with what its entry in frames.jsonl says; values of a wrong type are left out."""
    shot = entry.get("shot")
    if shot is None and (match := re.search(r"shot_(\d+)_img_\d+", file)):  # MovieNet's names
        shot = int(match[1])
    time_ms = entry.get("shot_time_ms")
    is_number = isinstance(time_ms, (int, float)) and not isinstance(time_ms, bool) and math.isfinite(time_ms)
    return Still(
        file=file,
        path=folder / file,
        shot=shot if isinstance(shot, (int, str)) else None,
        time_ms=time_ms if is_number else None,
        source=str(entry.get("source") or "folder").encode(errors="replace").decode(),
        imdb=entry.get("imdb"),
    )
