"""Change an index: add and replace films, refit it, and merge users' pictures."""

import base64
import contextlib
import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from answering.calibration import FilmSample, fit_on_samples, fit_rule, leave_one_out_scores
from answering.collection import check_model
from answering.console import UserError
from answering.embedding import DUPLICATE_COSINE, FilmRows, embed_film
from answering.model import Identifier
from answering.offers import Offers
from answering.projection import Scoring, project_all, unit_length
from answering.search import gather
from answering.state import Film, IndexedModel, State
from answering.stills import Still
from answering.store import USER_STILL_PREFIX, Collection, pack_vectors
from answering.strangers import Strangers
from answering.titles import split_title
from answering.together import fit_together

FIT_FRAMES = 6000  # that projection and thresholds are fitted on
FIT_FILMS = 300
GROWTH = 1.25  # projection and thresholds are fitted anew when there are so many times more films
ASKED_FRAMES = 100  # a film, to fit the thresholds


@contextlib.contextmanager
def open_to_add(collection: Collection, architecture: str, seen: np.ndarray) -> Iterator[State]:
    """Hold a collection for adding films, a new one where there is none. seen: the model's fingerprint.

    Raises UserError for one that is damaged or of another model, and where another writer is at work.
    """
    model = IndexedModel(architecture, base64.b64encode(seen).decode())
    with collection.writing(model):
        state = collection.state()
        check_model(collection, state.about, seen)
        yield state


# ------------------------------------------------------------------------------------ a film and its rows


def store_film(collection: Collection, state: State, film: Film, rows: FilmRows) -> Film:
    """Put a film into the index, in place of what it had of that title; returns it with what was stored.

    film: without what the collection itself gives: id, stored, added.
    """
    film = replace(film, year=split_title(film.title)[1])
    stored = collection.put_film(state.about, film, rows, project_rows(collection, state, rows))
    state.films[film.title] = stored
    state.failed.pop(film.file, None)
    return stored


def project_rows(collection: Collection, state: State, rows: FilmRows) -> tuple[bytes, bytes] | None:
    """Vectors of rows as the collection keeps them; None where it has no projection yet."""
    if not state.about.fit:
        return None
    return pack_vectors(project_all(rows.embedding, *collection.read_projection()))


