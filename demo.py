"""See the whole pipeline work, offline: render films, filter, train from random weights, export, name frames.

python demo.py                                  # about four minutes on two CPU cores
python demo.py --films 50 --arch resnet50       # better with a GPU
"""

import argparse
import json
import sys
import time
from pathlib import Path

from films import render_films
from filter import filter_films
from identify import Answer, Identifier, UserError, atomic_write, format_answer, one_line_errors, read_image

RECIPE = {"epochs": 36, "batch_size": 32, "lr": 3e-3, "first_layer": 1.0, "crop": 0.35, "balance": 0.0, "colour": 0.3}
UNKNOWN_FRAMES = 15  # of each film that is never in the collection


def run_demo(
    out: Path = Path("data/demo"),
    *,
    films: int = 5,
    unknown: int = 16,
    frames: int = 240,
    arch: str = "resnet10t",
    epochs: int = RECIPE["epochs"],
    train_size: int = 128,
    seed: int = 13,
) -> dict:
    """Run every phase under out and return the figures. Unknown films are rendered too, and never trained on."""
    from export import export_model  # torch and the runtimes load when they are needed
    from train import train_model

    start = time.perf_counter()

    def stage(k: int, text: str) -> None:
        print(f"\n[{k}/5] {text}  ({time.perf_counter() - start:.0f} s so far)", flush=True)

    stage(1, f"render {films} films of {frames} frames, and {unknown} films that the model will never see")
    # a folder of its own for every setting, or films of an earlier run would stay among these
    raw = out / f"films-{seed}-{films}x{frames}-{unknown}"
    render_films(raw, range(films), frames, seed, per_shot=3)
    render_films(raw, range(films, films + unknown), UNKNOWN_FRAMES, seed, per_shot=3)
    stage(2, "filter: drop duplicates and dark frames, keep shots together, split by shot")
    report = filter_films([raw], out / "processed", detector="none", min_frames=UNKNOWN_FRAMES + 1)
    kept = sum(row["kept"] for row in report.values())
    print(f"{sum(row['decision'] == 'ADD' for row in report.values())} films known, {kept} frames kept")
    stage(3, f"train {arch} from random weights")
    recipe = RECIPE | {"epochs": epochs, "train_size": train_size}
    run = train_model(
        out / "processed", arch=arch, pretrained=False, recipe=recipe, out=out / "runs", name="demo",
        seed=seed, overwrite=True,
    )  # fmt: skip
    stage(4, "export to ONNX and OpenVINO, calibrate the refusal")
    export_model(run / "best.pt", out / "processed", out / "export", max_drop=3)
    stage(5, "name frames of shots never seen in training")
    figures = answer_all(Identifier(out / "export"), out / "processed", out / "answers.png")
    figures |= {"arch": arch, "seconds": round(time.perf_counter() - start)}
    with atomic_write(out / "demo.json", "w") as file:
        json.dump(figures, file, indent=1)
    return figures


