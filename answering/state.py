"""What a collection says of itself and of its films; answering/store.py reads and writes it."""

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from answering.calibration import UNKNOWN_SHARE, Rule
from answering.projection import Scoring

FORMAT = 4  # of the tables; 3 and before were folders


def hashed_name(text) -> str:
    """What users and answers are called, and what films were called on the disk, whatever characters they have."""
    return hashlib.sha256(str(text).encode(errors="replace")).hexdigest()[:12]


@dataclass(frozen=True)
class Film:
    """A film of a collection."""

    id: int  # greater than those of all films before; a film that is replaced gets a new one
    title: str
    year: int | None = None
    imdb: str | None = None
    content_key: str = ""  # changes when its files do
    stills: int = 0  # found in its files
    stored: int = 0  # of them, without near-duplicates
    added: int = 0  # seconds since 1970
    seconds: float | None = None  # how long it plays, or as far as it could be read; None for a film of stills
    partial: str | None = None  # how far its file could be read, in words; None where it is whole
    file: str | None = None  # path of the video, or of its first part


@dataclass(frozen=True)
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
class About:
    """What a collection says of itself; a row of the table about for each field, in JSON."""

    model: IndexedModel
    format: int = FORMAT
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)  # of the collection, and its copies
    rule: Rule | None = None
    scoring: Scoring = field(default_factory=Scoring)
    unknown_share: float = UNKNOWN_SHARE  # that the thresholds are fitted for
    films_at_fit: int = 0  # how many films there were when projection and thresholds were fitted
    fit: int = 0  # how often they were fitted; 0: not yet, and no film has vectors
    revision: int = 0  # grows with each transaction
    last_change: int = 0  # id of the last row of change
    last_film: int = 0  # the greatest id that a film ever had
    gathered_through: int = 0  # films up to this id are in cells
    stills_gathered: int = 0  # in cells, those of films that are gone among them
    stills_at_cells: int = 0  # that the cells were fitted on; 0: there are none
    cells_fit: int = 0  # how often cells were fitted

    def to_rows(self) -> list[tuple[str, str]]:
        """(key, value) of each row."""
        values = asdict(self) | {"rule": self.rule and self.rule.to_json()}
        return [(key, json.dumps(value, ensure_ascii=False)) for key, value in values.items()]

    @classmethod
    def from_rows(cls, rows: list[tuple[str, str]]) -> "About":
        """Raises KeyError, TypeError, AttributeError or ValueError for what to_rows did not write."""
        values = {key: json.loads(value) for key, value in rows}
        rule = values.pop("rule")
        model = IndexedModel(**values.pop("model"))
        scoring = Scoring(**values.pop("scoring"))
        about = cls(model=model, rule=None if rule is None else Rule.from_json(rule), scoring=scoring, **values)
        about.check()
        return about

    def check(self) -> None:
        """Raise TypeError or ValueError for values that to_rows did not write."""
        for name, value in self.numbers():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} is no number")
        if len(base64.b64decode(self.model.fingerprint, validate=True)) % 8:  # of float32 [2, D]
            raise ValueError("fingerprint")
        if self.fit and self.rule is None:
            raise ValueError("a projection without a rule")

    def numbers(self) -> Iterator[tuple[str, float]]:
        """What answers are computed with, and what each is called."""
        together = self.rule.together if self.rule else []
        for part in (self, self.scoring, self.rule, *together):
            if part is not None:
                for name, value in vars(part).items():
                    if name not in ("model", "identity", "rule", "scoring", "figures", "together"):
                        yield name, value


@dataclass
class State:
    """What a writer knows of a collection while it works; each method of Collection that changes one changes both."""

    about: About
    films: dict[str, Film] = field(default_factory=dict)  # by title
    failed: dict[str, Failure] = field(default_factory=dict)  # by the path of the file, or of a film's first part
    renamed: dict[str, str] = field(default_factory=dict)  # title that a file means: title that the user gave it

    def count_stills(self) -> int:
        """Stills that the index holds."""
        return sum(film.stored for film in self.films.values())