def hash_contents(stills: list[Still]) -> str:
    """What changes when a still is added, removed or written anew."""
    stats = []
    for still in stills:
        if still.path.exists():
            stat = still.path.stat()
            stats.append((still.name, still.milliseconds, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def find_title(collection: Collection, state: State, typed: str) -> str:
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
    raise UserError(f"{typed}: not in {collection}{hint}", 2)


def rename_film(collection: Collection, state: State, old: str, new: str) -> None:
    """Give a film of the index a new title, also for what is added later.

    Raises UserError for a title that another film has, or for an empty one.
    """
    if not new:
        raise UserError("the new title is empty; write it as: Title (Year)", 2)
    film = collection.rename_film(state.about, state.films[old], new, split_title(new)[1])
    state.films = {film.title if title == old else title: its for title, its in state.films.items()}
    state.films[new] = film
    state.renamed = collection.renames()


# ------------------------------------------------------------------------------- projection and thresholds


def sample_films(collection: Collection, films: dict[str, Film]) -> list[FilmSample]:
    """What projection and thresholds are fitted on: at most FIT_FILMS films with about FIT_FRAMES frames.

    Of long films a run of stills from the middle, since how close they lie in time matters.
    """
    titles = sorted(films, key=lambda title: hashlib.sha256(title.encode(errors="replace")).digest())[:FIT_FILMS]
    most = max(100, FIT_FRAMES // max(1, len(titles)))
    left = FIT_FRAMES - sum(min(most, films[title].stored) for title in titles)
    most += max(0, left) // max(1, sum(films[title].stored > most for title in titles))
    samples = []
    for title in titles:
        embedding, degraded, clean = collection.read_embedding(films[title])
        time_ms = collection.read_times(films[title])[:, 0]
        start = max(0, len(time_ms) - most) // 2
        sample = FilmSample(
            embedding=embedding[start : start + most],
            time_ms=time_ms[start : start + most],
            change=degraded - clean,
        )
        samples.append(sample)
    return samples


def strangers_to(collection: Collection, state: State, samples: list[FilmSample]) -> list[FilmSample]:
    """The films that came with the model and are not the collection's; samples: of its own films."""
    packed = collection.read_strangers()
    if packed is None:
        return []
    return Strangers.from_bytes(packed, collection).apart_from(list(state.films), samples)


def keep_strangers(collection: Collection, strangers: Strangers | None) -> bool:
    """Put the films that came with the model into the collection; whether it had none, or others, before."""
    if strangers is None:
        return False
    packed = strangers.to_bytes()
    before = collection.read_strangers()
    if before is not None and Strangers.from_bytes(before, collection).titles == strangers.titles:
        return False
    collection.put_strangers(packed)
    return True


def refit(collection: Collection, state: State, force: bool = False) -> None:
    """Fit projection and thresholds if there are none or many more films now, and write all vectors anew."""
    about = state.about
    is_due = force or not about.fit or len(state.films) >= GROWTH * about.films_at_fit
    if not state.films or not is_due:
        return
    samples = sample_films(collection, state.films)
    strangers = strangers_to(collection, state, samples)
    basis = fit_on_samples(samples, strangers)
    asked = leave_one_out_scores(samples, ASKED_FRAMES, strangers)
    about.scoring = Scoring()
    sizes = np.array([len(sample.time_ms) for sample in samples])
    about.rule = fit_rule(asked, sizes, about.unknown_share)
    about.rule.together = fit_together(asked, sizes, about.unknown_share)
    collection.put_fit(about, basis, lambda embedding: project_all(embedding, *basis))


def finish(
    collection: Collection,
    state: State,
    *,
    unknown_share: float | None,
    force: bool = False,
    strangers: Strangers | None = None,
) -> None:
    """What follows when films have come: projection, thresholds, and vectors gathered for the search.

    unknown_share: None to leave it as it is; force: fit the thresholds in any case; strangers: the films that come
    with the model, None to leave those of the collection as they are.
    """
    if unknown_share is not None and unknown_share != state.about.unknown_share:
        state.about.unknown_share = unknown_share
        force = True
    with collection.home.transaction():  # a reader between them would take all vectors into memory
        force |= keep_strangers(collection, strangers)
        refit(collection, state, force=force)
        gather(collection, state.about)


# ---------------------------------------------------------------------------------------- stills of users


def accepted_stills(collection: Collection, title: str) -> list[Still]:
    """The users' stills of a film that the owner accepted, named as the index names them."""
    accepted = Offers(collection).accepted(title)
    return [Still(file=USER_STILL_PREFIX + offer.name, picture=offer.picture) for offer in accepted]


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


def add_user_stills(collection: Collection, state: State, identifier: Identifier) -> Iterator[tuple[str, int]]:
    """Merge what the owner accepted into the films of a collection; yields (title, stills that were new) of each.

    Raises UserError where none of a film's new stills can be read.
    """
    for title, film in list(state.films.items()):
        accepted = accepted_stills(collection, title)
        if not accepted:
            continue
        rows = merge_stills(collection.read_rows(film), accepted, identifier)
        if len(rows) > film.stored:
            store_film(collection, state, film, rows)
            yield title, len(rows) - film.stored


def remove_user_stills(collection: Collection) -> int:
    """Take all stills of users out; they are not offered again. Returns how many there were."""
    count = 0
    with collection.writing():
        state = collection.state()
        with collection.home.transaction():
            for film in list(state.films.values()):
                rows = collection.read_rows(film)
                keep = np.flatnonzero(~np.char.startswith(rows.name, USER_STILL_PREFIX))
                if len(keep) < film.stored:
                    count += film.stored - len(keep)
                    store_film(collection, state, film, rows.select(keep))
            Offers(collection).refuse_accepted()
    return count
