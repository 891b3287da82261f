"""Where an index lies and is searched: a folder with numpy and faiss, or Milvus, where one machine ends.

Nothing to run here; index.py does. Both classes have the same methods. What is written gets a new name; a last small
write makes the state that names it the one that readers see, so that a film is in it whole or not at all.
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from answering.console import UserError, atomic_write
from answering.projection import unit_length

EXACT = 200_000  # frames up to which plain numpy searches a folder; faiss beyond
LISTS, PROBES, NEAR, EXAMINED = 4096, 24, 64, 8  # of faiss: lists, those searched, frames found, films then compared
FILES, VECTORS, PIECE, ROWS = "movie_by_frame_files", "movie_by_frame_vectors", 48_000, 100  # bytes a row, rows a call
SOURCE = "telegram:"  # before the file names of such stills in an index


def is_milvus(place: str | Path) -> bool:
    """Whether a place names Milvus, http://host:19530 or the file.db of Milvus Lite, and not a folder."""
    return str(place).startswith(("http://", "https://")) or Path(place).suffix == ".db"


def open_engine(place: str | Path):
    """The engine for a place: a folder, or Milvus."""
    return Milvus(str(place)) if is_milvus(place) else Folder(Path(place))


def new_name(title: str | None) -> str:
    """A name that was not there before, whatever signs the title has."""
    stem = f"films/{hashlib.sha256(title.encode(errors='replace')).hexdigest()[:12]}" if title is not None else "basis"
    return f"{stem}-{os.urandom(4).hex()}"


def named_files(state: dict) -> set[str]:
    """The names that a state holds."""
    named = {film[kind] for film in state["films"].values() for kind in ("frames", "vectors")} | {state["basis"]}
    return (named | ({state["pack"]["file"]} if state.get("pack") else set())) - {None}


