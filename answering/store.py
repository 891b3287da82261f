"""Where an index is kept and searched: a folder with numpy and faiss, or Milvus when one machine is not enough.

Both engines have the same methods (milvus.py has the other). What is added gets new names, and the state that lists it
is replaced last, so readers never see half a film.
"""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from answering.console import UserError, atomic_write
from answering.milvus import Milvus
from answering.projection import unit_length
from answering.state import FORMAT, Film, Pack, State, hashed_name, new_name
from answering.stills import Still, list_stills

EXACT = 200_000  # frames up to which plain numpy searches a folder; faiss beyond
LISTS = 4096  # of faiss, at most
PROBES = 24  # lists that faiss searches
NEAR = 64  # frames that a search finds
EXAMINED = 8  # films that are then compared exactly
USER_STILL_PREFIX = "telegram:"  # before the file names of users' stills in an index


def is_milvus(place: str | Path) -> bool:
    """Whether a place names Milvus, http://host:19530 or the file.db of Milvus Lite, and not a folder."""
    return str(place).startswith(("http://", "https://")) or Path(place).suffix == ".db"


def open_engine(place: str | Path) -> "Folder | Milvus":
    """The engine for a place: a folder, or Milvus."""
    return Milvus(str(place)) if is_milvus(place) else Folder(Path(place))


def read_state(engine: "Folder | Milvus") -> State:
    """What the index says of itself. Raises UserError for a damaged one, for another version, and where none is."""
    try:
        values = engine.load()
        if values["format"] != FORMAT:
            raise UserError(
                f"--index {engine}: its format is {str(values['format'])[:40]!r}, not {FORMAT!r}; make it anew"
            )
        return State.from_json(values)
    except FileNotFoundError:
        raise UserError(f"--index {engine}: no index there; python index.py add RAW --index {engine}", 2) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"--index {engine}: index.json is damaged ({str(error)[:60]}); make it anew") from None


# ------------------------------------------------------------------------------------------ stills of users


class UserStills:
    """Pictures that the bot's users confirmed, in the folder telegram/ of an index.

    telegram/FILM/ holds what the owner accepted, telegram/pending/FILM/ what is to be chosen from, telegram/refused/
    the rest, which is not offered again. FILM is hashed_name of a title, so that titles never become paths.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def accepted(self, title: str) -> list[Still]:
        """A film's accepted stills, named as the index names them."""
        stills = list_stills(self.folder / hashed_name(title))
        return [replace(still, file=USER_STILL_PREFIX + still.file) for still in stills]

    def all_files(self) -> list[Path]:
        """Every picture that was ever offered and lies here still."""
        return list(self.folder.rglob("*.jpg"))

    def pending_files(self) -> list[Path]:
        """Pictures to choose from."""
        return sorted(self.folder.glob("pending/*/*.jpg"))

    def pending_folders(self) -> list[Path]:
        """A folder a film with pictures to choose from, named by the film's hashed_name."""
        return sorted(self.folder.glob("pending/*"))

    def pending_file(self, title: str, name: str) -> Path:
        """Where a film's new picture goes."""
        return self.folder / "pending" / hashed_name(title) / name

    def accept(self, file: Path) -> None:
        """Move a pending picture to its film."""
        folder = self.folder / file.parent.name
        folder.mkdir(exist_ok=True)
        os.replace(file, folder / file.name)

    def refuse(self, file: Path) -> None:
        """Put away a picture that the index shall not have; here it is not offered again."""
        folder = self.folder / "refused"
        folder.mkdir(exist_ok=True)
        os.replace(file, folder / file.name)

    def rename(self, old: str, new: str) -> None:
        """Keep a film's pictures, accepted and pending, under its new title; they join what was there of that title."""
        for folder in (self.folder, self.folder / "pending"):
            target = folder / hashed_name(new)
            for file in (folder / hashed_name(old)).glob("*"):
                target.mkdir(exist_ok=True)
                os.replace(file, target / file.name)

    def refuse_accepted(self) -> None:
        """Put away all that was accepted."""
        for file in self.folder.glob("*/*.jpg"):
            self.refuse(file)


def require_user_stills(engine: "Folder | Milvus") -> UserStills:
    """The users' stills of an index. Raises UserError where it is no folder."""
    if engine.user_stills is None:
        raise UserError(f"--index {engine}: what users send is kept beside an index in a folder; name one", 2)
    return engine.user_stills


