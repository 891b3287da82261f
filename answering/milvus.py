"""An index in Milvus, with the same methods as store.Folder, for when one machine is not enough."""

import base64
import contextlib
import json
import logging
from collections.abc import Callable, Iterator

import numpy as np

from answering.console import UserError
from answering.projection import unit_length
from answering.state import State, new_name

FILES = "movie_by_frame_files"  # collection of arrays
VECTORS = "movie_by_frame_vectors"  # and of vectors, with their dimensions behind it
PIECE_BYTES = 48_000  # of an array in a row
ROWS = 100  # a call
FILMS_FOUND = 64  # by a search


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
        self.seen: str | None = None  # version that was last read or written here, to write the next
        self.seen_names: set[str] = set()  # that the state of this version names
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
            self.seen_names = State.from_json(self.load()).names()
        yield

    def commit(self, state: State) -> None:
        values = json.dumps(state.to_json()).encode()
        name = self.write_arrays(None, {"state": np.frombuffer(values, np.uint8)})
        now = self.read_rows(["now"], "Strong").get("now", {}).get("about")
        if now != self.seen:
            raise UserError(f"--index {self}: another index.py wrote to it meanwhile; run this again")
        with self.asking():
            self.client.upsert(FILES, [{"key": "now", "file": "now", "about": name, "data": "", "vector": [0, 1]}])
        gone = ({self.seen} | self.seen_names) - {None} - state.names()
        self.seen = name
        self.seen_names = state.names()
        self.remove(gone)

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
        options = {
            "limit": FILMS_FOUND,
            "group_by_field": "film",
            "output_fields": ["film"],
            "consistency_level": "Session",
        }

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
