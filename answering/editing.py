"""Change an index: add and replace films, refit it, and merge users' pictures."""

import base64
import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from answering.calibration import FilmSample, fit_rule, leave_one_out_scores
from answering.collection import check_model
from answering.console import UserError
from answering.embedding import DUPLICATE_COSINE, FilmRows, embed_film
from answering.model import Identifier
from answering.projection import Scoring, encode_middle, fit_projection, project_all, quantise, unit_length
from answering.state import Film, IndexedModel, State
from answering.stills import Still
from answering.store import USER_STILL_PREFIX, Folder, Milvus, read_state, require_user_stills
from answering.titles import split_title

FIT_FRAMES = 6000  # that projection and thresholds are fitted on
FIT_FILMS = 300
GROWTH = 1.25  # projection and thresholds are fitted anew when there are so many times more films
ASKED_FRAMES = 100  # a film, to fit the thresholds


def open_state(engine: Folder | Milvus, identifier: Identifier, seen: np.ndarray) -> State:
    """The state of an index to add films to, a new one where there is none. seen: the model's fingerprint.

    Raises UserError for one that is damaged or of another model.
    """
    try:
        engine.version()
    except FileNotFoundError:
        model = IndexedModel(identifier.contract.architecture, base64.b64encode(seen).decode())
        return State(model=model)
    state = read_state(engine)
    check_model(engine, state, seen)
    return state


# ------------------------------------------------------------------------------------ a film and its rows


def read_rows(engine: Folder | Milvus, film: Film) -> FilmRows:
    """All arrays of a film."""
    names = FilmRows.ARRAY_NAMES
    arrays = engine.read_arrays(film.rows_file, *names.values())
    return FilmRows(**dict(zip(names, arrays, strict=True)))


def store_film(
    engine: Folder | Milvus,
    state: State,
    title: str,
    rows: FilmRows,
    *,
    content_key: str,
    stills: int,
    imdb: str | None = None,
    seconds: float | None = None,
    partial: str | None = None,
    file: str | None = None,
) -> Film:
    """Put a film into the index, in place of what it had of that title; returns the film.

    stills: how many there were before flat ones and near-duplicates were left out; the others: see Film.
    """
    film = Film(
        rows_file=engine.write_arrays(title, rows.arrays()),
        content_key=content_key,
        stills=stills,
        stored=len(rows),
        year=split_title(title)[1],
        imdb=imdb,
        seconds=seconds,
        partial=partial,
        file=file,
    )
    if state.basis:
        film = store_vectors(engine, title, film, project_all(rows.embedding, *read_basis(engine, state)))
    state.films[title] = film
    engine.commit(state)
    return film


