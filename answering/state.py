"""What index.json says, a dataclass for each of its parts; to_json and from_json know its keys."""

import base64
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from answering.calibration import UNKNOWN_SHARE, Rule
from answering.projection import Scoring

FORMAT = "movie-by-frame index 3"


def hashed_name(text) -> str:
    """What titles, users and answers are called on the disk, whatever characters they have."""
    return hashlib.sha256(str(text).encode(errors="replace")).hexdigest()[:12]


def new_name(title: str | None) -> str:
    """A name that was not there before: of a film's arrays, or of the projection's where title is None."""
    stem = "basis" if title is None else f"films/{hashed_name(title)}"
    return f"{stem}-{os.urandom(4).hex()}"


@dataclass
class Film:
    """A film of an index."""

    rows_file: str  # name of its arrays, see embedding.FilmRows
    vectors_file: str | None = None  # name of its vectors int8 [n, d]; None until there is a projection
    content_key: str = ""  # changes when its stills on the disk do
    stills: int = 0  # found in its folder
    stored: int = 0  # of them, without near-duplicates
    year: int | None = None
    imdb: str | None = None
    middle: str | None = None  # the middle of its vectors, see projection.encode_middle
    seconds: float | None = None  # how long it plays, or as far as it could be read; None for a film of stills
    partial: str | None = None  # how far its file could be read, in words; None where it is whole
    file: str | None = None  # path of the video, or of its first part

    def to_json(self) -> dict:
        """The film as index.json has it."""
        values = {
            "frames": self.rows_file,
            "vectors": self.vectors_file,
            "mark": self.content_key,
            "stills": self.stills,
            "stored": self.stored,
            "year": self.year,
            "imdb": self.imdb,
        }
        for name in ("middle", "seconds", "partial", "file"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        return values

    @classmethod
    def from_json(cls, values: dict) -> "Film":
        """Raises KeyError where what every film must have is missing."""
        return cls(
            rows_file=values["frames"],
            vectors_file=values["vectors"],
            content_key=values.get("mark", ""),
            stills=values.get("stills", 0),
            stored=values["stored"],
            year=values.get("year"),
            imdb=values.get("imdb"),
            middle=values.get("middle"),
            seconds=values.get("seconds"),
            partial=values.get("partial"),
            file=values.get("file"),
        )


@dataclass
class Failure:
    """A file that could not be read, or gave less than the index has; it is not tried again until it changes."""

    content_key: str  # changes when the file does
    reason: str


@dataclass
class IndexedModel:
    """The model that an index was made with."""

    architecture: str
    fingerprint: str  # base64 of float32 [2, D], see collection.fingerprint


@dataclass
class Pack:
    """A faiss index of many films."""

    file: str
    films: list[str]  # names of their vectors, in the order in which they were added
    rows: list[int]  # vectors of each
    memory: str  # "plenty" or "small"


@dataclass
class State:
    """All that index.json says."""

    model: IndexedModel
    basis: str | None = None  # name of the projection's arrays
    rule: Rule | None = None
    films_at_fit: int = 0  # how many films there were when projection and thresholds were fitted
    films: dict[str, Film] = field(default_factory=dict)  # by title
    unknown_share: float = UNKNOWN_SHARE  # that the thresholds are fitted for
    memory: str = "plenty"
    pack: Pack | None = None
    scoring: Scoring = field(default_factory=Scoring)
    failed: dict[str, Failure] = field(default_factory=dict)  # by the path of the file, or of a film's first part
    renamed: dict[str, str] = field(default_factory=dict)  # title that a file means: title that the user gave it

    def names(self) -> set[str]:
        """Names of everything that was written beside this state and belongs to it."""
        found = set()
        for film in self.films.values():
            found.update((film.rows_file, film.vectors_file))
        found.add(self.basis)
        if self.pack:
            found.add(self.pack.file)
        return found - {None}

    def check(self) -> None:
        """Raise TypeError or ValueError for values that to_json did not write."""
        for what, value in self.numbers():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{what} is no number")
        if len(base64.b64decode(self.model.fingerprint, validate=True)) % 8:  # of float32 [2, D]
            raise ValueError("fingerprint")
        searched = [film for film in self.films.values() if film.vectors_file is not None]
        if searched and (self.rule is None or not isinstance(self.basis, str)):
            raise ValueError("vectors without a projection and a rule")
        for film in searched:
            base64.b64decode(film.middle, validate=True)
        names = [*self.names(), *(film.rows_file for film in self.films.values())]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
        of_films = [text for film in self.films.values() for text in (film.partial, film.file) if text is not None]
        failures = [text for failure in self.failed.values() for text in (failure.content_key, failure.reason)]
        if not all(isinstance(text, str) for text in (*of_films, *failures, *self.renamed.values())):
            raise TypeError("partial, file, failed or renamed")

    def numbers(self) -> Iterator[tuple[str, float]]:
        """What answers are computed with, and what each is called."""
        yield "settled", self.films_at_fit
        yield "unknown_share", self.unknown_share
        yield from dataclasses.asdict(self.scoring).items()
        if self.rule:
            yield "movie", self.rule.movie
            yield "shortlist", self.rule.shortlist
            yield "slope", self.rule.slope
            yield "shift", self.rule.shift
        for title, film in self.films.items():
            yield f"stored of {title}", film.stored
            if film.seconds is not None:
                yield f"seconds of {title}", film.seconds

    def count_stills(self) -> int:
        """Stills that the index holds."""
        return sum(film.stored for film in self.films.values())

    def to_json(self) -> dict:
        """The state as index.json has it."""
        values = {
            "format": FORMAT,
            "model": dataclasses.asdict(self.model),
            "basis": self.basis,
            "rule": self.rule and self.rule.to_json(),
            "scoring": dataclasses.asdict(self.scoring),
            "settled": self.films_at_fit,
            "films": {title: film.to_json() for title, film in self.films.items()},
            "unknown_share": self.unknown_share,
            "memory": self.memory,
            "pack": self.pack and dataclasses.asdict(self.pack),
        }
        if self.failed:
            values["failed"] = {path: dataclasses.asdict(failure) for path, failure in self.failed.items()}
        if self.renamed:
            values["renamed"] = self.renamed
        return values

    @classmethod
    def from_json(cls, values: dict) -> "State":
        """Raises KeyError, TypeError, AttributeError or ValueError for what to_json did not write."""
        rule = values["rule"]
        pack = values.get("pack")
        model = values["model"]
        state = cls(
            model=IndexedModel(model["architecture"], model["fingerprint"]),
            basis=values["basis"],
            rule=None if rule is None else Rule.from_json(rule),
            films_at_fit=values["settled"],
            films={title: Film.from_json(film) for title, film in values["films"].items()},
            unknown_share=values["unknown_share"],
            memory=values.get("memory", "plenty"),
            pack=None if pack is None else Pack(**pack),
            scoring=Scoring(**values.get("scoring", {})),  # an index of before has none of these
            failed={path: Failure(**failure) for path, failure in values.get("failed", {}).items()},
            renamed=dict(values.get("renamed", {})),
        )
        state.check()
        return state
