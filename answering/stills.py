"""stills"""

import contextlib
import json
import math
import os
import re
from pathlib import Path

from answering.console import UserError
from answering.pictures import IMAGE_SUFFIXES


def natural_key(path: str | Path) -> list:
    """Sort key that puts 2.jpg before 10.jpg, the order in which stills are numbered."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", str(path))] + [str(path)]


def expand(paths: list[str]) -> list[str]:
    """Files as they are, folders as the images in them (natural order, links to folders not followed), "-" as stdin."""
    files = []
    for path in paths:
        inside = [path]
        if os.path.isdir(path):
            inside = [os.path.join(root, name) for root, _, names in os.walk(path) for name in names]
            inside = sorted((f for f in inside if Path(f).suffix.lower() in IMAGE_SUFFIXES), key=natural_key)
        if not inside:
            raise UserError(f"{path}: no images in this folder", 2)
        files += inside
    return files


# ---------------------------------------------------------------------------------------- raw folders


def find_films(raw: list[Path], title: str | None = None) -> dict[str, Path]:
    """{title: folder} for folders of folders of images; a folder that holds images itself is one film.

    title: of the one folder, where its name is none.
    Raises UserError where nothing is found or two folders claim one title.
    """
    films: dict[str, Path] = {}
    for root in raw:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder", 2)
        entries = sorted(os.scandir(root), key=lambda e: e.name)
        stills = [e.name for e in entries if e.is_file() and Path(e.name).suffix.lower() in IMAGE_SUFFIXES]
        # hidden folders are skipped, "...And Justice for All (1979)" is not; links to folders are not followed
        found = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False) and not re.match(r"\.(?!\.)", e.name)]
        if stills and found:
            raise UserError(f"{root}: holds {stills[0]} beside folders; move it away, or name the film folders", 2)
        for folder in [root] if stills else found:
            name = title or folder.resolve().name
            if name in films:
                raise UserError(f"{folder}: the title {name!r} is also in {films[name]}; rename one of them", 2)
            films[name] = folder
    if not films:
        raise UserError(f"{raw[0]}: no folders of images in it", 2)
    return dict(sorted(films.items()))


def list_frames(folder: Path) -> list[dict]:
    """A film's frames in film order: {"file", "shot", "time", "source", "imdb"}, by frames.jsonl and the file names."""
    sidecar, path = {}, folder / "frames.jsonl"
    for line in path.read_text("utf-8", errors="replace").split("\n") if path.exists() else []:
        # a line may be cut off by a kill; the image itself still counts
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            frame = json.loads(line)
            sidecar[str(frame["file"])] = frame
    files = [os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names]
    files = [file.replace(os.sep, "/") for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES]
    frames = []
    for file in sorted(files, key=natural_key):
        known = sidecar.get(file, {})
        shot, time = known.get("shot"), known.get("shot_time_ms")
        if shot is None and (match := re.search(r"shot_(\d+)_img_\d+", file)):  # MovieNet's names
            shot = int(match[1])
        shot = shot if isinstance(shot, (int, str)) else None
        number = isinstance(time, (int, float)) and not isinstance(time, bool) and math.isfinite(time)
        source = str(known.get("source") or "folder").encode(errors="replace").decode()
        frames.append({"file": file, "shot": shot, "time": time if number else None, "source": source})
        frames[-1]["imdb"] = known.get("imdb")
    if all(frame["time"] is not None for frame in frames):
        frames.sort(key=lambda f: f["time"])
    return frames


# ------------------------------------------------------------------------------------------------ stills


def list_stills(folder: Path, every: int) -> list[dict]:
    """Every so-manieth still of a film, in film order: data.list_frames' rows with "path", and -1 for no time."""
    stills = []
    for frame in list_frames(folder)[::every]:
        name, when = frame["file"].encode(errors="replace").decode(), frame["time"]
        known = when is not None and 0 <= when < 1e12
        stills.append(frame | {"file": name, "path": folder / frame["file"], "time": int(when) if known else -1})
    return stills
