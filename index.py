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
import hashlib
import re
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

import learn
from data import find_films
from engines import Folder, Milvus, is_milvus, open_engine
from identify import Answer, Candidate, Identifier, format_answer, reference_frames, relative_error
from image import UserError, atomic_write, one_line_errors, read_image
from metrics import UNKNOWN_SHARE, named_right
from answering.embedding import (
    ask_itself,
    embed_film,
    film_scores,
    fit_projection,
    fit_rule,
    is_dense,
    join,
    keep_vectors,
    list_stills,
    project_all,
    read_middles,
)

FORMAT = "movie-by-frame index 3"
FIT_FRAMES, FIT_FILMS = 6000, 300  # what projection and thresholds are fitted on
STRETCH_MS, ALIKE = 5000, 0.1  # frames of a film so near in time, and nearly as like, are one stretch of proof
GROWTH = 1.25  # projection and thresholds are fitted anew when there are so many times more films


# ------------------------------------------------------------------------------------------------ the state


def fingerprint(identifier: Identifier) -> np.ndarray:
    """What a model makes of two fixed pictures, float32 [2, D]: all formats of one model nearly agree, others don't."""
    return identifier.run(reference_frames(identifier.preprocessing["size"], 2))["embedding"].astype(np.float32)


def read_state(engine: Folder | Milvus) -> dict:
    """What the index says of itself. Raises UserError for a damaged one, for another version, and where none is."""
    try:
        state = engine.load()
        if state["format"] != FORMAT:
            raise UserError(
                f"--index {engine}: its format is {str(state['format'])[:40]!r}, not {FORMAT!r}; make it anew"
            )
        if not {"model", "basis", "rule", "films", "settled", "unknown_share"} <= set(state):
            raise ValueError("keys are missing")
        return state
    except FileNotFoundError:
        raise UserError(f"--index {engine}: no index there; python index.py add RAW --index {engine}", 2) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"--index {engine}: index.json is damaged ({str(error)[:60]}); make it anew") from None


def check_model(engine: Folder | Milvus, state: dict, seen: np.ndarray) -> None:
    """Raise UserError unless the index was made with the model whose fingerprint is seen."""
    made = np.frombuffer(base64.b64decode(state["model"]["fingerprint"]), np.float32).reshape(2, -1)
    if made.shape != seen.shape or relative_error(seen, made) > 0.4:
        name = state["model"]["architecture"]
        raise UserError(f"--index {engine}: was made with another model ({name}); use that one, or another --index", 2)


