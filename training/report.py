"""What a run and an export leave for eyes: curves, confusions, mistakes, calibration, tables. For train and export."""

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from answering.console import atomic_write
from answering.pictures import read_image
from training.dataset import ManifestRow, write_csv
from training.metrics import softmax


def save_figure(figure: Figure, path: Path) -> None:
    """PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def draw_curves(history: list[dict], path: Path) -> None:
    """Loss and accuracy over the epochs of metrics.csv."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, names in zip(figure.subplots(1, 2), (("train_loss", "loss"), ("top1", "balanced")), strict=True):
        for name in names:
            label = name.replace("_", " ") if name == "train_loss" else f"val {name}"
            axes.plot(epochs, [row[name] for row in history], ".-", label=label)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def draw_confusion(logits: np.ndarray, labels: np.ndarray, classes: list[str], path: Path, most: int = 30) -> None:
    """The confusion matrix of the films that are mixed up most, so that it stays readable at 257."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(len(classes)))
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:most])
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
    sure = softmax(logits).max(1)
    wrong = [i for i in np.argsort(-sure) if logits[i].argmax() != labels[i]][:12]
    lines = max(1, math.ceil(len(wrong) / 4))
    figure = Figure(figsize=(14, 1 + 2.2 * lines), layout="constrained")
    if not wrong:
        figure.text(0.5, 0.5, "no mistakes on the test frames", ha="center", va="center")
    for place, i in enumerate(wrong):
        axes = figure.add_subplot(lines, 4, place + 1)
        axes.axis("off")
        axes.imshow(read_image(rows[i].file, draft=256))
        axes.set_title(f"said {classes[logits[i].argmax()]} ({sure[i]:.0%})\nis {classes[labels[i]]}", fontsize=7)
    save_figure(figure, path)


def markdown_table(header: list[str], rows: list[list]) -> str:
    """A table; floats get four digits, None a dash."""

    def cell(value) -> str:
        return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def write_results(out: Path) -> None:
    """out/results.csv and results.md over every run that has a test.json."""
    header = ["run", "arch", "films", "recipe", "split", "val_top1", "test_top1", "test_top5", "test_balanced"]
    header += ["test_macro_f1", "test_ece", "auroc", "fpr95", "images_per_s"]
    rows = []
    for path in sorted(out.glob("*/test.json")):
        try:
            item = json.loads(path.read_text())
            test, args = item["test"], item["args"]
            split = "grouped" if args["split"] == "group" else "RANDOM split"
            names = ("top1", "top5", "balanced", "macro_f1", "ece", "auroc", "fpr95")
            row = [item["run"], args["arch"], item["classes"], args["recipe"], split, item["val"]["top1"]]
            rows.append([*row, *(test[name] for name in names), f"{item['images_per_s']:.0f}"])
        except (ValueError, KeyError, TypeError):
            continue  # somebody else's test.json
    write_csv(out / "results.csv", header, [dict(zip(header, row, strict=True)) for row in rows])
    with atomic_write(out / "results.md", "w") as file:
        file.write(markdown_table(header, rows))


def draw_calibration(rule, logits: dict[str, np.ndarray], labels: np.ndarray, path: Path) -> None:
    """Reliability, risk-coverage and known of known and unknown films, on test and unknown_test. rule: export.Rule."""
    import torch

    right = logits["test"].argmax(1) == labels
    known, unknown = (rule.decide(logits[name].astype(np.float32))[0] for name in ("test", "unknown_test"))
    top = rule.probabilities(torch.from_numpy(logits["test"])).numpy().max(1)
    figure = Figure(figsize=(13, 4), layout="constrained")
    one, two, three = figure.subplots(1, 3)
    index = np.clip((top * 10).astype(int), 0, 9)
    one.plot([0, 1], [0, 1], color="grey", lw=1)
    points = [(top[index == b].mean(), right[index == b].mean(), (index == b).sum()) for b in sorted(set(index))]
    one.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-")
    for x, y, count in points:  # a point of two frames says little
        one.annotate(str(count), (x, y), xytext=(4, -11), textcoords="offset points", fontsize="small")
    one.set(xlabel="confidence", ylabel="accuracy", title="reliability (known films; numbers of frames)")
    wrong = ~np.r_[right, np.zeros(len(unknown), bool)][np.argsort(-np.r_[known, unknown], kind="stable")]
    counts = np.arange(1, len(wrong) + 1)
    two.plot(counts / len(wrong), np.cumsum(wrong) / counts)
    two.set(xlabel="coverage", ylabel="risk", title="risk and coverage (known and unknown)")
    bins = np.linspace(0, 1, 31)
    three.hist(known, bins, alpha=0.6, label="known films")
    three.hist(unknown, bins, alpha=0.6, label="unknown films")
    for key, colour in (("movie", "green"), ("shortlist", "orange")):
        if getattr(rule, key) <= 1:
            three.axvline(getattr(rule, key), color=colour, label=f"{key} from {getattr(rule, key):.3g}")
    three.set(xlabel=f"known, from {rule.score}", title="known or unknown")
    three.legend()
    save_figure(figure, path)


def write_report(contract, report: dict, refit: bool, path: Path) -> None:
    """report.md of an export. contract: identify.Contract; report: of export.export_model, empty without data."""
    lines = [f"# {contract.architecture}, {len(contract.classes)} films", "", f"Trained at commit {contract.commit}."]
    if report:
        split = "shots never seen in training" if contract.accuracy["split"] == "group" else "a RANDOM split"
        rows = [[name, *row.values()] for name, row in report["formats"].items()]
        header = ["file", "test top-1", "balanced", "agrees with fp32", "relative error", "ms a frame", "MB"]
        lines += [f"Accuracy is on {split}.", "", "## Files", "", markdown_table(header, rows)]
        exact = report["formats"]["onnxruntime fp32"]["balanced"]
        for name, row in report["formats"].items():
            if exact - row["balanced"] > 0.02:
                lines += [f"{name} stands {100 * (exact - row['balanced']):.1f} points of balanced accuracy lower.", ""]
        on = "folds of train and val, each by a head fitted without it," if refit else "val"
        lines += [f"## Known or unknown: scores compared on {on} and unknown_val", ""]
        lines += [
            markdown_table(["score", "AUROC", "FPR@95", "AURC"], [list(row.values()) for row in report["scores"]])
        ]
        share = contract.decision["unknown_share"]
        lines += [f"Chosen: {contract.decision['score']}. Checked on test and unknown_test; unknown films are taken to"]
        lines += [f"make up {share:.0%} of what people send:", ""]
        checks = report["checks"] | {f"calibrated, {float(s):.0%} unknown": row for s, row in report["shares"].items()}
        rows = [[key, *(check[key] for check in checks.values())] for key in report["checks"]["calibrated"]]
        lines += [markdown_table(["", *checks], rows)]
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def write_card(contract, report: dict, path: Path) -> None:
    """README.md of an export, a model card in the form of the Hugging Face Hub. contract: identify.Contract."""
    accuracy = contract.accuracy
    figures = [[key, value] for key, value in accuracy.items() if isinstance(value, float)]
    shown, more = contract.classes[:20], len(contract.classes) - 20
    rule = "It was taught no films: for an index of frames."
    if contract.classes:
        rule = (
            "Name the first film where `known` >= `decision.movie`, offer three from `decision.shortlist`, else refuse."
        )
    text = f"""---
library_name: onnx
pipeline_tag: image-classification
license: other
tags: [movie-by-frame, {contract.architecture}]
---

# Which film is this frame from? {contract.architecture}, {len(contract.classes)} films

Input `image` uint8 [N, {contract.preprocessing["size"]}, {contract.preprocessing["size"]}, 3]: RGB, black bars cut off,
squashed. Outputs: {"`logits`, `probabilities`, `known` (0 to 1), `embedding`" if contract.classes else "`embedding`"}.
{rule}
Classes, preprocessing and decision are in the files' metadata and in model.json.

```
python identify.py frame.jpg --model .
```

{markdown_table(["on frames never seen in training", ""], figures) if figures else "It was not measured."}
{f"Films: {'; '.join(shown)}{f' and {more} more' if more > 0 else ''}." if shown else ""}

The films belong to their owners; the weights carry the licences of what they were made from.
"""
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write(text)
