"""The living collection: films are added in a minute without training, and every answer shows its proof.

python index.py add data/raw --model export          # every folder of stills becomes a film; run again after changes
python index.py add ~/shots/Alien --title "Alien (1979)" --every 2
python index.py search frame.jpg --sheet nearest.png # the nearest stills beside the frame
python index.py list; python index.py check; python index.py remove "Alien (1979)"; python index.py rebuild

Each takes --index: a folder, or http://host:19530 of a Milvus where one machine ends (engines.py). identify.py and
bot.py load this file only when there is an index. No torch.
"""

import base64
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from answering.calibration import fit_rule, leave_one_out_scores
from answering.console import UserError, atomic_write
from answering.embedding import DUPLICATE_COSINE, embed_film
from answering.model import Answer, Candidate, Evidence, Identifier, format_answer, reference_frames, relative_error
from answering.pictures import read_image
from answering.projection import (
    blend_similarity,
    film_scores,
    fit_projection,
    pack_vectors,
    project_all,
    read_middles,
    unit_length,
)
from answering.stills import list_stills
from answering.store import SOURCE, Folder, Milvus, folder_of, open_engine, put_away, short

FORMAT = "movie-by-frame index 3"
FIT_FRAMES, FIT_FILMS = 6000, 300  # what projection and thresholds are fitted on
STRETCH_MS, ALIKE = 5000, 0.1  # frames of a film so near in time, and nearly as like, are one stretch of proof
GROWTH = 1.25  # projection and thresholds are fitted anew when there are so many times more films
ALIGNED = ("embedding", "name", "time", "until", "shot")  # arrays of a row a still; pictures at a time


# ------------------------------------------------------------------------- with an index, see index.py


def find_index(model: str | Path) -> Path | None:
    """The folder index beside an exported folder or the one that its file lies in; None where there is none."""
    model = Path(model).absolute()
    places = [folder / "index" for folder in (model.parents[:1] if model.is_dir() else model.parents[:3])]
    return next((place for place in places if (place / "index.json").exists()), None)


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
    """What leave_one_out_scores takes of the films that projection and thresholds are fitted on.

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


def refit(engine: Folder | Milvus, state: dict, force: bool = False) -> None:
    """Fit projection and thresholds if there are none or many more films now, and write all vectors anew."""
    films = state["films"]
    if not films or not (force or state["basis"] is None or len(films) >= GROWTH * state["settled"]):
        return
    parts = sample_films(engine, films)
    owner = np.repeat(np.arange(len(parts)), [len(part["time"]) for part in parts])
    embedding, change = (np.concatenate([part[name] for part in parts]) for name in ("embedding", "change"))
    project, offset = fit_projection(embedding, owner, change)
    asked = leave_one_out_scores(parts, 100, (project, offset))
    state["rule"], state["settled"] = fit_rule(asked, np.bincount(owner), state["unknown_share"]), len(films)
    state["basis"] = engine.put(None, {"project": project, "offset": offset})
    for title, film in films.items():
        (embedding,) = engine.get(film["frames"], "embedding")
        film |= store_vectors(engine, title, project_all(embedding, project, offset))


def add_film(engine: Folder | Milvus, state: dict, title: str, folder: Path, identifier: Identifier, every: int) -> str:
    """Put a film into the index, in place of what it had of that title; returns what was done, or an error, in words.

    Raises UserError where the engine can't go on.
    """
    stills = list_stills(folder)[::every]
    stats = [(still.name, still.milliseconds, still.path.stat()) for still in stills if still.path.exists()]
    mark = hashlib.sha256(repr([(f, t, s.st_size, s.st_mtime_ns) for f, t, s in stats]).encode()).hexdigest()[:16]
    before = state["films"].get(title)
    if before and before["mark"] == mark:
        return "unchanged"
    try:
        rows = with_learned(engine, title, embed_film(stills, identifier), identifier)
    except UserError as error:
        return f"error: {error}"
    year = re.search(r"\((\d{4})\)$", title)
    film = {"frames": engine.put(title, rows), "vectors": None, "mark": mark}
    film |= {"stills": len(stills), "stored": len(rows["time"]), "year": int(year[1]) if year else None}
    film["imdb"] = next((str(still.imdb) for still in stills if still.imdb), None)
    if state["basis"]:
        basis = engine.get(state["basis"], "project", "offset")
        film |= store_vectors(engine, title, project_all(rows["embedding"], *basis))
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
            scores = film_scores(blend_similarity(self.best_by_film(vector), self.middles @ vector)[None])[0]
            order = np.argsort(-scores, kind="stable")[:top].tolist()
            score, movie, shortlist = scores[order[0]], self.rule["movie"], self.rule["shortlist"]
            kind = "movie" if score >= movie else "shortlist" if score >= shortlist else "unknown"
            sure = 1 / (1 + np.exp(-np.clip(self.rule["slope"] * scores + self.rule["shift"], -30, 30)))
            proof = [self.evidence(f, vector) for f in order]
            listed = [Candidate(self.titles[f], float(sure[f]), e) for f, e in zip(order, proof, strict=True)]
            found.append(Answer(kind, listed, 0.0))
        return found

    def evidence(self, film: int, vector: np.ndarray) -> Evidence:
        """The still of a film that is nearest to vector [d], and the stretch of film around it."""
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
        time_ms, from_ms, to_ms = (int(t) if t >= 0 else None for t in (when[best], start, end))
        cut = [0, *ends.tolist()][best : best + 2]
        return Evidence(
            title=self.titles[film],
            file=str(files[best]),
            similarity=round(float(alike[best]), 4),
            time_ms=time_ms,
            from_ms=from_ms,
            to_ms=to_ms,
            thumbnail=self.engine.get_part(about["frames"], "thumbs", *cut),
        )


def attach_index(identifier: Identifier, place: str | Path | None, open_index: Callable = Index) -> str | None:
    """Give an identifier its index; returns a line that says why a classifier has to answer without one, else None.

    place: as --index names it; None for the index beside the model, if there is one. open_index: Index or a class like
    it. Raises UserError where an embedder is left without an index, since it knows no films itself.
    """
    place = place or find_index(identifier.path)
    if place is None:
        return None
    try:
        identifier.index = open_index(place, identifier)
    except (UserError, OSError) as error:
        if not identifier.classes:
            raise
        return f"{' '.join(str(error).split())}; the classifier answers alone"
    return None


def draw_evidence(frame, answer: Answer, path: Path, side: int = 240) -> None:
    """Write a sheet: the frame that was asked for, then each candidate's nearest still, its title and similarity."""
    cells = [(Image.fromarray(read_image(frame, draft=side)), format_answer(answer))]
    for candidate in answer.candidates:
        if proof := candidate.evidence:
            at = "" if proof.time_ms is None else f", {proof.time_ms // 60000}:{proof.time_ms // 1000 % 60:02}"
            cells.append((read_image(proof.thumbnail), f"{candidate.title}{at} ({proof.similarity:.2f})"))
    sheet = Image.new("RGB", (len(cells) * side, side), "white")
    for place, (picture, text) in enumerate(cells):
        picture = ImageOps.contain(picture if place == 0 else Image.fromarray(picture), (side - 8, side - 40))
        sheet.paste(picture, (place * side + 4, 4))
        lines = [text[k : k + 38] for k in range(0, min(len(text), 76), 38)]
        draw = ImageDraw.Draw(sheet)
        draw.text((place * side + 4, side - 32), "\n".join(lines), fill="black", font=ImageFont.load_default(11))
    with atomic_write(path) as file:
        sheet.save(file, Image.registered_extensions().get(path.suffix.lower(), "PNG"))


