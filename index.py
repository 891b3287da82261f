"""The living collection: films are added in a minute without training, and every answer shows its proof.

python index.py add data/raw --model export          # every folder of stills becomes a film; run again after changes
python index.py add ~/shots/Alien --title "Alien (1979)" --every 2
python index.py search frame.jpg --sheet nearest.png # the nearest stills beside the frame
python index.py list; python index.py check; python index.py remove "Alien (1979)"; python index.py rebuild

Each takes --index: a folder, or http://host:19530 of a Milvus where one machine ends (engines.py). identify.py and
bot.py load this file only when there is an index. No torch.
"""

import argparse
import base64
import sys
import time
from pathlib import Path

import numpy as np

import learn
from answering.calibration import UNKNOWN_SHARE, fit_rule, is_dense, leave_one_out_scores, named_right
from answering.collection import (
    FORMAT,
    Index,
    add_film,
    check_model,
    draw_evidence,
    fingerprint,
    forget,
    read_state,
    refit,
    sample_films,
)
from answering.console import UserError, one_line_errors
from answering.model import Identifier
from answering.stills import find_films
from answering.store import Folder, Milvus, is_milvus, open_engine

# ------------------------------------------------------------------------------------------------ commands


def open_writer(args: argparse.Namespace) -> Folder | Milvus:
    """The engine of --index. Raises UserError for a --memory that it would not heed."""
    if args.memory and is_milvus(args.index):
        raise UserError("--memory is for an index in a folder; Milvus has settings of its own", 2)
    return open_engine(args.index)


def finish(engine: Folder | Milvus, state: dict, args: argparse.Namespace, force: bool = False) -> None:
    """What follows when films have come: thresholds, what is searched, and the state that readers see."""
    state["memory"] = args.memory or state.get("memory", "plenty")
    before = state["unknown_share"]
    state["unknown_share"] = before if args.unknown_share is None else args.unknown_share
    refit(engine, state, force=force or state["unknown_share"] != before)
    engine.pack(state)
    engine.commit(state)


def run_add(args: argparse.Namespace) -> int:
    """Add films; a folder that can't be read is one line, and the others go on."""
    films = find_films(args.raw, args.title)
    identifier = Identifier(args.model)
    failed, seen, clock = 0, fingerprint(identifier), time.perf_counter()
    engine = open_writer(args)
    with engine.writing():
        try:
            engine.stamp()
            state = read_state(engine)
            check_model(engine, state, seen)
        except FileNotFoundError:
            model = {"architecture": identifier.contract.architecture, "fingerprint": base64.b64encode(seen).decode()}
            state = {"format": FORMAT, "model": model, "basis": None, "rule": None, "settled": 0, "films": {}}
            state["unknown_share"] = UNKNOWN_SHARE
        for place, (title, folder) in enumerate(films.items(), 1):
            done = add_film(engine, state, title, folder, identifier, args.every)
            wrong = done.startswith("error")
            failed += wrong
            print(f"[{place}/{len(films)}] {title}: {done}", file=sys.stderr if wrong else sys.stdout, flush=True)
        finish(engine, state, args)
    count = sum(film["stored"] for film in state["films"].values())
    print(f"{len(state['films'])} films, {count} stills in {engine}; {time.perf_counter() - clock:.1f} s")
    print(f"next: python identify.py FRAME --model {args.model} --index {engine}")
    return 1 if failed else 0


def run_remove(args: argparse.Namespace) -> int:
    engine = open_engine(args.index)
    if args.source:
        return forget(engine)
    with engine.writing():
        state = read_state(engine)
        if args.title not in state["films"]:
            near = [title for title in state["films"] if args.title.casefold() in title.casefold()][:3]
            hint = f"; did you mean {', '.join(near)}?" if near else "; python index.py list shows its films"
            raise UserError(f"{args.title}: not in {engine}{hint}", 2)
        del state["films"][args.title]
        engine.commit(state)
    print(f"{args.title}: removed, {len(state['films'])} films left")
    return 0


def run_rebuild(args: argparse.Namespace) -> int:
    engine = open_writer(args)
    with engine.writing():
        state = read_state(engine)
        finish(engine, state, args, force=True)
        engine.sweep(state)
    return run_check(args)


