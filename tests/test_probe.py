"""python -m pytest tests/test_probe.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import figures_of, quick

from answering.console import UserError
from models import Checkpoint, build_model
from training.dataset import MANIFEST, ManifestRow, choose_rows, read_manifest
from training.frames import load_frames, normalise
from training.leak_check import leak_check
from training.metrics import fit_temperature, softmax
from training.probe import Features, cross_fit, fit_head, set_head


def linear_discriminant(embedding: np.ndarray, labels: np.ndarray, shrinkage: float, at=None) -> np.ndarray:
    """Logits [N, C] at other embeddings or the same: log densities of Gaussians with the mean of films' covariances."""
    x = embedding.astype(np.float64)
    y = x if at is None else at.astype(np.float64)
    films = [x[labels == c] for c in range(labels.max() + 1)]
    covariance = np.mean([np.cov(film.T, bias=True) for film in films], axis=0)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(x.shape[1])
    inverse = np.linalg.inv(covariance)
    distances = [np.einsum("nd,de,ne->n", y - film.mean(0), inverse, y - film.mean(0)) for film in films]
    return -0.5 * np.stack(distances, 1)


def draw_films(frames: int = 120, films: int = 4, dimensions: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(embedding float32 [N, D], labels [N]) of films that lie close, the first much longer than the others."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.zeros(frames // 2, int), np.arange(frames - frames // 2) % films]
    mixing = rng.normal(size=(dimensions, dimensions))
    x = rng.normal(size=(films, dimensions))[labels] + rng.normal(size=(frames, dimensions)) @ mixing
    return x.astype(np.float32), labels


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_head_is_the_linear_discriminant(shrinkage):
    embedding, labels = draw_films()
    weight, bias = fit_head(torch.from_numpy(embedding), torch.from_numpy(labels), shrinkage)
    found = softmax(embedding @ weight.numpy().T + bias.numpy())
    np.testing.assert_allclose(found, softmax(linear_discriminant(embedding, labels, shrinkage)), atol=1e-4)


def test_head_is_sklearns_where_films_are_of_one_length():
    """scikit-learn shrinks standardised features towards one variance, which is the same where they have one."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    embedding = rng.normal(size=(3, 6))[labels] + rng.normal(size=(150, 6))
    for label in range(3):  # a covariance within films of unit variances, but not the identity
        embedding[labels == label, 1] += 0.5 * embedding[labels == label, 0]
    centred = embedding - np.stack([embedding[labels == c].mean(0) for c in range(3)])[labels]
    embedding /= centred.std(0)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(embedding, labels)
    embedding = embedding.astype(np.float32)
    weight, bias = fit_head(torch.from_numpy(embedding), torch.from_numpy(labels), 0.3)
    found = softmax(embedding @ weight.numpy().T + bias.numpy())
    np.testing.assert_allclose(found, theirs.predict_proba(embedding), atol=1e-3)


def test_a_model_answers_as_its_probe_at_its_temperature():
    model = build_model("test_resnet", ["a", "b", "c"], pretrained=False).eval()
    labels = np.arange(24) % 3
    images = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images += torch.from_numpy(labels).view(-1, 1, 1, 1)
    with torch.no_grad():
        embedding = model(images)[1].numpy()
        features = Features(embedding, labels, np.ones(len(labels), np.float32))
        set_head(model, features, 0.3, temperature=2.0)
        logits = model(images)[0].numpy()
    np.testing.assert_allclose(softmax(logits), softmax(linear_discriminant(embedding, labels, 0.3) / 2), atol=1e-3)


def test_a_frame_of_weight_two_counts_as_two_frames():
    embedding, labels = draw_films(40, 3)
    weights = np.where(np.arange(40) % 3, 1, 2).astype(np.float32)
    twice = np.repeat(np.arange(40), weights.astype(int))
    found = fit_head(*(torch.from_numpy(part) for part in (embedding, labels)), 0.3, torch.from_numpy(weights))
    wanted = fit_head(torch.from_numpy(embedding[twice]), torch.from_numpy(labels[twice]), 0.3)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_cross_fit_answers_as_heads_fitted_without_the_fold():
    embedding, labels = draw_films()
    folds = np.random.default_rng(1).integers(-1, 4, len(labels))
    features = Features(embedding, labels, np.ones(len(labels), np.float32))
    logits = cross_fit(features, folds, 0.3, torch.device("cpu"))
    assert logits.dtype == np.float32 and not logits[folds == -1].any()
    for k in range(4):
        fit = folds != k
        weight, bias = fit_head(torch.from_numpy(embedding[fit]), torch.from_numpy(labels[fit]), 0.3)
        wanted = embedding[~fit] @ weight.numpy().T + bias.numpy()
        np.testing.assert_allclose(logits[~fit], wanted, atol=1e-3)


def test_broken_features_are_one_line():
    broken = torch.tensor([[0.0, torch.nan], [1.0, 1.0]])
    with pytest.raises(UserError, match="not finite"):
        fit_head(broken, torch.tensor([0, 1]), 0.3)


def test_intermediate_features_are_normed_by_the_training_frames():
    torch.manual_seed(0)
    model = build_model("test_vit3", ["a", "b"], pretrained=False, intermediate=True).eval()
    images = torch.randn(20, 3, 224, 224)
    with torch.no_grad():
        normed = model.set_norm(model(images)[1])
        torch.testing.assert_close(model(images)[1], normed, atol=1e-4, rtol=1e-3)
    assert normed.mean(0).abs().max() < 1e-4
    lengths = (normed.var(0) / model.scale.square()).sqrt()
    assert (lengths < 1.01).all() and lengths.median() > 0.9


def test_refit_takes_val_in_and_leaves_answers_that_had_not_seen_their_fold(dataset, tmp_path):
    settings = {"probe": 0.3, "epochs": 0}
    plain = quick(dataset, tmp_path / "plain", arch="test_vit3", recipe=settings)
    run = quick(dataset, tmp_path / "refit", arch="test_vit3", recipe=settings | {"refit": True})
    before, after = figures_of(plain), figures_of(run)
    assert after["val"] == before["val"]  # never measured by a head that has learnt them
    saved = Checkpoint.load(run / "best.pt")
    chosen, classes = choose_rows(read_manifest(dataset))
    seen = chosen["train"] + chosen["val"]
    labels = np.array([classes.index(row.movie) for row in seen])
    folds, truth, held = (saved.held_out[key].numpy() for key in ("folds", "labels", "logits"))
    assert (truth == labels).all() and set(folds) > {0, 1, 2} and len(held) == len(seen)
    images = torch.from_numpy(load_frames([row.file for row in seen], saved.preprocessing))
    with torch.no_grad():
        logits, embedding = (out.numpy() for out in saved.build()(normalise(images, saved.preprocessing)))
    wanted = np.zeros_like(held)
    for k in set(folds) - {-1}:
        fit = folds != k
        wanted[~fit] = linear_discriminant(embedding[fit], labels[fit], 0.3, at=embedding[~fit])
    answered = folds >= 0
    temperature = fit_temperature(wanted[answered], labels[answered])
    np.testing.assert_allclose(softmax(held[answered]), softmax(wanted[answered] / temperature), atol=5e-3)
    np.testing.assert_allclose(
        softmax(logits), softmax(linear_discriminant(embedding, labels, 0.3) / temperature), atol=5e-3
    )
    quick(dataset, tmp_path / "refit", arch="test_vit3", recipe=settings | {"refit": True}, resume=True)
    measured = {"seconds", "ms_float", "memory_gb"}
    again = figures_of(run)
    assert {key: again[key] for key in again.keys() - measured} == {key: after[key] for key in after.keys() - measured}
    with pytest.raises(UserError, match="--refit"):
        quick(dataset, tmp_path / "none", recipe={"refit": True})


def shots_of_films(films: int, shots: int, frames: int) -> list[ManifestRow]:
    """Rows of a manifest of films that have so many shots of so many frames, each shot a group."""
    rows = []
    for film in range(films):
        for shot in range(shots):
            for frame in range(frames):
                columns = dict.fromkeys(MANIFEST, "") | {"movie": f"Film {film}", "group": f"Film {film}#{shot}"}
                columns |= {"path": f"{film}/{shot}/{frame}", "split": "train"}
                rows.append(ManifestRow(**columns, file=Path(columns["path"]), place=len(rows)))
    return rows


def test_leak_check_shows_what_neighbours_give_away():
    """Films that differ by nothing but their shots: at random a probe knows the shots, by groups it knows nothing."""
    rng = np.random.default_rng(0)
    rows = shots_of_films(3, 10, 4)
    shots = rng.normal(size=(30, 40)).repeat(4, axis=0)
    embedding = (shots + 0.1 * rng.normal(size=shots.shape)).astype(np.float32)
    results = leak_check(rows, rows, ["Film 0", "Film 1", "Film 2"], embedding)
    assert results["random"].top1 > 0.7 and results["grouped"].top1 < 0.5


def test_leak_check_of_too_few_frames_is_one_line():
    rows = shots_of_films(2, 60, 1)
    embedding = np.random.default_rng(0).normal(size=(66, 3)).astype(np.float32)
    films = ["Film 0", "Film 1"]
    with pytest.raises(UserError, match="five frames of each film"):
        leak_check(rows, rows[:64], films, embedding[:64])
    refused = 0
    for start in range(60, 114):  # six frames in a row, often in one fold, so that nothing tells what they are
        try:
            leak_check(rows, rows[:60] + rows[start : start + 6], films, embedding)
        except UserError as error:
            refused += "raise --limit" in str(error)
    assert refused > 20
