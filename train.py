"""Train a network to name the film of a frame, and measure it on shots it has never seen.

python train.py data/processed --arch deit_base_patch16_224         # the best of the original's six
python train.py data/processed --arch all                           # all six, compared in runs/results.md
python train.py data/processed --arch mobilenetv2 --limit 200 --epochs 2     # a quick look, on a laptop
python train.py data/processed --recipe original --split random     # the original project's training, as it was
torchrun --nproc-per-node 4 train.py data/processed                 # on four GPUs; --batch-size stays that of all
"""

import argparse
import contextlib
import copy
import csv
import datetime
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from identify import UserError, atomic_write, one_line_errors, preprocess, read_image, softmax
from models import (
    ARCHITECTURES,
    ClipClassifier,
    build_model,
    is_transformer,
    load_run,
    multiply_adds,
    preprocessing_for,
    read_state,
    unfit,
)

STORED = (384, 256)  # width, height in pixels at which training frames wait, so that crops of them stay sharp
ORIGINAL_STORED = (600, 256)  # where crops must have the aspect ratios of the original's
DISTIL_WEIGHT, DISTIL_TEMPERATURE = 0.7, 2.0  # of a teacher's word against the label's (Hinton 2015)
CACHE_FORMAT = 1  # raised when identify.py decodes or crops otherwise
CACHE_BYTES = 1_000_000_000  # decoded frames that take more wait on disk, mapped, and not in memory
RECIPES = {
    "original": {
        "epochs": 10, "batch_size": 64, "lr": 1e-4, "weight_decay": 1e-4, "schedule": "step", "warmup": 0.0,
        "first_layer": 1.0, "freeze": 0.0, "probe": 0.0, "ema": 0.0, "smoothing": 0.0, "balance": 0.0, "crop": 0.08,
        "train_size": 224, "flip": 0.0, "colour": 0.0, "degrade": 0.0, "mixup": 0.0, "keep_bars": True,
        "select": "top1", "levels": False, "refit": False, "aspect": True, "decay_all": True,
    },
    "best": {
        "epochs": 16, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.05, "schedule": "cosine", "warmup": 0.1,
        "first_layer": 1.0, "freeze": 0.0, "probe": 0.0, "ema": 0.98, "smoothing": 0.1, "balance": 1.0, "crop": 0.2,
        "train_size": 192, "flip": 0.5, "colour": 0.1, "degrade": 0.1, "mixup": 0.0, "keep_bars": False,
        "select": "balanced", "levels": False, "refit": False, "aspect": False, "decay_all": False,
    },
}  # fmt: skip
# pretrained networks start from a probe, which on a few hundred frames is seldom beaten
PROBED = {"probe": 30.0, "levels": True, "refit": True}
# and transformers bend easily: they move gently
GENTLE = PROBED | {"epochs": 6, "lr": 5e-5, "first_layer": 0.1, "crop": 0.5, "smoothing": 0.05}
SHARES = ("warmup", "first_layer", "freeze", "ema", "smoothing", "balance", "crop", "flip", "colour", "degrade")
RECIPE_HELP = {
    "epochs": "passes over the training frames; 0 for the probe alone",
    "batch_size": "frames a step",
    "lr": "peak learning rate of AdamW (of the head)",
    "weight_decay": "of AdamW, on matrices; 0 for none",
    "schedule": "cosine, or step (halved every 5 epochs)",
    "warmup": "share of all steps in which the rate rises; 0 for none",
    "first_layer": "rate of the first layers over that of the head; 1 for no layer decay",
    "freeze": "share of the layers, from the first, that keep their weights; 0 for none",
    "ema": "decay a step of the averaged weights; 0 for none",
    "smoothing": "label smoothing; 0 for none",
    "balance": "0 draws frames evenly, 1 draws films evenly",
    "train_size": "pixels of training crops; a little under the model's, since crops enlarge (FixRes, Touvron 2019)",
    "crop": "least share of the picture that a random crop keeps; 1 for none",
    "flip": "chance of a mirror image",
    "colour": "strength of brightness, contrast and saturation changes; 0 for none",
    "degrade": "chance of blur, noise or a subtitle bar; 0 for none",
    "mixup": "beta parameter of mixup; 0 for none",
    "probe": "C of the logistic regression (features of length 1) that starts the head before others learn; 0 for none",
    "levels": "let early blocks, which see palette and grain, speak beside the last; not CLIP's",
    "refit": "where the probe stays the best, fit it again on train and val frames together",
    "aspect": "crops of torchvision's aspect ratios, in pixels of the frame; else shares of each side",
    "decay_all": "weight decay on vectors too",
    "select": "val figure that picks best.pt, top1 or balanced; a probe gives way beyond chance only",
}

# ------------------------------------------------------------------------------------------------- data


def read_manifest(data: Path) -> list[dict]:
    """Rows of data/manifest.csv with the full path in "file". Raises UserError with the mend."""
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
        raise UserError(
            f"{path}: {len(missing)} of its files are missing, the first is {missing[0]}; run filter.py again"
        )
    return rows


def choose_rows(
    rows: list[dict],
    *,
    split: str = "group",
    fold: int | None = None,
    subset: int | None = None,
    limit: int | None = None,
) -> tuple[dict[str, list[dict]], list[str]]:
    """({split: rows}, classes). split: "group" (the manifest's) or "random" (80/10/10 a film, frames of a shot apart).

    fold: 0..4, another fifth of each film's groups as test. subset: that many films, drawn with seed 13. limit: at most
    this many frames a split, drawn at random.
    """
    known = [row for row in rows if not row["split"].startswith("unknown")]
    titles = sorted({row["movie"] for row in known})
    if subset:
        from data import draw_subset

        if len(titles) < subset:
            raise UserError(f"--subset {subset}: the manifest has only {len(titles)} films", 2)
        titles = draw_subset(titles, subset)
        known = [row for row in known if row["movie"] in set(titles)]
    films = {title: [row for row in known if row["movie"] == title] for title in titles}
    if split == "random":
        for index, frames in enumerate(films.values()):
            order = np.random.default_rng([13, index]).permutation(len(frames))
            for place, i in enumerate(order):
                share = place / len(frames)
                frames[i] = frames[i] | {"split": "train" if share < 0.8 else "val" if share < 0.9 else "test"}
    elif fold is not None:
        from data import film_offset, split_groups

        for title, frames in films.items():
            groups = [int(row["group"].rsplit("#", 1)[1]) for row in frames]
            arcs = split_groups(groups, film_offset(title), test=(fold / 5, (fold + 1) / 5), val=0.1)
            films[title] = [row | {"split": arc} for row, arc in zip(frames, arcs, strict=True)]
    chosen = {name: [r for f in films.values() for r in f if r["split"] == name] for name in ("train", "val", "test")}
    for name in ("unknown_val", "unknown_test"):
        chosen[name] = [row for row in rows if row["split"] == name]
    if limit:
        for name, frames in chosen.items():
            order = np.random.default_rng(13).permutation(len(frames))[:limit]
            chosen[name] = [frames[i] for i in sorted(order)]
        titles = sorted({row["movie"] for row in chosen["train"]})
        for name in ("val", "test"):
            chosen[name] = [row for row in chosen[name] if row["movie"] in titles]
    empty = [t for t in titles if not any(row["movie"] == t for row in chosen["train"])]
    if empty or len(titles) < 2:
        what = f"{empty[0]} has no training frames" if empty else f"there are {len(titles)} films with training frames"
        raise UserError(f"{what}; at least two films need some: lower filter.py --min-frames or add frames")
    return chosen, titles


def load_frames(
    rows: list[dict], spec: dict, size: tuple[int, int] | None = None, into: torch.Tensor | None = None
) -> torch.Tensor:
    """Decode and preprocess once: uint8 [N, S, S, 3] as the model takes them, or [N, height, width, 3] for a size."""
    width, height = size or (spec["size"],) * 2
    frames = torch.empty(len(rows), height, width, 3, dtype=torch.uint8) if into is None else into

    def put(i: int) -> None:
        frames[i] = torch.from_numpy(preprocess(read_image(rows[i]["file"], draft=2 * height), spec, size).copy())

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        work = pool.map(put, range(len(rows)))
        list(tqdm(work, total=len(rows), unit="frame", desc="decode", disable=None, leave=False))
    return frames


