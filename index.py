"""An index of known films: videos and stills are added in minutes without training, and every answer shows its proof.

python index.py add ~/films --model export           # video files and folders of stills; run again after changes
python index.py add ~/films --dry-run                # only show which film each file is
python index.py add ~/shots/Alien --title "Alien (1979)" --every-nth 2    # every second still of one film
python index.py search frame.jpg --sheet nearest.png # the nearest stills beside the frame
python index.py list; python index.py check; python index.py remove "Alien (1979)"; python index.py rebuild
python index.py rename "movie" "Heat (1995)"; python index.py backup copy.sqlite
python index.py publish web-site                     # page, model and index for any host of files

Each takes --index: a file of SQLite, or postgresql://user:password@host:5432/database, which several hosts share. No
torch.
"""

import argparse
import base64
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np

from answering.adding import Adder, AddSettings, see_model, see_model_in_a_process
from answering.calibration import TARGETS, UNKNOWN_SHARE, fit_rule, is_dense, leave_one_out_scores, named_right
from answering.collection import INDEX, Index, check_model
from answering.console import UserError, count_of, one_line_errors
from answering.cores import count_cores
from answering.editing import (
    ASKED_FRAMES,
    find_title,
    finish,
    open_to_add,
    remove_user_stills,
    rename_film,
    sample_films,
    strangers_to,
)
from answering.film_flags import (
    add_gap_flag,
    add_shelf_flags,
    add_skip_flags,
    check_sampling,
    print_titles,
    read_sampling,
    say_passed_over,
)
from answering.model import Identifier
from answering.moving import export_films, import_films, take_over
from answering.publishing import Published, publish
from answering.sheet import draw_evidence, say_missing
from answering.shelf import Shelf, find_shelf
from answering.sql import NoCollection, is_folder_of_before, is_postgres
from answering.state import State
from answering.stills import shape_before
from answering.store import Collection
from answering.strangers import find_strangers

FEW_FILMS = 3  # with so few there are words of caution

EMBEDDER = "dinov2-small.zip"  # what deploy/embedder.sh makes

# ------------------------------------------------------------------------------------------------ changing


def run_add(args: argparse.Namespace) -> int:
    """Add films; one that can't be read is one line, and the others go on."""
    check_sampling(args)
    shelf = find_shelf(
        args.raw,
        title=args.title,
        titles=args.titles,
        with_extras=args.with_extras,
        with_stills=True,
        known=known_titles(args.index),
    )
    say_passed_over(shelf)
    if args.dry_run:
        print_titles(shelf)
        return 0
    check_kinds(args, shelf)
    check_model_is_there(args.model)
    start = time.perf_counter()
    collection = Collection(args.index)
    has_videos = any(film.parts for film in shelf.films)
    seen = see_model_in_a_process(args.model) if has_videos else see_model(args.model)
    take_over_neighbour(collection)
    with open_to_add(collection, seen.architecture, seen.fingerprint) as state:
        adder = Adder(collection, state, read_add_settings(args))
        adder.add(shelf.films)
        strangers = find_strangers(args.model, seen.fingerprint)
        finish(collection, state, unknown_share=args.unknown_share, strangers=strangers)
    say_caution(collection, state)
    seconds = time.perf_counter() - start
    films, stills = count_of(len(state.films), "film"), count_of(state.count_stills(), "still")
    print(f"{films}, {stills} in {collection}; {seconds:.1f} s")
    print(f"next: python identify.py FRAME --model {args.model} --index {collection}")
    return 1 if adder.failed else 0


def say_caution(collection: Collection, state: State) -> None:
    """Lines on stderr where answers rest on little: few films, or none to learn from what is unknown."""
    if not state.films or not state.about.rule:
        return
    lines = []
    if state.about.rule.figures is None:
        lines.append("no unknown films taught it to refuse: nothing is promised of its answers")
        if collection.read_strangers() is None:
            lines.append("the model has no strangers.npz beside it, so export it again, or add more films")
    elif len(state.films) <= FEW_FILMS:
        films = count_of(len(state.films), "film")
        lines.append(f"with {films} thresholds are careful guesses; more films make them surer")
    for line in lines:
        print(f"index.py: {line}", file=sys.stderr)


def known_titles(place: str) -> dict[str, str]:
    """{path of a film's first file: its title} of an index; empty where there is none yet."""
    try:
        films = Collection(place).films()
    except NoCollection:
        return {}
    return {film.file: film.title for film in films if film.file}


