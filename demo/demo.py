"""See the whole pipeline work, offline: render films, filter, train from random weights, export, name frames.

python demo/demo.py                                  # three to eight minutes on two CPU cores
python demo/demo.py --films 50 --arch resnet50       # better with a GPU
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripts of the top level

from answering.console import UserError, atomic_write, one_line_errors
from answering.model import Answer, Identifier, format_answer
from answering.pictures import read_image
from demo.films import render_films
from training.dataset import ManifestRow, read_manifest

RECIPE = {"batch_size": 16, "lr": 3e-3, "crop": 0.35, "balance": 0.0, "colour": 0.3}
UNKNOWN_FRAMES = 15  # of each film that is never in the collection
COLUMNS = 4  # of the sheet of pictures
GREEN = "#5fd38d"
AMBER = "#f0b34a"
RED = "#ff6b6b"
BACKGROUND = "#14161a"


@dataclass(frozen=True)
class DemoFigures:
    """How the frames of shots and films that were never trained on are answered; shares in 0..1."""

    top1: float  # of known_frames
    known_frames: int
    known_named: float  # of known_frames
    named_right: float  # of the frames whose film is named; nan where none is
    unknown_refused: float  # of unknown_frames
    unknown_frames: int


def run_demo(
    *, films: int, unknown: int, frames: int, arch: str, size: int, seed: int, out: Path, **recipe: int
) -> DemoFigures:
    """Run every phase under out. Unknown films are rendered too, and never trained on."""
    from export import export_model  # torch and the runtimes load when they are needed
    from filter import filter_films
    from train import train_model

    start = time.time()
    processed = out / "processed"

    def stage(number: int, text: str) -> None:
        print(f"\n[{number}/5] {text}  ({time.time() - start:.0f} s so far)", flush=True)

    stage(1, f"render {films} films of {frames} frames, and {unknown} films that the model will never see")
    # a folder of its own for every setting, or films of an earlier run would stay among these
    raw = out / f"films-{seed}-{films}x{frames}-{unknown}"
    render_films(raw, range(films), frames, seed, per_shot=3)
    render_films(raw, range(films, films + unknown), UNKNOWN_FRAMES, seed, per_shot=3)
    stage(2, "filter: drop duplicates and dark frames, keep shots together, split by shot")
    filter_films([raw], processed, detector="none", min_frames=UNKNOWN_FRAMES + 1)
    stage(3, f"train {arch} from random weights")
    run = train_model(
        processed,
        arch=arch,
        pretrained=False,
        recipe=RECIPE | recipe,
        size=size,
        seed=seed,
        out=out / "runs",
        name="demo",
        overwrite=True,
    )
    stage(4, "export to ONNX and OpenVINO, calibrate the refusal")
    export_model(run / "best.pt", processed, out / "export", max_drop=3)
    stage(5, "name frames of shots never seen in training")
    return answer_all(Identifier(out / "export"), processed, out / "answers.png")


Answered = tuple[ManifestRow, Answer]  # a frame with its true film, and what was answered


def answer_all(identifier: Identifier, processed: Path, picture: Path) -> DemoFigures:
    """Answer every test and unknown_test frame, print and draw a sample, return the figures."""
    pairs = [(row, identifier.identify(row.file)) for row in read_manifest(processed) if "test" in row.split]
    known = [(row, answer) for row, answer in pairs if row.split == "test"]
    unknown = [(row, answer) for row, answer in pairs if row.split == "unknown_test"]
    if not known or not unknown:
        raise UserError("too few films or frames to test on; raise --films, --unknown or --frames")
    sample = choose_sample(known, unknown)
    for row, answer in sample:
        print(f"{row.movie[:36]:36} {format_answer(answer)}")
    draw_answers(sample, {row.movie for row, _ in known}, picture)
    named_right = [is_right(row, answer) for row, answer in pairs if answer.kind == "movie"]
    return DemoFigures(
        top1=fmean(is_right(row, answer) for row, answer in known),
        known_frames=len(known),
        known_named=fmean(answer.kind == "movie" for _, answer in known),
        named_right=fmean(named_right) if named_right else float("nan"),
        unknown_refused=fmean(answer.kind == "unknown" for _, answer in unknown),
        unknown_frames=len(unknown),
    )


def is_right(row: ManifestRow, answer: Answer) -> bool:
    """Whether the best guess is the film."""
    return row.movie == answer.candidates[0].title


def choose_sample(known: list[Answered], unknown: list[Answered]) -> list[Answered]:
    """For the eye: two frames of each of six films, from different shots, and six of unknown films."""
    sample = []
    for film in sorted({row.movie for row, _ in known})[:6]:
        own = [pair for pair in known if pair[0].movie == film]
        sample += [own[0], own[-1]]
    return sample + unknown[:: max(1, len(unknown) // 6)][:6]


def draw_answers(sample: list[Answered], films: set[str], path: Path) -> None:
    """A sheet of pictures with the answer, its confidence and the truth. films: the titles that are known."""
    from matplotlib.figure import Figure

    rows = -(-len(sample) // COLUMNS)
    figure = Figure(figsize=(15, 2.35 * rows), layout="constrained", facecolor=BACKGROUND)
    for cell in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        cell.axis("off")
    for cell, (row, answer) in zip(figure.axes, sample, strict=False):
        is_known = row.movie in films
        cell.imshow(read_image(row.file), aspect="auto")
        colour = choose_colour(row.movie, answer, is_known)
        cell.set_title(describe_answer(answer), color=colour, fontsize=11, pad=3, loc="left")
        note = row.movie if is_known else f"{row.movie} (not in the collection)"
        cell.text(0.01, 0.03, note, transform=cell.transAxes, color="white", fontsize=8, backgroundcolor="#000000aa")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=90, facecolor=figure.get_facecolor())


def describe_answer(answer: Answer) -> str:
    if answer.kind == "movie":
        best = answer.candidates[0]
        return f"{best.title} ({best.confidence:.0%})"
    return "one of three" if answer.kind == "shortlist" else "I don't know"


def choose_colour(film: str, answer: Answer, is_known: bool) -> str:
    """Green for a right answer, amber for a known film that is refused, red for a wrong film."""
    if answer.kind == "unknown":
        return AMBER if is_known else GREEN
    offered = answer.candidates[: 1 if answer.kind == "movie" else 3]
    return GREEN if film in [candidate.title for candidate in offered] else RED


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The whole pipeline on rendered films, offline.")
    parser.add_argument("--films", type=int, default=5, help="films to know (default: %(default)s)")
    parser.add_argument("--unknown", type=int, default=16, help="films to refuse (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=240, help="frames of each known film (default: %(default)s)")
    parser.add_argument("--arch", default="resnet10t", help="as in train.py (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=128, help="pixels, as in train.py (default: %(default)s)")
    parser.add_argument("--train-size", type=int, default=112, help="pixels of training crops (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=13, help="of films and training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="default: %(default)s")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    too_few = args.films < 2 or args.unknown < 2 or args.frames < 40
    if too_few or args.size < 32 or min(args.epochs, args.train_size) < 1 or args.seed < 0:
        least = "--films 2, --unknown 2, --frames 40, --epochs 1, --size 32, --train-size 1 and --seed 0"
        parser.error(f"the least are {least}")
    start = time.time()
    figures = run_demo(**vars(args))
    print(
        f"\n{args.arch} from random weights, {time.time() - start:.0f} s in all, on films rendered in this run:\n"
        f"top-1 {figures.top1:.3f} on {figures.known_frames} frames of shots never seen in training, "
        f"{figures.known_named:.1%} of them named\n"
        f"{figures.unknown_refused:.1%} of {figures.unknown_frames} frames of films never seen answered unknown\n"
        f"the picture: {args.out}/answers.png\nnext: python identify.py FRAME --model {args.out}/export"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
