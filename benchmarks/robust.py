"""`python bench.py robust`: answers to frames that are changed as people change them."""

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from answering.calibration import TARGETS, UNKNOWN_SHARE, named_right
from answering.console import UserError, atomic_write
from answering.model import Answer, Identifier
from answering.pictures import read_image
from benchmarks.embedded import change, change_random, spread_rows
from benchmarks.folds import bench_folds
from benchmarks.harness import show
from benchmarks.ways import WAYS
from training.dataset import ManifestRow, choose_rows, read_manifest
from training.metrics import film_interval

FRONTIER = [  # ways that are drawn, of all WAYS
    "as it is",
    "crop, 60% of the sides",
    "crop, 40% of the sides",
    "JPEG at quality 15",
    "grey",
    "photo of a screen",
    "a phone's screenshot",
]
SHARES = (0.1, UNKNOWN_SHARE, 0.6)  # of frames of unknown films among what people send
LAST_FOLD = 4


def bench_robust(
    data: Path,
    model: Path,
    *,
    index: str = "",
    frames: int = 40,
    fold: int = -1,
    cache: str = "",
    sheet: Path = Path("robust.png"),
) -> None:
    """Answers to test frames, as they are and changed as people change them; draws each change.

    --index answers with an index of the frames for training, which is made in that new file; an embedder takes --fold
    (-1: the manifest's split), and SHEET-frontier.png shows how many frames could be named at which risk. --cache is a
    folder that keeps embeddings: then an embedder answers over all five folds, with an index, as a classifier and as
    both, and nothing is drawn.
    """
    from tqdm import tqdm

    if cache:
        if index or fold >= 0:
            raise UserError("--cache asks all folds, with indexes of its own: leave out --index and --fold", 2)
        bench_folds(data, model, Path(cache), frames=frames, ways=FRONTIER)
        return

    asked_fold = fold if fold >= 0 else None
    identifier = Identifier(model)
    check_fold(identifier, model, asked_fold)
    chosen = choose_frames(identifier, data, model, asked_fold)
    unknown_splits = ["unknown_test"]
    if index:
        attach_new_index(identifier, chosen["train"] + chosen["val"], model, Path(index))
        unknown_splits.append("unknown_val")  # the rule of an index has seen neither
    known = spread_rows(chosen["test"], frames)
    unknown = spread_rows([row for split in unknown_splits for row in chosen[split]], frames)
    films = np.array([row.movie for row in known])
    draw_ways(known[0], sheet)
    answers = {}
    for name in tqdm(WAYS, unit="way", disable=None):
        answers[name] = Answers(
            answer_changed(identifier, known, name), films, answer_changed(identifier, unknown, name)
        )
    if index:
        draw_frontier({name: answers[name] for name in FRONTIER}, sheet.with_stem(f"{sheet.stem}-frontier"))
    figures = {name: measure_answers(given) for name, given in answers.items()}
    asked = f"{len(known)} frames of {len(set(films))} films"
    asked += f", {len(unknown)} of {len({row.movie for row in unknown})} unknown ones"
    title = f"Changed frames, {model}{f' with {index}' if index else ''}, {asked}"
    show(title, figures, f"{sheet} shows the ways.")


# ------------------------------------------------------------------------------------------- what is asked


def check_fold(identifier: Identifier, model: Path, fold: int | None) -> None:
    """Raises UserError where test frames would be frames that the model was trained on, or beside them."""
    trained = identifier.contract.accuracy
    if trained.get("split", "group") != "group":
        raise UserError(f"{model}: was trained on a random split, which has seen what lies beside test frames", 2)
    if fold is None:
        return
    if identifier.classes and fold != trained.get("fold"):
        raise UserError(f"--fold {fold}: {model} was trained on fold {trained.get('fold')}", 2)
    if fold > LAST_FOLD:
        raise UserError(f"--fold {fold}: 0 to {LAST_FOLD}, or -1", 2)


def choose_frames(identifier: Identifier, data: Path, model: Path, fold: int | None) -> dict[str, list[ManifestRow]]:
    """The rows of a dataset by split: those of a classifier's training, or of the fold for an embedder."""
    if identifier.classes:
        fold = identifier.contract.accuracy.get("fold")
    chosen, classes = choose_rows(read_manifest(data), fold=fold)
    if identifier.classes and classes != identifier.classes:
        raise UserError(f"{model}: its films are not those of {data}; name the data that it was trained on", 2)
    return chosen


def attach_new_index(identifier: Identifier, rows: list[ManifestRow], model: Path, place: Path) -> None:
    """Let the model answer with a new index of these rows: the frames that a head would be trained on."""
    from answering.collection import Index

    if place.exists():
        raise UserError(f"--index {place}: is there and may hold test frames; name a new file", 2)
    index_frames(rows, model, place)
    identifier.index = Index(str(place), identifier)


def index_frames(rows: list[ManifestRow], model: Path, place: Path) -> None:
    """Make an index of these rows of a manifest."""
    import index

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for row in rows:
            film = Path(folder, row.movie)
            film.mkdir(exist_ok=True)
            (film / Path(row.path).name).symlink_to(Path(row.file).resolve())
        index.main(["add", folder, "--model", str(model), "--index", str(place)])


