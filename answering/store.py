"""Where an index lies and is searched: a folder with numpy and faiss, or Milvus, where one machine ends.

Both engines have the same methods. What is written gets a new name; a last small write makes the state that names it
the one that readers see, so that a film is in it whole or not at all.
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from answering.console import UserError, atomic_write
from answering.projection import unit_length
from answering.state import FORMAT, Film, Pack, State
from answering.stills import Still, list_stills

EXACT = 200_000  # frames up to which plain numpy searches a folder; faiss beyond
LISTS = 4096  # of faiss, at most
PROBES = 24  # lists that faiss searches
NEAR = 64  # frames that a search finds
EXAMINED = 8  # films that are then compared exactly
FILES = "movie_by_frame_files"  # collection of Milvus for arrays
VECTORS = "movie_by_frame_vectors"  # and for vectors, with their dimensions behind it
PIECE_BYTES = 48_000  # of an array in a row of Milvus
ROWS = 100  # of Milvus a call
SOURCE = "telegram:"  # before the file names of users' stills in an index


def is_milvus(place: str | Path) -> bool:
    """Whether a place names Milvus, http://host:19530 or the file.db of Milvus Lite, and not a folder."""
    return str(place).startswith(("http://", "https://")) or Path(place).suffix == ".db"


def open_engine(place: str | Path) -> "Folder | Milvus":
    """The engine for a place: a folder, or Milvus."""
    return Milvus(str(place)) if is_milvus(place) else Folder(Path(place))


def short_hash(text) -> str:
    """What titles, users and answers are called on the disk, whatever characters they have."""
    return hashlib.sha256(str(text).encode(errors="replace")).hexdigest()[:12]


def new_name(title: str | None) -> str:
    """A name that was not there before: of a film's arrays, or of the projection's where title is None."""
    stem = "basis" if title is None else f"films/{short_hash(title)}"
    return f"{stem}-{os.urandom(4).hex()}"


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
    the rest, which is not offered again. FILM is short_hash of a title, so that titles never become paths.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def accepted(self, title: str) -> list[Still]:
        """A film's accepted stills, named as the index names them."""
        stills = list_stills(self.folder / short_hash(title))
        return [replace(still, file=SOURCE + still.file) for still in stills]

    def all_files(self) -> list[Path]:
        """Every picture that was ever offered and lies here still."""
        return list(self.folder.rglob("*.jpg"))

    def pending_files(self) -> list[Path]:
        """Pictures to choose from."""
        return sorted(self.folder.glob("pending/*/*.jpg"))

    def pending_folders(self) -> list[Path]:
        """A folder a film with pictures to choose from, named by the film's short_hash."""
        return sorted(self.folder.glob("pending/*"))

    def pending_file(self, title: str, name: str) -> Path:
        """Where a film's new picture goes."""
        return self.folder / "pending" / short_hash(title) / name

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


# -------------------------------------------------------------------------------------------------- Milvus


def batched(items: list, size: int) -> Iterator[list]:
    """Parts of items, each of at most this size."""
    return (items[start : start + size] for start in range(0, len(items), size))


