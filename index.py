"""The living collection: films are added in a minute without training, and every answer shows its proof.

python index.py add data/raw --model export          # every folder of stills becomes a film; run again after changes
python index.py add ~/shots/Alien --title "Alien (1979)" --every 2
python index.py search frame.jpg --sheet nearest.png # the nearest stills beside the frame
python index.py list; python index.py check; python index.py remove "Alien (1979)"; python index.py rebuild

identify.py and bot.py load this file only when there is an index. No torch.
"""

import argparse
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np

import learn
from data import find_films
from identify import Answer, Candidate, Identifier, draw_evidence, reference_frames, relative_error
from image import UserError, atomic_write, one_line_errors
from vectors import (
    UNKNOWN_SHARE,
    ask_itself,
    embed_film,
    film_scores,
    fit_projection,
    fit_rule,
    is_dense,
    list_stills,
    own_threshold,
    pack_vectors,
    project_all,
)

FORMAT = "movie-by-frame index 1"
FIT_FRAMES, FIT_FILMS = 6000, 300  # what projection and thresholds are fitted on
STRETCH_MS, ALIKE = 5000, 0.1  # frames of a film so near in time, and nearly as like, are one stretch of proof
EXACT = 200_000  # frames up to which plain numpy searches; faiss beyond
PROBES, NEAR, EXAMINED = 24, 64, 8  # lists of faiss that are searched, frames it finds, films that are then compared
GROWTH = 1.25  # projection and thresholds are fitted anew when there are so many times more films


# ------------------------------------------------------------------------------------------------ the folder


def fingerprint(identifier: Identifier) -> np.ndarray:
    """What a model makes of two fixed pictures, float32 [2, D]: all formats of one model nearly agree, others don't."""
    return identifier.run(reference_frames(identifier.preprocessing["size"], 2))["embedding"].astype(np.float32)


def read_state(path: Path) -> dict:
    """What index.json says. Raises UserError for a damaged one and for another version."""
    try:
        state = json.loads((path / "index.json").read_text("utf-8"))
        if state["format"] != FORMAT:
            raise UserError(
                f"--index {path}: its format is {str(state['format'])[:40]!r}, not {FORMAT!r}; make it anew"
            )
        if not {"model", "basis", "rule", "films", "settled"} <= set(state):
            raise ValueError("keys are missing")
        return state
    except FileNotFoundError:
        raise UserError(f"--index {path}: no index there; python index.py add RAW --index {path}", 2) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"--index {path}: index.json is damaged ({str(error)[:60]}); make it anew") from None


def check_model(path: Path, state: dict, seen: np.ndarray) -> None:
    """Raise UserError unless the index was made with the model whose fingerprint is seen."""
    made = np.frombuffer(base64.b64decode(state["model"]["fingerprint"]), np.float32).reshape(2, -1)
    if made.shape != seen.shape or relative_error(seen, made) > 0.4:
        name = state["model"]["architecture"]
        raise UserError(f"--index {path}: was made with another model ({name}); use that one, or another --index", 2)


def read_arrays(path: Path, file: str, *names: str) -> list[np.ndarray]:
    """Arrays of a .npz of the folder, or the one of a .npy. Raises UserError for a damaged one."""
    try:
        loaded = np.load(path / file, allow_pickle=False)
        if not names:
            return [loaded]
        with loaded:
            return [loaded[name] for name in names]
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise UserError(
            f"--index {path}: {file} is damaged ({str(error)[:60]}); python index.py check --index {path}"
        ) from None


def write_arrays(path: Path, file: str, arrays: dict | np.ndarray) -> str:
    """Write arrays whole to a new file of the folder; returns its name."""
    with atomic_write(path / file) as out:
        np.savez(out, **arrays) if isinstance(arrays, dict) else np.save(out, arrays)
    return file