def answer_changed(identifier: Identifier, rows: list[ManifestRow], name: str) -> list[Answer]:
    """Answers to the frames of these rows, changed in the way of this name."""
    return [identifier.identify(change(row, name)) for row in rows]


# --------------------------------------------------------------------------------------------- what is found


@dataclass(frozen=True)
class Answers:
    """Answers to frames that were changed in one way."""

    known: list[Answer]
    films: np.ndarray  # the titles of known's frames, str [N]
    unknown: list[Answer]  # to frames of unknown films

    @property
    def right(self) -> np.ndarray:
        """Whether the best guess is right, bool [N]."""
        return np.array([answer.candidates[0].title for answer in self.known]) == self.films

    @property
    def listed(self) -> np.ndarray:
        """Whether the film is among the candidates, bool [N]."""
        pairs = zip(self.known, self.films, strict=True)
        return np.array([film in [candidate.title for candidate in answer.candidates] for answer, film in pairs])


def is_kind(answers: list[Answer], kind: str) -> np.ndarray:
    """bool [N]."""
    return np.array([answer.kind == kind for answer in answers], bool)


def confidences(answers: list[Answer]) -> np.ndarray:
    """Of the best guesses, float [N]."""
    return np.array([answer.candidates[0].confidence for answer in answers])


def format_interval(right: np.ndarray, films: np.ndarray) -> str:
    """Mean over films of the share that is right, with its 95% interval."""
    mean, low, high = film_interval(right, films)
    return f"{mean:.3f} ({low:.2f} to {high:.2f})"


def measure_answers(answers: Answers) -> dict[str, str]:
    """Figures of answers, ready to print. Every frame counts alike, but where it says "by films"."""
    named = is_kind(answers.known, "movie")
    offered = is_kind(answers.known, "shortlist")
    right = answers.right
    helpful = (named & right) | (offered & answers.listed)
    row = {
        "top-1": f"{right.mean():.3f}",
        "balanced (95%, by films)": format_interval(right, answers.films),
        "known named": f"{named.mean():.3f}",
        "named, by films (95%)": format_interval(named, answers.films),
    }
    unknown_named = is_kind(answers.unknown, "movie")
    for share in SHARES:
        text = "-"
        if len(unknown_named):
            value = named_right(named.mean(), (named & right).mean(), unknown_named.mean(), share)
            text = f"{value:.3f}".replace("nan", "-")
        row[f"right of named, {share:.0%} unknown"] = text
    row["helpful"] = f"{helpful.mean():.3f}"
    row["unknown not named"] = f"{(~unknown_named).mean():.3f}" if len(unknown_named) else "-"
    row["ms"] = f"{np.median([answer.ms for answer in answers.known]):.0f}"
    return row


# ------------------------------------------------------------------------------------------------- pictures


def draw_frontier(ways: dict[str, Answers], path: Path) -> None:
    """Which share of known frames could be named, and how many names would be right, at every threshold.

    The dots are the thresholds that answered. The answers' confidence must rise with what the thresholds are of, as an
    index's does.
    """
    from matplotlib.figure import Figure

    from training.report import save_figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, answers in ways.items():
        draw_frontier_line(axes, name, answers)
    axes.axhline(TARGETS["movie"], color="grey", lw=0.8)
    axes.set(xlabel="share of known frames named", ylabel="of the named right", xlim=(0, 1), ylim=(0.7, 1.005))
    axes.set_title(f"{UNKNOWN_SHARE:.0%} of frames of unknown films; dots: the thresholds in use")
    axes.legend(fontsize="small")
    save_figure(figure, path)


def draw_frontier_line(axes, name: str, answers: Answers) -> None:
    """The line and the dot of one way; nothing where there are too few frames."""
    right = answers.right
    known = confidences(answers.known)
    unknown = confidences(answers.unknown)
    thresholds = np.unique(np.sort(known)[: -max(5, len(known) // 50)])  # of fewer named frames, chance decides
    if not len(thresholds) or not len(unknown):
        return

    def point(named: np.ndarray, unknown_named: np.ndarray) -> tuple[float, float]:
        share = named.mean()
        return share, named_right(share, (named & right).mean(), unknown_named.mean())

    points = [point(known >= threshold, unknown >= threshold) for threshold in thresholds]
    (line,) = axes.plot(*zip(*points, strict=True), lw=1.2, label=name)
    dot = point(is_kind(answers.known, "movie"), is_kind(answers.unknown, "movie"))
    axes.plot(*dot, "o", color=line.get_color())


def draw_ways(row: ManifestRow, path: Path, side: int = 240) -> None:
    """A contact sheet of a frame, changed in each way; side: pixels of a cell."""
    columns = 5
    sheet = Image.new("RGB", (columns * side, -(-len(WAYS) // columns) * side), "white")
    for k, (name, alter) in enumerate(WAYS.items()):
        left = k % columns * side + 4
        top = k // columns * side
        image = alter(Image.fromarray(read_image(row.file)), change_random(row, name))
        image.thumbnail((side - 8, side - 28))
        sheet.paste(image, (left, top + 4))
        ImageDraw.Draw(sheet).text((left, top + side - 20), name, fill="black", font=ImageFont.load_default(13))
    with atomic_write(path) as file:
        sheet.save(file, "PNG")