def check_kinds(args: argparse.Namespace, shelf: Shelf) -> None:
    """Raise UserError for a flag that says how often a frame is taken, where no film is of the kind that heeds it."""
    if args.every is not None and not any(film.parts for film in shelf.films):
        raise UserError("--every SECONDS is for videos, and these are stills: take every Nth with --every-nth N", 2)
    if args.every_nth > 1 and all(film.parts for film in shelf.films):
        raise UserError("--every-nth N is for stills, and these are videos: --every SECONDS", 2)


def read_add_settings(args: argparse.Namespace) -> AddSettings:
    """What the flags of add say."""
    cores = count_cores()
    return AddSettings(
        model=args.model,
        sampling=read_sampling(args),
        every_nth=args.every_nth,
        retry=args.retry,
        processes=args.processes or cores,
        cores=cores,
        titles_given=bool(args.titles or args.title),
    )


def check_model_is_there(model: str) -> None:
    """Raise UserError that says how to get a model, where there is none."""
    if not Path(model).exists():
        make = "python export.py --arch vit_small_patch14_dinov2 --init hub --frames ~/films"
        text = f"unpack {EMBEDDER} of the project's releases there, or make one that needs no training: {make}"
        raise UserError(f"--model {model}: no model there; {text}", 2)


def take_over_neighbour(collection: Collection) -> None:
    """Take over a collection of the version before, index/ beside an index.sqlite that is not there yet; says so."""
    if is_postgres(collection.place):
        return
    folder = Path(collection.place).with_suffix("")
    if is_folder_of_before(folder) and folder != Path(collection.place) and not collection.is_there():
        count = take_over(folder, collection)
        print(f"{count_of(count, 'film')} taken over from {folder}, which is not needed any more", flush=True)


def run_rename(args: argparse.Namespace) -> int:
    """Give a film another title; what add finds under the old one goes there from now on."""
    collection = Collection(args.index)
    new = unicodedata.normalize("NFC", " ".join(args.new.split()))
    with collection.writing():
        state = collection.state()
        old = find_title(collection, state, args.old)
        rename_film(collection, state, old, new)
    print(f"{old}: is {new} now")
    return 0


def run_remove(args: argparse.Namespace) -> int:
    collection = Collection(args.index)
    if args.source:
        print(f"{remove_user_stills(collection)} stills of users removed")
        return 0
    with collection.writing():
        state = collection.state()
        title = find_title(collection, state, args.title)
        collection.remove_film(state.about, state.films[title])
    print(f"{title}: removed, {count_of(len(state.films) - 1, 'film')} left")
    return 0


def run_rebuild(args: argparse.Namespace) -> int:
    collection = Collection(args.index)
    with collection.writing():
        finish(collection, collection.state(), unknown_share=args.unknown_share, force=True)
    check_index(collection)
    return 0


# ------------------------------------------------------------------------------------------- copies and moves


