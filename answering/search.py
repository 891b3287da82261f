"""Search a collection: how like a vector is to each film, and the still that proves it.

Up to EXACT stills all vectors lie in memory, in 8 bits: every still is compared in its widest dimensions, then the
films that come out best are compared exactly. Beyond that the vectors lie in the tables, gathered by cells (IVF:
inverted file, Jegou 2011), and only what came since the last gathering lies in memory.
"""

import numpy as np

from answering.console import UserError
from answering.projection import Scoring, blend_similarity, unit_length
from answering.state import About
from answering.store import Collection

EXACT = 200_000  # stills up to which no cells are made
HEAD = 16  # dimensions that every still is compared in: the last, which vary most between films
SMALL = 16_384  # stills up to which all dimensions are
EXAMINED_FILMS = 64  # that are then compared exactly
EXAMINED_STILLS = 16_000  # of them in all, but for EXAMINED_LEAST films
EXAMINED_LEAST = 8
CHUNK = 8192  # stills that are turned into floats at a time, which the processor's cache holds
LOOSE = 5000  # stills outside of cells from which on they are gathered
REFIT_GROWTH = 4  # cells are fitted anew when so many times more stills lie in them
DEAD_SHARE = 0.25  # or so many of them are of films that are gone
MOST_CELLS = 8192
PROBES = 10  # cells that a search reads
NEAR = 64  # stills found in cells; the last of them stands for those of films that were not found
NEAR_FILMS = 32  # films from the tables that are compared exactly
PART = 64  # stills of a cell in a row of gathered
GATHER_STILLS = 200_000  # in memory at a time while cells are filled
SLICE_OF_FILMS = 100  # that are read at a time while cells are filled
SAMPLE = 24  # stills a cell that cells are fitted on
ROUNDS = 8  # of k-means


def multiply(rows: np.ndarray, vector: np.ndarray, out: np.ndarray) -> None:
    """rows int8 [n, d] times vector float32 [d], into out float32 [n]; rows stay in 8 bits but for a chunk."""
    floats = np.empty((min(CHUNK, len(rows)), rows.shape[1]), np.float32)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        chunk = floats[: len(part)]
        np.copyto(chunk, part)
        np.dot(chunk, vector, out=out[start : start + len(part)])


def inverse_lengths(rows: np.ndarray) -> np.ndarray:
    """One over the length of rows int8 [n, d], float32 [n]."""
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK].astype(np.float32)
        found[start : start + CHUNK] = 1 / np.maximum(np.linalg.norm(part, axis=1), 1e-9)
    return found