class Rows:
    """Some rows of frames uint8 [N, H, W, 3] that may lie on disk; copied only when they are indexed."""

    def __init__(self, frames, index: torch.Tensor):
        self.frames, self.index = frames, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which) -> torch.Tensor:
        return self.frames[self.index[which]]


def map_frames(rows: list[dict], spec: dict, size: tuple[int, int] | None, cache: Path) -> torch.Tensor:
    """load_frames, kept in a file under cache and mapped from there; made once, by the first process.

    It is named by the files, the preprocessing and the size. Raises UserError when the disk is too small.
    """
    width, height = size or (spec["size"],) * 2
    stats = [os.stat(row["file"]) for row in rows]
    listed = [[row["path"], stat.st_size, stat.st_mtime_ns] for row, stat in zip(rows, stats, strict=True)]
    how = [CACHE_FORMAT, spec["crop_bars"], spec["interpolation"], width, height]
    key = hashlib.sha256(json.dumps([listed, how]).encode()).hexdigest()[:16]
    path, shape = cache / f"{width}x{height}-{key}.npy", (len(rows), height, width, 3)
    with contextlib.ExitStack() as stack:
        if process_rank() == 0:
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(cache / ".lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs on the same frames one decodes; kill -9 frees it
            if not path.exists():
                write_cache(rows, spec, size, path, shape)
        if dist.is_initialized():
            dist.barrier()
        mapped = np.load(path, mmap_mode="r")
        if dist.is_initialized():  # another run may tidy up once the lock is free; what is mapped stays
            dist.barrier()
    with warnings.catch_warnings():  # torch warns that nobody may write to it, and nobody does
        warnings.simplefilter("ignore")
        return torch.from_numpy(mapped)


def write_cache(rows: list[dict], spec: dict, size: tuple[int, int] | None, path: Path, shape: tuple) -> None:
    """Decode all rows into path, whole or not at all."""
    width, height = shape[2], shape[1]
    for old in path.parent.iterdir():  # of frames that have changed since, or of a run that was killed
        if re.fullmatch(rf"\.?{width}x{height}-[0-9a-f]{{16}}\.npy(\.part)?", old.name):
            old.unlink()
    nbytes, part = math.prod(shape), path.with_name(f".{path.name}.part")
    try:
        mapped = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        with open(part, "r+b") as file:  # a full disk shows now, and not as a crash in the middle
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(part))
        load_frames(rows, spec, size, torch.from_numpy(mapped))
        mapped.flush()
        os.replace(part, path)
    except OSError as error:
        text = f"{error.strerror or error}; {nbytes / 1e9:.1f} GB of decoded frames must go there"
        raise UserError(f"--cache {path.parent}: {text}") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"{len(rows)} decoded frames wait in {path}, {nbytes / 1e9:.1f} GB")


def gather_frames(
    chosen: dict[str, list[dict]], spec: dict, stored: tuple[int, int], cache: Path | None, plain: bool
) -> dict:
    """{split: frames as the model takes them, "crops": training frames of size stored}; "train" only if plain.

    They are in memory while they are few, and on disk from CACHE_BYTES on, or where several processes share them.
    """
    rows = [row for part in chosen.values() for row in part]
    nbytes = len(chosen["train"]) * math.prod(stored) * 3 + len(rows) * spec["size"] ** 2 * 3
    if cache is None or (nbytes < CACHE_BYTES and not dist.is_initialized()):
        frames = {split: load_frames(part, spec) for split, part in chosen.items() if plain or split != "train"}
        return frames | {"crops": load_frames(chosen["train"], spec, stored)}
    rows = sorted(rows, key=lambda row: row["path"])  # whatever the split: the folds share a file
    place = {row["path"]: i for i, row in enumerate(rows)}
    index = {split: torch.tensor([place[row["path"]] for row in part], dtype=int) for split, part in chosen.items()}
    whole = map_frames(rows, spec, None, cache)
    frames = {split: Rows(whole, part) for split, part in index.items()}
    return frames | {"crops": Rows(map_frames(rows, spec, stored, cache), index["train"])}


def normalise(frames: torch.Tensor, spec: dict) -> torch.Tensor:
    """uint8 or 0..255 float [N, S, S, 3] -> float32 [N, 3, S, S], channels last in memory."""
    mean, std = (torch.tensor(spec[k], device=frames.device) * 255 for k in ("mean", "std"))
    return ((frames.float() - mean) / std).permute(0, 3, 1, 2)


