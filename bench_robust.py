"""`python bench.py robust`: what becomes of the answers when frames are changed as people change them."""

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from data import choose_rows, read_manifest
from identify import Answer, Identifier
from image import UserError, atomic_write, read_image
from rule import UNKNOWN_SHARE
from wear import WAYS


def index_frames(rows: list[dict], model: Path, place: Path):
    """An index at place of these rows of a manifest: the frames that a head would be trained on."""
    import index

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for row in rows:
            film = Path(folder, row["movie"])
            film.mkdir(exist_ok=True)
            (film / Path(row["path"]).name).symlink_to(Path(row["file"]).resolve())
        index.main(["add", folder, "--model", str(model), "--index", str(place)])


def answer_worn(identifier: Identifier, rows: list[dict], number: int) -> list[Answer]:
    """Answers to the frames of these rows, changed in the way of this number; seeds that nothing is fitted with."""
    change, answers = [*WAYS.values()][number], []
    for row in rows:
        image = Image.fromarray(read_image(row["file"]))
        image.thumbnail((1280, 1280))
        answers.append(identifier.identify(change(image, np.random.default_rng([2027, number, row["place"]]))))
    return answers


def film_interval(right: np.ndarray, films: np.ndarray) -> str:
    """Mean over films of the share that is right, with its 95% interval from 2,000 draws of films (Efron 1979)."""
    shares = np.array([right[films == film].mean() for film in np.unique(films)])
    drawn = np.random.default_rng(13).choice(shares, (2000, len(shares))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{shares.mean():.3f} ({low:.2f} to {high:.2f})"


def measure_answers(known: list[Answer], films: np.ndarray, unknown: list[Answer]) -> dict[str, str]:
    """Figures of answers to known frames of these films, and to frames of unknown films; ready to print."""
    best = np.array([answer.candidates[0].title for answer in known])
    held = np.array([film in [c.title for c in answer.candidates] for answer, film in zip(known, films, strict=True)])
    kinds, others = (np.array([answer.kind for answer in part]) for part in (known, unknown))
    named, right = kinds == "movie", best == films
    wrong = UNKNOWN_SHARE * (others == "movie").mean() if len(others) else 0.0
    counted = (1 - UNKNOWN_SHARE) * named.mean() + wrong
    share = f"{(1 - UNKNOWN_SHARE) * (named & right).mean() / counted:.3f}" if counted and len(others) else "-"
    helpful = (named & right) | ((kinds == "shortlist") & held)
    row = {"top-1": f"{right.mean():.3f}", "balanced (95%, by films)": film_interval(right, films)}
    row |= {"known named": film_interval(named, films), "named right": share, "helpful": f"{helpful.mean():.3f}"}
    refused = f"{(others != 'movie').mean():.3f}" if len(others) else "-"
    return row | {"unknown not named": refused, "ms": f"{np.median([answer.ms for answer in known]):.0f}"}


def draw_ways(row: dict, path: Path, side: int = 240) -> None:
    """A contact sheet of a frame, changed in each way."""
    sheet = Image.new("RGB", (5 * side, -(-len(WAYS) // 5) * side), "white")
    for k, (name, change) in enumerate(WAYS.items()):
        image = change(Image.fromarray(read_image(row["file"])), np.random.default_rng([2027, k, row["place"]]))
        image.thumbnail((side - 8, side - 28))
        sheet.paste(image, (k % 5 * side + 4, k // 5 * side + 4))
        place = (k % 5 * side + 4, k // 5 * side + side - 20)
        ImageDraw.Draw(sheet).text(place, name, fill="black", font=ImageFont.load_default(13))
    with atomic_write(path) as file:
        sheet.save(file, "PNG")


def measure_ways(data: Path, model: Path, place: str, frames: int, sheet: Path) -> tuple[dict, str]:
    """({way: figures}, what was asked, in words) on test and unknown_test of the fold that the model was trained on.

    place: of an index, or "". frames: at most so many a film.
    """
    identifier = Identifier(model)
    trained = identifier.contract.accuracy
    if trained.get("split", "group") != "group":
        raise UserError(f"{model}: was trained on a random split, which has seen what lies beside test frames", 2)
    chosen, classes = choose_rows(read_manifest(data), fold=trained.get("fold"))
    if identifier.classes and classes != identifier.classes:
        raise UserError(f"{model}: its films are not those of {data}; name the data that it was trained on", 2)
    if place:
        from index import Index

        if Path(place, "index.json").exists():
            raise UserError(f"--index {place}: is there and may hold test frames; name a new folder", 2)
        index_frames(chosen["train"] + chosen["val"], model, Path(place))
        identifier.index = Index(place, identifier)
    asked = {}
    for part in ("test", "unknown_test"):
        films = {}
        for row in chosen[part]:
            films.setdefault(row["movie"], []).append(row)
        picks = [np.linspace(0, len(rows) - 1, min(frames, len(rows))).astype(int) for rows in films.values()]
        asked[part] = [rows[k] for rows, pick in zip(films.values(), picks, strict=True) for k in pick]
    draw_ways(asked["test"][0], sheet)
    films, figures = np.array([row["movie"] for row in asked["test"]]), {}
    for number, name in enumerate(tqdm(WAYS, unit="way", disable=None)):
        known, unknown = (answer_worn(identifier, asked[part], number) for part in ("test", "unknown_test"))
        figures[name] = measure_answers(known, films, unknown)
    return figures, f"{len(films)} frames of {len(set(films))} films, {len(asked['unknown_test'])} of unknown ones"
