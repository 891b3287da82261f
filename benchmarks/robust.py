"""`python bench.py robust`: what becomes of the answers when frames are changed as people change them."""

import contextlib
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from answering.calibration import UNKNOWN_SHARE, named_right
from answering.console import UserError, atomic_write
from answering.model import Answer, Identifier
from answering.pictures import read_image
from benchmarks.harness import show
from benchmarks.ways import WAYS
from training.dataset import ManifestRow, choose_rows, read_manifest
from training.report import save_figure

FRONTIER = ["as it is", "crop, 60% of the sides", "crop, 40% of the sides", "JPEG at quality 15", "grey"]
FRONTIER += ["photo of a screen", "a phone's screenshot"]


def bench_robust(
    data: Path, model: Path, *, index: str = "", frames: int = 40, fold: int = -1, sheet: Path = Path("robust.png")
) -> None:
    """Answers to test frames as they are and changed as people change them, at most so many a film; draws each way.

    --index answers with an index of the frames for training, which is made in that new folder; an embedder takes --fold
    (-1: the manifest's split), and SHEET-frontier.png shows how many frames could be named at which risk.
    """

    figures, asked = measure_ways(data, model, index, frames, fold if fold >= 0 else None, sheet)
    title = f"Changed frames, {model}{f' with {index}' if index else ''}, {asked}"
    show(title, figures, f"{sheet} shows the ways.")


def index_frames(rows: list[ManifestRow], model: Path, place: Path):
    """An index at place of these rows of a manifest: the frames that a head would be trained on."""
    import index

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for row in rows:
            film = Path(folder, row.movie)
            film.mkdir(exist_ok=True)
            (film / Path(row.path).name).symlink_to(Path(row.file).resolve())
        index.main(["add", folder, "--model", str(model), "--index", str(place)])


def answer_worn(identifier: Identifier, rows: list[ManifestRow], number: int) -> list[Answer]:
    """Answers to the frames of these rows, changed in the way of this number; seeds that nothing is fitted with."""
    change, answers = [*WAYS.values()][number], []
    for row in rows:
        image = Image.fromarray(read_image(row.file))
        image.thumbnail((1280, 1280))
        answers.append(identifier.identify(change(image, np.random.default_rng([2027, number, row.place]))))
    return answers


