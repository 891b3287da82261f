"""Accuracy and speed of each file of an export; stops the export if int8 is worse.

For export.py; nothing to run here.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from answering.console import UserError
from answering.model import Identifier, relative_error
from training.metrics import measure, significantly_worse

WEB = "model.web.onnx"
MOST_FRAMES = 200  # that each file is asked: of so many, accuracy is known to two points, and int8 costs less than one
MIN_AGREEMENT = 0.8  # share of frames on which a file must name the film that fp32 names
TIMED_RUNS = 20
FP32 = "onnxruntime fp32"  # what the other files are compared with


@dataclass(frozen=True)
class Format:
    """A way to answer with an export."""

    name: str  # in reports
    runtime: str
    kind: str  # "fp32", "int8", or "web", which is model.web.onnx
    precision: str | None = None  # of OpenVINO; None for what the CPU does best

    def open(self, folder: Path) -> Identifier:
        if self.kind == "web":
            return Identifier(folder / WEB, runtime=self.runtime)
        return Identifier(folder, format=self.kind, runtime=self.runtime, precision=self.precision)


FORMATS = [
    Format(FP32, "onnxruntime", "fp32"),
    Format("onnxruntime int8", "onnxruntime", "int8"),
    Format("openvino int8", "openvino", "int8"),
    Format("openvino int8 in f32", "openvino", "int8", "f32"),
    Format("onnxruntime web", "onnxruntime", "web"),  # on request
]


@dataclass(frozen=True)
class FormatFigures:
    """How a file of an export answers; a row of report.md."""

    top1: float  # of the frames that were asked
    balanced: float
    agreement: float  # share of them that get the film that fp32 names
    relative_error: float  # distance of their logits from those of fp32
    ms: float  # median time for a frame
    mb: float  # size on disk
    frames: int  # that were asked


def run_batches(run: Callable[[np.ndarray], dict], frames, batch: int = 16) -> dict[str, np.ndarray]:
    """Outputs of run (Exported.run, Identifier.run) on frames uint8 [N, S, S, 3], one at least."""
    outputs = [run(np.asarray(frames[start : start + batch])) for start in range(0, len(frames), batch)]
    return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}


def spread(count: int, most: int) -> np.ndarray:
    """Places of at most so many of count things, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def time_frame(model: Identifier, frame: np.ndarray) -> float:
    """Median milliseconds for a frame uint8 [S, S, 3]; the first run warms up."""
    times = []
    for _ in range(1 + TIMED_RUNS):
        start = time.perf_counter()
        model.run(frame[None])
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times[1:]))


def size_mb(path: Path) -> float:
    """Megabytes of the file with the weights of an .onnx, or of an .xml, whose weights lie beside it."""
    weights = path.with_suffix(".bin") if path.suffix == ".xml" else path
    return weights.stat().st_size / 1e6


def check_format(name: str, logits: np.ndarray, exact: np.ndarray, labels: np.ndarray, max_drop: float) -> None:
    """Raises UserError for logits [N, C] that name more frames wrong than the exact ones do.

    More means by max_drop points of balanced accuracy and beyond chance.
    """
    drop = 100 * (measure(exact, labels).balanced - measure(logits, labels).balanced)
    if drop > max_drop and significantly_worse(exact.argmax(1) == labels, logits.argmax(1) == labels):
        raise UserError(f"{name} loses {drop:.2f} points of balanced accuracy, --max-drop is {max_drop}")


def measure_formats(
    folder: Path, frames: dict, labels: dict[str, np.ndarray], *, splits: list[str], max_drop: float
) -> dict[str, FormatFigures]:
    """Figures of every file of an export, by the name of its format.

    frames, labels: by split. splits: those that the head has not learnt; of their frames at most MOST_FRAMES are asked,
    spread over all films. Raises UserError for a file that check_format refuses, or that names another film than fp32
    on a fifth of them.
    """
    picks = {split: spread(len(frames[split]), MOST_FRAMES // len(splits)) for split in splits}
    asked = np.concatenate([np.asarray(frames[split][torch.from_numpy(picks[split])]) for split in splits])
    truth = np.concatenate([labels[split][picks[split]] for split in splits])
    exact = None  # logits of fp32
    figures = {}
    for item in FORMATS:
        if item.kind == "web" and not (folder / WEB).exists():
            continue
        model = item.open(folder)
        found = run_batches(model.run, asked)["logits"]
        exact = found if exact is None else exact
        accuracy = measure(found, truth)
        row = FormatFigures(
            top1=accuracy.top1,
            balanced=accuracy.balanced,
            agreement=float((found.argmax(1) == exact.argmax(1)).mean()),
            relative_error=relative_error(found, exact),
            ms=time_frame(model, asked[0]),
            mb=size_mb(model.path),
            frames=len(asked),
        )
        check_format(item.name, found, exact, truth, max_drop)
        if row.agreement < MIN_AGREEMENT:
            raise UserError(f"{item.name} names another film than fp32 on {1 - row.agreement:.0%} of the frames")
        figures[item.name] = row
    return figures
