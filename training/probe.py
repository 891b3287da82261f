"""The linear probe: a head fitted in closed form on a frozen network's features, and how it answers unseen folds."""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Subset
from tqdm import tqdm

from answering.console import UserError
from answering.pictures import preprocess, read_image
from answering.wear import COPIES, wear
from training.dataset import ManifestRow, assign_folds, choose_rows
from training.device import synchronised_clock
from training.frames import normalise, take_batch
from training.metrics import fit_temperature, measure


@torch.no_grad()
def predict(model, frames: Subset, spec: dict, *, device, bf16: bool, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(logits float32 [N, C], embedding float32 [N, D]) of uint8 frames [N, S, S, 3]."""
    model.eval()
    rows = [(torch.zeros(0, 1), torch.zeros(0, 1))] if not len(frames) else []
    for start in range(0, len(frames), batch):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            inputs = normalise(take_batch(frames, slice(start, start + batch), device), spec)
            rows.append([out.float().to("cpu", non_blocking=True) for out in model(inputs)])
    synchronised_clock(device)  # what comes from a GPU is there now
    logits, embedding = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    return logits, embedding


def fit_head(embedding: torch.Tensor, labels: torch.Tensor, shrinkage: float, weights: torch.Tensor | None = None):
    """(weight float64 [C, D], bias [C]) of the linear discriminant of embeddings [N, D], labels [N], in closed form.

    Fisher 1936: the covariance within films, here the mean of the films' own so that a long film weighs no more than a
    short one, shrunk towards its mean variance (Friedman 1989); equal priors. weights: of the frames, [N], by default
    all alike. Raises UserError for nan.
    """
    if not embedding.isfinite().all():
        raise UserError("the network's features are not finite; use --precision fp32, or another --init")
    weights = torch.ones_like(embedding[:, 0]) if weights is None else weights
    totals = labels.bincount(weights).to(embedding.dtype)
    means = embedding.new_zeros(len(totals), embedding.shape[1]).index_add_(0, labels, embedding * weights[:, None])
    means /= totals[:, None]
    within = (embedding - means[labels]) * (weights / (totals[labels] * len(totals))).sqrt()[:, None]
    within = within.double() if within.is_cuda else within  # there float32 products are rounded to TF32
    covariance, means = (within.T @ within).double(), means.double()
    ridge = shrinkage * covariance.trace() / len(covariance)
    covariance = (1 - shrinkage) * covariance + ridge * torch.eye(len(covariance), device=embedding.device)
    weight = torch.linalg.solve(covariance, (means - means.mean(0)).T).T
    return weight, -0.5 * (weight * (means + means.mean(0))).sum(1)


@torch.no_grad()
def start_head(model: nn.Module, features: tuple[np.ndarray, ...], shrinkage: float, temperature=1.0) -> None:
    """fit_head into the model's head, logits over temperature: training from there bends features less (Kumar 2022).

    features: what with_copies gives.
    """
    embedding, labels, weights = (torch.from_numpy(part).to(model.head.weight.device) for part in features)
    weight, bias = fit_head(embedding, labels, shrinkage, weights)
    model.head.weight.copy_(weight / temperature)
    model.head.bias.copy_(bias / temperature)


def cross_fit(features: tuple[np.ndarray, ...], folds: np.ndarray, shrinkage: float, device) -> np.ndarray:
    """Logits float32 [N, C] of each frame by a head fitted without its fold, int [N] (-1: always fitted on, zeros).

    features: (embedding [N, D], labels [N], weights [N]).
    """
    embedding, labels, weights = (torch.from_numpy(part).to(device) for part in features)
    logits = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    for k in tqdm(np.unique(folds[folds >= 0]), unit="fit", desc="folds", disable=None, leave=False):
        out = torch.from_numpy(folds == k).to(device)
        weight, bias = fit_head(embedding[~out], labels[~out], shrinkage, weights[~out])
        logits[folds == k] = (embedding[out].double() @ weight.T + bias).float().cpu().numpy()
    return logits


def worn_frames(rows: list[ManifestRow], spec: dict) -> np.ndarray:
    """A worn copy, uint8 [S, S, 3], of each frame of these rows of the manifest, the same whenever it is made."""

    def copy(row: dict) -> np.ndarray:
        seed = zlib.crc32(row.path.encode())
        image = Image.fromarray(read_image(row.file, draft=2 * spec["size"]))
        return preprocess(np.asarray(wear(image, seed % len(COPIES), np.random.default_rng(seed))), spec)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.stack(list(pool.map(copy, rows)))


def with_copies(model: nn.Module, run, split: str, norm: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(embedding [N, D], labels [N], weights [N]) of a split's frames, then of a worn copy of each. run: train.Run.

    Copies teach the head which directions say nothing of the film: people send crops, photos of screens, small files.
    norm: give the embedding the statistics of these frames.
    """
    parts, labels, share = [run.predict(model, split)[1]], run.labels[split], run.recipe["copies"]
    if norm:
        parts = [model.set_norm(torch.from_numpy(parts[0])).numpy()]
    weights, rows = np.ones(len(labels), np.float32), run.chosen[split] if share else []
    for start in tqdm(range(0, len(rows), 64), unit="batch", desc="copies", disable=None, leave=False):
        worn = torch.from_numpy(worn_frames(rows[start : start + 64], run.spec))
        parts.append(predict(model, worn, run.spec, device=run.device, bf16=run.bf16)[1])
    if rows:
        labels, weights = np.tile(labels, 2), np.r_[weights, np.full(len(labels), share, np.float32)]
    return np.concatenate(parts), labels, weights


def start_probe(model: nn.Module, run) -> None:
    """Give the embedding its statistics and the head its linear probe, with the temperature that val asks for.

    run: train.Run, whose features are kept for refit_probe.
    """
    if not (run.recipe["intermediate"] or run.recipe["probe"]):
        return
    features = with_copies(model, run, "train", norm=run.recipe["intermediate"])
    if run.recipe["probe"]:
        start_head(model, features, run.recipe["probe"])
        temperature = fit_temperature(run.predict(model, "val")[0], run.labels["val"])
        start_head(model, features, run.recipe["probe"], temperature)
    run.features = features if run.recipe["refit"] and not run.recipe["epochs"] else None


def refit_probe(model: nn.Module, run) -> dict | None:
    """Fit the head on train and val frames together: a few hundred more help. run: train.Run.

    Returns what then takes val's place where the rule is fitted, {"folds": int [N], "labels": int [N], "logits":
    float32 [N, C]}: of each frame of train + val the answer of a head that has not seen its fold of the film; None
    where no frame can be left out.
    """
    folds = assign_folds(run.chosen["train"] + run.chosen["val"])
    if not (folds >= 0).any():
        return None
    parts, run.features = [run.features or with_copies(model, run, "train"), with_copies(model, run, "val")], None
    features = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    pairs = list(zip(np.split(folds, [len(run.chosen["train"])]), parts, strict=True))
    spread = np.concatenate([np.resize(fold, len(part[1])) for fold, part in pairs])  # a copy is of its frame's fold
    own = np.concatenate([np.arange(len(part[1])) < len(fold) for fold, part in pairs])
    labels, logits = features[1][own], cross_fit(features, spread, run.recipe["probe"], run.device)[own]
    temperature = fit_temperature(logits[folds >= 0], labels[folds >= 0])
    start_head(model, features, run.recipe["probe"], temperature)
    out = {"folds": folds, "labels": labels, "logits": logits / np.float32(temperature)}
    return {key: torch.from_numpy(value) for key, value in out.items()}


def leak_check(
    rows: list[ManifestRow], known: list[ManifestRow], classes: list[str], embedding: np.ndarray
) -> dict[str, dict]:
    """How much a random split flatters: the same probe on both splits of the same frames, five folds each.

    rows: of the manifest; known: those that take part, with their embedding [N, D]. Returns {"random": figures,
    "grouped": figures} with top1, balanced, and spread, the standard deviation of balanced over the folds. Raises
    UserError.
    """
    from sklearn.model_selection import StratifiedKFold

    labels = np.array([classes.index(row.movie) for row in known])
    if np.bincount(labels).min() < 5:
        raise UserError("--leak-check needs five frames of each film; raise --limit or add frames")
    paths = np.array([row.path for row in known])
    grouped = [{row.path for row in choose_rows(rows, fold=fold)[0]["test"]} for fold in range(5)]
    shuffled = StratifiedKFold(5, shuffle=True, random_state=13).split(embedding, labels)
    splits = {"random": [np.isin(np.arange(len(known)), test) for _, test in shuffled]}
    splits["grouped"] = [np.isin(paths, sorted(test)) for test in grouped]
    results = {}
    for name, folds in splits.items():
        figures = []
        for test in folds:
            if set(labels[test]) - set(labels[~test]):
                raise UserError("--leak-check: all frames of a film lie in one fold; raise --limit or add frames")
            weight, bias = fit_head(torch.from_numpy(embedding[~test]), torch.from_numpy(labels[~test]), 0.3)
            figures.append(measure(embedding[test] @ weight.numpy().T + bias.numpy(), labels[test]))
        top1 = [row.top1 for row in figures]
        balanced = [row.balanced for row in figures]
        results[name] = {"top1": np.mean(top1), "balanced": np.mean(balanced), "spread": np.std(balanced)}
    return results