def run_backup(args: argparse.Namespace) -> int:
    collection = Collection(args.index)
    if args.file.exists():
        raise UserError(f"{args.file}: is there already; name another file", 2)
    collection.home.backup(args.file)
    films, stills = Collection(args.file).count()
    print(f"{args.file}: {count_of(films, 'film')}, {count_of(stills, 'still')}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    collection = Collection(args.index)
    state = collection.state()
    titles = [find_title(collection, state, typed) for typed in args.titles]
    count = export_films(collection, titles, args.file)
    print(f"{args.file}: {count_of(count, 'film')}; python index.py import {args.file} --index OTHER")
    return 0


def run_import(args: argparse.Namespace) -> int:
    """Put films of another collection into this one: of export, of a whole one, or of the version before."""
    collection = Collection(args.index)
    if is_folder_of_before(args.source):
        print(f"{count_of(take_over(Path(args.source), collection), 'film')} taken over into {collection}")
        return 0
    source = Collection(args.source)
    about = source.about()
    seen = np.frombuffer(base64.b64decode(about.model.fingerprint), np.float32).reshape(2, -1)
    with collection.writing(about.model):
        state = collection.state()
        check_model(collection, state.about, seen)
        count = sum(1 for _ in import_films(source, collection))
        finish(collection, collection.state(), unknown_share=None)
    print(f"{count_of(count, 'film')} put into {collection}")
    return 0


def run_publish(args: argparse.Namespace) -> int:
    """Write page, model and index into a folder for a host of files."""
    published = publish(args.index, args.folder, args.model, args.show_users_stills)
    print_published(args.folder, published)
    if not published.films:
        print(f"index.py: --index {args.index}: no films there; the classifier answers alone", file=sys.stderr)
    print(f"next: python -m http.server 8000 --bind 127.0.0.1 --directory {args.folder}")
    return 0


def print_published(folder: Path, published: Published) -> None:
    """What a site holds, and what a visitor has to fetch of it."""
    films, stills = count_of(published.films, "film"), count_of(published.stills, "still")
    print(f"{folder}: {films}, {stills}; {count_of(published.new_files, 'new file')}")
    if published.hidden:
        print(f"{published.hidden} stills of users are not shown (--show-users-stills)")
    parts = []
    for size, what in (
        (published.model_bytes, "model"),
        (published.vector_bytes, "vectors"),
        (published.first_bytes, "beside"),
    ):
        parts.append(f"{size / 1e6:.1f} MB {what}")
    print(f"before the first answer: {', '.join(parts)}; then {published.pack_bytes / 1e3:.0f} KB an answer at most")


# ------------------------------------------------------------------------------------------------- looking


def run_list(args: argparse.Namespace) -> int:
    for film in sorted(Collection(args.index).films(), key=lambda film: film.title):
        partial = f"  (in part: {film.partial})" if film.partial else ""
        print(f"{film.stored:6} of {film.stills:6} stills  {film.imdb or '':10}  {film.title}{partial}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    collection = Collection(args.index)
    state = check_index(collection)
    say_caution(collection, state)
    if args.drift:
        show_drift(collection, state)
    return 0


def check_index(collection: Collection) -> State:
    """Read every page and row, and print what the thresholds promise, film by film. Raises UserError for damage."""
    with collection.snapshot():
        if faults := collection.check():
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            text = f"--index {collection}: is damaged: {'; '.join(faults[:3])}{more}; take a backup, or remove the film"
            raise UserError(text)
        state = collection.state()
        if not state.about.fit:
            raise UserError(f"--index {collection}: adding was stopped before its end; run the same add again")
        for title, film in sorted(state.films.items()):
            time_ms = collection.read_times(film)[:, 0]
            kind = (
                "from video, tested between its stills" if is_dense(time_ms) else "scattered, tested on unseen scenes"
            )
            print(f"{len(time_ms):6} stills, {kind:36}  {title}")
    print_promise(state)
    return state


def print_promise(state: State) -> None:
    """What the thresholds gave on the questions that they were fitted on."""
    rule = state.about.rule
    print(f"{count_of(len(state.films), 'film')}; named from {rule.movie:.3f}, shortlist from {rule.shortlist:.3f}")
    figures = rule.figures
    if figures is None:
        return
    print(
        f"tested on itself: {figures.named:.0%} of known frames named, {figures.strangers:.1%} of the frames "
        f"of unknown films; AUROC {figures.auroc:.3f}"
    )
    parts = []
    for share in sorted({0.1, 0.3, 0.6, state.about.unknown_share}):
        right = named_right(figures.named, figures.exact, figures.strangers, share)
        parts.append(f"{right:.1%} where {share:.0%}")
    if figures.named + figures.strangers:
        print(f"of the named right: {', '.join(parts)} of frames are of unknown films")
    else:
        print("its questions are too few to name a film by: only what is surer than any of them is named")
    promised = f"so that {TARGETS['movie']:.0%} of the named are right"
    print(f"the thresholds are fitted for {state.about.unknown_share:.0%} (--unknown-share), {promised}")


def show_drift(collection: Collection, state: State) -> None:
    """How thresholds, and what they promise, change from ten films to all that they are fitted on."""
    samples = sample_films(collection, state.films)
    strangers = strangers_to(collection, state, samples)
    share = state.about.unknown_share
    print(f"{'films':>9}{'named from':>16}{'known named':>16}{'right':>16}{'unknown named':>16}{'AUROC':>9}")
    for count in sorted({min(10 * 2**k, len(samples)) for k in range(9)}):
        part = samples[:count]
        sizes = np.array([len(sample.time_ms) for sample in part])
        rule = fit_rule(leave_one_out_scores(part, ASKED_FRAMES, strangers), sizes, share)
        figures = rule.figures
        if figures is None:
            continue
        right = named_right(figures.named, figures.exact, figures.strangers, share)
        row = f"{rule.movie:16.3f}{figures.named:16.3f}"
        row += f"{right:16.3f}" if figures.named + figures.strangers else f"{'-':>16}"
        row += f"{figures.strangers:16.3f}"
        print(f"{count:9}{row}{figures.auroc:9.3f}", flush=True)


def run_search(args: argparse.Namespace) -> int:
    identifier = Identifier(args.model)
    index = Index(args.index, identifier)
    (answer,) = index.answers(identifier.run(identifier.load(args.frame)[None])["embedding"], args.top)
    for candidate in answer.candidates:
        proof = candidate.evidence
        at = "" if proof.time_ms is None else f" at {proof.time_ms / 1000:.1f} s"
        print(f"{proof.similarity:.3f}  {candidate.title}  {proof.file}{at}")
    if args.sheet:
        missing = draw_evidence(args.frame, answer, args.sheet, shape_before(args.frame))
        say_missing("index.py", args.sheet, missing)
        print(f"wrote {args.sheet}")
    return 0


# --------------------------------------------------------------------------------------- the command line


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    default = f"(default: as the index has it; {UNKNOWN_SHARE} for a new one)"
    text = f"share of the frames people send that are of unknown films {default}"
    parser.add_argument("--unknown-share", type=float, metavar="SHARE", help=text)


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="export", help="folder from export.py (default: %(default)s)")


def add_frame_flags(parser: argparse.ArgumentParser) -> None:
    text = "video files, folders of them, folders that hold a folder of stills per film, or the folder of one film"
    parser.add_argument("raw", nargs="+", type=Path, metavar="RAW", help=text)
    text = "take a frame of a video so often, instead of its keyframes (default: keyframes)"
    parser.add_argument("--every", type=float, metavar="SECONDS", help=text)
    add_gap_flag(parser)
    add_skip_flags(parser)
    text = "take every Nth still of films of stills (default: %(default)s, all)"
    parser.add_argument("--every-nth", type=int, default=1, metavar="N", help=text)
    text = "try files again that failed before and did not change (default: they are left alone)"
    parser.add_argument("--retry", action="store_true", help=text)
    text = "videos that are read at the same time (default: as many as there are cores)"
    parser.add_argument("--processes", type=int, metavar="N", help=text)


def add_publish_flags(parser: argparse.ArgumentParser) -> None:
    add_model_option(parser)
    text = "a new folder, such as web-site, or one of publish, in which only what changed is written"
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=text)
    text = "show the pictures that users sent to the bot as proofs (default: they answer, but are not shown)"
    parser.add_argument("--show-users-stills", action="store_true", help=text)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Keep a collection of known frames, to answer with proof and without training."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name: str, run, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.set_defaults(run=run)
        where = "a file, or postgresql://user:password@host:5432/database (default: %(default)s)"
        command.add_argument("--index", default=INDEX, help=where)
        return command

    add = add_command("add", run_add, "add or update films from video files and folders of stills")
    add_fit_options(add)
    add_model_option(add)
    add_shelf_flags(add)
    add_frame_flags(add)

    rename = add_command("rename", run_rename, "give a film another title")
    rename.add_argument("old", metavar="OLD", help="title, as list prints it")
    rename.add_argument("new", metavar="NEW", help="the new one: Title (Year)")

    remove = add_command("remove", run_remove, "take a film out")
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("title", nargs="?", metavar="TITLE", help="title, as list prints it")
    which.add_argument("--source", choices=["telegram"], help="instead of a film: all stills that learn.py added")

    add_command("list", run_list, "list the films")

    check = add_command("check", run_check, "read every page and row, and show what the thresholds promise")
    text = "also show how the thresholds change with the number of films (takes up to a minute; default: off)"
    check.add_argument("--drift", action="store_true", help=text)

    search = add_command("search", run_search, "show the stills that are nearest to a frame")
    add_model_option(search)
    search.add_argument("frame", metavar="FRAME", help="an image file")
    search.add_argument("--top", type=int, default=5, help="how many films (default: %(default)s)")
    search.add_argument("--sheet", type=Path, help="draw frame and stills side by side into this file (default: none)")

    add_fit_options(add_command("rebuild", run_rebuild, "fit projection and thresholds again, on all its films"))

    backup = add_command("backup", run_backup, "copy the whole index into a file, while others read and write")
    backup.add_argument("file", type=Path, metavar="FILE", help="a file that is not there yet")

    export = add_command("export", run_export, "write films into a file, for another index of the same model")
    export.add_argument("file", type=Path, metavar="FILE", help="a file that is not there yet")
    export.add_argument("titles", nargs="+", metavar="TITLE", help="titles, as list prints them")

    take = add_command("import", run_import, "put all films of another index of the same model into this one")
    take.add_argument("source", metavar="SOURCE", help="a file, postgresql://..., or a folder of the version before")

    text = "write the page in web/, its model and the index into a folder, for any host of files"
    add_publish_flags(add_command("publish", run_publish, text))
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["learn"]:
        raise UserError("learn is a script of its own now: python learn.py --db bot.sqlite", 2)
    parser = get_parser()
    args = parser.parse_args(argv)
    for flag in ("every_nth", "top", "processes"):
        value = getattr(args, flag, None)
        if value is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')} must be 1 or more")
    share = getattr(args, "unknown_share", None)
    if share is not None and not 0 < share < 1:
        parser.error("--unknown-share must be more than 0 and under 1")
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
