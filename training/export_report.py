"""Report of an export: report.md, the model card and calibration.png."""

from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from answering.console import atomic_write
from answering.contract import Contract
from training.formats import FP32, FormatFigures
from training.report import markdown_table, save_figure
from training.rule import Rule, RuleCheck, ScoreFigures

NOTED_DROP = 0.02  # of balanced accuracy below fp32, from which on report.md says so
LISTED_FILMS = 20  # on the model card


@dataclass
class ExportReport:
    """What was measured of a model that was exported with its data."""

    scores: list[ScoreFigures]  # of which the rule's score was chosen
    calibrated: RuleCheck  # on test and unknown_test, with the share of unknown films that was asked for
    original: RuleCheck  # the same of the original project's rule
    by_share: dict[float, RuleCheck]  # of the calibrated rule, where unknown films make up these shares
    formats: dict[str, FormatFigures]  # by the name of the file's format


# ---------------------------------------------------------------------------------------- calibration.png


def draw_reliability(axes: Axes, confidence: np.ndarray, right: np.ndarray) -> None:
    """Accuracy by confidence, in ten bins. confidence: float [N]; right: bool [N]."""
    index = np.clip((confidence * 10).astype(int), 0, 9)
    axes.plot([0, 1], [0, 1], color="grey", lw=1)
    bins = [index == b for b in sorted(set(index))]
    means = [confidence[inside].mean() for inside in bins]
    accuracies = [right[inside].mean() for inside in bins]
    axes.plot(means, accuracies, "o-")
    for x, y, inside in zip(means, accuracies, bins, strict=True):  # a point of two frames says little
        axes.annotate(str(inside.sum()), (x, y), xytext=(4, -11), textcoords="offset points", fontsize="small")
    axes.set(xlabel="confidence", ylabel="accuracy", title="reliability (known films; numbers of frames)")


def draw_risk(axes: Axes, known: np.ndarray, unknown: np.ndarray, right: np.ndarray) -> None:
    """Share of wrong answers by the share that is answered, most certain first.

    known: float [N], of frames whose first guess is right, bool [N]; unknown: float [M], of unknown films.
    """
    order = np.argsort(-np.r_[known, unknown], kind="stable")
    wrong = ~np.r_[right, np.zeros(len(unknown), bool)][order]
    counts = np.arange(1, len(wrong) + 1)
    axes.plot(counts / len(wrong), np.cumsum(wrong) / counts)
    axes.set(xlabel="coverage", ylabel="risk", title="risk and coverage (known and unknown)")


def draw_known(axes: Axes, rule: Rule, known: np.ndarray, unknown: np.ndarray) -> None:
    """How known is spread over frames of known and of unknown films, float [N] and [M], with the thresholds."""
    bins = np.linspace(0, 1, 31)
    axes.hist(known, bins, alpha=0.6, label="known films")
    axes.hist(unknown, bins, alpha=0.6, label="unknown films")
    for name, threshold, colour in (("movie", rule.movie, "green"), ("shortlist", rule.shortlist, "orange")):
        if threshold <= 1:
            axes.axvline(threshold, color=colour, label=f"{name} from {threshold:.3g}")
    axes.set(xlabel=f"known, from {rule.score}", title="known or unknown")
    axes.legend()


def draw_calibration(rule: Rule, logits: dict[str, np.ndarray], labels: np.ndarray, path: Path) -> None:
    """Reliability, risk and coverage, and how known is spread over films, on test and unknown_test.

    logits: [N, C] by split; labels: [N], of test.
    """
    right = logits["test"].argmax(1) == labels
    confidence = rule.probabilities(torch.from_numpy(logits["test"])).numpy().max(1)
    known, _ = rule.decide(logits["test"].astype(np.float32))
    unknown, _ = rule.decide(logits["unknown_test"].astype(np.float32))
    figure = Figure(figsize=(13, 4), layout="constrained")
    reliability, risk, histogram = figure.subplots(1, 3)
    draw_reliability(reliability, confidence, right)
    draw_risk(risk, known, unknown, right)
    draw_known(histogram, rule, known, unknown)
    save_figure(figure, path)


# ------------------------------------------------------------------------------- report.md and the model card


