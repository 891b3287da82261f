"""The dataset: which frames belong together, which of them train, validate and test, and the manifest that says so."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from answering.console import UserError, atomic_write

MANIFEST = ["path", "movie", "split", "group", "persons", "width", "height", "phash", "source", "bars"]
SPLITS = ("train", "val", "test", "unknown_val", "unknown_test")
DUPLICATE_BITS = 2  # of 64: the same picture, compressed again
NEAR_BITS = 12  # of 64: the same shot; unrelated frames differ by 32 +- 4
CUT_BITS = 20  # of 64: neighbours that differ more stand in different shots
WINDOW_MS = 60_000  # without shots, frames of one minute of film belong together


# ----------------------------------------------------------------------------------- groups and splits


def group_frames(rows: list[dict]) -> list[int]:
    """A group number a frame (rows in film order): stretches of film, joined where they hold near-duplicates.

    rows: {"phash", "crops", "shot", "time"}. A stretch is a shot, else a minute of film, else a run of neighbours
    without a cut. Groups are numbered in film order of their first frame.
    """
    hashes = np.array([int(row["phash"], 16) for row in rows], np.uint64)
    stretches, run = [], 0
    for i, row in enumerate(rows):
        if row["shot"] is not None:
            stretches.append(("shot", row["shot"]))
        elif row["time"] is not None:
            stretches.append(("time", int(row["time"] // WINDOW_MS)))
        else:
            run += bool(i and int(np.bitwise_count(hashes[i] ^ hashes[i - 1])) > CUT_BITS)
            stretches.append(("run", run))
    first: dict = {}
    label = np.array([first.setdefault(stretch, i) for i, stretch in enumerate(stretches)])
    for i, row in enumerate(rows):  # each with all, which takes 0.02 ms a frame in a film of 10,000 frames
        near = np.bitwise_count(hashes ^ hashes[i]) <= NEAR_BITS
        for crop in row["crops"]:
            near |= np.bitwise_count(hashes ^ np.uint64(int(crop, 16))) <= NEAR_BITS
        joined = label[near]
        if (joined != label[i]).any():
            label[np.isin(label, joined)] = joined.min()
    number: dict = {}
    return [number.setdefault(key, len(number)) for key in label.tolist()]


class Lookup(defaultdict):
    """Lookup(list) finds pictures by hashes (64 bits, hexadecimal) within DUPLICATE_BITS without a look at all of them.

    Two different bits can't lie in all three parts of a hash, so pictures that near have a part in common, the key.
    """

    def add(self, phash: str, name) -> None:
        value = int(phash, 16)
        for part in enumerate((value >> 43, value >> 22 & 0x1FFFFF, value & 0x3FFFFF)):
            self[part].append((value, name))

    def near(self, phash: str) -> set:
        value = int(phash, 16)
        parts = enumerate((value >> 43, value >> 22 & 0x1FFFFF, value & 0x3FFFFF))
        pictures = (picture for part in parts for picture in self.get(part, ()))
        return {name for other, name in pictures if (other ^ value).bit_count() <= DUPLICATE_BITS}


def film_offset(title: str) -> float:
    """A fixed number in [0, 1) from the title alone, so that films never move each other."""
    return int.from_bytes(hashlib.sha256(title.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def split_groups(groups: list[int], offset: float, test: tuple[float, float] = (0.0, 0.15), val: float = 0.15) -> list:
    """ "train", "val" or "test" a frame; groups: a group number a frame, in film order.

    Groups stand in order of their middle on a ring that starts at offset; test is an arc of it, the interval test of
    the frames, and val the arc behind. Arcs are stricter than random groups: neighbouring shots look alike too. A group
    with over 40% of the film trains and is not on the ring; test and val get a group each where there are three.
    """
    places = defaultdict(list)
    for i, g in enumerate(groups):
        places[g].append(i)
    counts = {g: len(at) for g, at in places.items()}
    middle = {g: np.median(at) / len(groups) for g, at in places.items()}
    small = [g for g in counts if counts[g] <= 0.4 * len(groups)]
    ring = sorted(small, key=lambda g: ((middle[g] - offset) % 1, g))
    total, seen, splits = sum(counts[g] for g in ring), 0, dict.fromkeys(counts, "train")
    for g in ring:
        centre = (seen + counts[g] / 2) / total
        seen += counts[g]
        if test[0] <= centre < test[1]:
            splits[g] = "test"
        elif test[1] <= centre < test[1] + val or centre < test[1] + val - 1:
            splits[g] = "val"
    for wanted in ("train", "test", "val"):  # few, large groups: whoever has nothing gets the smallest one to spare
        held = Counter(splits.values())
        spare = [g for g in counts if held[splits[g]] >= 2]
        if not held[wanted] and spare:
            splits[min(spare, key=lambda g: (splits[g] != "train", counts[g], g))] = wanted
    return [splits[g] for g in groups]


def draw_subset(titles: list[str], count: int) -> list[str]:
    """count titles drawn with seed 13; a smaller draw lies inside a larger one."""
    order = np.random.default_rng(13).permutation(len(titles))
    return sorted(sorted(titles)[i] for i in order[:count])


# -------------------------------------------------------------------------------------------- manifest


@dataclass(frozen=True)
class ManifestRow:
    """A frame of a dataset: the columns of manifest.csv, as text, and where it was read."""

    path: str  # relative to the manifest
    movie: str
    split: str  # one of SPLITS
    group: str  # "Title (Year)#number"; a group never crosses a split
    persons: str
    width: str  # pixels, of the raw frame
    height: str
    phash: str  # 64 bits, hexadecimal
    source: str
    bars: str  # shares of the sides: left, top, right, bottom; empty where there are none
    file: Path
    place: int  # number of the row in the manifest


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    """These columns of the rows; what else the rows hold is left out."""
    with atomic_write(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_manifest(path: Path, rows: list[dict]) -> None:
    """A dataset's manifest.csv; rows: dicts that hold at least the MANIFEST columns."""
    write_csv(path, MANIFEST, rows)