def run_list(args: argparse.Namespace) -> int:
    for title, film in sorted(read_state(open_engine(args.index))["films"].items()):
        print(f"{film['stored']:6} of {film['stills']:6} stills  {film['imdb'] or '':10}  {title}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Read every file, and print what the thresholds promise, film by film."""
    engine = open_engine(args.index)
    state = read_state(engine)
    if state["basis"] is None:
        raise UserError(f"--index {engine}: adding was stopped before its end; run the same add again")
    engine.get(state["basis"], "project", "offset")
    for title, film in sorted(state["films"].items()):
        try:
            when, ends, *_ = engine.get(film["frames"], "time", "ends", "thumbs", "embedding", "worn", "name")
            sound = len(when) == len(ends) == len(engine.get_vectors(film["vectors"]))
        except (UserError, FileNotFoundError) as error:
            raise UserError(f"{error}; {title}: remove it and add it again") from None
        if not sound:
            raise UserError(f"--index {engine}: {title} is damaged; remove it and add it again")
        asked = "from video, asked between its stills" if is_dense(when) else "scattered, asked by unseen scenes"
        print(f"{len(when):6} stills, {asked:36}  {title}")
    engine.searcher(state, [film["vectors"] for film in state["films"].values()])
    rule, figures = state["rule"], state["rule"]["figures"]
    print(f"{len(state['films'])} films; named from {rule['movie']:.3f}, shortlist from {rule['shortlist']:.3f}")
    if figures:
        print(
            f"asked by itself: {figures['named']:.0%} of known frames named, {figures['strangers']:.1%} of the frames "
            f"of films left out; AUROC {figures['auroc']:.3f}"
        )
        shares = sorted({0.1, 0.3, 0.6, state["unknown_share"]})
        parts = [figures[name] for name in ("named", "exact", "strangers")]
        right = (f"{named_right(*parts, share):.1%} where {share:.0%}" for share in shares)
        print(f"of the named right: {', '.join(right)} of frames are of unknown films")
        print(f"the thresholds are fitted for {state['unknown_share']:.0%} (--unknown-share)")
    if getattr(args, "drift", False):
        show_drift(engine, state)
    return 0


def show_drift(engine: Folder | Milvus, state: dict) -> None:
    """How thresholds, and what they promise, change from ten films to all that they are fitted on."""
    parts, share = sample_films(engine, state["films"]), state["unknown_share"]
    print(f"{'films':>9}{'named from':>16}{'known named':>16}{'right':>16}{'strangers named':>16}{'AUROC':>9}")
    for count in sorted({min(10 * 2**k, len(parts)) for k in range(9)}):
        some = parts[:count]
        rule = fit_rule(leave_one_out_scores(some, 100), np.array([len(part["time"]) for part in some]), share)
        if now := rule["figures"]:
            named, exact, strangers = (now[name] for name in ("named", "exact", "strangers"))
            values = rule["movie"], named, named_right(named, exact, strangers, share), strangers
            row = "".join(f"{value:16.3f}" for value in values)
            print(f"{count:9}{row}{now['auroc']:9.3f}", flush=True)


def run_search(args: argparse.Namespace) -> int:
    identifier = Identifier(args.model)
    index = Index(args.index, identifier)
    (answer,) = index.answers(identifier.run(identifier.load(args.frame)[None])["embedding"], args.top)
    for candidate in answer.candidates:
        proof = candidate.evidence
        at = "" if proof.time_ms is None else f" at {proof.time_ms / 1000:.1f} s"
        print(f"{proof.similarity:.3f}  {candidate.title}  {proof.file}{at}")
    if args.sheet:
        draw_evidence(args.frame, answer, args.sheet)
        print(f"wrote {args.sheet}")
    return 0


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Keep a collection of known frames, to answer with proof and without training."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "add": (run_add, "add or update films from folders of stills"),
        "remove": (run_remove, "take a film out"),
        "list": (run_list, "the films"),
        "check": (run_check, "read every file, and show what the thresholds promise"),
        "search": (run_search, "the nearest stills to a frame"),
        "rebuild": (run_rebuild, "fit projection and thresholds anew on the films of now"),
        "learn": (learn.run_learn, "add pictures that users of bot.py confirmed"),
    }
    for name, (function, text) in helps.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.set_defaults(run=function)
        where = "a folder, or http://host:19530 of Milvus (default: %(default)s)"
        command.add_argument("--index", default="index", help=where)
        if name in ("add", "rebuild"):
            text = "small keeps 1 bit a number of large indexes in memory (default: as before, at first plenty)"
            command.add_argument("--memory", choices=["plenty", "small"], help=text)
            text = f"share of frames of other films in what people send (default: as before, at first {UNKNOWN_SHARE})"
            command.add_argument("--unknown-share", type=float, metavar="SHARE", help=text)
        if name in ("add", "search", "learn"):
            command.add_argument("--model", default="export", help="folder from export.py (default: %(default)s)")
    add, search = commands.choices["add"], commands.choices["search"]
    add.add_argument("raw", nargs="+", type=Path, metavar="RAW", help="folders of folders of stills, or of one film")
    add.add_argument("--title", help="of the one film in RAW (default: the folder's name)")
    add.add_argument("--every", type=int, default=1, help="take every so-manieth still (default: %(default)s, all)")
    which = commands.choices["remove"].add_mutually_exclusive_group(required=True)
    which.add_argument("title", nargs="?", metavar="TITLE", help="as list shows it")
    which.add_argument("--source", choices=["telegram"], help="instead: all stills that learn added")
    learn.add_arguments(commands.choices["learn"])
    text = "fit the thresholds on few films and on more, too (seconds to a minute; default: off)"
    commands.choices["check"].add_argument("--drift", action="store_true", help=text)
    search.add_argument("frame", metavar="FRAME", help="an image file")
    search.add_argument("--top", type=int, default=5, help="films (default: %(default)s)")
    search.add_argument("--sheet", type=Path, help="draw frame and stills side by side into this file (default: none)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if getattr(args, "every", 1) < 1 or getattr(args, "top", 1) < 1:
        parser.error("--every and --top must be 1 or more")
    share = getattr(args, "unknown_share", None)
    if share is not None and not 0 < share < 1:
        parser.error("--unknown-share must be more than 0 and under 1")
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
