"""`python bench.py train` and `probe`: training images a second, and seconds of the head's fits in closed form."""

import contextlib
import csv
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from answering.pictures import PREPROCESSING
from benchmarks.harness import show

WARM_UP_STEPS = 2


def original_loop(data: Path, arch: str, classes: list[str], batch: int, steps: int, device) -> float:
    """Images a second of the original's training: ImageFolder, DataLoader, fp32, eager; two steps warm up."""
    import torch
    from torchvision import datasets, transforms

    from models import build_model
    from training.device import synchronised_clock

    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.RandomResizedCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESSING["mean"], PREPROCESSING["std"]),
        ]
    )
    folder = datasets.ImageFolder(data / "movies", transform)
    loader = torch.utils.data.DataLoader(folder, batch, shuffle=True, num_workers=2, drop_last=True)
    model = build_model(arch, classes, pretrained=False).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    done = 0
    for _, (images, labels) in zip(range(steps), loader, strict=False):
        loss = torch.nn.functional.cross_entropy(model(images.to(device))[0], labels.to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        done += 1
        if done == WARM_UP_STEPS:
            start = synchronised_clock(device)
    return (done - WARM_UP_STEPS) * batch / (synchronised_clock(device) - start)


def bench_train(data: Path, *, arch: str = "mobilenetv2", steps: int = 12, batch_size: int = 64) -> None:
    """Training images per second at 224 pixels, from random weights: the original's loop and train.py."""
    from train import train_model
    from training.dataset import choose_rows, read_manifest
    from training.device import choose_device

    _, classes = choose_rows(read_manifest(data))
    device = choose_device(None)
    steps = max(3, steps)
    original = original_loop(data, arch, classes, batch_size, steps, device)
    recipe = {"epochs": 1, "batch_size": batch_size, "train_size": 224, "probe": 0.0}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        out = Path(folder)
        limit = batch_size * steps
        run = train_model(data, arch=arch, recipe=recipe, pretrained=False, out=out, cache=out, limit=limit)
        (last,) = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    rows = {"original's loop": {"images/s": original}, "train.py": {"images/s": float(last["images_per_s"])}}
    note = f"train.py reaches {float(last['mfu']):.0%} of the rate of matrix products here (MFU)."
    show(f"Training of {arch}, batches of {batch_size}, {device.type}", rows, note)


def draw_features(rng: np.random.Generator, count: int, classes: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """(features float32 [count, dims], labels [count]) around a centre for each class."""
    labels = np.arange(count) % classes
    scale = np.arange(1, dims + 1, dtype=np.float32) ** -0.5  # variances fall off as a network's do
    centres = 0.3 * rng.standard_normal((classes, dims), np.float32)
    return (rng.standard_normal((count, dims), np.float32) + centres[labels]) * scale, labels


def bench_probe(*, frames: int = 60_000, films: int = 257, dims: int = 2688) -> None:
    """Seconds to fit a probe in closed form on random features; L-BFGS is timed beside it on a fifth of the frames."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from training.device import choose_device, synchronised_clock
    from training.probe import Features, cross_fit, fit_head

    device = choose_device(None)
    rng = np.random.default_rng(13)
    shrinkage = 0.3

    def clock(function: Callable, *args) -> float:
        start = synchronised_clock(device)
        function(*args)
        return synchronised_clock(device) - start

    def fit(features: np.ndarray, labels: np.ndarray) -> None:
        fit_head(torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device), shrinkage)

    fewer_frames = max(2, frames // 5)
    fewer_films = min(100, films)
    features, labels = draw_features(rng, fewer_frames, fewer_films, dims)
    one_fit = f"one fit, {fewer_frames:,} frames of {fewer_films} films, s"
    scaled = features.astype(np.float64) / np.linalg.norm(features, axis=1).mean()  # which C is meant for
    regression = LogisticRegression(C=30.0, max_iter=1000)
    rows = {"scikit-learn's L-BFGS": {one_fit: clock(regression.fit, scaled, labels)}}
    fit(features, labels)  # warms up
    rows["probe.py"] = {one_fit: clock(fit, features, labels)}

    features, labels = draw_features(rng, frames, films, dims)
    parts = Features(features, labels, np.ones(frames, np.float32))
    folds = np.arange(frames) // films % 5
    seconds = clock(fit, features, labels)
    seconds += clock(fit, features, labels)
    seconds += clock(cross_fit, parts, folds, shrinkage, device)
    rows["probe.py"][f"fit, refit, five cross-fits, {frames:,} frames of {films} films, s"] = seconds
    show(f"Probe, {dims:,} features a frame, {device.type}", rows)