def sample_films(engine: Folder | Milvus, films: dict) -> list[dict]:
    """What ask_itself takes of the films that projection and thresholds are fitted on.

    Of long films a run of stills from the middle, since how close they lie in time matters.
    """
    titles = sorted(films, key=lambda title: hashlib.sha256(title.encode(errors="replace")).digest())[:FIT_FILMS]
    parts, most = [], max(100, FIT_FRAMES // max(1, len(titles)))
    room = FIT_FRAMES - sum(min(most, films[title]["stored"]) for title in titles)
    most += max(0, room) // max(1, sum(films[title]["stored"] > most for title in titles))
    for title in titles:
        embedding, when, worn, of = engine.get(films[title]["frames"], "embedding", "time", "worn", "of")
        start = max(0, len(when) - most) // 2
        part = {"embedding": embedding[start : start + most], "time": when[start : start + most]}
        parts.append(part | {"change": worn.astype(np.float32) - of.astype(np.float32)})
    return parts


def settle(engine: Folder | Milvus, state: dict, force: bool = False) -> None:
    """Fit projection and thresholds if there are none or many more films now, and write all vectors anew."""
    films = state["films"]
    if not films or not (force or state["basis"] is None or len(films) >= GROWTH * state["settled"]):
        return
    parts = sample_films(engine, films)
    owner = np.repeat(np.arange(len(parts)), [len(part["time"]) for part in parts])
    embedding, change = (np.concatenate([part[name] for part in parts]) for name in ("embedding", "change"))
    project, offset = fit_projection(embedding, owner, change)
    asked = ask_itself(parts, 100, (project, offset))
    state["rule"], state["settled"] = fit_rule(asked, np.bincount(owner), state["unknown_share"]), len(films)
    state["basis"] = engine.put(None, {"project": project, "offset": offset})
    for title, film in films.items():
        (embedding,) = engine.get(film["frames"], "embedding")
        film |= keep_vectors(engine, title, project_all(embedding, project, offset))


def add_film(engine: Folder | Milvus, state: dict, title: str, folder: Path, identifier: Identifier, every: int) -> str:
    """Put a film into the index, in place of what it had of that title; returns what was done, or an error, in words.

    Raises UserError where the engine can't go on.
    """
    stills = list_stills(folder, every)
    stats = [(still["file"], still["time"], still["path"].stat()) for still in stills if still["path"].exists()]
    mark = hashlib.sha256(repr([(f, t, s.st_size, s.st_mtime_ns) for f, t, s in stats]).encode()).hexdigest()[:16]
    before = state["films"].get(title)
    if before and before["mark"] == mark:
        return "unchanged"
    try:
        rows = learn.with_learned(engine, title, embed_film(stills, identifier), identifier)
    except UserError as error:
        return f"error: {error}"
    year = re.search(r"\((\d{4})\)$", title)
    film = {"frames": engine.put(title, rows), "vectors": None, "mark": mark}
    film |= {"stills": len(stills), "stored": len(rows["time"]), "year": int(year[1]) if year else None}
    film["imdb"] = next((str(still["imdb"]) for still in stills if still["imdb"]), None)
    if state["basis"]:
        basis = engine.get(state["basis"], "project", "offset")
        film |= keep_vectors(engine, title, project_all(rows["embedding"], *basis))
    state["films"][title] = film
    engine.commit(state)
    return f"{film['stored']} of {len(stills)} stills stored" + (", updated" if before else "")


# ------------------------------------------------------------------------------------------------ answering


class Index:
    """The films of an index, for reading; what a writer adds meanwhile is there at the next answer.

    place: a folder, or what open_engine takes. Raises UserError for one that is missing, damaged, or of another model.
    """

    def __init__(self, place: str | Path, identifier: Identifier):
        self.engine, self.stamp, self.seen = open_engine(place), None, fingerprint(identifier)
        self.refresh()

    def refresh(self) -> None:
        """Read it if it has changed. A writer changes the state last, then removes what it no longer names."""
        for attempt in range(10):
            try:
                if (stamp := self.engine.stamp()) != self.stamp:
                    self._read(read_state(self.engine))
                    self.stamp = stamp
                return
            except FileNotFoundError:  # renewed while we read
                time.sleep(0.02 * attempt)
        read_state(self.engine)  # says so if there is none
        raise UserError(f"--index {self.engine}: files are missing; python index.py check --index {self.engine}")

    def _read(self, state: dict) -> None:
        check_model(self.engine, state, self.seen)
        films = {title: film for title, film in state["films"].items() if film["vectors"]}
        if not films:
            raise UserError(f"--index {self.engine}: holds no films yet; python index.py add --help", 2)
        basis, middles = self.engine.get(state["basis"], "project", "offset"), read_middles([*films.values()])
        search = self.engine.searcher(state, [film["vectors"] for film in films.values()])
        self.basis, self.middles, self.best_by_film = basis, middles, search  # all at once, or what was read stays
        self.rule, self.films, self.titles = state["rule"], films, [*films]

    def answers(self, embedding: np.ndarray, top: int = 3) -> list[Answer]:
        """An answer a row of embeddings float [N, D]; each candidate carries its evidence."""
        self.refresh()
        found = []
        for vector in project_all(embedding, *self.basis):
            scores = film_scores(join(self.best_by_film(vector), self.middles @ vector)[None])[0]
            order = np.argsort(-scores, kind="stable")[:top].tolist()
            score, movie, shortlist = scores[order[0]], self.rule["movie"], self.rule["shortlist"]
            kind = "movie" if score >= movie else "shortlist" if score >= shortlist else "unknown"
            sure = 1 / (1 + np.exp(-np.clip(self.rule["slope"] * scores + self.rule["shift"], -30, 30)))
            proof = [self.evidence(f, vector) for f in order]
            listed = [Candidate(self.titles[f], float(sure[f]), e) for f, e in zip(order, proof, strict=True)]
            found.append(Answer(kind, listed, 0.0))
        return found

    def evidence(self, film: int, vector: np.ndarray) -> dict:
        """The still of a film that is nearest to vector [d], and the stretch of film around it; thumbnail: a JPEG."""
        about = self.films[self.titles[film]]
        files, when, until, ends = self.engine.get(about["frames"], "name", "time", "until", "ends")
        alike = self.engine.get_vectors(about["vectors"]) @ vector
        best = int(alike.argmax())
        start, end = int(when[best]), int(until[best])
        near = np.flatnonzero(alike >= alike[best] - ALIKE)
        spans = sorted(zip(when[near].tolist(), until[near].tolist(), strict=True)) if start >= 0 else []
        for a, b in [*spans, *spans[::-1]]:
            if a - end < STRETCH_MS and start - b < STRETCH_MS:
                start, end = min(start, a), max(end, b)
        times = [int(t) if t >= 0 else None for t in (when[best], start, end)]
        found = {"title": self.titles[film], "file": str(files[best]), "similarity": round(float(alike[best]), 4)}
        found |= dict(zip(("time_ms", "from_ms", "to_ms"), times, strict=True))
        cut = [0, *ends.tolist()][best : best + 2]
        return found | {"thumbnail": self.engine.get_part(about["frames"], "thumbs", *cut)}


def draw_evidence(frame, answer: Answer, path: Path, side: int = 240) -> None:
    """Write a sheet: the frame that was asked for, then each candidate's nearest still, its title and similarity."""
    cells = [(Image.fromarray(read_image(frame, draft=side)), format_answer(answer))]
    for candidate in answer.candidates:
        if proof := candidate.evidence:
            at = "" if proof["time_ms"] is None else f", {proof['time_ms'] // 60000}:{proof['time_ms'] // 1000 % 60:02}"
            cells.append((read_image(proof["thumbnail"]), f"{candidate.title}{at} ({proof['similarity']:.2f})"))
    sheet = Image.new("RGB", (len(cells) * side, side), "white")
    for place, (picture, text) in enumerate(cells):
        picture = ImageOps.contain(picture if place == 0 else Image.fromarray(picture), (side - 8, side - 40))
        sheet.paste(picture, (place * side + 4, 4))
        lines = [text[k : k + 38] for k in range(0, min(len(text), 76), 38)]
        draw = ImageDraw.Draw(sheet)
        draw.text((place * side + 4, side - 32), "\n".join(lines), fill="black", font=ImageFont.load_default(11))
    with atomic_write(path) as file:
        sheet.save(file, Image.registered_extensions().get(path.suffix.lower(), "PNG"))


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
    settle(engine, state, force=force or state["unknown_share"] != before)
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
        return learn.forget(engine)
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
        rule = fit_rule(ask_itself(some, 100), np.array([len(part["time"]) for part in some]), share)
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
        at = "" if proof["time_ms"] is None else f" at {proof['time_ms'] / 1000:.1f} s"
        print(f"{proof['similarity']:.3f}  {candidate.title}  {proof['file']}{at}")
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
