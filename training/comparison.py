"""Runs compared: results.csv with a row a run, results.md with a row a network and protocol, results.png."""

import contextlib
import csv
import itertools
import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from answering.console import atomic_write
from training.dataset import write_csv
from training.formats import FormatFigures
from training.metrics import film_interval, mcnemar
from training.report import markdown_table, save_figure

RESULTS_CSV = "results.csv"
RESULTS_TABLE = "results.md"
RESULTS_PICTURE = "results.png"
EXPORT_FIGURES = "export.json"  # in a run's folder: what export.py measured of it
# args.json has these, and they may differ between the folds of a row
NOT_THE_ROW = {"split", "fold", "frames", "commit", "device", "weights", "pretrained", "minutes"}
ALIKE_FROM = 0.05  # p of McNemar's test from which two rows can't be told apart
MARKERS = "os^Dv"  # a protocol each
POINTS_APART = 0.04  # of their ms, so that protocols of a network don't hide each other
# accuracy that the original project published, by numbers of films: on val frames of a random split
ORIGINAL = {
    "resnet50": {5: 0.9091, 50: 0.8674, 257: 0.8055},
    "mobilenetv2": {5: 0.9130, 50: 0.8183},
    "densenet121": {5: 0.9091, 50: 0.8398},
    "vit_base_patch16_224": {5: 0.9209, 50: 0.8962, 257: 0.8625},
    "deit_base_patch16_224": {5: 0.9565, 50: 0.9270, 257: 0.9722},
    "clip_vit_base_patch32": {257: 0.0324},
}
ORIGINAL_NOTE = """Hollow: what the original project published ({films} films), at our ms of the same network.
Not comparable: other films; validation frames of a RANDOM split, beside frames that it trained on;
its CLIP was scored in batches of one film; its DeiT's 0.9722 very likely on frames that it had trained on."""


# --------------------------------------------------------------------------------------- a run, from its folder


@dataclass(frozen=True)
class RunFigures:
    """What the folder of a run tells: the columns of results.csv. None where it does not, as older ones."""

    run: str
    arch: str
    weights: str  # that it started from: pretrained, or random
    protocol: str
    epochs: int | None  # trained
    best_epoch: int | None  # 0: the head before any training
    data: str
    films: int
    frames_a_film: float  # of train, val and test
    recipe: str
    split: str  # grouped, or RANDOM split
    fold: int | None  # None: the manifest's own split
    val_top1: float
    val_balanced: float | None
    test_top1: float
    test_top5: float | None
    test_balanced: float
    test_macro_f1: float | None
    test_ece: float | None
    auroc: float | None
    fpr95: float | None
    seconds: float | None
    images_per_s: float | None  # while it trained; None without epochs
    memory_gb: float | None
    parameters: int | None
    ms_float: float | None  # a frame, in torch, on the machine that trained
    ms_int8: float | None  # a frame, in the fastest int8 file of its export
    mb_int8: float | None  # of that file
    commit: str | None


