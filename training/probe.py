"""The linear probe: a head fitted in closed form on a frozen network's features, and its answers to unseen folds."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from answering.console import UserError
from answering.cores import count_cores
from answering.pictures import preprocess, read_image
from answering.wear import COPIES, wear
from training.dataset import ManifestRow, assign_folds
from training.frames import Split
from training.metrics import fit_temperature
from training.predict import embed_split, logits_of, predict


class Features(NamedTuple):
    """What a head is fitted on."""

    embedding: np.ndarray  # float32 [N, D]
    labels: np.ndarray  # class index, int [N]
    weights: np.ndarray  # how much a frame counts, float32 [N]


# ------------------------------------------------------------------------------------------------- the fit


def fit_head(
    embedding: torch.Tensor, labels: torch.Tensor, shrinkage: float, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight float64 [C, D], bias [C]) of the linear discriminant of embeddings [N, D], labels [N], in closed form.

    Fisher 1936: the covariance within films, here the mean of the films' own so that a long film weighs no more than a
    short one, shrunk towards its mean variance (Friedman 1989); equal priors. weights: of the frames, [N], by default
    all alike. Raises UserError for nan.
    """
    if not embedding.isfinite().all():
        raise UserError("the network's features are not finite; use --precision fp32, or another --init")
    if weights is None:
        weights = torch.ones_like(embedding[:, 0])
    totals = labels.bincount(weights).to(embedding.dtype)
    means = embedding.new_zeros(len(totals), embedding.shape[1]).index_add_(0, labels, embedding * weights[:, None])
    means /= totals[:, None]
    within = (embedding - means[labels]) * (weights / (totals[labels] * len(totals))).sqrt()[:, None]
    if within.is_cuda:  # float32 products are rounded to TF32 there
        within = within.double()
    covariance = (within.T @ within).double()
    means = means.double()
    ridge = shrinkage * covariance.trace() / len(covariance)
    covariance = (1 - shrinkage) * covariance + ridge * torch.eye(len(covariance), device=embedding.device)
    weight = torch.linalg.solve(covariance, (means - means.mean(0)).T).T
    bias = -0.5 * (weight * (means + means.mean(0))).sum(1)
    return weight, bias


@torch.no_grad()
def set_head(model: nn.Module, features: Features, shrinkage: float, temperature: float = 1.0) -> None:
    """Put fit_head's answer into the model's head, logits over temperature.

    Training that starts from such a head bends the features less (Kumar 2022).
    """
    device = model.head.weight.device
    embedding, labels, weights = (torch.from_numpy(column).to(device) for column in features)
    weight, bias = fit_head(embedding, labels, shrinkage, weights)
    model.head.weight.copy_(weight / temperature)
    model.head.bias.copy_(bias / temperature)


def cross_fit(features: Features, folds: np.ndarray, shrinkage: float, device: torch.device) -> np.ndarray:
    """Logits float32 [N, C] of each frame by a head fitted without its fold.

    folds: int [N]; frames of fold -1 are fitted on by every head and get zeros.
    """
    embedding, labels, weights = (torch.from_numpy(column).to(device) for column in features)
    logits = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
    for fold in tqdm(np.unique(folds[folds >= 0]), unit="fit", desc="folds", disable=None, leave=False):
        out = torch.from_numpy(folds == fold).to(device)
        weight, bias = fit_head(embedding[~out], labels[~out], shrinkage, weights[~out])
        logits[folds == fold] = (embedding[out].double() @ weight.T + bias).float().cpu().numpy()
    return logits


# ---------------------------------------------------------------------------------------------- its features


def degraded_frames(rows: list[ManifestRow], spec: dict) -> np.ndarray:
    """A degraded copy of each frame of these rows, uint8 [N, S, S, 3], the same whenever it is made."""

    def degrade(row: ManifestRow) -> np.ndarray:
        seed = zlib.crc32(row.path.encode())
        image = Image.fromarray(read_image(row.file, draft=2 * spec["size"]))
        copy = wear(image, seed % len(COPIES), np.random.default_rng(seed))
        return preprocess(np.asarray(copy), spec)

    with ThreadPoolExecutor(count_cores()) as pool:
        return np.stack(list(pool.map(degrade, rows)))


