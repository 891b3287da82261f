"""Films that come with the product, of which nobody is asked: an index starts from them and learns to refuse by them.

Their stills lie in strangers/; export.py embeds them with each network, into strangers.npz beside the exported files.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from answering.calibration import FilmSample
from answering.collection import fingerprint, is_same_model
from answering.console import UserError, atomic_write
from answering.embedding import embed_film
from answering.model import Identifier
from answering.projection import unit_length
from answering.stills import list_stills
from answering.titles import normalise_title, split_title

FILE = "strangers.npz"  # beside the exported files
STILLS = Path(__file__).resolve().parent.parent / "strangers"
LIKE = 0.6  # cosine of standardised embeddings: so near are frames of one film, and hardly any of two
LIKE_SHARE = 0.25  # of a film's stills that are so near to a film of the collection: it is the same film
COMPARED = 300  # frames of a film of the collection


@dataclass(frozen=True)
class Strangers:
    """Embeddings of films that come with the product, by one model."""

    titles: list[str]
    samples: list[FilmSample]  # a film each
    fingerprint: np.ndarray  # of the model, see collection.fingerprint

    def to_bytes(self) -> bytes:
        """An .npz file."""
        packed = io.BytesIO()
        np.savez_compressed(
            packed,
            title=np.array(self.titles, dtype=str),
            film=np.repeat(np.arange(len(self.samples)), [len(sample.embedding) for sample in self.samples]),
            embedding=np.concatenate([sample.embedding for sample in self.samples]).astype(np.float16),
            changed=np.repeat(np.arange(len(self.samples)), [len(sample.change) for sample in self.samples]),
            change=np.concatenate([sample.change for sample in self.samples]).astype(np.float16),
            fingerprint=self.fingerprint,
        )
        return packed.getvalue()

    @classmethod
    def from_bytes(cls, packed: bytes, place: object) -> "Strangers":
        """Raises UserError that names place for what to_bytes did not write."""
        try:
            with np.load(io.BytesIO(packed), allow_pickle=False) as file:
                parts = {name: file[name] for name in file.files}
            titles = parts["title"].tolist()
            samples = []
            for number in range(len(titles)):
                embedding = parts["embedding"][parts["film"] == number].astype(np.float32)
                change = parts["change"][parts["changed"] == number].astype(np.float32)
                samples.append(FilmSample(embedding, np.full(len(embedding), -1), change))
            if not all(len(sample.embedding) for sample in samples) or not np.isfinite(parts["embedding"]).all():
                raise ValueError("a film without stills")
            return cls(titles, samples, parts["fingerprint"].astype(np.float32).reshape(2, -1))
        except (ValueError, KeyError, TypeError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{place}: is damaged ({str(error)[:60]}); export the model again") from None

    def apart_from(self, titles: list[str], films: list[FilmSample]) -> list[FilmSample]:
        """The films that a collection of these titles and samples does not have, by title nor by likeness."""
        known = {normalise_title(split_title(title)[0]) for title in titles}
        pairs = zip(self.titles, self.samples, strict=True)
        others = [sample for title, sample in pairs if normalise_title(split_title(title)[0]) not in known]
        if not others or not films:
            return others
        stand = standardise_with([*films, *others])
        theirs = np.concatenate([stand(spread_rows(film.embedding)) for film in films])
        return [sample for sample in others if not is_among(stand(sample.embedding), theirs)]


def spread_rows(embedding: np.ndarray) -> np.ndarray:
    """At most COMPARED rows of [n, D], evenly spread."""
    return embedding[np.linspace(0, len(embedding) - 1, min(COMPARED, len(embedding))).astype(int)]


def standardise_with(films: list[FilmSample]):
    """A function from embeddings [n, D] to rows of length 1, by mean and standard deviation over these films."""
    rows = [spread_rows(film.embedding).astype(np.float32) for film in films]
    mean = np.mean([own.mean(0) for own in rows], axis=0)
    scale = np.sqrt(np.mean([((own - mean) ** 2).mean(0) for own in rows], axis=0)) + 1e-6
    return lambda embedding: unit_length((embedding.astype(np.float32) - mean) / scale)


def is_among(stills: np.ndarray, frames: np.ndarray) -> bool:
    """Whether a film's stills [n, D] are of a film that these frames [m, D] are of; rows of length 1."""
    return bool(((stills @ frames.T).max(1) >= LIKE).mean() >= LIKE_SHARE)


# ------------------------------------------------------------------------------------------- made, and found


def list_strangers(folder: Path = STILLS) -> list[Path]:
    """The folders of stills, one a film and named by its title; none where they did not come along."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def embed_strangers(identifier: Identifier, folder: Path = STILLS) -> Strangers | None:
    """The films of a folder of folders of stills as a model sees them; None where there are none."""
    folders = list_strangers(folder)
    if not folders:
        return None
    rows = [embed_film(list_stills(film), identifier) for film in folders]
    samples = [
        FilmSample(
            embedding=film.embedding,
            time_ms=film.time_ms,
            change=film.degraded_embedding.astype(np.float32) - film.clean_embedding,
        )
        for film in rows
    ]
    return Strangers([film.name for film in folders], samples, fingerprint(identifier))


def write_strangers(strangers: Strangers, folder: Path) -> Path:
    """Write them beside an exported model; returns the file."""
    path = folder / FILE
    with atomic_write(path) as file:
        file.write(strangers.to_bytes())
    return path


def find_strangers(model: str | Path, seen: np.ndarray) -> Strangers | None:
    """Those beside an exported folder or the one that its file lies in; None where there are none.

    seen: the model's fingerprint. Raises UserError for a damaged file, and for one of another model.
    """
    model = Path(model).absolute()
    around = model.parents[:1] if model.is_file() and model.suffix == ".onnx" else model.parents[:2]
    for folder in [model] if model.is_dir() else around:
        path = folder / FILE
        if path.is_file():
            strangers = Strangers.from_bytes(path.read_bytes(), path)
            if not is_same_model(strangers.fingerprint, seen):
                raise UserError(f"{path}: is of another model; export that one again")
            return strangers
    return None