@dataclass(frozen=True)
class SavedRun:
    """A run that was finished."""

    folder: Path
    figures: RunFigures
    args: dict  # as args.json has them
    written: float  # when, in seconds

    @cached_property
    def answers(self) -> dict[str, tuple[str, bool]]:
        """{test frame: (its film, whether the answer was right)}; empty where an older version kept none."""
        try:
            with open(self.folder / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
                return {row["frame"]: (row["movie"], row["said"] == row["movie"]) for row in csv.DictReader(file)}
        except (OSError, KeyError):
            return {}

    @property
    def checkpoint(self) -> Path:
        return self.folder / "best.pt"

    @property
    def table(self) -> tuple:
        """Runs with the same are compared: the same frames, and never random weights with pretrained ones."""
        figures = self.figures
        return figures.data, figures.films, str(self.args.get("subset")), str(self.args.get("limit")), figures.weights

    @property
    def row(self) -> tuple:
        """Runs with the same are folds of one row: nothing but the split, the machine and the commit differs."""
        told = {key: value for key, value in self.args.items() if key not in NOT_THE_ROW and value is not None}
        return tuple(sorted((key, str(value)) for key, value in told.items()))


def read_runs(out: Path) -> list[SavedRun]:
    """The finished runs in a folder, by name; other folders, and somebody else's test.json, are passed over."""
    runs = []
    for path in sorted(out.glob("*/test.json")):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            runs.append(read_run(path))
    return runs


def read_run(path: Path) -> SavedRun:
    """A run by its test.json. Raises ValueError, KeyError or TypeError for another's file."""
    item = json.loads(path.read_text(encoding="utf-8"))
    test = item["test"]
    val = item["val"]
    args = item["args"]
    counts = item.get("frames", {})
    known = sum(counts.get(split, 0) for split in ("train", "val", "test"))
    best_epoch = item.get("best_epoch")
    epochs = item.get("epochs", count_epochs(path.parent))
    ms_int8, mb_int8 = read_export(path.parent)
    figures = RunFigures(
        run=path.parent.name,
        arch=args["arch"],
        weights=weights_of(args),
        protocol=name_protocol(args),
        epochs=epochs,
        best_epoch=best_epoch,
        data=str(args.get("data", "?")),
        films=item["classes"],
        frames_a_film=round(known / item["classes"], 1),
        recipe=args["recipe"],
        split="grouped" if args["split"] == "group" else "RANDOM split",
        fold=args.get("fold"),
        val_top1=val["top1"],
        val_balanced=val.get("balanced"),
        test_top1=test["top1"],
        test_top5=test.get("top5"),
        test_balanced=test["balanced"],
        test_macro_f1=test.get("macro_f1"),
        test_ece=test.get("ece"),
        auroc=test.get("auroc"),
        fpr95=test.get("fpr95"),
        seconds=item.get("seconds"),
        images_per_s=item.get("images_per_s") or None,
        memory_gb=item.get("memory_gb"),
        parameters=item.get("parameters"),
        ms_float=item.get("ms_float"),
        ms_int8=ms_int8,
        mb_int8=mb_int8,
        commit=item.get("commit"),
    )
    return SavedRun(path.parent, figures, args, path.stat().st_mtime)


def count_epochs(folder: Path) -> int | None:
    """The last epoch of metrics.csv; None without one."""
    try:
        with open(folder / "metrics.csv", newline="") as file:
            return max(int(float(row["epoch"])) for row in csv.DictReader(file))
    except (OSError, ValueError, KeyError):
        return None


def read_export(folder: Path) -> tuple[float | None, float | None]:
    """(milliseconds a frame, MB) of the fastest int8 file that export.py made of a run; Nones where it made none."""
    try:
        formats = json.loads((folder / EXPORT_FIGURES).read_text(encoding="utf-8"))["formats"]
        best = min((row for name, row in formats.items() if "int8" in name), key=lambda row: row["ms"])
        return float(best["ms"]), float(best["mb"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def write_export(folder: Path, formats: dict[str, FormatFigures]) -> None:
    """Keep in a run's folder what its export measured, by the names of the files' formats."""
    with atomic_write(folder / EXPORT_FIGURES, "w") as file:
        json.dump({"formats": {name: asdict(row) for name, row in formats.items()}}, file, indent=1)


def weights_of(args: dict) -> str:
    """What a run started from, of its args; of older versions, by the flags it was given."""
    if "weights" in args:
        return args["weights"]
    return "pretrained" if args.get("pretrained", True) or args.get("init") else "random"


def name_protocol(args: dict) -> str:
    """How a run was trained, without the number of epochs."""
    if args["recipe"] == "original":
        return "original's recipe"
    head = "zero-shot" if args.get("zero_shot") else "probe"
    if not args["epochs"]:
        return head
    can_keep_head = (args.get("probe") or args.get("zero_shot")) and args.get("protocol") != "finetune"
    return f"{head}, or fine-tuned if better" if can_keep_head else "fine-tuned"


# ------------------------------------------------------------------------- a row: a network and how it was trained


@dataclass(frozen=True)
class Interval:
    """A share, and its 95% interval over films; without ends where the runs kept no answers."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.2f} to {self.high:.2f})"


@dataclass
class Row:
    """A network trained in one way: its folds, or the manifest's split, and its random split."""

    runs: list[SavedRun]  # grouped, one a fold
    random: SavedRun | None
    differs: str = ""  # what else tells it from rows of the same network and protocol
    alike: str = ""  # a letter for each set of rows that it can't be told from by chance

    @property
    def first(self) -> SavedRun:
        return self.runs[0] if self.runs else self.random

    @property
    def network(self) -> str:
        figures = self.first.figures
        return figures.arch if figures.weights == "pretrained" else f"{figures.arch}, random weights"

    @property
    def protocol(self) -> str:
        """With the epochs that were trained, over the folds."""
        text = self.first.figures.protocol
        epochs = sorted({run.figures.epochs for run in self.runs or [self.random]} - {None})
        if epochs and epochs[-1]:
            count = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
            text += f", {count} epoch{'s' if epochs[-1] > 1 else ''}"
        return f"{text} ({self.differs})" if self.differs else text

    @property
    def name(self) -> str:
        return f"{self.network}, {self.protocol}"

    @property
    def folds(self) -> str:
        """Of which the figures are means."""
        numbers = [run.figures.fold for run in self.runs]
        if not numbers:
            return "-"
        return "manifest's" if None in numbers else " ".join(str(number) for number in numbers)

    @property
    def best_epochs(self) -> str:
        epochs = [run.figures.best_epoch for run in self.runs or [self.random]]
        shown = ["-" if epoch is None else str(epoch) for epoch in epochs]
        return shown[0] if len(set(shown)) == 1 else " ".join(shown)

    @cached_property
    def answers(self) -> dict[tuple, tuple[str, bool]]:
        """{(fold, test frame): (its film, whether the answer was right)} of all folds; empty where one kept none."""
        if not all(run.answers for run in self.runs):
            return {}
        return {(run.figures.fold, frame): told for run in self.runs for frame, told in run.answers.items()}

    @cached_property
    def top1(self) -> Interval | None:
        return self._interval("test_top1", by_frames=True)

    @cached_property
    def balanced(self) -> Interval | None:
        return self._interval("test_balanced", by_frames=False)

    def _interval(self, name: str, by_frames: bool) -> Interval | None:
        """Mean over the folds, with an interval from the answers in all folds; None without a grouped run."""
        mean = self.mean(name)
        if mean is None or not self.answers:
            return None if mean is None else Interval(mean)
        films = np.array([film for film, _ in self.answers.values()])
        right = np.array([right for _, right in self.answers.values()])
        _, low, high = film_interval(right, films, by_frames=by_frames)
        return Interval(mean, low, high)

    def mean(self, name: str) -> float | None:
        """Of a figure over the grouped runs that tell it."""
        values = [getattr(run.figures, name) for run in self.runs]
        told = [value for value in values if value is not None]
        return float(np.mean(told)) if told else None

    def mean_of_all(self, name: str) -> float | None:
        """The same, or the random split's where there is no grouped run."""
        return self.mean(name) if self.runs else getattr(self.random.figures, name)

    @property
    def ms(self) -> float | None:
        """A frame, in int8 if a run of it was exported, else in torch."""
        exported = self.mean_of_all("ms_int8")
        return self.mean_of_all("ms_float") if exported is None else exported

    def cells(self) -> dict[str, object]:
        """Columns of results.md."""
        random = self.random.figures if self.random else None
        parameters = self.mean_of_all("parameters")
        return {
            "network": self.network,
            "protocol": self.protocol,
            "folds": self.folds,
            "best epoch": self.best_epochs,
            "frames a film": f"{self.first.figures.frames_a_film:.0f}",
            "top-1": self.top1 and str(self.top1),
            "balanced": self.balanced and str(self.balanced),
            "alike": self.alike or "-",
            "AUROC": digits(self.mean("auroc"), 3),
            "RANDOM split: top-1": random and f"{random.test_top1:.3f}",
            "RANDOM split: balanced": random and f"{random.test_balanced:.3f}",
            "s to train": digits(self.mean_of_all("seconds"), 0),
            "images/s": digits(self.mean_of_all("images_per_s"), 0),
            "peak GB": digits(self.mean_of_all("memory_gb"), 1),
            "M parameters": None if parameters is None else f"{parameters / 1e6:.1f}",
            "ms, torch": digits(self.mean_of_all("ms_float"), 1),
            "ms, int8": digits(self.mean_of_all("ms_int8"), 1),
            "MB, int8": digits(self.mean_of_all("mb_int8"), 1),
        }


def digits(value: float | None, count: int) -> str | None:
    """Rounded to so many decimals."""
    return None if value is None else f"{value:.{count}f}"


def build_tables(runs: list[SavedRun]) -> dict[tuple, list[Row]]:
    """{what its runs have in common: rows, best balanced accuracy first}, in the order of the datasets' names."""
    grouped = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: run.written):
        grouped[run.table][run.row].append(run)
    tables = {}
    for table in sorted(grouped):
        rows = [build_row(members) for members in grouped[table].values()]
        rows.sort(key=lambda row: -1.0 if row.balanced is None else row.balanced.mean, reverse=True)
        tell_rows_apart(rows)
        mark_alike(rows)
        tables[table] = rows
    return tables


def build_row(runs: list[SavedRun]) -> Row:
    """runs: of one network and recipe, the oldest first; of two on one split the later one counts.

    Figures on the manifest's split are not averaged with those on folds; where there are folds, these are the row.
    """
    by_fold = {run.figures.fold: run for run in runs if run.figures.split == "grouped"}
    random = [run for run in runs if run.figures.split != "grouped"]
    folds = sorted(fold for fold in by_fold if fold is not None)
    chosen = [by_fold[fold] for fold in folds] or list(by_fold.values())
    return Row(chosen, random[-1] if random else None)


def tell_rows_apart(rows: list[Row]) -> None:
    """Name what differs in the flags of rows that would be called the same."""
    called = defaultdict(list)
    for row in rows:
        called[row.network, row.first.figures.protocol].append(row)
    for same in called.values():
        flags = [dict(row.first.row) for row in same]
        keys = sorted({key for given in flags for key in given})
        differing = [key for key in keys if len({given.get(key) for given in flags}) > 1]
        for row, given in zip(same, flags, strict=True):
            told = [f"{key} {Path(given[key]).name}" for key in differing if key in given]
            row.differs = ", ".join(told)


def compare(one: Row, other: Row) -> float | None:
    """p of McNemar's test on the test frames of the folds that both rows have; None where there are none."""
    common = [key for key in one.answers if key in other.answers]
    if not common:
        return None
    answers = [np.array([row.answers[key][1] for key in common]) for row in (one, other)]
    return mcnemar(*answers)


def mark_alike(rows: list[Row]) -> None:
    """Give a letter to each largest set of rows of which no two can be told apart; a row may be in several.

    So a table shows tests of all pairs (compact letter display, Piepho 2004, by maximal cliques).
    """
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(len(rows)))
    for (i, one), (j, other) in itertools.combinations(enumerate(rows), 2):
        p = compare(one, other)
        if p is not None and p >= ALIKE_FROM:
            graph.add_edge(i, j)
    cliques = sorted(sorted(clique) for clique in networkx.find_cliques(graph) if len(clique) > 1)
    for number, clique in enumerate(cliques):
        for i in clique:
            rows[i].alike += chr(ord("a") + number % 26)


# ------------------------------------------------------------------------------------------------ what is written


def write_comparison(out: Path) -> int:
    """results.csv, results.md and results.png over every finished run in this folder; returns how many there are."""
    runs = read_runs(out)
    columns = [item.name for item in fields(RunFigures)]
    write_csv(out / RESULTS_CSV, columns, [asdict(run.figures) for run in runs])
    if not runs:
        return 0
    tables = build_tables(runs)
    text = "\n".join(describe_table(table, rows) for table, rows in tables.items())
    with atomic_write(out / RESULTS_TABLE, "w", encoding="utf-8") as file:
        file.write(f"{text}\n{NOTES}")
    draw_tables(tables, out / RESULTS_PICTURE)
    return len(runs)


NOTES = f"""Means over the folds named, on test frames of shots that training never saw; in brackets the 95% interval,
from draws of films. Rows that share a letter under "alike" can't be told apart: McNemar's exact test, on the test
frames of the folds that both have, gives {ALIKE_FROM:.0%} or more; "-" differs from all, or kept no answers. The
test takes frames for independent. Those of a shot are not, so rows may be more alike than it says. A RANDOM split
tests on neighbours of training frames, and flatters. Best epoch 0 is the head before training; one number stands for
all folds. Times are of the machine that trained; ms in int8 is of the fastest file that export.py made of a run.
"""


def title_of(table: tuple) -> str:
    """What the runs of a table have in common."""
    data, films, _, limit, weights = table
    title = f"{Path(data).name}, {films} films"
    if limit != "None":
        title += f", {limit} frames a split at most"
    return title if weights == "pretrained" else f"{title}, from random weights"


def describe_table(table: tuple, rows: list[Row]) -> str:
    """Markdown; columns that no row fills are left out."""
    cells = [row.cells() for row in rows]
    columns = [name for name in cells[0] if any(row[name] not in (None, "-") for row in cells)]
    body = [[row[name] for name in columns] for row in cells]
    return f"## {title_of(table)}\n\n{markdown_table(columns, body)}"


def draw_tables(tables: dict[tuple, list[Row]], path: Path) -> None:
    """Accuracy against milliseconds, a point a row, a panel a table."""
    figure = Figure(figsize=(9.5, 6.4 * len(tables)), layout="constrained")
    panels = figure.subplots(len(tables), squeeze=False)[:, 0]
    for axes, (table, rows) in zip(panels, tables.items(), strict=True):
        draw_table(axes, table, rows)
    save_figure(figure, path)


def draw_table(axes, table: tuple, rows: list[Row]) -> None:
    """One panel: filled points are our rows, with their intervals, hollow ones the original's figures."""
    networks = list(dict.fromkeys(row.first.figures.arch for row in rows))
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    placed = [row for row in rows if row.ms is not None and row.balanced is not None]
    for row in placed:
        place = protocols.index(row.protocol)
        mean = row.balanced.mean
        ends = None if row.balanced.low is None else [[mean - row.balanced.low], [row.balanced.high - mean]]
        label = row.name if row.mean_of_all("ms_int8") is not None else f"{row.name} (ms of torch; not exported)"
        axes.errorbar(
            row.ms * (1 + POINTS_APART * place),
            mean,
            yerr=ends,
            fmt=MARKERS[place % len(MARKERS)],
            color=f"C{networks.index(row.first.figures.arch) % 10}",
            capsize=3,
            label=label,
            alpha=0.85,
        )
    drawn = draw_original(axes, placed, networks, films=table[1])
    axes.set_xscale("log")
    axes.margins(x=0.12)
    for axis_ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_ticks(LogFormatter(labelOnlyBase=False, minor_thresholds=(3, 0.5)))
    axes.set(xlabel="ms a frame, int8 where exported", ylabel="balanced accuracy on unseen shots (95% over films)")
    axes.set_title(title_of(table))
    axes.grid(alpha=0.3, which="both")
    if placed:
        columns = 1 + (len(placed) > 6)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns)
    if drawn:
        note = ORIGINAL_NOTE.format(films=" or ".join(str(count) for count in sorted(drawn)))
        axes.text(0, 1.07, note, transform=axes.transAxes, fontsize=7.5, va="bottom")


def draw_original(axes, rows: list[Row], networks: list[str], films: int) -> set[int]:
    """The original's accuracy of the networks that have a row with ms; returns the numbers of films it is of."""
    drawn = set()
    for arch, published in ORIGINAL.items():
        ours = [row.ms for row in rows if row.first.figures.arch == arch]
        if not ours:
            continue
        count = min(published, key=lambda number: abs(math.log(number / films)))
        colour = f"C{networks.index(arch) % 10}"
        axes.plot(min(ours), published[count], "o", mfc="none", mec=colour, ms=9)
        axes.annotate(
            f"original, {count} films",
            (min(ours), published[count]),
            xytext=(8, 4),
            textcoords="offset points",
            fontsize=7,
        )
        drawn.add(count)
    return drawn