def augment(frames: torch.Tensor, spec: dict, recipe: dict, size: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops, flips and wear of a batch at once, on its device. uint8 [N, H, W, 3] -> float32 [N, 3, size, size].

    What users send: pieces of a frame, mirrored uploads, other brightness, blurred and small pictures, subtitles.
    """
    n, device = len(frames), frames.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device) * (high - low) + low

    # random-resized-crop as one affine grid; a share of the area and a ratio as torchvision draws them
    tries = (n, 10) if recipe["aspect"] else (n, 1)
    area = uniform(recipe["crop"], 1, *tries)
    ratio = uniform(math.log(3 / 4), math.log(4 / 3), *tries).exp() if recipe["crop"] < 1 else torch.ones_like(area)
    if recipe["aspect"]:
        ratio = ratio * frames.shape[1] / frames.shape[2]  # from pixels to shares of the sides
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    if recipe["aspect"]:  # the first of ten draws that fits, else the largest piece in the middle, as torchvision does
        widest = min(1.0, 4 / 3 * frames.shape[1] / frames.shape[2])
        fits = (width <= 1) & (height <= 1)
        first = fits.int().argmax(1, keepdim=True)
        missed = ~fits.any(1)
        width = torch.where(missed, widest, width.gather(1, first)[:, 0])
        height = torch.where(missed, 1.0, height.gather(1, first)[:, 0])
    else:
        missed = torch.zeros(n, dtype=bool, device=device)
    width, height = width.reshape(n).clamp(max=1), height.reshape(n).clamp(max=1)
    flip = torch.where(uniform(0, 1, n) < recipe["flip"], -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2] = (1 - width) * uniform(-1, 1, n) * ~missed
    theta[:, 1, 2] = (1 - height) * uniform(-1, 1, n) * ~missed
    images = frames.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if strength := recipe["colour"]:
        factor = uniform(1 - strength, 1 + strength, 3, n, 1, 1, 1)
        images = images * factor[0]
        images = (images - images.mean((1, 2, 3), keepdim=True)) * factor[1] + images.mean((1, 2, 3), keepdim=True)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * factor[2]
        images = images + uniform(-20, 20, n, 3, 1, 1) * strength  # white balance
    if chance := recipe["degrade"]:
        worn = uniform(0, 1, 3, n, 1, 1, 1) < chance
        small = F.interpolate(F.avg_pool2d(images, 3, 3, ceil_mode=True), size=(size, size), mode="bilinear")
        images = torch.where(worn[0], small, images)
        noise = torch.randn(images.shape, generator=generator, device=device) * uniform(2, 12, n, 1, 1, 1)
        images = torch.where(worn[1], images + noise, images)
        line = torch.arange(size, device=device).view(1, 1, size, 1) / size  # a band of letters at the bottom
        band = (line > uniform(0.8, 0.88, n, 1, 1, 1)) & (line < 0.93)
        letters = uniform(0, 1, n, 1, 1, size // 4).repeat_interleave(4, -1)[..., :size] > 0.5
        letters = F.pad(letters, (0, size - letters.shape[-1]))
        images = torch.where(worn[2] & band & letters, torch.full_like(images, 235), images)
    return normalise(images.clamp(0, 255).permute(0, 2, 3, 1), spec)


# -------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def predict(model, frames: torch.Tensor, spec: dict, *, device, bf16: bool, batch: int = 64) -> tuple:
    """(logits float32 [N, C], embedding float32 [N, D]) as numpy, of uint8 frames [N, S, S, 3]."""
    model.eval()
    logits, embeddings = [], []
    for start in range(0, len(frames), batch):
        part = frames[start : start + batch]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out, embedding = model(normalise(part.to(device), spec))
        logits.append(out.float().cpu())
        embeddings.append(embedding.float().cpu())
    return (
        (torch.cat(logits).numpy(), torch.cat(embeddings).numpy()) if logits else (np.zeros((0, 1)), np.zeros((0, 1)))
    )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """ECE in equal bins of the largest probability (Guo 2017). probabilities [N, C], labels [N]."""
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((top * bins).astype(int), bins - 1)
    return float(sum(abs(top[index == b].mean() - right[index == b].mean()) * (index == b).mean() for b in set(index)))


def known_unknown(known: np.ndarray, unknown: np.ndarray) -> dict:
    """AUROC and FPR at 95% TPR of scores (higher = known), float [N] and [M]; None without unknown frames."""
    from sklearn.metrics import roc_auc_score

    if not len(known) or not len(unknown):
        return {"auroc": None, "fpr95": None}
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    threshold = np.sort(known)[int(0.05 * len(known))]
    return {"auroc": float(roc_auc_score(truth, np.r_[known, unknown])), "fpr95": float((unknown >= threshold).mean())}


def measure(logits: np.ndarray, labels: np.ndarray, unknown: np.ndarray | None = None) -> dict:
    """Figures of logits [N, C] against labels [N]; unknown: logits [M, C] of films the model has never seen."""
    from sklearn.metrics import f1_score, recall_score

    probabilities = softmax(logits)
    order = np.argsort(-logits, axis=1)
    figures = {
        "top1": float((order[:, 0] == labels).mean()),
        "top5": float((order[:, :5] == labels[:, None]).any(1).mean()),
        "balanced": float(
            recall_score(labels, order[:, 0], labels=np.unique(labels), average="macro", zero_division=0)
        ),
        "macro_f1": float(f1_score(labels, order[:, 0], labels=np.unique(labels), average="macro", zero_division=0)),
        "loss": float(-np.log(probabilities[np.arange(len(labels)), labels].clip(1e-12)).mean()),
        "ece": expected_calibration_error(probabilities, labels),
    }
    if unknown is not None:
        rest = softmax(unknown).max(1) if len(unknown) else np.zeros(0)
        figures |= known_unknown(probabilities.max(1), rest)
    return figures


def really_worse(reference: np.ndarray, other: np.ndarray) -> bool:
    """Sign test at 5%: are more frames lost than won, beyond chance? reference, other: bool [N], right answers.

    On a hundred frames one or two flips weigh points of balanced accuracy and mean nothing.
    """
    from scipy.stats import binomtest

    lost, won = int((reference & ~other).sum()), int((other & ~reference).sum())
    return lost > won and binomtest(lost, lost + won, alternative="greater").pvalue < 0.05


# --------------------------------------------------------------------------------------------- training


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    first_layer: float,
    freeze: float = 0.0,
    decay_all: bool = False,
) -> list[dict]:
    """AdamW groups: rates fall geometrically from the head to first_layer * lr, no decay on vectors; freezes the first.

    Layers are the numbered blocks in the order of the parameters, so that it fits CNNs and transformers alike.
    """
    layers: dict[str, int] = {}
    entries = []
    for name, parameter in model.named_parameters():
        match = re.match(r"(backbone\.(?:.*?\.)?[a-z]*\d+(?:\.\d+)?)\.", name)
        before = name.startswith("backbone") and not set(layers) - {"stem"}
        layer = match[1] if match else "stem" if before else "end"
        if layer != "end":
            layers.setdefault(layer, len(layers))
        entries.append((layer, parameter))
    groups: dict[tuple, dict] = {}
    for layer, parameter in entries:
        depth = layers.get(layer, len(layers))
        if depth < freeze * len(layers):
            parameter.requires_grad_(False)
            continue
        rate = lr * first_layer ** (1 - depth / len(layers))
        decay = weight_decay if parameter.ndim > 1 or decay_all else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "peak": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def rate_at(step: int, *, steps: int, per_epoch: int, recipe: dict) -> float:
    """Learning rate at a step as a share of the peak."""
    if recipe["schedule"] == "step":
        return 0.5 ** (step // per_epoch // 5)
    warm = max(1, int(recipe["warmup"] * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def fit_head(dims: list[int], embedding: np.ndarray, labels: np.ndarray, strength: float) -> tuple:
    """(weight float64 [C, D], bias [C]) of logistic regressions on frozen features: the mean of one a level.

    dims: of the levels, D in all. embedding [N, D], labels [N]. strength: scikit-learn's C on features of mean length
    1. Each level is fitted by itself, which beats one fit on all of them together. Raises UserError for nan.
    """
    from sklearn.linear_model import LogisticRegression

    if not np.isfinite(embedding).all():
        raise UserError("the network's features are not finite; use --precision fp32, or another --init")
    weights, biases = [], []
    for part in np.split(embedding, np.cumsum(dims)[:-1], axis=1):
        part = part.astype(np.float64)
        mean = part.mean(0)
        length = np.linalg.norm(part - mean, axis=1).mean()
        probe = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
        probe.fit((part - mean) / length, labels)
        weight, bias = probe.coef_ / length, probe.intercept_ - probe.coef_ @ mean / length
        if len(weight) == 1:  # scikit-learn keeps one row for two classes
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        weights.append(weight / len(dims))
        biases.append(bias)
    return np.concatenate(weights, axis=1), np.mean(biases, axis=0)


@torch.no_grad()
def start_head(model: nn.Module, embedding: np.ndarray, labels: np.ndarray, strength: float) -> None:
    """fit_head into the model's head: fine-tuning from there bends the features less (Kumar 2022)."""
    weight, bias = fit_head(model.dims, embedding, labels, strength)
    model.head.weight.copy_(torch.from_numpy(weight))
    model.head.bias.copy_(torch.from_numpy(bias))


def hold_out_stretches(rows: list[dict], count: int = 5) -> np.ndarray:
    """In which of count stretches of its film a frame lies, int [N]; -1 in a group too large to be left out.

    A group is in one stretch only, and whichever stretch is left out, each film keeps frames.
    """
    from data import film_offset, split_groups

    stretch, films = np.full(len(rows), -1), np.array([row["movie"] for row in rows])
    for title in np.unique(films):
        at = sorted(np.flatnonzero(films == title), key=lambda i: rows[i]["place"])  # film order, whatever the split
        for k in range(count):
            share = (k / count, (k + 1) / count)
            arcs = split_groups([rows[i]["group"] for i in at], film_offset(title), test=share, val=0.0)
            stretch[[i for i, arc in zip(at, arcs, strict=True) if arc == "test"]] = k
    return stretch


def cross_fit(dims: list[int], embedding: np.ndarray, labels: np.ndarray, stretch: np.ndarray, strength: float):
    """Logits float32 [N, C] of each frame by a head fitted without its stretch (-1 in stretch: zeros)."""
    logits = np.zeros((len(labels), labels.max() + 1), np.float32)
    for k in tqdm(np.unique(stretch[stretch >= 0]), unit="fit", desc="stretches", disable=None, leave=False):
        out = stretch == k
        # C weighs the sum over frames: of fewer frames it must weigh more, to bind the head alike
        weight, bias = fit_head(dims, embedding[~out], labels[~out], strength * len(out) / (~out).sum())
        logits[out] = embedding[out] @ weight.T + bias
    return logits


def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of weights and buffers; early steps count less, so that it leaves the start behind."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)


def draw_order(labels: np.ndarray, balance: float, generator: torch.Generator) -> torch.Tensor:
    """Indices of one epoch: a permutation (balance 0), or draws weighted by film size ** -balance."""
    if not balance:
        return torch.randperm(len(labels), generator=generator)
    weights = np.bincount(labels).astype(float) ** -balance
    return torch.multinomial(torch.from_numpy(weights[labels]), len(labels), replacement=True, generator=generator)


def git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:  # no git here
        return "unknown"


def frames_key(chosen: dict[str, list[dict]]) -> str:
    """Fingerprint of which frame is in which split, so that training, resuming and exporting mean the same ones."""
    listed = json.dumps([[split, row["path"]] for split in sorted(chosen) for row in chosen[split]])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def keep_memory() -> None:
    """Let glibc keep the memory it has freed, in this process; elsewhere nothing happens.

    It would give each large block back at once, and the system would clear it page by page when it is asked for again:
    a forward pass of MobileNetV2 on the CPU takes twice as long.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, value)


def choose_device(device: str | None) -> torch.device:
    """The device that --device names, else this process's GPU, else the CPU; made ready. Raises UserError."""
    try:
        local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if dist.is_initialized() else "cuda"
        asked = None if device == "cuda" else device  # each process takes its own GPU
        where = torch.device(asked or (local if torch.cuda.is_available() or device else "cpu"))
        where = torch.zeros(1, device=where).device  # with its index, as tensors have it
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"--device {device}: can't be used here ({reason}); try --device cpu", 2) from None
    if where.type == "cpu":
        keep_memory()
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return where