def describe_files(formats: dict[str, FormatFigures]) -> list[str]:
    """Lines of report.md on the files."""
    header = ["file", "top-1", "balanced", "agrees with fp32", "relative error", "ms a frame", "MB", "frames"]
    rows = [[name, *astuple(row)] for name, row in formats.items()]
    lines = ["## Files", "", markdown_table(header, rows)]
    for name, row in formats.items():
        drop = formats[FP32].balanced - row.balanced
        if drop > NOTED_DROP:
            lines += [f"{name} stands {100 * drop:.1f} points of balanced accuracy lower.", ""]
    return lines


def describe_promise(contract: Contract) -> str:
    """What is promised of the answers, or that nothing is."""
    targets = contract.decision.get("targets")
    if not targets:
        return "Too few unknown films taught it what to refuse: nothing is promised of its answers."
    films = contract.decision["unknown_films"]
    return f"Fitted with {films} unknown films so that {targets['movie']:.0%} of the named films are right."


def describe_rule(contract: Contract, report: ExportReport, refit: bool) -> list[str]:
    """Lines of report.md on the rule. refit: the head has learnt val, so folds took its place."""
    place = "folds of train and val, each by a head fitted without it," if refit else "val"
    scores = [list(astuple(row)) for row in report.scores]
    checks = {"calibrated": asdict(report.calibrated), "rule of the original": asdict(report.original)}
    for share, check in report.by_share.items():
        checks[f"calibrated, {share:.0%} unknown"] = asdict(check)
    rows = [[name, *(check[name] for check in checks.values())] for name in checks["calibrated"]]
    return [
        f"## Known or unknown: scores compared on {place} and unknown_val",
        "",
        markdown_table(["score", "AUROC", "FPR@95", "AURC"], scores),
        f"Chosen: {contract.decision['score']}. Checked on test and unknown_test; unknown films are taken to",
        f"make up {contract.decision['unknown_share']:.0%} of what people send:",
        describe_promise(contract),
        "",
        markdown_table(["", *checks], rows),
    ]


def write_report(contract: Contract, report: ExportReport | None, refit: bool, path: Path) -> None:
    """report.md of an export; without a report, of a model that was exported without data, only its name."""
    lines = [f"# {contract.architecture}, {len(contract.classes)} films", "", f"Trained at commit {contract.commit}."]
    if report:
        split = "shots never seen in training" if contract.accuracy["split"] == "group" else "a RANDOM split"
        lines += [f"Accuracy is on {split}.", ""]
        lines += describe_files(report.formats)
        lines += describe_rule(contract, report, refit)
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def list_films(classes: list[str]) -> str:
    """The first films by title, and how many more there are; empty for an embedder."""
    if not classes:
        return ""
    text = "; ".join(classes[:LISTED_FILMS])
    if len(classes) > LISTED_FILMS:
        text += f" and {len(classes) - LISTED_FILMS} more"
    return f"Films: {text}."


def write_card(contract: Contract, path: Path) -> None:
    """README.md of an export, a model card in the form of the Hugging Face Hub."""
    size = contract.preprocessing["size"]
    if contract.classes:
        outputs = "`logits`, `probabilities`, `known` (0 to 1), `embedding`"
        rule = (
            "Name the first film where `known` >= `decision.movie`, offer three from `decision.shortlist`, else refuse."
        )
        rule += f" {describe_promise(contract)}"
    else:
        outputs = "`embedding`"
        rule = "It was taught no films: for an index of frames."
    figures = [[name, value] for name, value in contract.accuracy.items() if isinstance(value, float)]
    accuracy = "It was not measured."
    if figures:
        accuracy = markdown_table(["on frames never seen in training", ""], figures)
    text = f"""---
library_name: onnx
pipeline_tag: image-classification
license: other
tags: [movie-by-frame, {contract.architecture}]
---

# Which film is this frame from? {contract.architecture}, {len(contract.classes)} films

Input `image` uint8 [N, {size}, {size}, 3]: RGB, black bars cut off,
squashed. Outputs: {outputs}.
{rule}
Classes, preprocessing and decision are in the files' metadata and in model.json.

```
python identify.py frame.jpg --model .
```

{accuracy}
{list_films(contract.classes)}

The films belong to their owners; the weights carry the licences of what they were made from.
"""
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.write(text)
