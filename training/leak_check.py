"""How much a random split overstates accuracy: a probe tested on neighbours of its frames, and on unseen groups."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from answering.console import UserError
from models import build_model, preprocessing_for
from training.dataset import ManifestRow, choose_rows, read_manifest
from training.device import choose_device, has_bf16
from training.frames import FrameStore, default_cache
from training.metrics import Figures, measure
from training.predict import predict
from training.probe import fit_head

FOLDS = 5
SHRINKAGE = 0.3  # of the probe, as in training.recipes.LINEAR_PROBE


@dataclass(frozen=True)
class LeakFigures:
    """Means over the folds of a way to split."""

    top1: float
    balanced: float
    spread: float  # standard deviation of balanced over the folds


def leak_check_of_dataset(
    data: Path,
    *,
    arch: str,
    pretrained: bool,
    init: str | None,
    device: str | None,
    subset: int | None,
    limit: int | None,
) -> dict[str, LeakFigures]:
    """leak_check of a dataset's known films, by the embedding of a network as build_model makes it."""
    rows = read_manifest(data)
    where = choose_device(device)
    chosen, classes = choose_rows(rows, fold=0, subset=subset, limit=limit)
    model = build_model(arch, classes, pretrained=pretrained, init=init).to(where)
    spec = preprocessing_for(arch)
    known = [*chosen["train"], *chosen["val"], *chosen["test"]]
    store = FrameStore(rows, spec, default_cache(data))
    store.decode(known)
    _, embedding = predict(model, store.take(known), spec, device=where, bf16=has_bf16(where))
    return leak_check(rows, known, classes, embedding)


def leak_check(
    rows: list[ManifestRow], known: list[ManifestRow], classes: list[str], embedding: np.ndarray
) -> dict[str, LeakFigures]:
    """{"random": figures, "grouped": figures} of the same probe on the same frames, split in two ways.

    rows: of the manifest; known: those that take part, with their embedding [N, D]. Raises UserError for too few.
    """
    labels = np.array([classes.index(row.movie) for row in known])
    if np.bincount(labels).min() < FOLDS:
        raise UserError("--leak-check needs five frames of each film; raise --limit or add frames")
    splits = {"random": random_folds(embedding, labels), "grouped": grouped_folds(rows, known)}
    results = {}
    for name, folds in splits.items():
        figures = [measure_fold(embedding, labels, test) for test in folds]
        balanced = [fold.balanced for fold in figures]
        top1 = [fold.top1 for fold in figures]
        results[name] = LeakFigures(float(np.mean(top1)), float(np.mean(balanced)), float(np.std(balanced)))
    return results


def random_folds(embedding: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Which frames are test, bool [N], in each fold that is drawn at random, film by film."""
    from sklearn.model_selection import StratifiedKFold

    shuffled = StratifiedKFold(FOLDS, shuffle=True, random_state=13).split(embedding, labels)
    return [np.isin(np.arange(len(labels)), test) for _, test in shuffled]


def grouped_folds(rows: list[ManifestRow], known: list[ManifestRow]) -> list[np.ndarray]:
    """Which of the known frames are test, bool [N], in each fold of whole groups."""
    paths = np.array([row.path for row in known])
    folds = []
    for fold in range(FOLDS):
        chosen, _ = choose_rows(rows, fold=fold)
        folds.append(np.isin(paths, sorted({row.path for row in chosen["test"]})))
    return folds


def measure_fold(embedding: np.ndarray, labels: np.ndarray, test: np.ndarray) -> Figures:
    """Figures on the frames test, bool [N], of a head fitted on the others."""
    if set(labels[test]) - set(labels[~test]):
        raise UserError("--leak-check: all frames of a film lie in one fold; raise --limit or add frames")
    weight, bias = fit_head(torch.from_numpy(embedding[~test]), torch.from_numpy(labels[~test]), SHRINKAGE)
    return measure(embedding[test] @ weight.numpy().T + bias.numpy(), labels[test])