def answer_all(identifier: Identifier, processed: Path, picture: Path) -> dict:
    """Answer every test and unknown_test frame, print and draw a sample, return the figures."""
    from train import read_manifest

    rows = [row for row in read_manifest(processed) if row["split"] in ("test", "unknown_test")]
    answers = [(row, identifier.identify(row["file"])) for row in rows]
    known = [(row, answer) for row, answer in answers if row["split"] == "test"]
    foreign = [answer for row, answer in answers if row["split"] == "unknown_test"]
    if not known or not foreign:
        raise UserError("too few films or frames to test on; raise --films, --unknown or --frames")
    right = [answer.candidates[0].title == row["movie"] for row, answer in known]
    named = [(row, answer) for row, answer in answers if answer.kind == "movie"]
    films = sorted({row["movie"] for row, _ in known})
    print(f"{'film':36} {'frames':>6} {'top-1':>6} {'named':>6} {'refused':>8}")
    for film in films:
        hits = [(answer.candidates[0].title == film, answer.kind) for row, answer in known if row["movie"] == film]
        share = [sum(h for h, _ in hits), *(sum(k == kind for _, k in hits) for kind in ("movie", "unknown"))]
        print(f"{film[:36]:36} {len(hits):6} " + "{:6.2f} {:6.2f} {:8.2f}".format(*(n / len(hits) for n in share)))
    refused = sum(answer.kind == "unknown" for answer in foreign) / len(foreign)
    print(f"{'films never in the collection':36} {len(foreign):6} {'-':>6} {'':6} {refused:8.2f}")
    # a sample for the eye: two frames of each of six films, from different shots, and six foreign ones
    sample = []
    for film in films[:6]:
        mine = [pair for pair in known if pair[0]["movie"] == film]
        sample += [mine[0], mine[-1]]
    others = [pair for pair in answers if pair[0]["split"] == "unknown_test"]
    sample += others[:: max(1, len(others) // 6)][:6]
    print(f"\n{'truth':36} answer")
    for row, answer in sample:
        print(f"{row['movie'][:36]:36} {format_answer(answer)}")
    draw_answers(sample, set(films), picture)
    return {
        "top1": sum(right) / len(right),
        "known_frames": len(known),
        "known_named": sum(answer.kind == "movie" for _, answer in known) / len(known),
        "named_right": sum(r["movie"] == a.candidates[0].title for r, a in named) / len(named) if named else None,
        "unknown_refused": refused,
        "unknown_frames": len(foreign),
    }


def draw_answers(sample: list[tuple[dict, Answer]], films: set[str], path: Path) -> None:
    """A sheet of frames, each with the answer, its confidence and the truth; green right, amber refused, red wrong."""
    from matplotlib.figure import Figure

    columns = 4
    figure = Figure(figsize=(15, 2.35 * -(-len(sample) // columns)), layout="constrained", facecolor="#14161a")
    axes = figure.subplots(-(-len(sample) // columns), columns, squeeze=False).flat
    for cell in axes:
        cell.axis("off")
    for cell, (row, answer) in zip(figure.axes, sample, strict=False):
        best, truth = answer.candidates[0], row["movie"]
        known = truth in films
        said = (
            best.title if answer.kind == "movie" else "one of three" if answer.kind == "shortlist" else "I don't know"
        )
        said_titles = [c.title for c in answer.candidates][: 1 if answer.kind == "movie" else 3]
        good = truth in said_titles if answer.kind != "unknown" else not known
        colour = "#5fd38d" if good else "#f0b34a" if answer.kind == "unknown" else "#ff6b6b"
        cell.imshow(read_image(row["file"]), aspect="auto")
        sure = "" if answer.kind == "unknown" else f" ({best.confidence:.0%})"
        cell.set_title(said + sure, color=colour, fontsize=11, pad=3, loc="left")
        note = truth if known else f"{truth} (not in the collection)"
        cell.text(0.01, 0.03, note, transform=cell.transAxes, color="white", fontsize=8, backgroundcolor="#000000aa")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=90, facecolor=figure.get_facecolor())


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The whole pipeline on rendered films, offline.")
    parser.add_argument("--films", type=int, default=5, help="films to know (default: %(default)s)")
    parser.add_argument("--unknown", type=int, default=16, help="films to refuse (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=240, help="frames of each known film (default: %(default)s)")
    parser.add_argument("--arch", default="resnet10t", help="as in train.py (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"], help="default: %(default)s")
    parser.add_argument("--train-size", type=int, default=128, help="pixels of training crops (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=13, help="of films and training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="default: %(default)s")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.films < 2 or args.unknown < 2 or args.frames < 40 or min(args.epochs, args.train_size) < 1 or args.seed < 0:
        parser.error(
            "--films and --unknown must be 2 or more, --frames 40, --epochs and --train-size 1, --seed 0 or more"
        )
    figures = run_demo(**vars(args))
    print(
        f"\n{figures['arch']} from random weights, {figures['seconds']} s in all, on films rendered in this run:\n"
        f"top-1 {figures['top1']:.3f} on {figures['known_frames']} frames of shots never seen in training\n"
        f"{figures['unknown_refused']:.1%} of {figures['unknown_frames']} frames of films never seen answered unknown"
    )
    print(f"the picture: {args.out}/answers.png")
    print(f"next: python identify.py FRAME --model {args.out}/export")
    return 0


if __name__ == "__main__":
    sys.exit(main())