@contextlib.contextmanager
def writing(path: Path):
    """Hold the folder against other writers; what a killed one left behind goes. Raises UserError if one is at work."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--index {path}: another index.py is writing to it; run this again after it") from None
        yield


def commit(path: Path, state: dict) -> None:
    """Make state the one that readers see, then remove the files that it does not name."""
    with atomic_write(path / "index.json", "w", encoding="utf-8") as file:
        json.dump(state, file, ensure_ascii=False, indent=1)
    named = {film[kind] for film in state["films"].values() for kind in ("frames", "vectors")} | {state["basis"]}
    named |= {state["pack"]["file"]} if state.get("pack") else set()
    for file in [*path.glob("films/*"), *path.glob("basis-*"), *path.glob("pack-*"), *path.glob(".*.part")]:
        if str(file.relative_to(path)) not in named:
            file.unlink()


def new_name(title: str, suffix: str) -> str:
    """A file name that was not there before, whatever signs the title has."""
    return f"films/{hashlib.sha256(title.encode(errors='replace')).hexdigest()[:12]}-{os.urandom(4).hex()}{suffix}"


def settle(path: Path, state: dict, force: bool = False) -> None:
    """Fit projection and thresholds if there are none or many more films now, and write all vectors anew."""
    films = state["films"]
    if not films or not (force or state["basis"] is None or len(films) >= GROWTH * state["settled"]):
        return
    chosen, count = {}, 0
    for title in sorted(films, key=lambda title: hashlib.sha256(title.encode(errors="replace")).digest())[:FIT_FILMS]:
        if not chosen or count + films[title]["stored"] <= FIT_FRAMES:
            chosen[title], count = len(chosen), count + films[title]["stored"]
    parts = []
    for title in chosen:
        embedding, when, worn, of = read_arrays(path, films[title]["frames"], "embedding", "time", "worn", "of")
        change = worn.astype(np.float32) - of.astype(np.float32)
        parts.append({"embedding": embedding, "time": when, "change": change})
    owner = np.repeat(np.arange(len(parts)), [len(part["time"]) for part in parts])
    embedding, change = (np.concatenate([part[name] for part in parts]) for name in ("embedding", "change"))
    project, offset = fit_projection(embedding, owner, change)
    rule = fit_rule(ask_itself(parts, 100), np.bincount(owner))
    name = f"basis-{os.urandom(4).hex()}.npz"
    state["basis"] = write_arrays(path, name, {"project": project, "offset": offset})
    own, state["rule"], state["settled"] = rule.pop("own"), rule, len(films)
    for title, film in films.items():
        embedding, when = read_arrays(path, film["frames"], "embedding", "time")
        vectors = project_all(embedding, project, offset)
        film["vectors"] = write_arrays(path, new_name(title, ".npy"), pack_vectors(vectors))
        film["own"] = own[chosen[title]] if title in chosen else own_threshold(vectors, when, rule["second"])


def import_faiss():
    """The module, or a UserError that names the package."""
    try:
        import faiss
    except ImportError:
        raise UserError(f"an index of more than {EXACT} stills needs faiss: pip install faiss-cpu", 2) from None
    return faiss


def pack_films(path: Path, state: dict) -> None:
    """Put all vectors into one faiss index where they are too many for plain numpy; says so.

    8 bits a number, or with memory small 1 bit (RaBitQ, Gao 2024); the best films are compared exactly either way.
    """
    films, before = [film for film in state["films"].values() if film["vectors"]], state.get("pack")
    count = sum(film["stored"] for film in films)
    held = set(before["films"]) if before else set()
    loose = sum(film["stored"] for film in films if film["vectors"] not in held)
    if count <= EXACT or (before and loose <= EXACT / 10 and before["memory"] == state["memory"]):
        state["pack"] = before if count > EXACT else None
        return
    faiss, parts = import_faiss(), (read_arrays(path, film["vectors"])[0].astype(np.float32) for film in films)
    lists = min(16384, int(4 * count**0.5))
    bits = "1 bit" if state["memory"] == "small" else "8 bits"
    print(f"{count} stills: searched by faiss in {lists} lists, {bits} a number")
    some = [read_arrays(path, film["vectors"])[0] for film in films[:: max(1, count // (40 * lists))]]
    some = np.concatenate(some).astype(np.float32)
    faiss.normalize_L2(some)
    kind = "RaBitQ" if state["memory"] == "small" else "SQ8"
    index = faiss.index_factory(some.shape[1], f"IVF{lists},{kind}", faiss.METRIC_INNER_PRODUCT)
    index.train(some)
    for part in parts:
        faiss.normalize_L2(part)
        index.add(part)
    file = f"pack-{os.urandom(4).hex()}.faiss"
    with atomic_write(path / file) as out:
        faiss.write_index(index, out.name)
    rows = [film["stored"] for film in films]
    names = [film["vectors"] for film in films]
    state["pack"] = {"file": file, "films": names, "rows": rows, "memory": state["memory"]}


def add_film(path: Path, state: dict, title: str, folder: Path, identifier: Identifier, every: int) -> str:
    """Put a film into the index, in place of what it had of that title; returns what was done, in words."""
    stills = list_stills(folder, every)
    if not stills:
        raise UserError("no images in it")
    stats = [(still["file"], still["time"], still["path"].stat()) for still in stills]
    mark = hashlib.sha256(repr([(f, t, s.st_size, s.st_mtime_ns) for f, t, s in stats]).encode()).hexdigest()[:16]
    before = state["films"].get(title)
    if before and before["mark"] == mark:
        return "unchanged"
    rows = learn.with_learned(path, title, embed_film(stills, identifier), identifier)
    year = re.search(r"\((\d{4})\)$", title)
    film = {"frames": write_arrays(path, new_name(title, ".npz"), rows), "vectors": None, "own": -1.0, "mark": mark}
    film |= {"stills": len(stills), "stored": len(rows["time"]), "year": int(year[1]) if year else None}
    film["imdb"] = next((str(still["imdb"]) for still in stills if still["imdb"]), None)
    if state["basis"]:
        vectors = project_all(rows["embedding"], *read_arrays(path, state["basis"], "project", "offset"))
        film["vectors"] = write_arrays(path, new_name(title, ".npy"), pack_vectors(vectors))
        film["own"] = own_threshold(vectors, rows["time"], state["rule"]["second"])
    state["films"][title] = film
    commit(path, state)
    return f"{film['stored']} of {len(stills)} stills stored" + (", updated" if before else "")


# ------------------------------------------------------------------------------------------------ answering


class Index:
    """The films of an index folder, for reading; what a writer adds meanwhile is there at the next answer.

    Raises UserError for a folder that is missing, damaged, or of another model or version.
    """

    def __init__(self, path: str | Path, identifier: Identifier):
        self.path, self.identifier, self.stamp, self.seen = Path(path), identifier, None, fingerprint(identifier)
        self.refresh()

    def refresh(self) -> None:
        """Read the folder if it has changed. A writer renames index.json last, then removes what it no longer names."""
        for attempt in range(10):
            try:
                stat = (self.path / "index.json").stat()
                if (stat.st_mtime_ns, stat.st_ino) != self.stamp:
                    self._read(read_state(self.path))
                    self.stamp = (stat.st_mtime_ns, stat.st_ino)
                return
            except FileNotFoundError:  # renewed while we read
                time.sleep(0.02 * attempt)
        read_state(self.path)  # says so if there is none
        raise UserError(f"--index {self.path}: files are missing; python index.py check --index {self.path}")

    def _read(self, state: dict) -> None:
        check_model(self.path, state, self.seen)
        films = {title: film for title, film in state["films"].items() if film["vectors"]}
        if not films:
            raise UserError(f"--index {self.path}: holds no films yet; python index.py add RAW --index {self.path}", 2)
        basis, pack = read_arrays(self.path, state["basis"], "project", "offset"), state.get("pack")
        number = {film["vectors"]: place for place, film in enumerate(films.values())}
        packed = [number.pop(file, -1) for file in pack["films"]] if pack else []  # -1: removed since
        self.pack = pack and (self.read_pack(pack["file"]), np.cumsum([0, *pack["rows"]]), np.array(packed))
        parts = [self.read_film(file) for file in number]  # those that faiss does not hold
        self.starts, self.tail = np.cumsum([0] + [len(part) for part in parts])[:-1], np.array([*number.values()], int)
        self.vectors = np.concatenate(parts) if parts else None
        self.basis, self.rule, self.films, self.titles = basis, state["rule"], films, [*films]

    def read_film(self, file: str) -> np.ndarray:
        """A film's vectors, float32 [n, d] of length 1."""
        vectors = read_arrays(self.path, file)[0].astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def read_pack(self, file: str):
        """The faiss index in a file, left on the disk until it is searched."""
        index = import_faiss().read_index(str(self.path / file), import_faiss().IO_FLAG_MMAP_IFC)
        index.nprobe = PROBES
        return index

    def best_by_film(self, vector: np.ndarray) -> np.ndarray:
        """Similarity [F] of each film's nearest frame; of films that faiss does not find, the least that it found."""
        best = np.full(len(self.titles), -1, np.float32)
        if self.pack:
            index, starts, packed = self.pack
            alike, rows = index.search(vector[None], NEAR)
            film = packed[np.searchsorted(starts, rows[rows >= 0], side="right") - 1]
            alike, film = alike[rows >= 0][film >= 0], film[film >= 0]
            best[packed[packed >= 0]] = alike.min(initial=1)
            np.maximum.at(best, film, alike)
            for f in np.unique(film)[np.argsort(-best[np.unique(film)])[:EXAMINED]].tolist():  # exactly, from the disk
                best[f] = (self.read_film(self.films[self.titles[f]]["vectors"]) @ vector).max()
        if self.vectors is not None:
            best[self.tail] = np.maximum.reduceat(self.vectors @ vector, self.starts)
        return best

    def answers(self, embedding: np.ndarray, top: int = 3) -> list[Answer]:
        """An answer a row of embeddings float [N, D]; each candidate carries its evidence."""
        self.refresh()
        found = []
        for vector in project_all(embedding, *self.basis):
            scores = film_scores(self.best_by_film(vector)[None])[0]
            order = np.argsort(-scores, kind="stable")[:top].tolist()
            score, own = scores[order[0]], self.films[self.titles[order[0]]]["own"]
            named = score >= max(self.rule["movie"], own)
            kind = "movie" if named else "shortlist" if score >= self.rule["shortlist"] else "unknown"
            sure = 1 / (1 + np.exp(-np.clip(self.rule["slope"] * scores + self.rule["shift"], -30, 30)))
            proof = [self.evidence(f, vector) for f in order]
            listed = [Candidate(self.titles[f], float(sure[f]), e) for f, e in zip(order, proof, strict=True)]
            found.append(Answer(kind, listed, 0.0))
        return found

    def evidence(self, film: int, vector: np.ndarray) -> dict:
        """The still of a film that is nearest to vector [d], and the stretch of film around it; thumbnail: a JPEG."""
        about, names = self.films[self.titles[film]], ("name", "time", "until", "thumbs", "ends")
        files, when, until, thumbs, ends = read_arrays(self.path, about["frames"], *names)
        alike = self.read_film(about["vectors"]) @ vector
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
        return found | {"thumbnail": thumbs[cut[0] : cut[1]].tobytes()}


