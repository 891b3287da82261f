"""Folders of stills: which film a folder is, which images it holds, and when in the film they come."""

import contextlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from answering.console import UserError
from answering.pictures import IMAGE_SUFFIXES


def natural_key(path: str | Path) -> list:
    """Sort key that puts 2.jpg before 10.jpg, the order in which stills are numbered."""
    parts = re.split(r"(\d+)", str(path))
    key = [int(part) if part.isdecimal() else part.casefold() for part in parts]
    return [*key, str(path)]


def is_image(name: str | Path) -> bool:
    """Whether a file's name ends as that of an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def walk_images(folder: str | Path) -> list[str]:
    """Paths of the images in a folder and its folders, in no order; links to folders are not followed."""
    return [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names if is_image(name)]


def expand(paths: list[str]) -> list[str]:
    """Files as they are, folders as the images in them (natural order, links to folders not followed), "-" as stdin."""
    files = []
    for path in paths:
        inside = sorted(walk_images(path), key=natural_key) if os.path.isdir(path) else [path]
        if not inside:
            raise UserError(f"{path}: no images in this folder", 2)
        files += inside
    return files


# ---------------------------------------------------------------------------------------- raw folders


def find_films(raw: list[Path], title: str | None = None) -> dict[str, Path]:
    """{title: folder} for folders of folders of images; a folder that holds images itself is one film.

    title: used in place of the folder's name.
    Raises UserError where nothing is found or two folders claim one title.
    """
    films: dict[str, Path] = {}
    for root in raw:
        for folder in film_folders(root):
            name = title or folder.resolve().name
            if name in films:
                raise UserError(f"{folder}: the title {name!r} is also in {films[name]}; rename one of them", 2)
            films[name] = folder
    if not films:
        raise UserError(f"{raw[0]}: no folders of images in it", 2)
    return dict(sorted(films.items()))


def film_folders(root: Path) -> list[Path]:
    """The folders in root, or root alone where it holds images itself. Raises UserError where it holds both."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", 2)
    entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    stills = [entry.name for entry in entries if entry.is_file() and is_image(entry.name)]
    folders = []
    for entry in entries:
        hidden = re.match(r"\.(?!\.)", entry.name)  # "...And Justice for All (1979)" is not
        if entry.is_dir(follow_symlinks=False) and not hidden:
            folders.append(Path(entry.path))
    if stills and folders:
        raise UserError(f"{root}: holds {stills[0]} beside folders; move it away, or name the film folders", 2)
    return [root] if stills else folders


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
    """A film's stills in film order: by time where all have one, else by natural order of the file names."""
    sidecar = read_sidecar(folder / "frames.jsonl")
    files = [os.path.relpath(path, folder).replace(os.sep, "/") for path in walk_images(folder)]
    stills = [describe_still(folder, file, sidecar.get(file, {})) for file in sorted(files, key=natural_key)]
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