# ------------------------------------------------------------------------------------------------ a folder


class Folder:
    """index.json is the state; beside it lie .npz and .npy files, and a .faiss of large indexes."""

    def __init__(self, path: Path):
        self.path = path
        self.user_stills = UserStills(path / "telegram")

    def __str__(self) -> str:
        return str(self.path)

    def version(self) -> tuple[int, int]:
        """What changes with each commit. Raises FileNotFoundError where no index is."""
        stat = (self.path / "index.json").stat()
        return stat.st_mtime_ns, stat.st_ino

    def load(self) -> dict:
        """The state as JSON, see read_state. Raises FileNotFoundError, ValueError."""
        return json.loads((self.path / "index.json").read_text("utf-8"))

    @contextlib.contextmanager
    def writing(self):
        """Hold the folder against other writers. Raises UserError if one is at work."""
        import fcntl  # Windows has none; an index can still be read there

        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"--index {self}: another index.py is writing to it; run this again after it") from None
            yield

    def commit(self, state: State) -> None:
        """Make state the one that readers see, then remove what it does not name."""
        with atomic_write(self.path / "index.json", "w", encoding="utf-8") as file:
            json.dump(state.to_json(), file, ensure_ascii=False, indent=1)
        self.remove_unnamed(state)

    def remove_unnamed(self, state: State) -> None:
        """Remove what the state does not name, also what a stopped writer left."""
        named = state.names()
        for pattern in ("films/*", "basis-*", "pack-*", "films/.*.part", ".*.part"):
            for file in self.path.glob(pattern):
                if str(file.relative_to(self.path)) not in named:
                    file.unlink(missing_ok=True)

    def write_arrays(self, title: str | None, arrays: dict[str, np.ndarray]) -> str:
        """Write arrays of a film, or of the projection where title is None; returns their name."""
        name = new_name(title) + ".npz"
        with atomic_write(self.path / name) as out:
            np.savez(out, **arrays)
        return name

    def read_arrays(self, name: str, *arrays: str) -> list[np.ndarray]:
        """Arrays of write_arrays. Raises UserError for damaged ones, FileNotFoundError where they are gone."""
        with self.reading(name), np.load(self.path / name, allow_pickle=False) as loaded:
            return [loaded[array] for array in arrays]

    def read_bytes(self, name: str, array: str, start: int, end: int) -> bytes:
        """A part of an array of bytes."""
        return self.read_arrays(name, array)[0][start:end].tobytes()

    def write_vectors(self, title: str, vectors: np.ndarray) -> str:
        """Write a film's vectors int8 [n, d]; returns their name."""
        name = new_name(title) + ".npy"
        with atomic_write(self.path / name) as out:
            np.save(out, vectors)
        return name

    def read_vectors(self, name: str) -> np.ndarray:
        """A film's vectors, float32 [n, d] of length 1."""
        with self.reading(name):
            return unit_length(np.load(self.path / name, allow_pickle=False))

    @contextlib.contextmanager
    def reading(self, name: str):
        """Raise UserError for a damaged file of this name."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # numpy and zipfile raise many kinds on damaged files
            mend = f"python index.py {'check' if name.startswith('films/') else 'rebuild'} --index {self}"
            raise UserError(f"--index {self}: {name} is damaged ({str(error)[:60]}); {mend}") from None

    def pack(self, state: State) -> None:
        """Put all vectors into one faiss index where they are too many for plain numpy; says so."""
        films = [film for film in state.films.values() if film.vectors_file]
        if sum(film.stored for film in films) <= EXACT:
            state.pack = None
        elif not self.is_packed(state, films):
            state.pack = self.write_pack(films, state.memory)

    def is_packed(self, state: State, films: list[Film]) -> bool:
        """Whether the faiss index of before still holds most of these films."""
        if state.pack is None or state.pack.memory != state.memory:
            return False
        packed = set(state.pack.films)
        loose = sum(film.stored for film in films if film.vectors_file not in packed)
        return loose <= min(EXACT, sum(film.stored for film in films) / 10)

    def write_pack(self, films: list[Film], memory: str) -> Pack:
        """Write a faiss index of these films.

        8 bits a number, or with memory small 1 bit (RaBitQ, Gao 2024); the best films are compared exactly either way.
        """
        faiss = import_faiss()
        count = sum(film.stored for film in films)
        lists = min(LISTS, int(4 * count**0.5))
        kind, bits = ("RaBitQ", "1 bit") if memory == "small" else ("SQ8", "8 bits")
        print(f"{count} stills: searched by faiss in {lists} lists, {bits} a number", flush=True)
        sample = films[:: max(1, count // (40 * lists))]
        sample = np.concatenate([self.read_vectors(film.vectors_file) for film in sample])
        index = faiss.index_factory(sample.shape[1], f"IVF{lists},{kind}", faiss.METRIC_INNER_PRODUCT)
        faiss.extract_index_ivf(index).cp.niter = 10  # of k-means; in bench.py index it finds what an exact search does
        index.train(sample)
        for film in films:
            index.add(self.read_vectors(film.vectors_file))
        file = f"pack-{os.urandom(4).hex()}.faiss"
        with atomic_write(self.path / file) as out:
            faiss.write_index(index, out.name)
        return Pack(file, [film.vectors_file for film in films], [film.stored for film in films], memory)

    def searcher(self, state: State, names: list[str]) -> Callable[[np.ndarray], np.ndarray]:
        """Function from a vector [d] to the similarity [F] of the nearest frame of each film; names: their vectors'.

        Films that faiss does not find get the least that it found, which is more than they have.
        """
        packed = FaissSearch(self, state.pack, names) if state.pack else None
        in_pack = set(state.pack.films) if state.pack else set()
        flat = FlatSearch(self, state, names, in_pack)

        def best_by_film(vector: np.ndarray) -> np.ndarray:
            best = np.full(len(names), -1, np.float32)
            if packed:
                packed.search(vector, best)
            flat.search(vector, best)
            return best

        return best_by_film


class FlatSearch:
    """Films that faiss does not hold: their vectors lie in memory and are all compared."""

    def __init__(self, folder: Folder, state: State, names: list[str], in_pack: set[str]):
        stored = {film.vectors_file: film.stored for film in state.films.values()}
        numbers = {name: number for number, name in enumerate(names) if name not in in_pack}
        starts = np.cumsum([0, *(stored[name] for name in numbers)])
        self.films = np.array([*numbers.values()], int)
        self.starts = starts[:-1]  # of each film in vectors
        self.vectors = None
        for name, start in zip(numbers, self.starts, strict=True):  # in place, so that memory holds them once
            part = folder.read_vectors(name)
            if self.vectors is None:
                self.vectors = np.empty((starts[-1], part.shape[1]), np.float32)
            with folder.reading(name):
                self.vectors[start : start + stored[name]] = part

    def search(self, vector: np.ndarray, best: np.ndarray) -> None:
        """Write the similarity of the nearest frame of each of these films into best [F]."""
        if self.vectors is not None:
            best[self.films] = np.maximum.reduceat(self.vectors @ vector, self.starts)


class FaissSearch:
    """Films of a faiss index: it finds frames, and the best films are then compared exactly."""

    def __init__(self, folder: Folder, pack: Pack, names: list[str]):
        faiss = import_faiss()
        numbers = {name: number for number, name in enumerate(names)}
        self.folder = folder
        self.names = names
        self.films = np.array([numbers.get(name, -1) for name in pack.films], int)  # -1: removed since
        self.ends = np.cumsum(pack.rows)
        with folder.reading(pack.file):
            if not (folder.path / pack.file).exists():
                raise FileNotFoundError(pack.file)
            self.index = faiss.read_index(str(folder.path / pack.file), faiss.IO_FLAG_MMAP_IFC)  # stays on the disk
        self.index.nprobe = PROBES

    def search(self, vector: np.ndarray, best: np.ndarray) -> None:
        """Write the similarity of the nearest frame of each of these films into best [F]."""
        similarity, rows = self.index.search(vector[None], NEAR)
        found = rows >= 0
        film = self.films[np.searchsorted(self.ends, rows[found], side="right")]
        present = film >= 0
        similarity, film = similarity[found][present], film[present]
        best[self.films[self.films >= 0]] = similarity.min(initial=1)
        np.maximum.at(best, film, similarity)
        candidates = np.unique(film)
        for number in candidates[np.argsort(-best[candidates])[:EXAMINED]].tolist():  # exactly, from the disk
            best[number] = (self.folder.read_vectors(self.names[number]) @ vector).max()


def import_faiss():
    """The module, or a UserError that names the package."""
    try:
        import faiss
    except ImportError:
        raise UserError(f"an index of more than {EXACT} stills needs faiss: pip install faiss-cpu", 2) from None
    return faiss
