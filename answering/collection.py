"""Read an index: the films that it names, each with its proof. answering/editing.py changes it."""

import base64
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from answering.alignment import align
from answering.calibration import Rule, ShotRule
from answering.console import UserError, one_line
from answering.model import (
    Answer,
    Candidate,
    Evidence,
    Identifier,
    answer_kind,
    reference_frames,
    relative_error,
)
from answering.projection import film_scores, project_all, unit_length
from answering.search import Search
from answering.sql import is_folder_of_before
from answering.state import About
from answering.store import Collection
from answering.together import label_shots, mean_of_shots

STRETCH_MS = 5000  # frames of a film so near in time, and nearly as like, are one stretch of proof
STRETCH_SIMILARITY = 0.1  # less than the nearest frame's
MIXED_SHARE = 0.25  # of a clip's frames name another film than all together do: it mixes films
SAME_MODEL = 0.4  # relative error of fingerprints: all formats of one model are within
INDEX = "index.sqlite"  # what a collection is called, unless the user says otherwise


def find_index(model: str | Path) -> Path | None:
    """The collection beside an exported folder or the one that its file lies in; None where there is none.

    That is index.sqlite, or a folder index of the version before, which is yet to be taken over.
    """
    model = Path(model).absolute()
    around = model.parents[:1] if model.is_dir() else model.parents[:3]
    for folder in around:
        if (folder / INDEX).exists():
            return folder / INDEX
        if is_folder_of_before(folder / "index"):
            return folder / "index"
    return None


def fingerprint(identifier: Identifier) -> np.ndarray:
    """What a model makes of two fixed pictures, float32 [2, D]: all formats of one model nearly agree, others don't."""
    return identifier.run(reference_frames(identifier.preprocessing["size"], 2))["embedding"].astype(np.float32)


def is_same_model(made: np.ndarray, seen: np.ndarray) -> bool:
    """Whether two fingerprints are of one model, in whatever formats."""
    return made.shape == seen.shape and relative_error(seen, made) <= SAME_MODEL


def check_model(collection: Collection, about: About, seen: np.ndarray) -> None:
    """Raise UserError unless the index was made with the model whose fingerprint is seen."""
    made = np.frombuffer(base64.b64decode(about.model.fingerprint), np.float32).reshape(2, -1)
    if not is_same_model(made, seen):
        name = about.model.architecture
        text = f"--index {collection}: was made with another model ({name}); use that one, or another --index"
        raise UserError(text, 2)