class Folder:
    """index.json is the state; beside it lie .npz and .npy files, and a .faiss of large indexes."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def stamp(self):
        """What changes with each commit. Raises FileNotFoundError where no index is."""
        stat = (self.path / "index.json").stat()
        return stat.st_mtime_ns, stat.st_ino

    def load(self) -> dict:
        """The state. Raises FileNotFoundError, ValueError."""
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

    def commit(self, state: dict) -> None:
        """Make state the one that readers see, then remove what it does not name."""
        with atomic_write(self.path / "index.json", "w", encoding="utf-8") as file:
            json.dump(state, file, ensure_ascii=False, indent=1)
        self.sweep(state)

    def sweep(self, state: dict) -> None:
        """Remove what the state does not name, a stopped writer's things too."""
        named = named_files(state)
        for pattern in ("films/*", "basis-*", "pack-*", "films/.*.part", ".*.part"):
            for file in self.path.glob(pattern):
                if str(file.relative_to(self.path)) not in named:
                    file.unlink(missing_ok=True)

    def put(self, title: str | None, arrays: dict[str, np.ndarray]) -> str:
        """Write arrays of a film, or of the projection where title is None; returns their name."""
        name = new_name(title) + ".npz"
        with atomic_write(self.path / name) as out:
            np.savez(out, **arrays)
        return name

    def get(self, name: str, *arrays: str) -> list[np.ndarray]:
        """Arrays that put wrote. Raises UserError for damaged ones, FileNotFoundError where they are gone."""
        with self.reading(name), np.load(self.path / name, allow_pickle=False) as loaded:
            return [loaded[array] for array in arrays]

    def get_part(self, name: str, array: str, start: int, end: int) -> bytes:
        """A part of an array of bytes."""
        return self.get(name, array)[0][start:end].tobytes()

    def put_vectors(self, title: str, vectors: np.ndarray) -> str:
        """Write a film's vectors int8 [n, d]; returns their name."""
        name = new_name(title) + ".npy"
        with atomic_write(self.path / name) as out:
            np.save(out, vectors)
        return name

    def get_vectors(self, name: str) -> np.ndarray:
        """A film's vectors, float32 [n, d] of length 1."""
        with self.reading(name):
            return unit_length(np.load(self.path / name, allow_pickle=False))

    @contextlib.contextmanager
    def reading(self, name: str):
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # numpy and zipfile raise many kinds on damaged files
            mend = f"python index.py {'check' if name.startswith('films/') else 'rebuild'} --index {self}"
            raise UserError(f"--index {self}: {name} is damaged ({str(error)[:60]}); {mend}") from None

    def pack(self, state: dict) -> None:
        """Put all vectors into one faiss index where they are too many for plain numpy; says so.

        8 bits a number, or with memory small 1 bit (RaBitQ, Gao 2024); the best films are compared exactly either way.
        """
        films, before = [film for film in state["films"].values() if film["vectors"]], state.get("pack")
        count = sum(film["stored"] for film in films)
        held = set(before["films"]) if before else set()
        loose = sum(film["stored"] for film in films if film["vectors"] not in held)
        if count <= EXACT or (before and loose <= min(EXACT, count / 10) and before["memory"] == state["memory"]):
            state["pack"] = before if count > EXACT else None
            return
        faiss, small = import_faiss(), state["memory"] == "small"
        lists = min(LISTS, int(4 * count**0.5))
        bits = "1 bit" if small else "8 bits"
        print(f"{count} stills: searched by faiss in {lists} lists, {bits} a number", flush=True)
        some = [self.get_vectors(film["vectors"]) for film in films[:: max(1, count // (40 * lists))]]
        some = np.concatenate(some)
        kind = "RaBitQ" if small else "SQ8"
        index = faiss.index_factory(some.shape[1], f"IVF{lists},{kind}", faiss.METRIC_INNER_PRODUCT)
        faiss.extract_index_ivf(index).cp.niter = 10  # of k-means; in bench.py index it finds what an exact search does
        index.train(some)
        for film in films:
            index.add(self.get_vectors(film["vectors"]))
        file = f"pack-{os.urandom(4).hex()}.faiss"
        with atomic_write(self.path / file) as out:
            faiss.write_index(index, out.name)
        rows, names = [film["stored"] for film in films], [film["vectors"] for film in films]
        state["pack"] = {"file": file, "films": names, "rows": rows, "memory": state["memory"]}

    def searcher(self, state: dict, names: list[str]) -> Callable[[np.ndarray], np.ndarray]:
        """Function from a vector [d] to the similarity [F] of the nearest frame of each film; names: their vectors'.

        Films that faiss does not find get the least that it found, which is more than they have.
        """
        number, pack = {name: place for place, name in enumerate(names)}, state.get("pack")
        packed = np.array([number.pop(name, -1) for name in pack["films"]] if pack else [], int)  # -1: removed since
        tail, stored = np.array([*number.values()], int), {f["vectors"]: f["stored"] for f in state["films"].values()}
        starts, vectors = np.cumsum([0, *(stored[name] for name in number)]), None  # of films that faiss does not hold
        for name, start in zip(number, starts, strict=False):  # in place, so that memory holds them once
            part = self.get_vectors(name)
            vectors = np.empty((starts[-1], part.shape[1]), np.float32) if vectors is None else vectors
            with self.reading(name):
                vectors[start : start + stored[name]] = part
        starts = starts[:-1]
        if pack:
            faiss, ends = import_faiss(), np.cumsum(pack["rows"])
            with self.reading(pack["file"]):
                if not (self.path / pack["file"]).exists():
                    raise FileNotFoundError(pack["file"])
                index = faiss.read_index(str(self.path / pack["file"]), faiss.IO_FLAG_MMAP_IFC)  # stays on the disk
            index.nprobe = PROBES

        def best_by_film(vector: np.ndarray) -> np.ndarray:
            best = np.full(len(names), -1, np.float32)
            if pack:
                alike, rows = index.search(vector[None], NEAR)
                film = packed[np.searchsorted(ends, rows[rows >= 0], side="right")]
                alike, film = alike[rows >= 0][film >= 0], film[film >= 0]
                best[packed[packed >= 0]] = alike.min(initial=1)
                np.maximum.at(best, film, alike)
                found = np.unique(film)
                for f in found[np.argsort(-best[found])[:EXAMINED]].tolist():  # exactly, from the disk
                    best[f] = (self.get_vectors(names[f]) @ vector).max()
            if vectors is not None:
                best[tail] = np.maximum.reduceat(vectors @ vector, starts)
            return best

        return best_by_film


def batched(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))


def import_faiss():
    """The module, or a UserError that names the package."""
    try:
        import faiss
    except ImportError:
        raise UserError(f"an index of more than {EXACT} stills needs faiss: pip install faiss-cpu", 2) from None
    return faiss


class Milvus:
    """Two collections of a Milvus: arrays in base64, and a row a frame with its vector. One row names the state.

    place: http://user:password@host:19530/database, as much of it as is needed, or a file.db of Milvus Lite, which one
    process at a time can open. Milvus has no locks: of two writers one fails with its next film, which is not in the
    index then (but for the moment between a look at the state and the write of the next). Other hosts see a new film
    within seconds. What stopped writers left is removed by rebuild.
    """

    def __init__(self, place: str):
        self.place, self.seen, self.made = place, None, False
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
        """What Milvus raises, on one line."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            raise UserError(f"--index {self}: Milvus says: {str(error.message)[:200]}") from None

    def make(self, name: str, fields: dict[str, int], dims: int) -> None:
        """A collection unless it is there; fields: strings and the bytes that each may have, the first is the key."""
        from pymilvus import DataType, MilvusClient

        if self.client.has_collection(name):
            return
        schema, index = MilvusClient.create_schema(), MilvusClient.prepare_index_params()
        for place, (field, size) in enumerate(fields.items()):
            schema.add_field(field, DataType.VARCHAR, max_length=size, is_primary=place == 0)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dims)
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        self.client.create_collection(name, schema=schema, index_params=index)

    def rows(self, keys: list[str], level: str = "Session") -> dict[str, dict]:
        """Rows of FILES by their keys, those that are there; level: of consistency."""
        found, fields = {}, ["key", "about", "data"]
        with self.asking():
            self.made = self.made or self.client.has_collection(FILES)
            for part in batched(keys, ROWS) if self.made else []:
                got = self.client.get(FILES, part, output_fields=fields, consistency_level=level)
                found |= {row["key"]: row for row in got}
        return found

    def stamp(self, level: str = "Session") -> str:
        row = self.rows(["now"], level).get("now")
        if not row:
            raise FileNotFoundError(str(self))
        return row["about"]

    def load(self) -> dict:
        return json.loads(self.get(self.stamp(), "state")[0].tobytes())

    @contextlib.contextmanager
    def writing(self):
        try:
            self.seen, self.before = self.stamp("Strong"), self.load()
        except FileNotFoundError:
            self.seen, self.before = None, None
        yield

    def commit(self, state: dict) -> None:
        name = self.put(None, {"state": np.frombuffer(json.dumps(state).encode(), np.uint8)})
        now = self.rows(["now"], "Strong").get("now", {}).get("about")
        if now != self.seen:
            raise UserError(f"--index {self}: another index.py wrote to it meanwhile; run this again")
        with self.asking():
            self.client.upsert(FILES, [{"key": "now", "file": "now", "about": name, "data": "", "vector": [0, 1]}])
        gone = {self.seen, *(named_files(self.before) if self.before else ())} - {None}
        self.seen, self.before = name, json.loads(json.dumps(state))
        self.remove(gone - named_files(state))

    def remove(self, names: set[str]) -> None:
        with self.asking():
            for collection in self.client.list_collections():
                field = {FILES: "file"}.get(collection, "film")
                for some in batched(sorted(names), ROWS) if collection.startswith("movie_by_frame_") else []:
                    self.client.delete(collection, filter=f"{field} in {json.dumps(some)}")

    def sweep(self, state: dict) -> None:
        """Remove what stopped writers left."""
        with self.asking():
            rows = self.client.query_iterator(FILES, batch_size=1000, filter='about != ""', output_fields=["file"])
            names = {row["file"] for part in iter(rows.next, []) for row in part}
        self.remove(names - named_files(state) - {"now", self.seen})

    def put(self, title: str | None, arrays: dict[str, np.ndarray]) -> str:
        name, rows = new_name(title), []
        for array, values in arrays.items():
            raw, about = values.tobytes(), json.dumps([values.dtype.str, values.shape])
            for k in range(max(1, -(-len(raw) // PIECE))):
                data = base64.b64encode(raw[k * PIECE : (k + 1) * PIECE]).decode()
                row = {"key": f"{name}/{array}#{k}", "file": name, "about": "" if k else about, "data": data}
                rows.append(row | {"vector": [0, 1]})  # Milvus will have a vector in each row
        with self.asking():
            self.make(FILES, {"key": 200, "file": 200, "about": 1000, "data": 65_535}, 2)
            for some in batched(rows, ROWS):
                self.client.insert(FILES, some)
        return name

    def get(self, name: str, *arrays: str) -> list[np.ndarray]:
        first, found = self.rows([f"{name}/{array}#0" for array in arrays]), []
        for array in arrays:
            if f"{name}/{array}#0" not in first:
                raise FileNotFoundError(f"{self}: {name}/{array}")
            kind, shape = json.loads(first[f"{name}/{array}#0"]["about"])
            count = -(-np.dtype(kind).itemsize * int(np.prod(shape)) // PIECE)
            raw = base64.b64decode(first[f"{name}/{array}#0"]["data"]) + self.pieces(name, array, 1, count)
            found.append(np.frombuffer(raw, kind).reshape(shape))
        return found

    def pieces(self, name: str, array: str, start: int, end: int) -> bytes:
        keys = [f"{name}/{array}#{k}" for k in range(start, end)]
        rows = self.rows(keys)
        if len(rows) < len(keys):
            raise FileNotFoundError(f"{self}: {name}/{array}")
        return b"".join(base64.b64decode(rows[key]["data"]) for key in keys)

    def get_part(self, name: str, array: str, start: int, end: int) -> bytes:
        first = start // PIECE
        return self.pieces(name, array, first, -(-end // PIECE))[start - first * PIECE : end - first * PIECE]

    def put_vectors(self, title: str, vectors: np.ndarray) -> str:
        name, collection = self.put(title, {"vectors": vectors}), f"{VECTORS}_{vectors.shape[1]}"
        rows = [{"key": f"{name}#{k}", "film": name, "vector": v} for k, v in enumerate(unit_length(vectors))]
        with self.asking():
            self.make(collection, {"key": 200, "film": 200}, vectors.shape[1])
            for some in batched(rows, 1000):
                self.client.insert(collection, some)
        return name

    def get_vectors(self, name: str) -> np.ndarray:
        return unit_length(self.get(name, "vectors")[0])

    def pack(self, state: dict) -> None:
        state["pack"] = None  # Milvus has an index of its own

    def searcher(self, state: dict, names: list[str]) -> Callable[[np.ndarray], np.ndarray]:
        number = {name: place for place, name in enumerate(names)}
        how = {"limit": NEAR, "group_by_field": "film", "output_fields": ["film"], "consistency_level": "Session"}

        def best_by_film(vector: np.ndarray) -> np.ndarray:
            with self.asking():
                (hits,) = self.client.search(f"{VECTORS}_{len(vector)}", [vector.tolist()], **how)
            best = np.full(len(names), min((hit["distance"] for hit in hits), default=-1), np.float32)
            for hit in hits:
                if (place := number.get(hit["entity"]["film"])) is not None:  # else of a stopped writer
                    best[place] = hit["distance"]
            return best

        return best_by_film


# --------------------------------------------------------------------------- stills of users in an index


def short(text) -> str:
    """What titles, users and answers are called on the disk, whatever signs they have."""
    return hashlib.sha256(str(text).encode(errors="replace")).hexdigest()[:12]


def folder_of(engine) -> Path:
    """Where the users' pictures of an index lie. Raises UserError where it is no folder."""
    if not isinstance(engine, Folder):
        raise UserError(f"--index {engine}: what users send is kept beside an index in a folder; name one", 2)
    return engine.path / "telegram"


def put_away(file: Path, home: Path) -> None:
    """A picture that the index shall not have; here it is not offered again."""
    (home / "refused").mkdir(exist_ok=True)
    os.replace(file, home / "refused" / file.name)
