"""The dataset: which frames belong together, which of them train, validate and test, and the manifest that says so."""

import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from identify import atomic_write

MANIFEST = ["path", "movie", "split", "group", "persons", "width", "height", "phash", "source", "bars"]
SPLITS = ("train", "val", "test")
DUPLICATE_BITS = 2  # of 64: the same picture, compressed again
NEAR_BITS = 12  # of 64: the same shot; unrelated frames differ by 32 +- 4
CUT_BITS = 20  # of 64: neighbours that differ more stand in different shots
WINDOW_MS = 60_000  # without shots, frames of one minute of film belong together


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


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    """These columns of the rows; what else the rows hold is left out."""
    with atomic_write(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_manifest(path: Path, rows: list[dict]) -> None:
    """A dataset's manifest.csv; rows: dicts that hold at least the MANIFEST columns."""
    write_csv(path, MANIFEST, rows)