# ------------------------------------------------------------------------------------------------ commands


def run_add(args: argparse.Namespace) -> int:
    """Add films; a folder that can't be read is one line, and the others go on."""
    films = find_films(args.raw, args.title)
    identifier = Identifier(args.model)
    failed, seen, clock = 0, fingerprint(identifier), time.perf_counter()
    with writing(args.index):
        if (args.index / "index.json").exists():
            state = read_state(args.index)
            check_model(args.index, state, seen)
        else:
            model = {"architecture": identifier.contract.architecture, "fingerprint": base64.b64encode(seen).decode()}
            state = {"format": FORMAT, "model": model, "basis": None, "rule": None, "settled": 0, "films": {}}
        for place, (title, folder) in enumerate(films.items(), 1):
            try:
                done = add_film(args.index, state, title, folder, identifier, args.every)
            except UserError as error:
                failed, done = failed + 1, f"error: {error}"
            print(
                f"[{place}/{len(films)}] {title}: {done}",
                file=sys.stderr if "error" in done else sys.stdout,
                flush=True,
            )
        state["memory"] = args.memory or state.get("memory", "plenty")
        settle(args.index, state)
        pack_films(args.index, state)
        commit(args.index, state)
    count = sum(film["stored"] for film in state["films"].values())
    print(f"{len(state['films'])} films, {count} stills in {args.index}; {time.perf_counter() - clock:.1f} s")
    print(f"next: python identify.py FRAME --model {args.model} --index {args.index}")
    return 1 if failed else 0