def read_manifest(data: Path) -> list[ManifestRow]:
    """The rows of data/manifest.csv. Raises UserError where it or a file that it names is missing."""
    path = data / "manifest.csv" if data.is_dir() else data
    if not path.exists():
        raise UserError(f"{path}: no manifest; make one with: python filter.py RAW --out {data}", 2)
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    needed = {"path", "movie", "split", "group"}
    if not lines or not needed <= set(lines[0]):
        raise UserError(f"{path}: empty, or without the columns {', '.join(sorted(needed))}; run filter.py again", 2)
    rows = []
    for place, line in enumerate(lines):
        columns = {name: line.get(name) or "" for name in MANIFEST}
        rows.append(ManifestRow(**columns, file=path.parent / line["path"], place=place))
    missing = [row.path for row in rows if not row.file.exists()]
    if missing:
        found = f"{len(missing)} of its files are missing, the first is {missing[0]}"
        raise UserError(f"{path}: {found}; run filter.py again")
    return rows


def choose_rows(
    rows: list[ManifestRow],
    *,
    split="group",
    fold: int | None = None,
    subset: int | None = None,
    limit: int | None = None,
) -> tuple[dict[str, list[ManifestRow]], list[str]]:
    """({split: rows}, classes). split: "group" (the manifest's) or "random" (80/10/10 a film, frames of a shot apart).

    fold: 0..4, another fifth of each film's groups as test. subset: that many films, drawn with seed 13. limit: at most
    this many frames a split, drawn at random. Raises UserError where a film is left without training frames.
    """
    films = defaultdict(list)
    for row in rows:
        films[row.movie].append(row)
    titles = sorted(title for title, frames in films.items() if not frames[0].split.startswith("unknown"))
    if subset:
        if len(titles) < subset:
            raise UserError(f"--subset {subset}: the manifest has only {len(titles)} films", 2)
        titles = draw_subset(titles, subset)
    chosen = {name: [row for row in rows if row.split == name] for name in SPLITS}
    chosen |= {"train": [], "val": [], "test": []}
    for index, title in enumerate(titles):
        parts = [row.split for row in films[title]]
        if split == "random":
            shares = np.random.default_rng([13, index]).permutation(len(parts)).argsort() / len(parts)
            parts = ["train" if share < 0.8 else "val" if share < 0.9 else "test" for share in shares]
        elif fold is not None:
            groups = [int(row.group.rsplit("#", 1)[1]) for row in films[title]]
            parts = split_groups(groups, film_offset(title), test=(fold / 5, (fold + 1) / 5), val=0.1)
        for row, part in zip(films[title], parts, strict=True):
            chosen[part].append(replace(row, split=part))
    if limit:
        for name, frames in chosen.items():
            order = np.random.default_rng(13).permutation(len(frames))[:limit]
            chosen[name] = [frames[i] for i in sorted(order)]
        titles = sorted({row.movie for row in chosen["train"]})
        for name in ("val", "test"):
            chosen[name] = [row for row in chosen[name] if row.movie in titles]
    empty = sorted(set(titles) - {row.movie for row in chosen["train"]})
    if empty or len(titles) < 2:
        what = f"{empty[0]} has no training frames" if empty else f"there are {len(titles)} films with training frames"
        raise UserError(f"{what}; at least two films need some: lower filter.py --min-frames or add frames")
    return chosen, titles


def assign_folds(rows: list[ManifestRow], count: int = 5) -> np.ndarray:
    """In which of count folds of its film a frame lies, int [N]; -1 in a group too large to be left out.

    A fold is a stretch of the film, a group is in one fold only, and whichever is left out, each film keeps frames.
    """
    folds, films = np.full(len(rows), -1), np.array([row.movie for row in rows])
    for title in np.unique(films):
        at = sorted(np.flatnonzero(films == title), key=lambda i: rows[i].place)  # film order, whatever the split
        for k in range(count):
            share, groups = (k / count, (k + 1) / count), [rows[i].group for i in at]
            parts = split_groups(groups, film_offset(title), test=share, val=0.0)
            folds[[i for i, part in zip(at, parts, strict=True) if part == "test"]] = k
    return folds


def label_rows(chosen: dict[str, list[ManifestRow]], classes: list[str]) -> dict[str, np.ndarray]:
    """{split: class index a frame, int [N]}, -1 for unknown films."""
    index = {title: i for i, title in enumerate(classes)}
    return {name: np.array([index.get(row.movie, -1) for row in rows], int) for name, rows in chosen.items()}


def split_fingerprint(chosen: dict[str, list[ManifestRow]]) -> str:
    """Which frame is in which split, as 16 digits, so that training, resuming and exporting mean the same ones."""
    listed = json.dumps([[split, row.path] for split in sorted(chosen) for row in chosen[split]])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]