def store_vectors(engine, title: str, vectors: np.ndarray) -> dict:
    """Give a film's vectors [n, d] to an engine; returns what the state says of them: their name, and their middle."""
    middle = pack_vectors(vectors.sum(0, keepdims=True))
    return {"vectors": engine.put_vectors(title, pack_vectors(vectors)), "middle": base64.b64encode(middle).decode()}


def select_rows(rows: dict, keep: np.ndarray) -> dict:
    """Some rows of a film's arrays, see vectors.embed_film."""
    thumbs = [np.split(rows["thumbs"], rows["ends"][:-1])[k] for k in keep.tolist()]
    ends = np.cumsum([len(thumb) for thumb in thumbs], dtype=np.int64)
    thumbs = np.concatenate([np.zeros(0, np.uint8), *thumbs])
    return rows | {name: rows[name][keep] for name in ALIGNED} | {"thumbs": thumbs, "ends": ends}


def with_learned(engine, title: str, rows: dict, identifier: Identifier) -> dict:
    """A film's arrays with the stills that the owner accepted and that are new; engine: of an index, see engines.py."""
    have, stills = set(rows["name"].tolist()), []
    for still in list_stills(engine.path / "telegram" / short(title)) if isinstance(engine, Folder) else []:
        stills += [replace(still, file=SOURCE + still.file)] if SOURCE + still.name not in have else []
    if not stills:
        return rows
    new, mean = embed_film(stills, identifier), rows["embedding"].mean(0, dtype=np.float32)
    known, asked = (unit_length(it["embedding"].astype(np.float32) - mean) for it in (rows, new))
    new = select_rows(new, np.flatnonzero((asked @ known.T).max(1) <= DUPLICATE_COSINE))
    ends = np.concatenate([rows["ends"], new["ends"] + len(rows["thumbs"])])
    return rows | {name: np.concatenate([rows[name], new[name]]) for name in (*ALIGNED, "thumbs")} | {"ends": ends}


def read_rows(engine: Folder, film: dict) -> dict:
    names = (*ALIGNED, "worn", "of", "thumbs", "ends")
    return dict(zip(names, engine.get(film["frames"], *names), strict=True))


def replace_film(engine: Folder, state: dict, title: str, rows: dict) -> None:
    """Make rows those of a film."""
    film, basis = state["films"][title], engine.get(state["basis"], "project", "offset")
    film |= {"frames": engine.put(title, rows), "stored": len(rows["name"])}
    film |= store_vectors(engine, title, project_all(rows["embedding"], *basis))


def forget(engine) -> int:
    """Take all stills of users out; they are not offered again."""

    home, count = folder_of(engine), 0
    with engine.writing():
        state = read_state(engine)
        for title, film in state["films"].items():
            rows = read_rows(engine, film)
            keep = np.flatnonzero(~np.char.startswith(rows["name"], SOURCE))
            if len(keep) < film["stored"]:
                count += film["stored"] - len(keep)
                replace_film(engine, state, title, select_rows(rows, keep))
        engine.pack(state)
        engine.commit(state)
        for file in home.glob("*/*.jpg"):
            put_away(file, home)
    print(f"{count} stills of users removed")
    return 0