@contextlib.contextmanager
def out_of_memory():
    """Whatever runs out of GPU memory in here says what helps."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError("out of GPU memory; lower --batch-size") from None


@contextlib.contextmanager
def process_group():
    """Join the processes that torchrun started, if it did: nccl between GPUs, gloo between CPUs. The first talks."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
        yield
        return
    patience = datetime.timedelta(hours=12)  # the first one decodes all frames while the others wait
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=patience)
    with contextlib.redirect_stdout(None) if dist.get_rank() else contextlib.nullcontext():
        yield
    dist.destroy_process_group()  # not behind an error: it would wait for the others, and torchrun ends them


def process_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def predict_shared(model, frames, spec: dict, **kwargs) -> tuple:
    """predict, with the frames shared out among the processes, each frame once; all of them get all the answers."""
    rank, world = process_rank(), process_count()
    if world == 1:
        return predict(model, frames, spec, **kwargs)
    for buffer in model.buffers():  # each process has seen other frames
        dist.broadcast(buffer, 0)
    mine = Rows(frames, torch.arange(len(frames))[rank::world])
    parts: list = [None] * world
    dist.all_gather_object(parts, predict(model, mine, spec, **kwargs))
    whole = []
    for column in zip(*parts, strict=True):
        out = np.zeros((len(frames), max(part.shape[1] for part in column)), np.float32)
        for r, part in enumerate(column):
            out[r::world] = part
        whole.append(out)
    return tuple(whole)


def matrix_rate(device: torch.device, bf16: bool) -> float:
    """Operations a second of square matrix products here, the best of ten; what MFU is measured against."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    best = math.inf
    for _ in range(11):  # the first one warms up and is never the best
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def start_wandb(project: str, run: Path, args: dict, resume: bool):
    """A Weights & Biases run. Raises UserError without the package, or without an account or WANDB_MODE=offline."""
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs its package: pip install wandb", 2) from None
    known = run / "wandb_id"
    if not (resume and known.exists()):
        known.write_text(secrets.token_hex(4))
    try:
        name = known.read_text().strip()
        return wandb.init(project=project, name=run.name, id=name, resume="allow", dir=run, config=args)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline") from None


KEYS = ("mean", "std")


class Teacher:
    """A trained run that a student learns from (Hinton 2015): its probabilities of the same crops.

    path: a run folder or its best.pt. Raises UserError unless it was trained on the same frames of the same films.
    """

    def __init__(self, path: Path, classes: list[str], frames: str, spec: dict, device: torch.device):
        path = path / "best.pt" if path.is_dir() else path
        if not path.exists():
            raise UserError(f"--teacher {path}: no such file", 2)
        self.model, state = load_run(path)
        if state["classes"] != classes or state["args"].get("frames") != frames:
            raise UserError(f"--teacher {path}: was trained on other films or splits; it may have seen test frames", 2)
        self.model.to(device).requires_grad_(False)
        self.size = state["preprocessing"]["size"]
        values = [torch.tensor(s[k], device=device).view(3, 1, 1) for s in (spec, state["preprocessing"]) for k in KEYS]
        self.scale, self.shift = values[1] / values[3], (values[0] - values[2]) / values[3]

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Probabilities float32 [N, C], softened, of the student's normalised inputs [N, 3, H, W]."""
        inputs = F.interpolate(inputs * self.scale + self.shift, (self.size, self.size), mode="bilinear")
        return F.softmax(self.model(inputs)[0].float() / DISTIL_TEMPERATURE, 1)


def learn_from(logits: torch.Tensor, truth: torch.Tensor, wisdom: torch.Tensor | None, smoothing: float):
    """Loss of logits [N, C] against the labels truth [N, C] and, with a teacher, its softened probabilities [N, C]."""
    loss = F.cross_entropy(logits.float(), truth, label_smoothing=smoothing)
    if wisdom is None:
        return loss
    soft = F.kl_div(F.log_softmax(logits.float() / DISTIL_TEMPERATURE, 1), wisdom, reduction="batchmean")
    return (1 - DISTIL_WEIGHT) * loss + DISTIL_WEIGHT * DISTIL_TEMPERATURE**2 * soft


def same_split(init: str | Path, classes: list[str], split: str, fold: int | None) -> bool:
    """Whether the weights init have seen no test frames of this split, as far as their checkpoint tells."""
    if Path(init).is_dir() or not Path(init).exists():
        return True
    state = read_state(init)
    args = state.get("args")
    if not isinstance(args, dict) or not set(state.get("classes", [])) & set(classes):
        return True
    return (args.get("split"), args.get("fold")) == (split, fold)