class Milvus:
    """Two collections of a Milvus: arrays in base64, and a row a frame with its vector. One row names the state.

    place: http://user:password@host:19530/database, as much of it as is needed, or a file.db of Milvus Lite, which one
    process at a time can open. Milvus has no locks: of two writers one fails with its next film, which is not in the
    index then (but for the moment between a look at the state and the write of the next). Other hosts see a new film
    within seconds. What stopped writers left is removed by rebuild.
    """

    user_stills = None  # there is no folder for pictures

    def __init__(self, place: str):
        self.place = place
        self.seen: str | None = None  # version that the writer of here last read or wrote
        self.seen_names: set[str] = set()  # and the names that it holds
        self.made = False  # whether FILES is there
        try:
            from pymilvus import MilvusClient
        except ImportError:
            lite = "" if place.startswith("http") else " milvus-lite"
            raise UserError(f"--index {self}: needs pymilvus: pip install pymilvus{lite}", 2) from None
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints what it raises
        with self.asking():
            self.client = MilvusClient(place, timeout=20)
            for name in self.client.list_collections():
                if name.startswith("movie_by_frame_"):
                    self.client.load_collection(name)

    def __str__(self) -> str:
        return self.place.rpartition("@")[2]  # no password in messages

    @contextlib.contextmanager
    def asking(self):
        """Raise what Milvus raises as a UserError of one line."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            raise UserError(f"--index {self}: Milvus says: {str(error.message)[:200]}") from None

    def make_collection(self, name: str, fields: dict[str, int], dims: int) -> None:
        """Make a collection unless it is there; fields: strings and their greatest lengths, the first is the key."""
        from pymilvus import DataType, MilvusClient

        if self.client.has_collection(name):
            return
        schema = MilvusClient.create_schema()
        for place, (field, size) in enumerate(fields.items()):
            schema.add_field(field, DataType.VARCHAR, max_length=size, is_primary=place == 0)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dims)
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        self.client.create_collection(name, schema=schema, index_params=index)

    def read_rows(self, keys: list[str], consistency: str = "Session") -> dict[str, dict]:
        """Rows of FILES by their keys, those that are there; consistency: a level of Milvus."""
        fields = ["key", "about", "data"]
        found = {}
        with self.asking():
            self.made = self.made or self.client.has_collection(FILES)
            if not self.made:
                return found
            for part in batched(keys, ROWS):
                rows = self.client.get(FILES, part, output_fields=fields, consistency_level=consistency)
                found.update({row["key"]: row for row in rows})
        return found

    def version(self, consistency: str = "Session") -> str:
        """Name of the state that readers see."""
        row = self.read_rows(["now"], consistency).get("now")
        if not row:
            raise FileNotFoundError(str(self))
        return row["about"]

    def load(self) -> dict:
        return json.loads(self.read_arrays(self.version(), "state")[0].tobytes())

    @contextlib.contextmanager
    def writing(self):
        """Remember what is there, so that commit sees whether another writer came between."""
        self.seen = None
        self.seen_names = set()
        with contextlib.suppress(FileNotFoundError):
            self.seen = self.version("Strong")
            self.seen_names = read_state(self).names()
        yield

    def commit(self, state: State) -> None:
        values = json.dumps(state.to_json()).encode()
        name = self.write_arrays(None, {"state": np.frombuffer(values, np.uint8)})
        now = self.read_rows(["now"], "Strong").get("now", {}).get("about")
        if now != self.seen:
            raise UserError(f"--index {self}: another index.py wrote to it meanwhile; run this again")
        with self.asking():
            self.client.upsert(FILES, [{"key": "now", "file": "now", "about": name, "data": "", "vector": [0, 1]}])
        gone = self.seen_names | {self.seen}
        self.seen = name
        self.seen_names = state.names()
        self.remove(gone - {None} - self.seen_names)

    def remove(self, names: set[str]) -> None:
        """Remove the rows of arrays and vectors with these names."""
        with self.asking():
            for collection in self.client.list_collections():
                if not collection.startswith("movie_by_frame_"):
                    continue
                field = "file" if collection == FILES else "film"
                for part in batched(sorted(names), ROWS):
                    self.client.delete(collection, filter=f"{field} in {json.dumps(part)}")

    def remove_unnamed(self, state: State) -> None:
        """Remove what stopped writers left."""
        with self.asking():
            rows = self.client.query_iterator(FILES, batch_size=1000, filter='about != ""', output_fields=["file"])
            names = {row["file"] for part in iter(rows.next, []) for row in part}
        self.remove(names - state.names() - {"now", self.seen})

    def write_arrays(self, title: str | None, arrays: dict[str, np.ndarray]) -> str:
        name = new_name(title)
        rows = []
        for array, values in arrays.items():
            raw = values.tobytes()
            for piece in range(max(1, -(-len(raw) // PIECE_BYTES))):
                data = raw[piece * PIECE_BYTES : (piece + 1) * PIECE_BYTES]
                row = {
                    "key": f"{name}/{array}#{piece}",
                    "file": name,
                    "about": "" if piece else json.dumps([values.dtype.str, values.shape]),
                    "data": base64.b64encode(data).decode(),
                    "vector": [0, 1],  # Milvus will have a vector in each row
                }
                rows.append(row)
        with self.asking():
            self.make_collection(FILES, {"key": 200, "file": 200, "about": 1000, "data": 65_535}, 2)
            for part in batched(rows, ROWS):
                self.client.insert(FILES, part)
        return name

    def read_arrays(self, name: str, *arrays: str) -> list[np.ndarray]:
        first = self.read_rows([f"{name}/{array}#0" for array in arrays])
        found = []
        for array in arrays:
            row = first.get(f"{name}/{array}#0")
            if row is None:
                raise FileNotFoundError(f"{self}: {name}/{array}")
            kind, shape = json.loads(row["about"])
            count = -(-np.dtype(kind).itemsize * int(np.prod(shape)) // PIECE_BYTES)
            raw = base64.b64decode(row["data"]) + self.read_pieces(name, array, 1, count)
            found.append(np.frombuffer(raw, kind).reshape(shape))
        return found

    def read_pieces(self, name: str, array: str, start: int, end: int) -> bytes:
        """Pieces start to end, that one not included, of an array."""
        keys = [f"{name}/{array}#{piece}" for piece in range(start, end)]
        rows = self.read_rows(keys)
        if len(rows) < len(keys):
            raise FileNotFoundError(f"{self}: {name}/{array}")
        return b"".join(base64.b64decode(rows[key]["data"]) for key in keys)

    def read_bytes(self, name: str, array: str, start: int, end: int) -> bytes:
        first = start // PIECE_BYTES
        pieces = self.read_pieces(name, array, first, -(-end // PIECE_BYTES))
        return pieces[start - first * PIECE_BYTES : end - first * PIECE_BYTES]

    def write_vectors(self, title: str, vectors: np.ndarray) -> str:
        name = self.write_arrays(title, {"vectors": vectors})
        collection = f"{VECTORS}_{vectors.shape[1]}"
        rows = [{"key": f"{name}#{k}", "film": name, "vector": row} for k, row in enumerate(unit_length(vectors))]
        with self.asking():
            self.make_collection(collection, {"key": 200, "film": 200}, vectors.shape[1])
            for part in batched(rows, 1000):
                self.client.insert(collection, part)
        return name

    def read_vectors(self, name: str) -> np.ndarray:
        return unit_length(self.read_arrays(name, "vectors")[0])

    def pack(self, state: State) -> None:
        state.pack = None  # Milvus has an index of its own

    def searcher(self, state: State, names: list[str]) -> Callable[[np.ndarray], np.ndarray]:
        numbers = {name: number for number, name in enumerate(names)}
        options = {"limit": NEAR, "group_by_field": "film", "output_fields": ["film"], "consistency_level": "Session"}

        def best_by_film(vector: np.ndarray) -> np.ndarray:
            with self.asking():
                (hits,) = self.client.search(f"{VECTORS}_{len(vector)}", [vector.tolist()], **options)
            best = np.full(len(names), min((hit["distance"] for hit in hits), default=-1), np.float32)
            for hit in hits:
                number = numbers.get(hit["entity"]["film"])
                if number is not None:  # else of a stopped writer
                    best[number] = hit["distance"]
            return best

        return best_by_film