def film_interval(right: np.ndarray, films: np.ndarray) -> str:
    """Mean over films of the share that is right, with its 95% interval from 2,000 draws of films (Efron 1979)."""
    shares = np.array([right[films == film].mean() for film in np.unique(films)])
    drawn = np.random.default_rng(13).choice(shares, (2000, len(shares))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{shares.mean():.3f} ({low:.2f} to {high:.2f})"


def measure_answers(known: list[Answer], films: np.ndarray, unknown: list[Answer]) -> dict[str, str]:
    """Figures of answers to known frames of these films, and to frames of unknown films; ready to print.

    Every frame counts alike, but where it says "by films".
    """
    best = np.array([answer.candidates[0].title for answer in known])
    held = np.array([film in [c.title for c in answer.candidates] for answer, film in zip(known, films, strict=True)])
    kinds, others = (np.array([answer.kind for answer in part]) for part in (known, unknown))
    named, right = kinds == "movie", best == films
    helpful = (named & right) | ((kinds == "shortlist") & held)
    row = {"top-1": f"{right.mean():.3f}", "balanced (95%, by films)": film_interval(right, films)}
    row |= {"known named": f"{named.mean():.3f}", "named, by films (95%)": film_interval(named, films)}
    shares = dict.fromkeys((0.1, UNKNOWN_SHARE, 0.6), "-")
    if len(others):
        wrong = (others == "movie").mean()
        shares = {
            share: f"{named_right(named.mean(), (named & right).mean(), wrong, share):.3f}".replace("nan", "-")
            for share in shares
        }
    row |= {f"right of named, {share:.0%} unknown": value for share, value in shares.items()}
    refused = f"{(others != 'movie').mean():.3f}" if len(others) else "-"
    row |= {"helpful": f"{helpful.mean():.3f}", "unknown not named": refused}
    return row | {"ms": f"{np.median([answer.ms for answer in known]):.0f}"}


def draw_frontier(asked: dict[str, tuple], films: np.ndarray, path: Path) -> None:
    """Which share of known frames could be named, and how many names would be right, at every threshold.

    asked: {way: (answers to known frames, to unknown ones)}; the dots are the thresholds that answered. The answers'
    confidence must rise with what the thresholds are of, as an index's does.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, (known, unknown) in asked.items():
        right = np.array([answer.candidates[0].title for answer in known]) == films
        score, other = (np.array([answer.candidates[0].confidence for answer in part]) for part in (known, unknown))
        steps = np.sort(score)[: -max(5, len(score) // 50)]  # under fewer frames lies chance
        if not len(steps) or not len(other):
            continue

        def point(named: np.ndarray, strangers: np.ndarray, right: np.ndarray = right) -> tuple[float, float]:
            return named.mean(), named_right(named.mean(), (named & right).mean(), strangers.mean())

        points = [point(score >= at, other >= at) for at in np.unique(steps)]
        (line,) = axes.plot(*zip(*points, strict=True), lw=1.2, label=name)
        named, strangers = (np.array([answer.kind == "movie" for answer in part]) for part in (known, unknown))
        axes.plot(*point(named, strangers), "o", color=line.get_color())
    axes.axhline(0.95, color="grey", lw=0.8)
    axes.set(xlabel="share of known frames named", ylabel="of the named right", xlim=(0, 1), ylim=(0.7, 1.005))
    axes.set_title(f"{UNKNOWN_SHARE:.0%} of frames of unknown films; dots: the thresholds in use")
    axes.legend(fontsize="small")
    save_figure(figure, path)


def draw_ways(row: ManifestRow, path: Path, side: int = 240) -> None:
    """A contact sheet of a frame, changed in each way."""
    sheet = Image.new("RGB", (5 * side, -(-len(WAYS) // 5) * side), "white")
    for k, (name, change) in enumerate(WAYS.items()):
        image = change(Image.fromarray(read_image(row.file)), np.random.default_rng([2027, k, row.place]))
        image.thumbnail((side - 8, side - 28))
        sheet.paste(image, (k % 5 * side + 4, k // 5 * side + 4))
        place = (k % 5 * side + 4, k // 5 * side + side - 20)
        ImageDraw.Draw(sheet).text(place, name, fill="black", font=ImageFont.load_default(13))
    with atomic_write(path) as file:
        sheet.save(file, "PNG")


def choose_asked(chosen: dict[str, list[ManifestRow]], parts: tuple[str, ...], frames: int) -> list[ManifestRow]:
    """The rows of these splits, at most so many frames a film, evenly spread over it."""
    films = {}
    for row in itertools.chain.from_iterable(chosen[part] for part in parts):
        films.setdefault(row.movie, []).append(row)
    picks = [np.linspace(0, len(rows) - 1, min(frames, len(rows))).astype(int) for rows in films.values()]
    return [rows[k] for rows, pick in zip(films.values(), picks, strict=True) for k in pick]


def measure_ways(data: Path, model: Path, place: str, frames: int, fold: int | None, sheet: Path) -> tuple[dict, str]:
    """({way: figures}, what was asked, in words) on the test frames of the fold that the model was trained on.

    place: of an index, or "". frames: at most so many a film. fold: of an embedder, which was trained on none. Unknown
    frames are those of unknown_test, with an index those of unknown_val too: its rule has seen neither.
    """
    identifier = Identifier(model)
    trained = identifier.contract.accuracy
    if trained.get("split", "group") != "group":
        raise UserError(f"{model}: was trained on a random split, which has seen what lies beside test frames", 2)
    if fold is not None and (fold > 4 or (identifier.classes and fold != trained.get("fold"))):
        have = f"{model} was trained on fold {trained.get('fold')}" if identifier.classes else "0 to 4, or -1"
        raise UserError(f"--fold {fold}: {have}", 2)
    chosen, classes = choose_rows(read_manifest(data), fold=trained.get("fold") if identifier.classes else fold)
    if identifier.classes and classes != identifier.classes:
        raise UserError(f"{model}: its films are not those of {data}; name the data that it was trained on", 2)
    if place:
        from answering.collection import Index

        if Path(place, "index.json").exists():
            raise UserError(f"--index {place}: is there and may hold test frames; name a new folder", 2)
        index_frames(chosen["train"] + chosen["val"], model, Path(place))
        identifier.index = Index(place, identifier)
    known = choose_asked(chosen, ("test",), frames)
    others = choose_asked(chosen, ("unknown_test", "unknown_val") if place else ("unknown_test",), frames)
    draw_ways(known[0], sheet)
    films, answers = np.array([row.movie for row in known]), {}
    for number, name in enumerate(tqdm(WAYS, unit="way", disable=None)):
        answers[name] = [answer_worn(identifier, rows, number) for rows in (known, others)]
    if place:
        draw_frontier({name: answers[name] for name in FRONTIER}, films, sheet.with_stem(f"{sheet.stem}-frontier"))
    figures = {name: measure_answers(given, films, unknown) for name, (given, unknown) in answers.items()}
    strangers = len({row.movie for row in others})
    return figures, f"{len(films)} frames of {len(set(films))} films, {len(others)} of {strangers} unknown ones"