def run_remove(args: argparse.Namespace) -> int:
    if args.source:
        return learn.forget(args.index)
    with writing(args.index):
        state = read_state(args.index)
        if args.title not in state["films"]:
            near = [title for title in state["films"] if args.title.casefold() in title.casefold()][:3]
            hint = f"; did you mean {', '.join(near)}?" if near else "; python index.py list shows its films"
            raise UserError(f"{args.title}: not in {args.index}{hint}", 2)
        del state["films"][args.title]
        commit(args.index, state)
    print(f"{args.title}: removed, {len(state['films'])} films left")
    return 0


def run_rebuild(args: argparse.Namespace) -> int:
    with writing(args.index):
        state = read_state(args.index)
        state["memory"] = args.memory or state.get("memory", "plenty")
        settle(args.index, state, force=True)
        pack_films(args.index, state)
        commit(args.index, state)
    return run_check(args)


def run_list(args: argparse.Namespace) -> int:
    for title, film in sorted(read_state(args.index)["films"].items()):
        print(f"{film['stored']:6} of {film['stills']:6} stills  {film['imdb'] or '':10}  {title}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Read every file, and print what the thresholds promise, film by film."""
    state = read_state(args.index)
    if state["basis"] is None:
        raise UserError(f"--index {args.index}: adding was stopped before its end; run the same add again")
    read_arrays(args.index, state["basis"], "project", "offset")
    for title, film in sorted(state["films"].items()):
        when, ends, *_ = read_arrays(args.index, film["frames"], "time", "ends", "thumbs", "embedding", "worn", "name")
        if not len(when) == len(ends) == len(read_arrays(args.index, film["vectors"])[0]):
            raise UserError(f"--index {args.index}: {title} is damaged; remove it and add it again")
        asked = "from video, asked between its stills" if is_dense(when) else "scattered, asked by unseen scenes"
        print(f"{len(when):6} stills, {asked:36} own threshold {film['own']:5.2f}  {title}")
    rule, figures = state["rule"], state["rule"]["figures"]
    print(f"{len(state['films'])} films; named from {rule['movie']:.3f}, shortlist from {rule['shortlist']:.3f}")
    if figures:
        print(
            f"asked by itself, at {UNKNOWN_SHARE:.0%} unknown: {figures['named']:.0%} of known frames named, "
            f"{figures['right']:.1%} of the named right, {figures['strangers']:.1%} of the frames of films left out "
            f"named, AUROC {figures['auroc']:.3f}"
        )
    return 0


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
        command.add_argument(
            "--index", type=Path, default=Path("index"), help="the index's folder (default: %(default)s)"
        )
        if name in ("add", "rebuild"):
            text = "small keeps 1 bit a number of large indexes in memory (default: as before, at first plenty)"
            command.add_argument("--memory", choices=["plenty", "small"], help=text)
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
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
