"""Measure speed, memory and robustness, a command each, beside the original project's way where it has one.

python bench.py render                                                  # a quick look: frames a second on one core
python bench.py infer runs/RUN/best.pt --model export --frames FOLDER   # JPEG to answer: torch against the export
python bench.py bot --model export --frames FOLDER                      # bot.py under load, on loopback
python bench.py --help                                                  # and scrape, filter, train, index, web ...
"""

import argparse
import asyncio
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from answering.console import one_line_errors
from benchmarks.clip import bench_clip
from benchmarks.collection import bench_moments
from benchmarks.cuda import bench_cuda
from benchmarks.filtering import bench_filter, bench_persons
from benchmarks.growth import bench_index
from benchmarks.harness import machine
from benchmarks.inference import bench_infer, bench_isa
from benchmarks.robust import bench_robust
from benchmarks.shelf import bench_shelf
from benchmarks.stills import bench_render, bench_scrape
from benchmarks.telegram import bench_bot
from benchmarks.training import bench_probe, bench_train
from benchmarks.web import bench_site, bench_web

COMMANDS = [
    bench_render,
    bench_scrape,
    bench_filter,
    bench_persons,
    bench_train,
    bench_probe,
    bench_infer,
    bench_isa,
    bench_bot,
    bench_web,
    bench_site,
    bench_robust,
    bench_cuda,
    bench_index,
    bench_moments,
    bench_clip,
    bench_shelf,
]


def add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter) -> None:
    """The argument for a function's parameter: a flag, if it stands after the *."""
    several = parameter.annotation == list[Path]
    kind = Path if several else parameter.annotation
    if parameter.kind is not parameter.KEYWORD_ONLY:
        parser.add_argument(parameter.name, type=kind, nargs="+" if several else None)
        return
    flag = f"--{parameter.name.replace('_', '-')}"
    if kind is bool:
        parser.add_argument(flag, action="store_true")
    elif parameter.default is parameter.empty:
        parser.add_argument(flag, type=kind, required=True)
    else:
        parser.add_argument(flag, type=kind, default=parameter.default, help="default: %(default)s")


def add_command(commands, run: Callable) -> None:
    """A command for a function bench_NAME, whose docstring is its help and whose parameters are its arguments."""
    name = run.__name__.removeprefix("bench_")
    parser = commands.add_parser(name, help=run.__doc__.split("\n")[0], description=run.__doc__)
    parser.set_defaults(run=run)
    for parameter in inspect.signature(run).parameters.values():
        add_argument(parser, parameter)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure speed, memory and robustness.")
    commands = parser.add_subparsers(required=True)
    for run in COMMANDS:
        add_command(commands, run)
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = vars(parser.parse_args(argv))
    run = args.pop("run")
    numbers = {name: value for name, value in args.items() if type(value) is int and name != "fold"}
    defaults = inspect.signature(run).parameters
    if any(value < 1 and value != defaults[name].default for name, value in numbers.items()):
        parser.error("every number must be 1 or more")
    print(machine())
    done = run(**args)
    if inspect.iscoroutine(done):
        asyncio.run(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
