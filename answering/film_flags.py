"""Flags by which index.py and scrape.py are told which files are films, and which frames of them to take."""

import argparse
import os
import sys
from pathlib import Path

from answering.console import UserError, count_of, one_line
from answering.shelf import Shelf, list_kinds
from answering.video import MAX_GAP, Sampling


def add_shelf_flags(parser: argparse.ArgumentParser) -> None:
    """Which files are films, and what these are called."""
    add = parser.add_argument_group("films").add_argument
    add("--title", help="Title (Year), if there is a single film (default: what the names of file and folder say)")
    text = "csv file of two columns, file and title, which overrules what names say (default: none)"
    add("--titles", type=Path, metavar="CSV", help=text)
    text = "also take trailers, samples, deleted scenes and other extras (default: they are passed over)"
    add("--with-extras", action="store_true", help=text)
    add("--dry-run", action="store_true", help="only show which film each file is (default: off)")


def add_skip_flags(parser: argparse.ArgumentParser) -> None:
    """Parts of every film that are left out."""
    text = "leave out so much of a video's {} (default: %(default)s, nothing)"
    parser.add_argument("--skip-start", type=float, default=0.0, metavar="SECONDS", help=text.format("start"))
    parser.add_argument("--skip-end", type=float, default=0.0, metavar="SECONDS", help=text.format("end"))


def add_gap_flag(parser: argparse.ArgumentParser) -> None:
    """How far apart keyframes may lie."""
    text = "take frames between keyframes that are further apart; fewer seconds find more and take longer"
    help = f"{text} (default: %(default)s)"
    parser.add_argument("--max-gap", type=float, default=MAX_GAP, metavar="SECONDS", help=help)


def read_sampling(args: argparse.Namespace) -> Sampling:
    """Which frames of a video the flags ask for."""
    return Sampling(every=args.every, max_gap=args.max_gap, skip_start=args.skip_start, skip_end=args.skip_end)


def check_sampling(args: argparse.Namespace) -> None:
    """Raise UserError for a number that can't be."""
    for flag in ("every", "max_gap"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < 1e6:
            raise UserError(f"--{flag.replace('_', '-')} {value:g}: must be more than 0 seconds", 2)
    for flag in ("skip_start", "skip_end"):
        value = getattr(args, flag)
        if not 0 <= value < 1e6:
            raise UserError(f"--{flag.replace('_', '-')} {value:g}: must be 0 seconds or more", 2)


def say_passed_over(shelf: Shelf) -> None:
    """Lines on stderr: what a scan noted, and what it did not take."""
    script = os.path.basename(sys.argv[0])
    for note in shelf.notes:
        print(f"{script}: {note}", file=sys.stderr)
    if shelf.passed_over:
        print(f"{script}: passed over: {list_kinds(shelf.passed_over)}", file=sys.stderr)


def print_titles(shelf: Shelf) -> None:
    """A table: file or folder, and the film that it is."""
    rows = []
    for film in shelf.films:
        if not film.parts:
            rows.append((f"{film.stills}{os.sep}", film.title))
        for parts in (film.parts, *film.copies):
            for number, part in enumerate(parts, 1):
                of = f", {number} of {len(parts)}" if len(parts) > 1 else ""
                copy = "" if parts == film.parts else ", another encoding of it"
                rows.append((str(part), f"{film.title}{of}{copy}"))
    width = min(80, max((len(file) for file, _ in rows), default=0))
    for file, title in rows:
        print(f"{one_line(file):{width}}  ->  {title}")
    print(f"{count_of(len(shelf.films), 'film')}; correct titles in a csv file of file,title: --titles titles.csv")
