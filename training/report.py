"""Plots of a run: curves, confusions, mistakes. Tables and figures for other scripts, too."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from answering.console import atomic_write
from answering.pictures import read_image
from training.dataset import ManifestRow
from training.metrics import softmax


def save_figure(figure: Figure, path: Path) -> None:
    """PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def draw_curves(history: list[dict], path: Path) -> None:
    """Loss and accuracy over the epochs of metrics.csv."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [row["train_loss"] for row in history], ".-", label="train loss")
    loss.plot(epochs, [row["loss"] for row in history], ".-", label="val loss")
    accuracy.plot(epochs, [row["top1"] for row in history], ".-", label="val top1")
    accuracy.plot(epochs, [row["balanced"] for row in history], ".-", label="val balanced")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def draw_confusion(logits: np.ndarray, labels: np.ndarray, classes: list[str], path: Path, films: int = 30) -> None:
    """The confusion matrix of the films that are mixed up most, so that it stays readable at 257."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(len(classes)))
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:films])
    figure = Figure(figsize=(5 + 0.32 * len(shown), 3.5 + 0.32 * len(shown)), layout="constrained")
    display = ConfusionMatrixDisplay(matrix[np.ix_(shown, shown)], display_labels=[classes[i] for i in shown])
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, xticks_rotation=60, text_kw={"fontsize": 7})
    display.ax_.tick_params(labelsize=7)
    display.ax_.set(xlabel="answered", ylabel="truth")
    save_figure(figure, path)


def draw_mistakes(
    logits: np.ndarray, labels: np.ndarray, rows: list[ManifestRow], classes: list[str], path: Path
) -> None:
    """The twelve most confident mistakes with both titles."""
    confidence = softmax(logits).max(1)
    wrong = [i for i in np.argsort(-confidence) if logits[i].argmax() != labels[i]][:12]
    lines = max(1, math.ceil(len(wrong) / 4))
    figure = Figure(figsize=(14, 1 + 2.2 * lines), layout="constrained")
    if not wrong:
        figure.text(0.5, 0.5, "no mistakes on the test frames", ha="center", va="center")
    for place, i in enumerate(wrong):
        axes = figure.add_subplot(lines, 4, place + 1)
        axes.axis("off")
        axes.imshow(read_image(rows[i].file, draft=256))
        axes.set_title(f"said {classes[logits[i].argmax()]} ({confidence[i]:.0%})\nis {classes[labels[i]]}", fontsize=7)
    save_figure(figure, path)


def markdown_table(header: list[str], rows: list[list]) -> str:
    """A table; floats get four digits, None a dash."""

    def cell(value: object) -> str:
        if value is None:
            return "-"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(map(cell, row))} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"