class Index:
    """The films of an index, for reading; what a writer adds meanwhile is there at the next answer.

    place: as Collection takes it. Raises UserError for one that is missing, damaged, or of another model.
    """

    rule: Rule
    films: dict[str, int]  # number of each film by its title
    titles: list[str]  # of films, by their numbers

    def __init__(self, place: str | Path, identifier: Identifier):
        self.collection = Collection(place)
        self.fingerprint = fingerprint(identifier)
        self.search = Search(self.collection)
        self.refresh()

    def refresh(self) -> None:
        """Read what changed."""
        with self.reading():
            pass

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """One view of the collection, as it is now, for all that is asked inside."""
        with self.collection.snapshot() as version:
            self.read(version)
            yield

    def read(self, version: object) -> None:
        """Read what changed; version: as Collection.snapshot yields it, None inside of reading()."""
        if version is None or version == self.search.version:
            return
        check_model(self.collection, self.collection.about(), self.fingerprint)
        self.search.refresh(version)
        self.rule = self.search.about.rule
        self.scoring = self.search.about.scoring
        self.basis = self.search.basis
        self.titles = self.search.titles
        self.films = {title: number for number, title in enumerate(self.titles)}

    def imdb_ids(self) -> dict[str, str | None]:
        """{title: IMDb id, where it is known} of all films."""
        return {film.title: film.imdb for film in self.collection.films() if film.title in self.films}

    def answers(self, embedding: np.ndarray, top: int = 3) -> list[Answer]:
        """An answer a row of embeddings float [N, D]; each candidate carries its evidence."""
        with self.reading():
            return [self.answer(vector, top) for vector in project_all(embedding, *self.basis)]

    def answer(self, vector: np.ndarray, top: int) -> Answer:
        """The answer to a frame's vector [d]."""
        scores = film_scores(self.similarities(vector)[None], self.scoring)[0]
        return self.rank(scores, top, lambda film: self.evidence(film, vector))

    def answer_together(
        self, embedding: np.ndarray, top: int = 3, *, time_ms: np.ndarray | None = None, length_ms: int = 0
    ) -> Answer:
        """One answer for several frames of a film, by the mean similarity of their shots to each film.

        embedding: float [N, D]; of a clip, time_ms [N] since its start and its length_ms. The thresholds are those for
        so many shots. Frames of which many name another film than all do, as far as each alone would tell, get a
        shortlist at best.
        """
        with self.reading():
            vectors = project_all(embedding, *self.basis)
            similarity = np.stack([self.similarities(vector) for vector in vectors])
            shots = label_shots(vectors)
            scores = film_scores(mean_of_shots(similarity, shots)[None], self.scoring)[0]
            rule = self.rule.for_shots(int(shots.max()) + 1)
            answer = self.rank(scores, top, lambda film: self.evidence(film, vectors, time_ms, length_ms), rule)
        alone = film_scores(similarity, self.scoring)
        elsewhere = (alone.max(1) >= self.rule.movie) & (alone.argmax(1) != scores.argmax())
        if answer.kind == "movie" and elsewhere.mean() >= MIXED_SHARE:
            return replace(answer, kind="shortlist")
        return answer

    def similarities(self, vector: np.ndarray) -> np.ndarray:
        """How like a frame's vector [d] is to each film [F]."""
        return self.search.similarity(vector, self.scoring)

    def rank(
        self,
        scores: np.ndarray,
        top: int,
        find_evidence: Callable[[int], Evidence | None],
        rule: Rule | ShotRule | None = None,
    ) -> Answer:
        """The answer for the scores of all films [F].

        find_evidence: from a film's number to its evidence; rule: None for the one for a single frame.
        """
        rule = rule or self.rule
        confidence = 1 / (1 + np.exp(-np.clip(rule.slope * scores + rule.shift, -30, 30)))
        order = np.argsort(-scores, kind="stable")[:top].tolist()
        candidates = [Candidate(self.titles[film], float(confidence[film]), find_evidence(film)) for film in order]
        kind = answer_kind(scores[order[0]], movie=rule.movie, shortlist=rule.shortlist)
        return Answer(kind, candidates, 0.0)

    def evidence(
        self, film: int, vectors: np.ndarray, time_ms: np.ndarray | None = None, length_ms: int = 0
    ) -> Evidence:
        """The still of a film that is nearest to a frame's vector [d], and the stretch of film around it.

        For the frames of a clip [N, d], at time_ms [N] of its length_ms: where they agree on a moment, the stretch is
        the clip's, and the still the nearest of those in it.
        """
        vectors = np.atleast_2d(vectors)
        stored, times = self.search.read_film(film)
        starts, untils = times.T
        similarity = vectors @ unit_length(stored).T
        aligned = align(similarity, time_ms, starts, untils) if len(vectors) > 1 and time_ms is not None else None
        if aligned and aligned.is_agreed:
            frame, best = nearest_agreeing(similarity, aligned.rows)
            from_ms, to_ms = aligned.place(0), aligned.place(length_ms)
        else:
            frame, best = np.unravel_index(similarity.argmax(), similarity.shape)
            alike = similarity[frame] >= similarity[frame, best] - STRETCH_SIMILARITY
            from_ms, to_ms = find_stretch(starts, untils, alike, best)
        file, thumbnail = self.collection.proof(int(self.search.ids[film]), int(best))
        return Evidence(
            title=self.titles[film],
            file=file,
            similarity=round(float(similarity[frame, best]), 4),
            time_ms=known_time(starts[best]),
            from_ms=known_time(from_ms),
            to_ms=known_time(to_ms),
            thumbnail=thumbnail,
        )


def nearest_agreeing(similarity: np.ndarray, rows: np.ndarray) -> tuple[int, int]:
    """(frame, still) of the best match. similarity: [N, n]; rows: the still that each frame is matched with, or -1."""
    frames = np.flatnonzero(rows >= 0)
    frame = frames[similarity[frames, rows[frames]].argmax()]
    return int(frame), int(rows[frame])


def known_time(milliseconds: int) -> int | None:
    """None for -1, which stands for a time that is not known."""
    return int(milliseconds) if milliseconds >= 0 else None


def find_stretch(time_ms: np.ndarray, until_ms: np.ndarray, alike: np.ndarray, best: int) -> tuple[int, int]:
    """(start, end) in milliseconds of the stretch of film around a row, grown by rows that are alike and near in time.

    time_ms, until_ms: [n], of each row; alike: bool [n]; best: the row.
    """
    start, end = int(time_ms[best]), int(until_ms[best])
    if start < 0:
        return start, end
    spans = sorted(zip(time_ms[alike].tolist(), until_ms[alike].tolist(), strict=True))
    for first, last in [*spans, *spans[::-1]]:  # forwards it grows to the end, backwards to the start
        if first - end < STRETCH_MS and start - last < STRETCH_MS:
            start, end = min(start, first), max(end, last)
    return start, end


def attach_index(identifier: Identifier, place: str | Path | None, open_index: Callable = Index) -> str | None:
    """Give an identifier its index; returns a line that says why a classifier has to answer without one, else None.

    place: as --index names it; None for the index beside the model, if there is one. open_index: Index or a class like
    it. Raises UserError where an embedder is left without an index, since it knows no films itself.
    """
    place = place or find_index(identifier.place)
    if place is None:
        return None
    try:
        identifier.index = open_index(place, identifier)
    except (UserError, OSError) as error:
        if not identifier.classes:
            raise
        return f"{one_line(error)}; the classifier answers alone"
    return None


def describe_no_promise(identifier: Identifier) -> str | None:
    """A line for people where no unknown film taught what answers to refuse, so that it promises nothing; else None."""
    if identifier.index:
        if identifier.index.rule.figures is None:
            return "the index has too few films to learn what is unknown: nothing is promised of its answers"
    elif identifier.classes and not identifier.contract.decision.get("targets"):
        return "no unknown film taught this model to refuse: nothing is promised of its answers"
    return None