def step_seed(*numbers: int) -> int:
    """A seed from a purpose, the run's seed, step and process: a resumed run draws what an unbroken one draws."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def train_model(
    data: Path,
    *,
    arch: str = "deit_base_patch16_224",
    recipe: dict | None = None,
    recipe_name: str = "best",
    out: Path = Path("runs"),
    name: str | None = None,
    init: str | None = None,
    pretrained: bool = True,
    split: str = "group",
    fold: int | None = None,
    subset: int | None = None,
    limit: int | None = None,
    seed: int = 13,
    device: str | None = None,
    precision: str = "auto",
    compiled: bool = False,
    cache: Path | None = None,
    teacher: Path | None = None,
    wandb: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train one architecture and leave a run folder; returns its path. The test split is looked at once, at the end.

    recipe: overrides of RECIPES[recipe_name]; "best" of pretrained networks has PROBED or GENTLE in it. precision:
    "bf16", "fp32" or "auto" (bf16 where the hardware has it, fp32 for the recipe original). compiled: torch.compile.
    cache: folder for decoded frames that are too many for memory. teacher: a run to learn from. wandb: project.
    Inside process_group() the processes share the work: batch_size is that of all together, and the first one writes.
    Raises UserError.
    """
    parts = [arch, data.resolve().name, f"subset{subset}" if subset else ""]
    parts += ["" if recipe_name == "best" else recipe_name, f"limit{limit}" if limit else ""]
    parts += ["" if split == "group" else f"{split}split", "" if fold is None else f"fold{fold}"]
    run = out / (name or "-".join(part for part in parts if part))
    if (run / "last.pt").exists() and not (resume or overwrite):
        raise UserError(f"{run}: there is a run in it; continue it with --resume, replace it with --overwrite", 2)
    where = choose_device(device)
    rank, world = process_rank(), process_count()
    bf16 = precision == "bf16" or (precision == "auto" and recipe_name != "original" and has_bf16(where))
    torch.manual_seed(seed)
    chosen, classes = choose_rows(read_manifest(data), split=split, fold=fold, subset=subset, limit=limit)
    for name in ("val", "test"):
        if not chosen[name]:
            raise UserError(f"{data}: no {name} frames; each film needs shots enough for three splits")
    transformer = is_transformer(arch)
    start = (GENTLE if transformer else PROBED) if recipe_name == "best" and (pretrained or init) else {}
    wanted = recipe or {}
    recipe = RECIPES[recipe_name] | start | wanted
    if init and not same_split(init, classes, split, fold):
        raise UserError(f"--init {init}: was trained on another --split or --fold; it may have seen test frames", 2)
    model = build_model(arch, classes, pretrained=pretrained, init=init, levels=recipe["levels"])
    levels = getattr(model, "levels", [])
    if isinstance(model, ClipClassifier):
        if wanted.get("probe"):
            raise UserError("--probe: CLIP's head starts from texts", 2)
        recipe |= {"probe": 0.0, "refit": False}
    if wanted.get("levels") and not levels:
        raise UserError(f"--levels: {arch} has no early blocks that can be read", 2)
    recipe["levels"] = bool(levels)
    if wanted.get("refit") and not recipe["probe"]:
        raise UserError("--refit fits a probe again; it needs --probe and a linear head", 2)
    if recipe["epochs"] == 0 and teacher:
        raise UserError("--teacher teaches while the model trains and does not go with --epochs 0", 2)
    size = recipe["train_size"]
    spec = preprocessing_for(arch) | {"crop_bars": not recipe["keep_bars"]}
    try:
        operations = multiply_adds(model, size)
    except (RuntimeError, AssertionError, ValueError):  # patches of 14, or a model of one size only
        size = -(-size // 14) * 14 if "patch14" in arch and size % 14 else spec["size"]
        try:
            operations = multiply_adds(model, size)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(unfit(arch, error), 2) from None
        print(f"{arch} can't take crops of {recipe['train_size']} pixels; they are {size} here")
    index = {title: i for i, title in enumerate(classes)}
    labels = {s: np.array([index.get(row["movie"], -1) for row in rows], int) for s, rows in chosen.items()}
    stored = ORIGINAL_STORED if recipe["aspect"] else STORED
    frames = gather_frames(chosen, spec, stored, cache, plain=bool(recipe["probe"]) or bool(levels))
    args = {"arch": arch, "data": str(data), "recipe": recipe_name, "split": split, "fold": fold, "subset": subset}
    args |= {
        "limit": limit,
        "init": str(init) if init else None,
        "pretrained": pretrained,
        "frames": frames_key(chosen),
        "teacher": os.path.abspath(teacher) if teacher else None,
    }
    args |= {"seed": seed, "device": str(where), "precision": "bf16" if bf16 else "fp32", **recipe, "train_size": size}
    commit = git_commit()
    if rank == 0:
        run.mkdir(parents=True, exist_ok=True)
    # the old run must not be mixed up with the new one, should that be stopped early
    if overwrite and not resume and rank == 0:
        for name in ("last.pt", "best.pt", "test.json", "metrics.csv"):
            (run / name).unlink(missing_ok=True)
    master = Teacher(teacher, classes, args["frames"], spec, where) if teacher else None
    model = model.to(where)
    if not transformer:
        model = model.to(memory_format=torch.channels_last)  # convolutions run faster so
    probed = bool(recipe["probe"])
    zero_shot = isinstance(model, ClipClassifier) and (Path(init).is_dir() if init else pretrained)
    predicting = {"device": where, "bf16": bf16, "batch": min(64, 2 * recipe["batch_size"])}
    if (probed or levels) and not (resume and (run / "last.pt").exists()):
        _, embedding = predict_shared(model, frames["train"], spec, **predicting)
        if levels:
            model.set_norm(torch.from_numpy(embedding))
            _, embedding = predict_shared(model, frames["train"], spec, **predicting)
        if probed:
            start_head(model, embedding, labels["train"], recipe["probe"])
    if world > 1:
        for tensor in model.state_dict().values():  # what was drawn or fitted is the first one's
            dist.broadcast(tensor, 0)
    average = copy.deepcopy(model).requires_grad_(False) if recipe["ema"] else model
    groups = parameter_groups(
        model, **{k: recipe[k] for k in ("lr", "weight_decay", "first_layer", "freeze", "decay_all")}
    )
    optimiser = torch.optim.AdamW(groups, fused=where.type == "cuda")
    batch = min(recipe["batch_size"], len(chosen["train"]) // world * world)
    if batch % world or not batch:
        raise UserError(f"--batch-size {batch}: must be a multiple of the {world} processes", 2)
    per_epoch = len(chosen["train"]) // batch
    steps = per_epoch * recipe["epochs"]
    shuffle, draw = torch.Generator(), torch.Generator(where)
    target = torch.from_numpy(labels["train"]).to(where)
    if recipe["epochs"] == 0 and not (probed or zero_shot):
        raise UserError("--epochs 0 leaves the head as it began; it needs --probe and a linear head", 2)
    images = _to_device(frames["crops"], where)
    history, best, first, begun, probe_right = [], None, 0, {"step": 0, "losses": []}, None
    if resume and (run / "last.pt").exists():
        state = torch.load(run / "last.pt", map_location="cpu", weights_only=True)
        if state["classes"] != classes or state["arch"] != arch:
            raise UserError(f"{run}/last.pt: made for other films or another --arch; use --overwrite or --name", 2)
        free = {"data", "init", "pretrained", "device", "precision"}
        # what is off, or came later than that run, may be missing there
        changed = [k for k in args if k not in free and (state["args"].get(k) or None) != (args[k] or None)]
        if changed or torch.device(state["args"]["device"]).type != where.type:
            what = ", ".join(changed) or "--device"
            raise UserError(f"{run}/last.pt: made with another {what}; use the same, --overwrite or --name", 2)
        model.load_state_dict(state["training"])
        average.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        history, best, first, begun = (state[key] for key in ("history", "best", "epoch", "begun"))
        probe_right = None if state.get("probe_right") is None else state["probe_right"].numpy()
        del state
        print(f"resumed {run} after epoch {first}" + (f" and {begun['step']} steps" if begun["step"] else ""))
    if rank == 0:
        with atomic_write(run / "args.json", "w") as file:
            json.dump(args, file, indent=1)
    logger = start_wandb(wandb, run, args, resume) if wandb and rank == 0 else None
    counts = ", ".join(f"{s} {len(rows)}" for s, rows in chosen.items())
    peak = matrix_rate(where, bf16) * world if recipe["epochs"] else math.inf
    machines = where.type if world == 1 else f"{world} x {where.type}"
    print(f"{run}: {len(classes)} films, {counts}; {args['precision']} on {machines}, {split} split")

    def save(path: Path, extra: dict) -> None:
        if rank:
            return
        state = {"model": average.state_dict(), "arch": arch, "classes": classes, "preprocessing": spec, "args": args}
        with atomic_write(path) as file:
            torch.save(state | {"figures": best, "commit": commit} | extra, file)

    def save_last(epoch: int, step: int = 0, losses: torch.Tensor | None = None) -> None:
        """After whole epochs, and so many steps of the next one."""
        begun = {"step": step, "losses": losses[:step].tolist() if step else []}
        state = {"training": model.state_dict(), "optimiser": optimiser.state_dict(), "begun": begun}
        state["probe_right"] = None if probe_right is None else torch.from_numpy(probe_right)
        save(run / "last.pt", state | {"history": history, "best": best, "epoch": epoch})
        if rank == 0 and history:
            _write_metrics(run / "metrics.csv", history)

    def validate() -> tuple[dict, np.ndarray]:
        """Figures on val, and which of its frames are named right, bool [N]."""
        logits, _ = predict_shared(average, frames["val"], spec, **predicting)
        rest, _ = predict_shared(average, frames["unknown_val"], spec, **predicting)
        return measure(logits, labels["val"], rest), logits.argmax(1) == labels["val"]

    if (probed or zero_shot) and not history:  # on few frames nothing that follows may beat it
        figures, right = validate()
        probe_right = right if probed and not teacher else None  # a probe hears nothing of a teacher
        best = {"epoch": 0, "lr": 0.0, "train_loss": math.nan, **figures, "images_per_s": 0.0, "mfu": 0.0}
        history.append(best)
        if logger:
            logger.log(best, step=0)
        save(run / "best.pt", {})
        save_last(0)
        what = "zero-shot" if zero_shot else "the probe alone"
        print(f"{what}: val top-1 {figures['top1']:.4f}  balanced {figures['balanced']:.4f}", flush=True)
    epochs = recipe["epochs"]
    if epochs and probe_right is not None and not really_worse(np.ones_like(probe_right), probe_right):
        epochs, errors = 0, int((~probe_right).sum())
        print(f"it is wrong on {errors} val frames: training could not beat that beyond chance (--probe 0 trains)")
    net = model
    if world > 1:
        net = nn.parallel.DistributedDataParallel(model, [where.index] if where.type == "cuda" else None)
    net = torch.compile(net) if compiled else net
    stop, handlers = [], {}
    if threading.current_thread() is threading.main_thread():  # a signal ends the step in hand, then all is saved
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
                handlers[number] = signal.signal(number, lambda *_: _stop(stop))
    try:
        for epoch in range(first, epochs):
            order = draw_order(labels["train"], recipe["balance"], shuffle.manual_seed(step_seed(0, seed, epoch)))
            model.train()
            for module in model.modules():  # a frozen layer keeps its statistics too
                if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                    module.eval()
            if levels and probed:  # the head was fitted to these statistics
                model.norm.eval()
            losses = torch.zeros(per_epoch, device=where)
            origin = start = begun["step"]
            losses[:start] = torch.tensor(begun["losses"], device=where)
            clock, warm, begun = time.perf_counter(), start, {"step": 0, "losses": []}
            bar = tqdm(
                range(start, per_epoch),
                unit="step",
                desc=f"epoch {epoch + 1}",
                disable=True if rank else None,
                leave=False,
            )
            for k in bar:
                if k == origin + 1:
                    _wait(where)
                    clock, warm = time.perf_counter(), k
                step = epoch * per_epoch + k
                share = rate_at(step, steps=steps, per_epoch=per_epoch, recipe=recipe)
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * share
                torch.manual_seed(step_seed(1, seed, step, rank))  # for dropout
                draw.manual_seed(step_seed(2, seed, step, rank))
                pick = order[k * batch : (k + 1) * batch][rank::world]
                inputs = augment(_pick(images, pick, where), spec, recipe, size, draw)
                truth = F.one_hot(target[pick.to(where)], len(classes)).float()
                if recipe["mixup"]:
                    mix = float(np.random.default_rng([seed, step]).beta(recipe["mixup"], recipe["mixup"]))
                    inputs = inputs.lerp(inputs.flip(0), mix)
                    truth = truth.lerp(truth.flip(0), mix)
                with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
                    logits, embedding = net(inputs.contiguous(memory_format=torch.channels_last))
                    answers = model.level_logits(embedding) if levels else [logits]  # each level learns by itself
                    wisdom = master(inputs) if master else None
                loss = sum(learn_from(a, truth, wisdom, recipe["smoothing"]) for a in answers) / len(answers)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                losses[k] = loss.detach()
                if recipe["ema"]:
                    update_average(average, model, recipe["ema"], step)
                stopping = _agree(stop)
                if stopping or (k + 1) % 50 == 0 or k + 1 == per_epoch:
                    if world > 1:  # the mean loss of all processes, in each of them
                        dist.all_reduce(losses[start : k + 1])
                        losses[start : k + 1] /= world
                        start = k + 1
                    broken = (~losses[: k + 1].isfinite()).nonzero()
                    if len(broken):
                        at = f"in epoch {epoch + 1}, step {int(broken[0]) + 1} of {per_epoch}"
                        raise UserError(f"the loss is not finite {at}; lower --lr or use --precision fp32")
                if stopping and k + 1 < per_epoch:
                    save_last(epoch, k + 1, losses)
                    raise KeyboardInterrupt
            _wait(where)
            speed = (per_epoch - warm) * batch / max(time.perf_counter() - clock, 1e-9)
            figures, right = validate()
            row = {"epoch": epoch + 1, "lr": recipe["lr"] * share, "train_loss": float(losses.mean()), **figures}
            peak = max(peak, matrix_rate(where, bf16) * world)  # something else may have run when it was measured first
            row |= {"images_per_s": speed, "mfu": speed * operations * 6 / peak}
            history.append(row)
            if logger:
                logger.log(row, step=epoch + 1)
            better = best is None or (row[recipe["select"]], -row["loss"]) >= (best[recipe["select"]], -best["loss"])
            # of many epochs on few val frames one looks better than the probe by chance, and on test it is not
            if better and (best is None or best["epoch"] or probe_right is None or really_worse(right, probe_right)):
                best = row
                save(run / "best.pt", {})
            save_last(epoch + 1)
            left = (recipe["epochs"] - epoch - 1) * (time.perf_counter() - clock) * per_epoch / (per_epoch - origin)
            print(
                f"epoch {epoch + 1:3}/{recipe['epochs']}  train loss {row['train_loss']:7.4f}  "
                f"val loss {row['loss']:7.4f}  top-1 {row['top1']:.4f}  balanced {row['balanced']:.4f}  "
                f"{speed:7.1f} images/s  MFU {row['mfu']:4.0%}  ETA {left:5.0f} s",
                flush=True,
            )
            if epoch + 1 < recipe["epochs"] and _agree(stop):
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        kept = (run / "last.pt").exists()
        text = f"the work so far is in {run}/last.pt, continue with --resume" if kept else "before the first step"
        raise UserError(f"stopped; {text}", 130) from None
    except RuntimeError as error:
        if not compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--compile: it can't be done here ({reason}); run without it") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    if world > 1:
        dist.barrier()
    state = torch.load(run / "best.pt", map_location=where, weights_only=True)
    average.load_state_dict(state["model"])
    held_out = state.get("held_out")
    del state
    if recipe["refit"] and probed and best["epoch"] == 0 and held_out is None:
        stretch = hold_out_stretches(chosen["train"] + chosen["val"])
        seen = [predict_shared(average, frames[split], spec, **predicting)[1] for split in ("train", "val")]
        embedding = np.concatenate(seen)
        if rank == 0 and (stretch >= 0).any():
            held_out = refit_head(average, embedding, np.r_[labels["train"], labels["val"]], stretch, recipe["probe"])
            save(run / "best.pt", {"held_out": held_out})
        del seen, embedding
        if world > 1:
            for tensor in average.head.parameters():
                dist.broadcast(tensor.data, 0)
    final = ("test", "unknown_test", "unknown_val") if recipe["refit"] else ("test", "unknown_test")
    results = {split: predict_shared(average, frames[split], spec, **predicting)[0] for split in final}
    if rank:
        return run
    test = {"test": measure(results["test"], labels["test"], results["unknown_test"])}
    test["val"] = {key: best[key] for key in test["test"]}  # before the model saw val, should it have
    if held_out:
        stretch, logits = (held_out[key].cpu().numpy() for key in ("stretch", "logits"))
        truth = np.r_[labels["train"], labels["val"]]
        test["held_out"] = measure(logits[stretch >= 0], truth[stretch >= 0], results["unknown_val"])
        figures = "  ".join(f"{key} {test['held_out'][key]:.4f}" for key in ("top1", "balanced"))
        print(f"the probe it is, refit on train and val. Stretches that a probe had not seen: {figures}")
    test |= {"run": run.name, "args": args, "classes": len(classes), "frames": {s: len(r) for s, r in chosen.items()}}
    test |= {"best_epoch": best["epoch"], "commit": commit, "images_per_s": history[-1]["images_per_s"]}
    with atomic_write(run / "test.json", "w") as file:
        json.dump(test, file, indent=1)
    draw_curves(history, run / "curves.png")
    draw_confusion(results["test"], labels["test"], classes, run / "confusion.png")
    draw_mistakes(results["test"], labels["test"], chosen["test"], classes, run / "mistakes.png")
    write_results(out)
    if logger:
        logger.summary.update({f"test/{key}": value for key, value in test["test"].items()})
        logger.finish()
    return run


def refit_head(
    model: nn.Module, embedding: np.ndarray, truth: np.ndarray, stretch: np.ndarray, strength: float
) -> dict:
    """Fit the head on the embedding [N, D] and labels truth [N] of train and val frames: a few hundred more help.

    Returns what then takes val's place where the rule is fitted, {"stretch": int [N], "logits": float32 [N, C]}: of
    each frame the answer of a head that has not seen its stretch of film (cross_fit).
    """
    logits = cross_fit(model.dims, embedding, truth, stretch, strength)
    start_head(model, embedding, truth, strength)
    return {"stretch": torch.from_numpy(stretch), "logits": torch.from_numpy(logits)}


def _to_device(frames, device: torch.device):
    """The frames on the GPU if they take less than half of what is free there, else as they are."""
    if device.type != "cuda" or not len(frames):
        return frames
    shape = (len(frames), *frames[:1].shape[1:])
    if math.prod(shape) > 0.5 * torch.cuda.mem_get_info(device)[0]:
        return frames
    images = torch.empty(shape, dtype=torch.uint8, device=device)
    for start in range(0, len(frames), 1024):
        images[start : start + 1024] = frames[start : start + 1024].to(device)
    return images


def _pick(images, pick: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows of images on device; from host memory through a pinned batch, copied while the GPU works on the last."""
    if isinstance(images, torch.Tensor) and images.device == device:
        return images[pick.to(device)]
    batch = images[pick]
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def _stop(stop: list) -> None:
    if stop and process_count() == 1:  # asked twice: now. torchrun sends its own signal after the scheduler's
        raise KeyboardInterrupt
    stop.append(1)


def _agree(stop: list) -> bool:
    """Whether a signal came, here or in another process: all must stop behind the same step."""
    if process_count() == 1:
        return bool(stop)
    flag = torch.tensor(float(bool(stop)))
    dist.all_reduce(flag, dist.ReduceOp.MAX)  # on the CPU, through gloo: the GPU's queue is not drained for it
    if flag:
        stop.append(1)
    return bool(flag)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------------- pictures


def _write_metrics(path: Path, history: list[dict]) -> None:
    with atomic_write(path, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def _save(figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def draw_curves(history: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], ".-", label="train loss")
    left.plot(epochs, [row["loss"] for row in history], ".-", label="val loss")
    right.plot(epochs, [row["top1"] for row in history], ".-", label="val top-1")
    right.plot(epochs, [row["balanced"] for row in history], ".-", label="val balanced")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def draw_confusion(logits: np.ndarray, labels: np.ndarray, classes: list[str], path: Path) -> None:
    """The whole matrix up to 30 films; beyond, the most confused pairs, which stay readable at 257."""
    from matplotlib.figure import Figure

    matrix = np.zeros((len(classes), len(classes)))
    np.add.at(matrix, (labels, logits.argmax(1)), 1)
    rows = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    if len(classes) <= 30:
        side = 3.5 + 0.32 * len(classes)
        figure = Figure(figsize=(side + 1.5, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(rows, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.argwhere(matrix > 0):
            axes.text(j, i, int(matrix[i, j]), ha="center", va="center", color="white" if rows[i, j] > 0.5 else "black")
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
        axes.set_xlabel("answered")
        axes.set_ylabel("truth")
    else:
        off = matrix - np.diag(np.diag(matrix))
        pairs = [(i, j) for i, j in np.argwhere(off > 0)]
        pairs = sorted(pairs, key=lambda p: -off[p])[:30] or [(0, 0)]
        figure = Figure(figsize=(11, 1.5 + 0.28 * len(pairs)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(pairs)), [off[p] for p in pairs], color="#e76f51")
        names = [f"{classes[i]}  answered as  {classes[j]}" for i, j in pairs]
        axes.set_yticks(range(len(pairs)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("test frames")
    _save(figure, path)


def draw_mistakes(logits: np.ndarray, labels: np.ndarray, rows: list[dict], classes: list[str], path: Path) -> None:
    """The twelve most confident mistakes with both titles."""
    from matplotlib.figure import Figure

    sure = softmax(logits).max(1)
    wrong = [i for i in np.argsort(-sure) if logits[i].argmax() != labels[i]][:12]
    height = 1 + 2.2 * max(1, math.ceil(len(wrong) / 4))
    figure = Figure(figsize=(14, height), layout="constrained")
    if not wrong:
        figure.text(0.5, 0.5, "no mistakes on the test frames", ha="center", va="center")
    else:
        for axes in figure.subplots(math.ceil(len(wrong) / 4), 4, squeeze=False).flat:
            axes.axis("off")
        for axes, i in zip(figure.axes, wrong, strict=False):
            axes.imshow(read_image(rows[i]["file"]))
            answer = f"{classes[logits[i].argmax()]} ({sure[i]:.0%})"
            axes.set_title(f"said {answer}\nis {classes[labels[i]]}", fontsize=7)
    _save(figure, path)


def write_results(out: Path) -> None:
    """runs/results.csv and results.md over every run that has a test.json."""
    found = []
    for path in sorted(out.glob("*/test.json")):
        try:
            found.append(json.loads(path.read_text()))
        except ValueError:
            continue
    columns = ["run", "arch", "films", "recipe", "split", "val_top1", "test_top1", "test_top5", "test_balanced"]
    columns += ["test_macro_f1", "test_ece", "auroc", "fpr95", "images_per_s"]
    rows = []
    for item in found:
        if not {"run", "val", "test", "args", "classes", "images_per_s"} <= set(item):
            continue  # somebody else's test.json
        test, args = item["test"], item["args"]
        figures = [item["val"]["top1"], test["top1"], test["top5"], test["balanced"], test["macro_f1"], test["ece"]]
        split = "grouped" if args["split"] == "group" else "RANDOM split"
        row = [item["run"], args["arch"], item["classes"], args["recipe"], split]
        row += ["" if f is None else f"{f:.4f}" for f in (*figures, test["auroc"], test["fpr95"])]
        rows.append([*row, f"{item['images_per_s']:.0f}"])
    with atomic_write(out / "results.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    lines = [f"| {' | '.join(row)} |" for row in ([*map(str, r)] for r in [columns, ["---"] * len(columns), *rows])]
    with atomic_write(out / "results.md", "w") as file:
        file.write("\n".join(lines) + "\n")


def leak_check(
    data: Path,
    *,
    arch: str = "mobilenetv2",
    init: str | None = None,
    pretrained: bool = True,
    device: str | None = None,
    subset: int | None = None,
    limit: int | None = None,
) -> dict[str, dict]:
    """How much a random split flatters: the same probe on both splits of the same frames, five folds each.

    A logistic regression on the frozen backbone's output. Returns {"random": figures, "grouped": figures} with top1,
    balanced, and spread, the standard deviation of balanced over the folds. Raises UserError.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedKFold

    rows, where = read_manifest(data), choose_device(device)
    chosen, classes = choose_rows(rows, fold=0, subset=subset, limit=limit)
    known = [row for name in ("train", "val", "test") for row in chosen[name]]
    labels = np.array([classes.index(row["movie"]) for row in known])
    if np.bincount(labels).min() < 5:
        raise UserError(f"{data}: --leak-check needs five frames of each film; raise --limit or add frames")
    model = build_model(arch, classes, pretrained=pretrained, init=init).to(where)
    spec = preprocessing_for(arch)
    _, features = predict(model, load_frames(known, spec), spec, device=where, bf16=has_bf16(where))
    place = {row["path"]: i for i, row in enumerate(known)}
    grouped = []
    for fold in range(5):
        test = {row["path"] for row in choose_rows(rows, fold=fold, subset=subset)[0]["test"]} & place.keys()
        grouped.append(np.isin(np.arange(len(known)), [place[path] for path in test]))
    shuffled = StratifiedKFold(5, shuffle=True, random_state=13).split(features, labels)
    random = [np.isin(np.arange(len(known)), test) for _, test in shuffled]
    results = {}
    for name, folds in (("random", random), ("grouped", grouped)):
        top1, balanced = [], []
        for test in folds:
            mean = features[~test].mean(0)
            length = np.linalg.norm(features[~test] - mean, axis=1).mean()
            probe = LogisticRegression(C=30.0, max_iter=1000, class_weight="balanced")
            probe.fit((features[~test] - mean) / length, labels[~test])
            answers = probe.predict((features[test] - mean) / length)
            top1.append(float((answers == labels[test]).mean()))
            balanced.append(float(recall_score(labels[test], answers, average="macro", zero_division=0)))
        results[name] = {"top1": np.mean(top1), "balanced": np.mean(balanced), "spread": np.std(balanced)}
    return results


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train and measure a film classifier.")
    group = parser.add_argument_group("data")
    group.add_argument("data", type=Path, help="folder that filter.py wrote")
    group.add_argument(
        "--subset", default="all", help="films drawn with seed 13: 5, 50 ... or all (default: %(default)s)"
    )
    group.add_argument("--split", choices=["group", "random"], default="group", help="default: %(default)s")
    group.add_argument(
        "--fold",
        choices=[*"01234", "all"],
        help="which fifth of the groups is test, all: five runs and their mean (default: the manifest's split)",
    )
    group.add_argument(
        "--leak-check", action="store_true", help="only show what a random split flatters: one probe on both splits"
    )
    group.add_argument("--limit", type=int, help="at most this many frames a split (default: all)")
    group = parser.add_argument_group("model")
    text = "one of the six, all, or a timm name (default: %(default)s)"
    group.add_argument("--arch", default="deit_base_patch16_224", help=text)
    group.add_argument(
        "--init", help="local weights: torchvision, timm, our .pt, or a folder for CLIP (default: the hub)"
    )
    group.add_argument("--teacher", type=Path, help="run folder whose answers the model learns too (default: none)")
    group.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    group = parser.add_argument_group("optimisation (defaults: the recipe's)")
    group.add_argument("--recipe", choices=list(RECIPES), default="best", help="default: %(default)s")
    for key, text in RECIPE_HELP.items():
        kinds = {"original": RECIPES["original"][key], "best": RECIPES["best"][key]}
        kinds |= {"pretrained": PROBED[key]} if key in PROBED else {}
        kinds |= {"pretrained transformers": GENTLE[key]} if key in GENTLE and key not in PROBED else {}
        values = ", ".join(f"{name} {value}" for name, value in kinds.items())
        choices = {"schedule": ["cosine", "step"], "select": ["top1", "balanced"]}.get(key)
        kind = type(RECIPES["best"][key])
        flag = f"--{key.replace('_', '-')}"
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"{text} ({values})")
            continue
        group.add_argument(flag, type=kind, choices=choices, metavar="X", help=f"{text} ({values})")
    group.add_argument("--keep-bars", action=argparse.BooleanOptionalAction, help="leave black bars in (original: yes)")
    group.add_argument("--seed", type=int, default=13, help="default: %(default)s")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    group.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp32"],
        default="auto",
        help="auto: bf16 where the hardware has it, fp32 for the recipe original (default: %(default)s)",
    )
    group.add_argument("--compile", action="store_true", help="torch.compile the network; minutes first, then faster")
    group.add_argument(
        "--cache", type=Path, help="folder for decoded frames that fill over 1 GB (default: .frames in the data)"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("runs"), help="default: %(default)s")
    group.add_argument("--name", help="name of the run folder (default: from arch, data and split)")
    group.add_argument("--resume", action="store_true", help="continue the run from last.pt")
    group.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    group.add_argument(
        "--wandb", nargs="?", const="movie-by-frame", metavar="PROJECT", help="log to Weights & Biases (default: off)"
    )
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.subset != "all" and not (args.subset.isdecimal() and int(args.subset)):
        parser.error(f"--subset {args.subset}: expected a number or all")
    subset = None if args.subset == "all" else int(args.subset)
    recipe = {key: getattr(args, key) for key in RECIPES["best"] if getattr(args, key) is not None}
    for key, value in recipe.items():
        flag = f"--{key.replace('_', '-')}"
        if key in ("batch_size", "lr", "train_size", "crop") and value <= 0:
            parser.error(f"{flag} must be more than 0")
        if key in SHARES and not 0 <= value <= 1:
            parser.error(f"{flag} must be between 0 and 1")
        if not isinstance(value, str) and value < 0:
            parser.error(f"{flag} must not be negative")
    if args.fold is not None and args.split == "random":
        parser.error("--fold takes another fifth of the groups and does not go with --split random")
    if "all" in (args.arch, args.fold) and args.name:
        parser.error("--name is for one run and does not go with --arch all or --fold all")
    if args.resume and args.overwrite:
        parser.error("--resume or --overwrite, not both")
    if args.seed < 0:
        parser.error("--seed must not be negative")
    if args.limit is not None and args.limit < 2:
        parser.error("--limit must be 2 or more")
    if "warmup" in recipe and recipe.get("schedule", RECIPES[args.recipe]["schedule"]) == "step":
        parser.error("--warmup goes with --schedule cosine")
    if args.leak_check:
        kept = {"data", "arch", "init", "no_pretrained", "device", "subset", "limit", "leak_check"}
        ignored = [k for k, value in vars(args).items() if k not in kept and value != parser.get_default(k)]
        if ignored or args.arch == "all":
            flag = "--arch all" if args.arch == "all" else f"--{ignored[0].replace('_', '-')}"
            parser.error(f"{flag} does not go with --leak-check, which trains nothing but two probes")
        settings = {"init": args.init, "pretrained": not args.no_pretrained, "device": args.device}
        settings |= {"subset": subset, "limit": args.limit}
        for name, row in leak_check(args.data, arch=args.arch, **settings).items():
            print(f"{name:8} split  top-1 {row['top1']:.4f}  balanced {row['balanced']:.4f} +- {row['spread']:.4f}")
        print("the difference is what neighbouring frames give away; train.py splits by groups unless told otherwise")
        return 0
    names = ARCHITECTURES if args.arch == "all" else [args.arch]
    folds = [None] if args.fold is None else range(5) if args.fold == "all" else [int(args.fold)]
    with process_group(), out_of_memory():
        tests: dict[str, list[dict]] = {arch: [] for arch in names}
        for arch, fold in itertools.product(names, folds):
            run = train_model(
                args.data,
                arch=arch,
                recipe=recipe,
                recipe_name=args.recipe,
                out=args.out,
                name=args.name,
                init=args.init,
                pretrained=not args.no_pretrained,
                split=args.split,
                fold=fold,
                subset=subset,
                limit=args.limit,
                seed=args.seed,
                device=args.device,
                precision=args.precision,
                compiled=args.compile,
                cache=args.cache or (args.data if args.data.is_dir() else args.data.parent) / ".frames",
                teacher=args.teacher,
                wandb=args.wandb,
                resume=args.resume,
                overwrite=args.overwrite,
            )
            if process_rank() == 0:
                figures = json.loads((run / "test.json").read_text())["test"]
                print("test " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items() if value is not None))
                print(f"next: python export.py {run}/best.pt --data {args.data}")
                tests[arch].append(figures)
        for arch, rows in tests.items():
            if len(rows) > 1:
                values = {key: [row[key] for row in rows] for key in rows[0] if rows[0][key] is not None}
                text = "  ".join(f"{key} {np.mean(v):.4f} +- {np.std(v):.4f}" for key, v in values.items())
                print(f"{arch}, test over {len(rows)} folds, mean and standard deviation: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