def hash_contents(stills: list[Still]) -> str:
    """What changes when a still is added, removed or written anew."""
    stats = []
    for still in stills:
        if still.path.exists():
            stat = still.path.stat()
            stats.append((still.name, still.milliseconds, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def find_title(engine: Folder | Milvus, state: State, typed: str) -> str:
    """The title of the index that was typed; accents may be one character or two, as macOS has them.

    Raises UserError where the index has no such film.
    """
    if typed in state.films:
        return typed
    wanted = unicodedata.normalize("NFC", typed)
    for title in state.films:
        if unicodedata.normalize("NFC", title) == wanted:
            return title
    near = [title for title in state.films if wanted.casefold() in title.casefold()][:3]
    hint = f"; did you mean {', '.join(near)}?" if near else "; python index.py list shows its films"
    raise UserError(f"{typed}: not in {engine}{hint}", 2)


def rename_film(engine: Folder | Milvus, state: State, old: str, new: str) -> None:
    """Give a film of the index a new title, also for what is added later.

    Raises UserError for a title that another film has, or for an empty one.
    """
    if not new:
        raise UserError("the new title is empty; write it as: Title (Year)", 2)
    if new in state.films:
        raise UserError(f"{new}: {engine} has a film of this title already; remove or rename that one first", 2)
    film = replace(state.films[old], year=split_title(new)[1])
    state.films = {new if title == old else title: film if title == old else its for title, its in state.films.items()}
    given = {meant: new if its == old else its for meant, its in state.renamed.items()} | {old: new}
    state.renamed = {meant: its for meant, its in given.items() if meant != its}
    if engine.user_stills:
        engine.user_stills.rename(old, new)


def replace_film(engine: Folder | Milvus, state: State, title: str, rows: FilmRows) -> None:
    """Make rows those of a film that the index has."""
    film = replace(state.films[title], rows_file=engine.write_arrays(title, rows.arrays()), stored=len(rows))
    state.films[title] = store_vectors(engine, title, film, project_all(rows.embedding, *read_basis(engine, state)))


def read_basis(engine: Folder | Milvus, state: State) -> list[np.ndarray]:
    """[project float32 [D, d], offset [d]] of an index."""
    return engine.read_arrays(state.basis, "project", "offset")


def store_vectors(engine: Folder | Milvus, title: str, film: Film, vectors: np.ndarray) -> Film:
    """Write a film's vectors float [n, d]; returns the film that names them."""
    vectors_file = engine.write_vectors(title, quantise(vectors))
    return replace(film, vectors_file=vectors_file, middle=encode_middle(vectors))


# ------------------------------------------------------------------------------- projection and thresholds


def sample_films(engine: Folder | Milvus, films: dict[str, Film]) -> list[FilmSample]:
    """What projection and thresholds are fitted on: at most FIT_FILMS films with about FIT_FRAMES frames.

    Of long films a run of stills from the middle, since how close they lie in time matters.
    """
    titles = sorted(films, key=lambda title: hashlib.sha256(title.encode(errors="replace")).digest())[:FIT_FILMS]
    most = max(100, FIT_FRAMES // max(1, len(titles)))
    left = FIT_FRAMES - sum(min(most, films[title].stored) for title in titles)
    most += max(0, left) // max(1, sum(films[title].stored > most for title in titles))
    samples = []
    for title in titles:
        arrays = engine.read_arrays(films[title].rows_file, "embedding", "time", "worn", "of")
        embedding, time_ms, degraded, clean = arrays
        start = max(0, len(time_ms) - most) // 2
        sample = FilmSample(
            embedding=embedding[start : start + most],
            time_ms=time_ms[start : start + most],
            change=degraded.astype(np.float32) - clean.astype(np.float32),
        )
        samples.append(sample)
    return samples


def refit(engine: Folder | Milvus, state: State, force: bool = False) -> None:
    """Fit projection and thresholds if there are none or many more films now, and write all vectors anew."""
    is_due = force or state.basis is None or len(state.films) >= GROWTH * state.films_at_fit
    if not state.films or not is_due:
        return
    samples = sample_films(engine, state.films)
    owner = np.repeat(np.arange(len(samples)), [len(sample.time_ms) for sample in samples])
    embedding = np.concatenate([sample.embedding for sample in samples])
    change = np.concatenate([sample.change for sample in samples])
    basis = fit_projection(embedding, owner, change)
    asked = leave_one_out_scores(samples, ASKED_FRAMES, basis)
    state.scoring = Scoring()
    state.rule = fit_rule(asked, np.bincount(owner), state.unknown_share)
    state.films_at_fit = len(state.films)
    state.basis = engine.write_arrays(None, dict(zip(("project", "offset"), basis, strict=True)))
    for title, film in state.films.items():
        (embedding,) = engine.read_arrays(film.rows_file, "embedding")
        state.films[title] = store_vectors(engine, title, film, project_all(embedding, *basis))


# ---------------------------------------------------------------------------------------- stills of users


def accepted_stills(engine: Folder | Milvus, title: str) -> list[Still]:
    """The users' stills of a film that the owner accepted."""
    return engine.user_stills.accepted(title) if engine.user_stills else []


def merge_stills(rows: FilmRows, accepted: list[Still], identifier: Identifier) -> FilmRows:
    """A film's rows and those of accepted stills that are not among them and show something new."""
    present = set(rows.name.tolist())
    stills = [still for still in accepted if still.name not in present]
    if not stills:
        return rows
    new = embed_film(stills, identifier)
    mean = rows.embedding.mean(0, dtype=np.float32)
    known, asked = (unit_length(some.embedding.astype(np.float32) - mean) for some in (rows, new))
    is_new = (asked @ known.T).max(1) <= DUPLICATE_COSINE
    return rows.append(new.select(np.flatnonzero(is_new)))


def add_user_stills(engine: Folder, state: State, identifier: Identifier) -> Iterator[tuple[str, int]]:
    """Merge what the owner accepted into the films of a state; yields (title, stills that were new) of each that grew.

    Raises UserError where none of a film's new stills can be read.
    """
    for title, film in state.films.items():
        accepted = require_user_stills(engine).accepted(title)
        if not accepted:
            continue
        rows = merge_stills(read_rows(engine, film), accepted, identifier)
        if len(rows) > film.stored:
            replace_film(engine, state, title, rows)
            yield title, len(rows) - film.stored


def remove_user_stills(engine: Folder) -> int:
    """Take all stills of users out; they are not offered again. Returns how many there were."""
    user_stills = require_user_stills(engine)
    count = 0
    with engine.writing():
        state = read_state(engine)
        for title, film in state.films.items():
            rows = read_rows(engine, film)
            keep = np.flatnonzero(~np.char.startswith(rows.name, USER_STILL_PREFIX))
            if len(keep) < film.stored:
                count += film.stored - len(keep)
                replace_film(engine, state, title, rows.select(keep))
        engine.pack(state)
        engine.commit(state)
        user_stills.refuse_accepted()
    return count
