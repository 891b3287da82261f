"""Measure the figures of RESULTS.md, each against the original project's way, in one run; prints markdown.

python bench.py render                                                  # a quick look: frames a second on one core
python bench.py infer runs/RUN/best.pt --model export --frames FOLDER   # JPEG to answer: torch against the export
python bench.py bot --model export --frames FOLDER                      # bot.py under load, on loopback
python bench.py --help                                                  # and scrape, filter, train, index, web ...
"""

import argparse
import asyncio
import inspect
import sys
from pathlib import Path

from answering.console import one_line_errors
from benchmarks.collection import bench_index, bench_moments
from benchmarks.harness import machine
from benchmarks.inference import bench_infer, bench_isa
from benchmarks.pipeline import bench_filter, bench_probe, bench_render, bench_scrape, bench_train
from benchmarks.robust import bench_robust
from benchmarks.telegram import bench_bot
from benchmarks.web import bench_web


def bench_cuda(
    *, out: Path, minutes: int = 9, films: int = 257, per_film: int = 230, epochs: int = 10,
    archs: str = "all", detector: str = "yolo11n.pt", again: str = "",
) -> None:  # fmt: skip
    """All that a GPU is for, on rendered films, each part in a process of its own: OUT/cuda.md and cuda.json.

    What is left undone is done when it is called again; parts whose names begin with AGAIN are done anew.
    """
    options = dict(locals())
    from benchmarks.cuda import run_all

    run_all(**options)


def get_parser() -> argparse.ArgumentParser:
    """A command a function, whose parameters are its arguments; those after * are flags."""
    parser = argparse.ArgumentParser(description="Measure the figures of RESULTS.md.")
    commands = parser.add_subparsers(required=True)
    runs = (bench_render, bench_scrape, bench_filter, bench_train, bench_probe, bench_infer, bench_isa, bench_bot)
    for run in (*runs, bench_web, bench_robust, bench_cuda, bench_index, bench_moments):
        about = run.__doc__.split("\n")[0]
        sub = commands.add_parser(run.__name__.removeprefix("bench_"), help=about, description=run.__doc__)
        sub.set_defaults(run=run)
        for name, it in inspect.signature(run).parameters.items():
            flag, required = it.kind is it.KEYWORD_ONLY, it.default is it.empty
            how = {"required": True} if required else {"default": it.default, "help": "default: %(default)s"}
            how = how if flag else {"nargs": "+"} if it.annotation == list[Path] else {}
            kind = Path if it.annotation == list[Path] else it.annotation
            sub.add_argument(f"--{name.replace('_', '-')}" if flag else name, type=kind, **how)
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = vars(parser.parse_args(argv))
    if any(isinstance(value, int) and value < 1 and name != "fold" for name, value in args.items()):
        parser.error("every number must be 1 or more")
    run = args.pop("run")
    print(machine())
    done = run(**args)
    if inspect.iscoroutine(done):
        asyncio.run(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
