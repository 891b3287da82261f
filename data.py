"""Datasets of frames: manifest, groups and splits, decoded frames on disk. A module for the scripts."""

import csv
import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset
from tqdm import tqdm

from image import UserError, atomic_write, preprocess, read_image

MANIFEST = ["path", "movie", "split", "group", "persons", "width", "height", "phash", "source", "bars"]
SPLITS = ("train", "val", "test", "unknown_val", "unknown_test")
NEAR_BITS = 12  # of 64: the same shot; unrelated frames differ by 32 +- 4
CUT_BITS = 20  # of 64: neighbours that differ more stand in different shots
WINDOW_MS = 60_000  # without shots, frames of one minute of film belong together
STORE_FORMAT = 2  # raised when identify.py decodes or crops otherwise

# ----------------------------------------------------------------------------------- groups and splits


def group_frames(rows: list[dict]) -> list[int]:
    """A group number a frame (rows in film order): stretches of film, joined where they hold near-duplicates.

    A stretch is a shot, else a minute of film, else a run of neighbours without a cut. Groups are numbered in film
    order of their first frame.
    """
    hashes = np.array([int(row["phash"], 16) for row in rows], np.uint64)
    stretch, current = [], 0
    for i, row in enumerate(rows):
        if row["shot"] is not None:
            stretch.append(("shot", row["shot"]))
        elif row["time"] is not None:
            stretch.append(("time", int(row["time"] // WINDOW_MS)))
        else:
            current += bool(i and int(np.bitwise_count(hashes[i] ^ hashes[i - 1])) > CUT_BITS)
            stretch.append(("run", current))
    first: dict = {}
    label = np.array([first.setdefault(key, i) for i, key in enumerate(stretch)])
    for row, value in zip(rows, hashes, strict=True):
        near = np.bitwise_count(hashes ^ value) <= NEAR_BITS
        for crop in row["crops"]:
            near |= np.bitwise_count(hashes ^ np.uint64(int(crop, 16))) <= NEAR_BITS
        joined = np.unique(label[near])
        if len(joined) > 1:
            label[np.isin(label, joined)] = joined[0]
    number: dict = {}
    return [number.setdefault(key, len(number)) for key in label.tolist()]


def film_offset(title: str) -> float:
    """A fixed number in [0, 1) from the title alone, so that films never move each other."""
    return int.from_bytes(hashlib.sha256(title.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def split_groups(groups: list[int], offset: float, test: tuple[float, float] = (0.0, 0.15), val: float = 0.15) -> list:
    """ "train", "val" or "test" a frame; groups: a group number a frame, in film order.

    Groups stand in order of their middle, as on a ring that starts at offset; test is one arc of it, the interval test
    of the frames, and val the arc behind. Contiguous arcs are stricter than random groups: neighbouring shots of a
    scene look alike too. A group with over 40% of the film trains and is
    not on the ring; test and val get a group each where there are three.
    """
    counts = Counter(groups)
    places: dict = {}
    for i, g in enumerate(groups):
        places.setdefault(g, []).append(i)
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


def write_manifest(path: Path, rows: list[list]) -> None:
    """Write manifest.csv, whole or not at all; rows hold the cells of MANIFEST."""
    with atomic_write(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([MANIFEST, *rows])


def read_manifest(data: Path) -> list[dict]:
    """Rows of data/manifest.csv, with the full path in "file" and the row's number in "place". Raises UserError."""
    path = data / "manifest.csv" if data.is_dir() else data
    if not path.exists():
        raise UserError(f"{path}: no manifest; make one with: python filter.py RAW --out {data}", 2)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    needed = {"path", "movie", "split", "group"}
    if not rows or not needed <= set(rows[0]):
        raise UserError(f"{path}: empty, or without the columns {', '.join(sorted(needed))}; run filter.py again", 2)
    for place, row in enumerate(rows):
        row |= {"file": path.parent / row["path"], "place": place}
    missing = [row["path"] for row in rows if not row["file"].exists()]
    if missing:
        found = f"{len(missing)} of its files are missing, the first is {missing[0]}"
        raise UserError(f"{path}: {found}; run filter.py again")
    return rows


def choose_rows(
    rows: list[dict], *, split="group", fold: int | None = None, subset: int | None = None, limit: int | None = None
) -> tuple[dict[str, list[dict]], list[str]]:
    """({split: rows}, classes). split: "group" (the manifest's) or "random" (80/10/10 a film, frames of a shot apart).

    fold: 0..4, another fifth of each film's groups as test. subset: that many films, drawn with seed 13. limit: at most
    this many frames a split, drawn at random. Raises UserError where a film is left without training frames.
    """
    films = defaultdict(list)
    for row in rows:
        films[row["movie"]].append(row)
    titles = sorted(title for title, frames in films.items() if not frames[0]["split"].startswith("unknown"))
    if subset:
        if len(titles) < subset:
            raise UserError(f"--subset {subset}: the manifest has only {len(titles)} films", 2)
        titles = draw_subset(titles, subset)
    chosen = {name: [row for row in rows if row["split"] == name] for name in SPLITS}
    chosen |= {"train": [], "val": [], "test": []}
    for index, title in enumerate(titles):
        parts = [row["split"] for row in films[title]]
        if split == "random":
            shares = np.random.default_rng([13, index]).permutation(len(parts)).argsort() / len(parts)
            parts = ["train" if share < 0.8 else "val" if share < 0.9 else "test" for share in shares]
        elif fold is not None:
            groups = [int(row["group"].rsplit("#", 1)[1]) for row in films[title]]
            parts = split_groups(groups, film_offset(title), test=(fold / 5, (fold + 1) / 5), val=0.1)
        for row, part in zip(films[title], parts, strict=True):
            chosen[part].append(row | {"split": part})
    if limit:
        for name, frames in chosen.items():
            order = np.random.default_rng(13).permutation(len(frames))[:limit]
            chosen[name] = [frames[i] for i in sorted(order)]
        titles = sorted({row["movie"] for row in chosen["train"]})
        for name in ("val", "test"):
            chosen[name] = [row for row in chosen[name] if row["movie"] in titles]
    empty = sorted(set(titles) - {row["movie"] for row in chosen["train"]})
    if empty or len(titles) < 2:
        what = f"{empty[0]} has no training frames" if empty else f"there are {len(titles)} films with training frames"
        raise UserError(f"{what}; at least two films need some: lower filter.py --min-frames or add frames")
    return chosen, titles


def assign_folds(rows: list[dict], count: int = 5) -> np.ndarray:
    """In which of count folds of its film a frame lies, int [N]; -1 in a group too large to be left out.

    A fold is a stretch of the film, a group is in one fold only, and whichever is left out, each film keeps frames.
    """
    folds, films = np.full(len(rows), -1), np.array([row["movie"] for row in rows])
    for title in np.unique(films):
        at = sorted(np.flatnonzero(films == title), key=lambda i: rows[i]["place"])  # film order, whatever the split
        for k in range(count):
            share, groups = (k / count, (k + 1) / count), [rows[i]["group"] for i in at]
            parts = split_groups(groups, film_offset(title), test=share, val=0.0)
            folds[[i for i, part in zip(at, parts, strict=True) if part == "test"]] = k
    return folds


def label_rows(chosen: dict[str, list[dict]], classes: list[str]) -> dict[str, np.ndarray]:
    """{split: class index a frame, int [N]}, -1 for unknown films."""
    index = {title: i for i, title in enumerate(classes)}
    return {name: np.array([index.get(row["movie"], -1) for row in rows], int) for name, rows in chosen.items()}


def split_fingerprint(chosen: dict[str, list[dict]]) -> str:
    """Which frame is in which split, as 16 digits, so that training, resuming and exporting mean the same ones."""
    listed = json.dumps([[split, row["path"]] for split in sorted(chosen) for row in chosen[split]])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------- decoded frames


def load_frames(files: list[Path], spec: dict, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decoded and preprocessed frames uint8 [N, S, S, 3], or [N, height, width, 3] for a size (width, height)."""

    def load(file: Path) -> np.ndarray:
        return preprocess(read_image(file, draft=2 * (size[1] if size else spec["size"])), spec, size)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.stack(list(pool.map(load, files)))


class FrameStore:
    """The frames of a manifest, decoded once each, when a run first asks for them, into one file of uint8.

    The file is [all rows, height, width, 3], as nanoGPT's train.bin is one of tokens; a second one of a byte a row says
    which are there. Both are named by the frames' files, the preprocessing and the size (width, height; by default the
    preprocessing's), so that folds, runs and exports share them. folder: usually .frames in the dataset.
    """

    def __init__(self, rows: list[dict], spec: dict, folder: Path, size: tuple[int, int] | None = None):
        self.rows, self.spec, self.size, self.folder = rows, spec, size, folder
        width, height = size or (spec["size"],) * 2
        stats = [os.stat(row["file"]) for row in rows]
        listed = [[row["path"], stat.st_size, stat.st_mtime_ns] for row, stat in zip(rows, stats, strict=True)]
        how = [STORE_FORMAT, spec["crop_bars"], spec["interpolation"], width, height]
        key = hashlib.sha256(json.dumps([listed, how]).encode()).hexdigest()[:16]
        self.kind = f"{width}x{height}" + ("" if spec["crop_bars"] else "-bars")
        self.path, self.shape = folder / f"{self.kind}-{key}.bin", (len(rows), height, width, 3)

    def decode(self, rows: list[dict], chunk: int = 256) -> None:
        """Decode those of these rows of the manifest that are not there yet. Raises UserError for a full disk."""
        nbytes, marks = math.prod(self.shape[1:]), self.path.with_suffix(".done")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(f"{self.kind}-*"):  # of frames that have changed since
                if old.stem != self.path.stem:
                    old.unlink()
            for path, length in ((self.path, nbytes * len(self.rows)), (marks, len(self.rows))):
                with open(path, "ab") as file:
                    file.truncate(length)
            done = np.memmap(marks, np.uint8, "r+")
            missing = [place for place in sorted({row["place"] for row in rows}) if not done[place]]
            bar = tqdm(total=len(missing), unit="frame", desc="decode", disable=None)
            with open(self.path, "r+b") as file, bar:
                for start in range(0, len(missing), chunk):
                    part = missing[start : start + chunk]
                    frames = load_frames([self.rows[place]["file"] for place in part], self.spec, self.size)
                    for place, frame in zip(part, frames, strict=True):
                        os.pwrite(file.fileno(), frame, place * nbytes)
                    os.fsync(file.fileno())
                    done[part] = 1
                    bar.update(len(part))
        except OSError as error:
            text = f"{error.strerror or error}; {math.prod(self.shape) / 1e9:.1f} GB of decoded frames go there"
            raise UserError(f"--cache {self.folder}: {text}") from None

    def take(self, rows: list[dict]) -> Subset:
        """Frames of these rows, which are decoded: uint8 tensors [N, height, width, 3] when it is indexed."""
        frames = torch.from_file(str(self.path), size=math.prod(self.shape), dtype=torch.uint8).view(self.shape)
        return Subset(frames, torch.tensor([row["place"] for row in rows], dtype=torch.long))


def to_device(frames: Subset, device: torch.device) -> Subset | torch.Tensor:
    """All of them on a GPU, if they take less than half of what is free there; else as they are."""
    nbytes = len(frames) * math.prod(frames.dataset.shape[1:])
    if device.type != "cuda" or nbytes > 0.5 * torch.cuda.mem_get_info(device)[0]:
        return frames
    return torch.cat([frames[start : start + 1024].to(device) for start in range(0, len(frames), 1024)])


def normalise(frames: torch.Tensor, spec: dict) -> torch.Tensor:
    """uint8 or 0..255 float [N, S, S, 3] -> float32 [N, 3, S, S], channels last in memory."""
    mean, std = (torch.tensor(spec[k], device=frames.device) * 255 for k in ("mean", "std"))
    return ((frames.float() - mean) / std).permute(0, 3, 1, 2)
