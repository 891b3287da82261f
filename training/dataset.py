"""A dataset: which frames belong together, which of them train, validate and test, and the manifest that says so."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from answering.console import UserError, atomic_write

UNKNOWN_SPLITS = ("unknown_val", "unknown_test")
SPLITS = ("train", "val", "test", *UNKNOWN_SPLITS)
DUPLICATE_BITS = 2  # of 64: the same picture, compressed again
NEAR_BITS = 12  # of 64: the same shot; unrelated frames differ by 32 +- 4
CUT_BITS = 20  # of 64: neighbours that differ more stand in different shots
WINDOW_MS = 60_000  # without shots, frames of one minute of film belong together
TEST_SHARE = 0.15  # of a film's frames
VAL_SHARE = 0.15
MAX_GROUP = 0.4  # of a film's frames; a larger group always trains


# ----------------------------------------------------------------------------------- groups and splits


def group_frames(frames: list) -> list[int]:
    """A group number a frame: stretches of film, joined where they hold near-duplicates.

    frames: of one film, in film order, with the attributes phash and crops (hashes of the whole picture and of central
    parts, 64 bits, hexadecimal), shot and time (milliseconds into the film), both None where they are not known.
    A stretch is a shot, else a minute of film, else a run of neighbours without a cut. Groups are numbered in film
    order of their first frame.
    """
    hashes = np.array([int(frame.phash, 16) for frame in frames], np.uint64)
    stretches = label_stretches(frames, hashes)
    first: dict = {}
    label = np.array([first.setdefault(stretch, i) for i, stretch in enumerate(stretches)])
    for i, frame in enumerate(frames):  # each with all, which takes 0.02 ms a frame in a film of 10,000 frames
        near = np.bitwise_count(hashes ^ hashes[i]) <= NEAR_BITS
        for crop in frame.crops:
            near |= np.bitwise_count(hashes ^ np.uint64(int(crop, 16))) <= NEAR_BITS
        joined = label[near]
        if (joined != label[i]).any():
            label[np.isin(label, joined)] = joined.min()
    number: dict = {}
    return [number.setdefault(key, len(number)) for key in label.tolist()]


def label_stretches(frames: list, hashes: np.ndarray) -> list[tuple]:
    """A key a frame, equal for frames of one shot, minute or run. hashes: the frames' phash, uint64 [N]."""
    stretches = []
    run = 0
    for i, frame in enumerate(frames):
        if frame.shot is not None:
            stretches.append(("shot", frame.shot))
        elif frame.time is not None:
            stretches.append(("time", int(frame.time // WINDOW_MS)))
        else:
            if i and int(np.bitwise_count(hashes[i] ^ hashes[i - 1])) > CUT_BITS:
                run += 1
            stretches.append(("run", run))
    return stretches


class Lookup(defaultdict):
    """Lookup(list) finds pictures whose hashes differ in at most DUPLICATE_BITS, without comparing with all of them.

    A hash (64 bits, hexadecimal) has three parts. Two different bits can't lie in all three, so pictures that are this
    near have a part in common; the keys are the parts.
    """

    def add(self, phash: str, name) -> None:
        """Add a picture; name: anything hashable that near shall tell."""
        value = int(phash, 16)
        for part in self.parts(value):
            self[part].append((value, name))

    def near(self, phash: str) -> set:
        """Names of the pictures that were added and are this near."""
        value = int(phash, 16)
        found = set()
        for part in self.parts(value):
            for other, name in self.get(part, ()):
                if (other ^ value).bit_count() <= DUPLICATE_BITS:
                    found.add(name)
        return found

    @staticmethod
    def parts(value: int) -> Iterator[tuple[int, int]]:
        """(which part, its bits), of 21, 21 and 22 bits."""
        return enumerate((value >> 43, value >> 22 & 0x1FFFFF, value & 0x3FFFFF))


def film_offset(title: str) -> float:
    """A fixed number in [0, 1) from the title alone, so that films never move each other."""
    return int.from_bytes(hashlib.sha256(title.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def split_groups(
    groups: list, offset: float, test: tuple[float, float] = (0.0, TEST_SHARE), val: float = VAL_SHARE
) -> list[str]:
    """ "train", "val" or "test" a frame; groups: a group number (or name) a frame, in film order.

    Groups stand in order of their middle on a ring that starts at offset; test is an arc of it, the interval test of
    the frames, and val the arc behind. Arcs are stricter than random groups: neighbouring shots look alike too. A group
    with over 40% of the film trains and is not on the ring; test and val get a group each where there are three.
    """
    counts = Counter(groups)
    splits = dict.fromkeys(counts, "train")
    ring = ring_order(groups, offset)
    total = sum(counts[group] for group in ring)
    seen = 0
    for group in ring:
        centre = (seen + counts[group] / 2) / total
        seen += counts[group]
        if test[0] <= centre < test[1]:
            splits[group] = "test"
        elif test[1] <= centre < test[1] + val or centre < test[1] + val - 1:
            splits[group] = "val"
    fill_empty_splits(splits, counts)
    return [splits[group] for group in groups]


def ring_order(groups: list, offset: float) -> list:
    """The groups of at most MAX_GROUP, by their middle in the film: from offset to the end, then the rest.

    groups: a group a frame, in film order; offset: as a share of the film.
    """
    places = defaultdict(list)
    for place, group in enumerate(groups):
        places[group].append(place)
    small = [group for group, at in places.items() if len(at) <= MAX_GROUP * len(groups)]
    middle = {group: np.median(places[group]) / len(groups) for group in small}
    return sorted(small, key=lambda group: ((middle[group] - offset) % 1, group))


def fill_empty_splits(splits: dict, counts: dict) -> None:
    """Give a split that has no group the smallest one that another can spare; for films of few, large groups.

    splits: {group: its split}, changed in place; counts: {group: its frames}.
    """
    for wanted in ("train", "test", "val"):
        held = Counter(splits.values())
        spare = [group for group in counts if held[splits[group]] >= 2]
        if not held[wanted] and spare:
            smallest = min(spare, key=lambda group: (splits[group] != "train", counts[group], group))
            splits[smallest] = wanted


def draw_subset(titles: list[str], count: int) -> list[str]:
    """count titles drawn with seed 13; a smaller draw lies inside a larger one."""
    order = np.random.default_rng(13).permutation(len(titles))
    return sorted(sorted(titles)[i] for i in order[:count])


# -------------------------------------------------------------------------------------------- manifest


@dataclass(frozen=True)
class ManifestRow:
    """A frame of a dataset: the columns of manifest.csv, as text, and where file and row are."""

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


MANIFEST = [field.name for field in fields(ManifestRow) if field.name not in ("file", "place")]


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    """These columns of the rows; what else the rows hold is left out."""
    with atomic_write(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_manifest(path: Path, rows: list[ManifestRow]) -> None:
    """Write a dataset's manifest.csv."""
    write_csv(path, MANIFEST, [vars(row) for row in rows])


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
    titles = choose_titles(films, subset)
    chosen = {name: [] for name in SPLITS}
    for name in UNKNOWN_SPLITS:
        chosen[name] = [row for row in rows if row.split == name]
    for index, title in enumerate(titles):
        frames = films[title]
        if split == "random":
            splits = random_splits(len(frames), seed=[13, index])
        elif fold is not None:
            splits = fold_splits(frames, fold)
        else:
            splits = [row.split for row in frames]
        for row, name in zip(frames, splits, strict=True):
            chosen[name].append(replace(row, split=name))
    if limit:
        titles = limit_rows(chosen, limit)
    check_trainable(chosen["train"], titles)
    return chosen, titles


def choose_titles(films: dict[str, list[ManifestRow]], subset: int | None) -> list[str]:
    """Known films in order, or subset of them. films: {title: rows}. Raises UserError where there are fewer."""
    titles = sorted(title for title, rows in films.items() if not rows[0].split.startswith("unknown"))
    if not subset:
        return titles
    if len(titles) < subset:
        raise UserError(f"--subset {subset}: the manifest has only {len(titles)} films", 2)
    return draw_subset(titles, subset)


def random_splits(count: int, seed: list[int]) -> list[str]:
    """The split of each of a film's frames as the original drew it: at random, whatever shot a frame is from."""
    shares = np.random.default_rng(seed).permutation(count).argsort() / count
    splits = np.full(count, "test", dtype=object)
    splits[shares < 0.9] = "val"
    splits[shares < 0.8] = "train"
    return splits.tolist()


def fold_splits(rows: list[ManifestRow], fold: int) -> list[str]:
    """The split of each of a film's frames where this fifth of its groups is the test."""
    groups = [int(row.group.rsplit("#", 1)[1]) for row in rows]
    return split_groups(groups, film_offset(rows[0].movie), test=(fold / 5, (fold + 1) / 5), val=0.1)


def limit_rows(chosen: dict[str, list[ManifestRow]], limit: int) -> list[str]:
    """Keep at most limit frames of each split, drawn with seed 13, and no val or test frames of films that don't train.

    chosen is changed in place; returns the films that train.
    """
    for name, rows in chosen.items():
        order = np.random.default_rng(13).permutation(len(rows))[:limit]
        chosen[name] = [rows[i] for i in sorted(order)]
    titles = sorted({row.movie for row in chosen["train"]})
    for name in ("val", "test"):
        chosen[name] = [row for row in chosen[name] if row.movie in titles]
    return titles


def check_trainable(rows: list[ManifestRow], titles: list[str]) -> None:
    """Raises UserError unless there are two films and each of them has some of these rows, which train."""
    mend = "at least two films need some: lower filter.py --min-frames or add frames"
    empty = sorted(set(titles) - {row.movie for row in rows})
    if empty:
        raise UserError(f"{empty[0]} has no training frames; {mend}")
    if len(titles) < 2:
        raise UserError(f"there are {len(titles)} films with training frames; {mend}")


def assign_folds(rows: list[ManifestRow], count: int = 5) -> np.ndarray:
    """In which of count folds of its film a frame lies, int [N]; -1 in a group too large to be left out.

    A fold is a stretch of the film, a group is in one fold only, and whichever is left out, each film keeps frames.
    """
    folds = np.full(len(rows), -1)
    films = np.array([row.movie for row in rows])
    for title in np.unique(films):
        places = sorted(np.flatnonzero(films == title), key=lambda i: rows[i].place)  # film order, whatever the split
        groups = [rows[i].group for i in places]
        offset = film_offset(title)
        for fold in range(count):
            splits = split_groups(groups, offset, test=(fold / count, (fold + 1) / count), val=0.0)
            folds[[i for i, split in zip(places, splits, strict=True) if split == "test"]] = fold
    return folds


def label_rows(chosen: dict[str, list[ManifestRow]], classes: list[str]) -> dict[str, np.ndarray]:
    """{split: class index a frame, int [N]}, -1 for unknown films."""
    index = {title: i for i, title in enumerate(classes)}
    return {name: np.array([index.get(row.movie, -1) for row in rows], int) for name, rows in chosen.items()}


def split_fingerprint(chosen: dict[str, list[ManifestRow]]) -> str:
    """Which frame is in which split, as 16 digits, so that training, resuming and exporting mean the same ones."""
    listed = json.dumps([[split, row.path] for split in sorted(chosen) for row in chosen[split]])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]