def cosines(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Cosine of each of rows int8 [n, d] and a vector float32 [d] of length 1, float32 [n]."""
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK].astype(np.float32)
        length = np.sqrt(np.einsum("ij,ij->i", part, part))
        found[start : start + CHUNK] = part @ vector / np.maximum(length, 1e-9)
    return found


class NoFilms(UserError):
    """A collection holds none that can be searched."""


class GrowingRows:
    """Rows of an array that grows at its end; what is in the middle can be taken out."""

    def __init__(self, width: tuple[int, ...], dtype):
        self.all = np.empty((0, *width), dtype)
        self.used = 0

    @property
    def rows(self) -> np.ndarray:
        return self.all[: self.used]

    def append(self, new: np.ndarray) -> None:
        need = self.used + len(new)
        if need > len(self.all):
            room = np.empty((need if not self.used else need + need // 8, *self.all.shape[1:]), self.all.dtype)
            room[: self.used] = self.rows
            self.all = room
        self.all[self.used : need] = new
        self.used = need

    def delete(self, start: int, end: int) -> None:
        left = self.used - (end - start)
        self.all[start:left] = self.all[end : self.used].copy()
        self.used = left


class LooseFilms:
    """Films whose vectors lie in memory, in the order of their ids."""

    def __init__(self, dims: int):
        self.vectors = GrowingRows((dims,), np.int8)
        self.heads = GrowingRows((min(HEAD, dims),), np.int8)
        self.inverse = GrowingRows((), np.float32)
        self.counts = GrowingRows((), np.int64)  # stills a film
        self.starts = np.zeros(0, np.int64)

    def append(self, vectors: list[np.ndarray]) -> None:
        """Films' vectors int8 [n, d]."""
        if not vectors:
            return
        joined = np.concatenate(vectors)
        self.vectors.append(joined)
        self.heads.append(joined[:, -self.heads.all.shape[1] :])
        self.inverse.append(inverse_lengths(joined))
        self.counts.append(np.array([len(part) for part in vectors]))
        self.set_starts()

    def delete(self, first: int, last: int) -> None:
        """Take out the films from first to last, that one not included."""
        start, end = int(self.starts[first]), int(self.starts[first] + self.counts.rows[first:last].sum())
        for rows in (self.vectors, self.heads, self.inverse):
            rows.delete(start, end)
        self.counts.delete(first, last)
        self.set_starts()

    def set_starts(self) -> None:
        self.starts = np.cumsum(self.counts.rows) - self.counts.rows

    def nearest(self, vector: np.ndarray, rank) -> tuple[np.ndarray, np.ndarray]:
        """(similarity [F] of the nearest still of each film, whether it is exact [F]).

        rank: function from such similarities to what films are picked by for the exact comparison.
        """
        count = self.vectors.used
        films = self.counts.used
        similarity = np.empty(count, np.float32)
        if not films:
            return np.zeros(0, np.float32), np.zeros(0, bool)
        is_small = count <= SMALL
        if is_small:
            multiply(self.vectors.rows, vector, similarity)
        else:
            multiply(self.heads.rows, np.ascontiguousarray(vector[-self.heads.all.shape[1] :]), similarity)
        similarity *= self.inverse.rows
        best = np.maximum.reduceat(similarity, self.starts)
        if is_small:
            return best, np.ones(films, bool)
        exact = np.zeros(films, bool)
        for film in pick_films(rank(best), self.counts.rows, EXAMINED_FILMS):
            start = self.starts[film]
            part = slice(start, start + self.counts.rows[film])
            found = self.vectors.rows[part].astype(np.float32) @ vector
            best[film] = (found * self.inverse.rows[part]).max()
            exact[film] = True
        return best, exact


def pick_films(rank: np.ndarray, counts: np.ndarray, most: int) -> list[int]:
    """Numbers of the films with the greatest rank [F], at most so many, to compare exactly; counts: their stills."""
    most = min(most, len(rank))
    order = np.argpartition(-rank, most - 1)[:most]
    order = order[np.argsort(-rank[order], kind="stable")]
    enough = np.cumsum(counts[order]) <= EXAMINED_STILLS
    enough[:EXAMINED_LEAST] = True
    return order[enough].tolist()


class Search:
    """All films of a collection that have vectors, as this process knows them; refresh() reads what is new.

    Films have numbers, from 0 in the order of their ids. To be used inside collection.snapshot().
    """

    def __init__(self, collection: Collection):
        self.collection = collection
        self.version: object = None  # of the snapshot that was read
        self.source: object = None  # of which collection, and which fit of it
        self.clear()

    def clear(self) -> None:
        self.ids = np.zeros(0, np.int64)
        self.titles: list[str] = []
        self.last_change = 0
        self.last_film = 0
        self.cells_fit = 0
        self.centres: np.ndarray | None = None  # float32 [C, d]

    def refresh(self, version: object) -> bool:
        """Read what changed since the last time; version: as snapshot() yields it. Returns whether anything did.

        Raises UserError where nothing is to be searched, and where something is damaged; what was read before stays.
        """
        if version is not None and version == self.version:
            return False
        about = self.collection.about()
        if about.fit == 0:
            raise NoFilms(f"--index {self.collection}: holds no films yet; python index.py add --help", 2)
        source = self.collection.home.source(), about.identity, about.fit
        if source != self.source or about.last_change < self.last_change:
            fresh = Search(self.collection)
            fresh.begin(source)
            fresh.read_changes(about)
            vars(self).update(vars(fresh))
        else:
            self.read_changes(about)
        if not self.titles:
            raise NoFilms(f"--index {self.collection}: holds no films yet; python index.py add --help", 2)
        self.version = version
        return True

    def begin(self, source: object) -> None:
        """Make room for vectors of the projection that the collection has now."""
        self.basis = self.collection.read_projection()
        self.source = source
        self.dims = len(self.basis[1])
        self.middles = GrowingRows((self.dims,), np.int8)
        self.middle_inverse = GrowingRows((), np.float32)
        self.stored = GrowingRows((), np.int64)
        self.loose = LooseFilms(self.dims)
        self.first_loose = 0  # number of the first film in loose

    # ---------------------------------------------------------------------------------------- what is read

    def read_changes(self, about: About) -> None:
        """Take out films that are gone, take titles that changed, then films that are new.

        All is read before anything is taken.
        """
        query = "SELECT DISTINCT film FROM change WHERE id > ? AND film <= ?"
        changed = [row[0] for row in self.collection.home.execute(query, [self.last_change, self.last_film])]
        titles = {id: self.collection.home.execute("SELECT title FROM film WHERE id = ?", [id]) for id in changed}
        films = self.read_films()
        vectors = self.read_loose(films, about)
        centres = self.centres
        if self.cells_fit != about.cells_fit:
            centres = read_centres(self.collection, self.dims)[1]
        for id, title in titles.items():
            place = int(np.searchsorted(self.ids, id))
            if place == len(self.ids) or self.ids[place] != id:
                continue
            if title:
                self.titles[place] = title[0][0]
            else:
                self.drop(place)
        self.take_films(films)
        self.loose.append(vectors)
        self.about = about
        self.last_change = about.last_change
        self.centres = centres
        self.cells_fit = about.cells_fit
        self.leave_gathered()

    def read_films(self) -> list[tuple]:
        """(id, title, stored, middle) of the films after last_film that have vectors."""
        query = (
            "SELECT film.id, film.title, film.stored, vector.middle FROM film JOIN vector ON vector.film = film.id "
            "WHERE film.id > ? AND vector.middle IS NOT NULL ORDER BY film.id"
        )
        return self.collection.home.execute(query, [self.last_film])

    def read_loose(self, films: list[tuple], about: About) -> list[np.ndarray]:
        """Vectors int8 [n, d] of those of these films that are not in cells."""
        after = max(self.last_film, about.gathered_through)
        found = []
        while films and after < films[-1][0] and (part := self.collection.read_vectors(after=after)):
            found += [np.frombuffer(row[2], np.int8).reshape(-1, self.dims) for row in part]
            after = part[-1][0]
        return found

    def take_films(self, films: list[tuple]) -> None:
        """Take what read_films read."""
        if not films:
            return
        self.ids = np.concatenate([self.ids, np.array([row[0] for row in films], np.int64)])
        self.titles += [row[1] for row in films]
        self.stored.append(np.array([row[2] for row in films], np.int64))
        middles = np.frombuffer(b"".join(bytes(row[3]) for row in films), np.int8).reshape(len(films), -1)
        self.middles.append(middles)
        self.middle_inverse.append(inverse_lengths(middles))
        self.last_film = int(self.ids[-1])

    def drop(self, place: int) -> None:
        """Take out the film with this number."""
        self.ids = np.delete(self.ids, place)
        del self.titles[place]
        for rows in (self.middles, self.middle_inverse, self.stored):
            rows.delete(place, place + 1)
        if place >= self.first_loose:
            self.loose.delete(place - self.first_loose, place - self.first_loose + 1)
        else:
            self.first_loose -= 1

    def leave_gathered(self) -> None:
        """Let go of vectors that lie in cells now."""
        gathered = int(np.searchsorted(self.ids, self.about.gathered_through, side="right"))
        if gathered > self.first_loose:
            in_memory = len(self.ids) - self.loose.counts.used  # number of the first film that loose has
            if gathered > in_memory:
                self.loose.delete(0, gathered - in_memory)
            self.first_loose = gathered

    # ---------------------------------------------------------------------------------------- what is asked

    def similarity(self, vector: np.ndarray, scoring: Scoring) -> np.ndarray:
        """How like a vector float32 [d] of length 1 is to each film [F], as blend_similarity has it.

        Exact for the films that come out best; the others are given no more than the least of these.
        """
        middle = np.empty(len(self.ids), np.float32)
        multiply(self.middles.rows, vector, middle)
        middle *= self.middle_inverse.rows
        best = np.empty(len(self.ids), np.float32)
        exact = np.zeros(len(self.ids), bool)
        first = self.first_loose

        def rank(nearest: np.ndarray) -> np.ndarray:
            return blend_similarity(nearest, middle[first:], scoring)

        best[first:], exact[first:] = self.loose.nearest(vector, rank)
        if first:
            self.search_cells(vector, middle[:first], best[:first], exact[:first], scoring)
        found = blend_similarity(best, middle, scoring)
        if not exact.all():
            found[~exact] = np.minimum(found[~exact], found[exact].min())
        return found

    def search_cells(
        self, vector: np.ndarray, middle: np.ndarray, best: np.ndarray, exact: np.ndarray, scoring: Scoring
    ) -> None:
        """Write similarities of the films in cells into best and exact [first_loose]; middle: theirs."""
        films, similarity = self.read_probes(vector)
        numbers = np.searchsorted(self.ids[: self.first_loose], films)
        numbers[numbers == self.first_loose] = 0
        present = self.ids[numbers] == films  # else of films that are gone
        numbers, similarity = numbers[present], similarity[present]
        near = min(NEAR, len(similarity))
        floor = -1.0
        if near:
            floor = np.partition(similarity, -near)[-near]
        best[:] = floor
        np.maximum.at(best, numbers, similarity)
        # some by what was found, some by their middles alone
        rank = blend_similarity(best, middle, scoring)
        counts = self.stored.rows[: self.first_loose]
        picked = pick_films(rank, counts, NEAR_FILMS)
        ids = self.ids[picked].tolist()
        marks = ", ".join("?" * len(ids))
        rows = self.collection.home.execute(f"SELECT film, vectors FROM vector WHERE film IN ({marks})", ids)
        numbers = np.searchsorted(self.ids, [row[0] for row in rows])
        similarity = cosines(self.unpack([row[1] for row in rows]), vector)
        sizes = [len(row[1]) // self.dims for row in rows]
        best[numbers] = np.maximum.reduceat(similarity, np.cumsum([0, *sizes[:-1]]))
        exact[numbers] = True

    def unpack(self, packed: list[bytes]) -> np.ndarray:
        """Vectors of several films one after another, int8 [n, d]."""
        return np.frombuffer(b"".join(bytes(part) for part in packed), np.int8).reshape(-1, self.dims)

    def read_probes(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(film ids [n], similarities [n]) of the stills in the cells nearest to a vector."""
        probes = min(PROBES, len(self.centres))
        cells = np.argpartition(-(self.centres @ vector), probes - 1)[:probes].tolist()
        marks = ", ".join("?" * probes)
        rows = self.collection.home.execute(f"SELECT records FROM gathered WHERE cell IN ({marks})", cells)
        records = np.frombuffer(b"".join(bytes(row[0]) for row in rows), record_type(self.dims))
        vectors = records["vector"]
        similarity = np.empty(len(records), np.float32)
        multiply(vectors, vector, similarity)
        similarity *= records["inverse"]
        return records["film"].astype(np.int64), similarity

    def read_film(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(vectors int8 [n, d], times int64 [n, 2]) of all stills of a film."""
        rows = self.collection.home.execute("SELECT vectors, times FROM vector WHERE film = ?", [int(self.ids[number])])
        if not rows:
            raise self.collection.damaged(f"vectors of {self.titles[number]} are missing")
        vectors = np.frombuffer(rows[0][0], np.int8).reshape(-1, self.dims)
        return vectors, np.frombuffer(rows[0][1], "<i8").reshape(-1, 2)


# --------------------------------------------------------------------------------------------- cells, written


def record_type(dims: int) -> np.dtype:
    """Of a still in a cell: the id of its film, one over the length of its vector, and the vector."""
    return np.dtype([("film", "<u4"), ("inverse", "<f4"), ("vector", "i1", (dims,))])


def read_centres(collection: Collection, dims: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(parts and stills int64 [C, 2], centres float32 [C, d]) of the cells, in order; None where there are none."""
    rows = collection.home.execute("SELECT parts, stills, centre FROM cell ORDER BY cell")
    if not rows:
        return np.zeros((0, 2), np.int64), None
    centres = np.frombuffer(b"".join(bytes(row[2]) for row in rows), "<f4").reshape(len(rows), dims)
    return np.array([row[:2] for row in rows], np.int64), centres


def gather(collection: Collection, about: About) -> bool:
    """Put loose vectors into cells where there are many, and fit cells where there are none that fit; for the writer.

    Returns whether anything was done, in one transaction.
    """
    if about.fit == 0:
        return False
    _, stills = collection.count()
    ((loose,),) = collection.home.execute(
        "SELECT coalesce(sum(stored), 0) FROM film WHERE id > ?", [about.gathered_through]
    )
    has_cells = about.stills_at_cells > 0
    dead = about.stills_gathered - (int(stills) - int(loose))
    grown = stills >= REFIT_GROWTH * about.stills_at_cells
    if (not has_cells and stills > EXACT) or (has_cells and (grown or dead > DEAD_SHARE * about.stills_gathered)):
        with collection.home.transaction():
            fit_cells(collection, about, int(stills))
            fill_cells(collection, about)
            collection.write_about(about)
        return True
    if has_cells and loose > LOOSE:
        with collection.home.transaction():
            fill_cells(collection, about)
            collection.write_about(about)
        return True
    return False


def fit_cells(collection: Collection, about: About, stills: int) -> None:
    """Make the cells anew, with nothing in them."""
    dims = len(collection.read_projection()[1])
    count = int(min(MOST_CELLS, 3 * stills**0.5))
    step = max(1, stills // (SAMPLE * count))
    sample = []
    after = 0
    while rows := collection.read_vectors(after=after):
        joined = np.frombuffer(b"".join(bytes(row[2]) for row in rows), np.int8).reshape(-1, dims)
        sample.append(joined[::step])
        after = rows[-1][0]
    centres = fit_centres(unit_length(np.concatenate(sample)), count)
    home = collection.home
    home.execute("DELETE FROM gathered")
    home.execute("DELETE FROM cell")
    cells = [(cell, centre.astype("<f4").tobytes()) for cell, centre in enumerate(centres)]
    home.execute_many("INSERT INTO cell (cell, centre, parts, stills) VALUES (?, ?, 0, 0)", cells)
    about.stills_at_cells = stills
    about.stills_gathered = 0
    about.gathered_through = 0
    about.cells_fit += 1


def fit_centres(sample: np.ndarray, count: int) -> np.ndarray:
    """Spherical k-means: centres float32 [count, d] of length 1 for a sample float32 [n, d] of length 1."""
    rng = np.random.default_rng(13)
    centres = sample[rng.permutation(len(sample))[:count]]
    for _ in range(ROUNDS):
        cell = nearest_cells(sample, centres)
        order = np.argsort(cell, kind="stable")
        filled, starts = np.unique(cell[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts)
        centres = sample[rng.permutation(len(sample))[: len(centres)]]  # an empty cell begins again elsewhere
        centres[filled] = unit_length(sums)
    return centres


def nearest_cells(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Number of the nearest of centres [C, d] of each of vectors float32 [n, d], int64 [n]."""
    found = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), CHUNK // 4):
        found[start : start + CHUNK // 4] = (vectors[start : start + CHUNK // 4] @ centres.T).argmax(1)
    return found


def fill_cells(collection: Collection, about: About) -> None:
    """Put the vectors of all films that are in no cell yet into theirs; in a transaction."""
    dims = len(collection.read_projection()[1])
    filled, centres = read_centres(collection, dims)
    filled = filled.copy()
    after = about.gathered_through
    films, count = [], 0
    while True:
        rows = collection.read_vectors(after=after, most=SLICE_OF_FILMS)
        films += rows
        count += sum(len(row[2]) for row in rows) // dims
        if films and (count >= GATHER_STILLS or not rows):
            put_in_cells(collection, films, centres, filled)
            about.stills_gathered += count
            films, count = [], 0
        if not rows:
            break
        after = rows[-1][0]
    about.gathered_through = max(after, about.gathered_through)
    numbers = [(int(parts), int(stills), cell) for cell, (parts, stills) in enumerate(filled)]
    collection.home.execute_many("UPDATE cell SET parts = ?, stills = ? WHERE cell = ?", numbers)


def put_in_cells(collection: Collection, films: list[tuple], centres: np.ndarray, filled: np.ndarray) -> None:
    """Append films' vectors to their cells; filled int64 [C, 2], parts and stills of each cell, is kept up to date."""
    dims = centres.shape[1]
    vectors = np.frombuffer(b"".join(bytes(row[2]) for row in films), np.int8).reshape(-1, dims)
    records = np.empty(len(vectors), record_type(dims))
    records["film"] = np.repeat([row[0] for row in films], [len(row[2]) // dims for row in films])
    records["inverse"] = inverse_lengths(vectors)
    records["vector"] = vectors
    cell = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), CHUNK):
        cell[start : start + CHUNK] = nearest_cells(vectors[start : start + CHUNK].astype(np.float32), centres)
    order = np.argsort(cell, kind="stable")
    cells, starts = np.unique(cell[order], return_index=True)
    new = []
    for number, members in zip(cells.tolist(), np.split(order, starts[1:]), strict=True):
        packed = records[members].tobytes()
        parts, stills = filled[number].tolist()
        if tail := stills % PART:  # the last part has room
            query = "SELECT records FROM gathered WHERE cell = ? AND part = ?"
            before = bytes(collection.home.execute(query, [number, parts - 1])[0][0])
            collection.home.execute("DELETE FROM gathered WHERE cell = ? AND part = ?", [number, parts - 1])
            packed = before + packed
            parts -= 1
            stills -= tail
        size = PART * records.dtype.itemsize
        for start in range(0, len(packed), size):
            new.append((number, parts, packed[start : start + size]))
            parts += 1
        filled[number] = parts, stills + len(packed) // records.dtype.itemsize
        if len(new) >= 1000:
            collection.home.execute_many("INSERT INTO gathered (cell, part, records) VALUES (?, ?, ?)", new)
            new = []
    collection.home.execute_many("INSERT INTO gathered (cell, part, records) VALUES (?, ?, ?)", new)