def embed_copies(model: nn.Module, rows: list[ManifestRow], spec: dict, bf16: bool, batch: int = 64) -> np.ndarray:
    """Embedding float32 [N, D] of a degraded copy of each frame."""
    device = model.head.weight.device
    parts = []
    for start in tqdm(range(0, len(rows), batch), unit="batch", desc="copies", disable=None, leave=False):
        frames = torch.from_numpy(degraded_frames(rows[start : start + batch], spec))
        _, embedding = predict(model, frames, spec, device=device, bf16=bf16)
        parts.append(embedding)
    return np.concatenate(parts)


def with_copies(model: nn.Module, split: Split, spec: dict, *, copy_weight: float, bf16: bool) -> Features:
    """Features of a split: its frames [N], and a degraded copy of each where copy_weight > 0, which makes [2N].

    Copies teach the head which directions say nothing of the film: people send crops, photos of screens, small files.
    """
    embedding = embed_split(model, split, spec, bf16=bf16)
    weights = np.ones(len(split.labels), np.float32)
    if not copy_weight or not split.rows:
        return Features(embedding, split.labels, weights)
    copies = embed_copies(model, split.rows, spec, bf16)
    return Features(
        np.concatenate([embedding, copies]),
        np.tile(split.labels, 2),
        np.concatenate([weights, np.full(len(split.labels), copy_weight, np.float32)]),
    )


# ------------------------------------------------------------------------------------- the head of a run


def start_probe(
    model: nn.Module, train: Split, val: Split, spec: dict, *, shrinkage: float, copy_weight: float, bf16: bool
) -> Features:
    """Give the embedding its statistics and the head its linear probe, with the temperature that val asks for.

    shrinkage: of the probe; 0 for the statistics alone. Returns the features of train.
    """
    embed_split(model, train, spec, bf16=bf16)
    if model.intermediate:
        train.embedding = model.set_norm(torch.from_numpy(train.embedding)).numpy()
    features = with_copies(model, train, spec, copy_weight=copy_weight, bf16=bf16)
    if shrinkage:
        set_head(model, features, shrinkage)
        logits = logits_of(model, embed_split(model, val, spec, bf16=bf16))
        set_head(model, features, shrinkage, fit_temperature(logits, val.labels))
    return features


def refit_probe(
    model: nn.Module,
    train: Split,
    val: Split,
    spec: dict,
    *,
    shrinkage: float,
    copy_weight: float,
    bf16: bool,
    train_features: Features | None = None,
) -> dict[str, torch.Tensor] | None:
    """Fit the head on train and val frames together, since a few hundred more help.

    Returns what then takes val's place where the rule is fitted, {"folds": int [N], "labels": int [N], "logits":
    float32 [N, C]}: of each frame of train + val the answer of a head that has not seen its fold of the film; None,
    and the head stays as it is, where no frame can be left out. train_features: of start_probe, if they were kept.
    """
    folds = assign_folds(train.rows + val.rows)
    if not (folds >= 0).any():
        return None
    device = model.head.weight.device

    def features_of(split: Split) -> Features:
        return with_copies(model, split, spec, copy_weight=copy_weight, bf16=bf16)

    parts = [train_features or features_of(train), features_of(val)]
    features = Features(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    pairs = list(zip(parts, np.split(folds, [len(train.rows)]), strict=True))
    # a copy is in the fold of its frame, and no answer to it is asked for
    fold_of_row = np.concatenate([np.resize(part_folds, len(part.labels)) for part, part_folds in pairs])
    is_frame = np.concatenate([np.arange(len(part.labels)) < len(part_folds) for part, part_folds in pairs])
    labels = features.labels[is_frame]
    logits = cross_fit(features, fold_of_row, shrinkage, device)[is_frame]
    temperature = fit_temperature(logits[folds >= 0], labels[folds >= 0])
    set_head(model, features, shrinkage, temperature)
    return {
        "folds": torch.from_numpy(folds),
        "labels": torch.from_numpy(labels),
        "logits": torch.from_numpy(logits / np.float32(temperature)),
    }
