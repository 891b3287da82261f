"""A collection of films in SQL: what is kept of each, and what changes in one transaction.

The rest of the project sees Collection; where its tables lie, answering/sql.py knows, and answering/search.py how they
are searched. A film is added, replaced, renamed or removed whole or not at all.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from answering.console import UserError
from answering.embedding import FilmRows
from answering.packing import pack_embedding, unpack_embedding
from answering.projection import quantise
from answering.sql import NoCollection, PostgresHome, SqliteHome, open_home
from answering.state import FORMAT, About, Failure, Film, IndexedModel, State

USER_STILL_PREFIX = "telegram:"  # before the file names of users' stills
SLICE_FILMS = 200  # that are read at a time

# one text for both homes; {bytes} is BLOB or BYTEA. No sequences, triggers or foreign keys, which the distributed
# engines that speak PostgreSQL do without
TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE film (
    id BIGINT PRIMARY KEY, title TEXT NOT NULL UNIQUE, year BIGINT, imdb TEXT, content_key TEXT NOT NULL,
    stills BIGINT NOT NULL, stored BIGINT NOT NULL, added BIGINT NOT NULL, seconds DOUBLE PRECISION, partial TEXT,
    file TEXT
);
CREATE TABLE still (
    film BIGINT NOT NULL, number BIGINT NOT NULL, file TEXT NOT NULL, time_ms BIGINT, until_ms BIGINT, shot TEXT,
    source TEXT NOT NULL, thumbnail {bytes} NOT NULL, PRIMARY KEY (film, number)
);
CREATE TABLE vector (
    film BIGINT PRIMARY KEY, middle {bytes}, times {bytes} NOT NULL, vectors {bytes}
);
CREATE TABLE embedding (
    film BIGINT PRIMARY KEY, dims BIGINT NOT NULL, stills {bytes} NOT NULL, degraded {bytes} NOT NULL,
    clean {bytes} NOT NULL
);
CREATE TABLE projection (name TEXT PRIMARY KEY, numbers {bytes} NOT NULL);
CREATE TABLE cell (cell BIGINT PRIMARY KEY, centre {bytes} NOT NULL, parts BIGINT NOT NULL, stills BIGINT NOT NULL);
CREATE TABLE gathered (
    cell BIGINT NOT NULL, part BIGINT NOT NULL, records {bytes} NOT NULL, PRIMARY KEY (cell, part)
);
CREATE TABLE change (id BIGINT PRIMARY KEY, film BIGINT NOT NULL);
CREATE TABLE failed (file TEXT PRIMARY KEY, content_key TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE renamed (meant TEXT PRIMARY KEY, title TEXT NOT NULL);
CREATE TABLE offered (name TEXT PRIMARY KEY, film TEXT NOT NULL, state TEXT NOT NULL, picture {bytes});
"""
# format: what turns tables of that format into those of the next
MIGRATIONS: dict[int, str] = {}

STRANGERS = "strangers"  # the name of their row in the table projection
FILM_COLUMNS = "id, title, year, imdb, content_key, stills, stored, added, seconds, partial, file"


class Collection:
    """The tables of a collection, for reading, and inside writing() for changing.

    place: a file, or postgresql://...
    """

    def __init__(self, place: str | Path):
        self.place = place
        self.home: SqliteHome | PostgresHome = open_home(place)

    def __str__(self) -> str:
        return str(self.home)

    def close(self) -> None:
        self.home.close()

    # ---------------------------------------------------------------------------------------- whole collection

    def snapshot(self):
        """One view of the collection for all reads inside; yields what changes when another process has committed.

        Raises NoCollection where there is none.
        """
        return self.home.snapshot()

    @contextlib.contextmanager
    def writing(self, model: IndexedModel | None = None) -> Iterator[None]:
        """Hold the collection against other writers for a whole run.

        model: to make a new collection of this model where there is none; None raises NoCollection there.
        """
        if model is None and isinstance(self.home, SqliteHome):
            self.home.stamp()  # raises before anything is made
        with self.home.writing():
            if not self.home.has_tables():
                if model is None:
                    raise NoCollection(self.home)
                self.make_tables(model)
            self.upgrade()
            yield

    def make_tables(self, model: IndexedModel) -> None:
        text = TABLES.replace("{bytes}", self.home.bytes_type)
        with self.home.transaction():
            self.home.execute_script([statement for statement in text.split(";") if statement.strip()])
            self.home.mark()
            self.home.execute_many("INSERT INTO about VALUES (?, ?)", About(model).to_rows())

    def upgrade(self) -> None:
        """Bring tables of an older format to this one, in one transaction."""
        found = self.find_format(self.home.execute("SELECT key, value FROM about"))
        if found == FORMAT:
            return
        with self.home.transaction():
            for step in range(found, FORMAT):
                text = MIGRATIONS[step].replace("{bytes}", self.home.bytes_type)
                self.home.execute_script([statement for statement in text.split(";") if statement.strip()])
            self.home.execute("UPDATE about SET value = ? WHERE key = 'format'", [json.dumps(FORMAT)])

    def find_format(self, rows: list[tuple[str, str]]) -> int:
        """The format of tables with these rows of about. Raises UserError for one that this version does not know."""
        try:
            found = int(json.loads(dict(rows)["format"]))
        except (KeyError, ValueError, TypeError):
            raise self.damaged("it does not say its format") from None
        if found > FORMAT:
            raise UserError(f"--index {self}: its format is {found}, of a newer version; this one reads {FORMAT}")
        if found < FORMAT and any(step not in MIGRATIONS for step in range(found, FORMAT)):
            raise UserError(f"--index {self}: its format is {found}, not {FORMAT}; make it anew")
        return found

    def about(self) -> About:
        """What the collection says of itself. Raises NoCollection, or UserError for a damaged or newer one."""
        with self.snapshot():
            rows = self.home.execute("SELECT key, value FROM about")
        found = self.find_format(rows)
        if found < FORMAT:
            raise UserError(f"--index {self}: its format is {found}; python index.py rebuild --index {self}")
        try:
            return About.from_rows(rows)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.damaged(f"about: {str(error)[:60]}") from None

    def is_there(self) -> bool:
        """Whether there is a collection yet; a file in which making one was stopped holds none."""
        try:
            self.about()
        except NoCollection:
            return False
        return True

    def state(self) -> State:
        """All that a writer needs to know. Raises as about does."""
        with self.snapshot():
            films = {film.title: film for film in self.films()}
            return State(self.about(), films, self.failures(), self.renames())

    def write_about(self, about: About) -> None:
        """In a transaction: what changed is seen by readers with all that the transaction wrote."""
        about.revision += 1
        rows = [(value, key) for key, value in about.to_rows()]
        self.home.execute_many("UPDATE about SET value = ? WHERE key = ?", rows)

    def damaged(self, what: str) -> UserError:
        return UserError(f"--index {self}: is damaged ({what}); python index.py check --index {self} tells more")

    # ------------------------------------------------------------------------------------------------- films

    def films(self, after: int = 0) -> list[Film]:
        """All films with an id greater than after, in the order of their ids."""
        with self.snapshot():
            rows = self.home.execute(f"SELECT {FILM_COLUMNS} FROM film WHERE id > ? ORDER BY id", [after])
        return [Film(*row) for row in rows]

    def film(self, title: str) -> Film | None:
        with self.snapshot():
            rows = self.home.execute(f"SELECT {FILM_COLUMNS} FROM film WHERE title = ?", [title])
        return Film(*rows[0]) if rows else None

    def count(self) -> tuple[int, int]:
        """How many films, and how many stills of them are stored."""
        with self.snapshot():
            ((films, stills),) = self.home.execute("SELECT count(*), coalesce(sum(stored), 0) FROM film")
        return int(films), int(stills)

    def put_film(self, about: About, film: Film, rows: FilmRows, packed: tuple[bytes, bytes] | None) -> Film:
        """Add a film, in place of what there is of its title, in one transaction; returns it with its id.

        packed: pack_vectors of what the projection makes of rows; None before there is one. That its file failed
        before is forgotten.
        """
        with self.home.transaction():
            about.last_film += 1
            film = replace(film, id=about.last_film, stored=len(rows), added=film.added or int(time.time()))
            for (id,) in self.home.execute("SELECT id FROM film WHERE title = ?", [film.title]):
                self.delete_rows(about, id)
            values = [getattr(film, name) for name in FILM_COLUMNS.split(", ")]
            marks = ", ".join("?" * len(values))
            self.home.execute(f"INSERT INTO film ({FILM_COLUMNS}) VALUES ({marks})", values)
            self.home.execute("DELETE FROM failed WHERE file = ?", [film.file])
            self.home.execute_many(
                "INSERT INTO still (film, number, file, time_ms, until_ms, shot, source, thumbnail) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                list_still_rows(film, rows),
            )
            self.home.execute(
                "INSERT INTO embedding (film, dims, stills, degraded, clean) VALUES (?, ?, ?, ?, ?)",
                [
                    film.id,
                    rows.embedding.shape[1],
                    pack_embedding(rows.embedding),
                    pack_embedding(rows.degraded_embedding),
                    pack_embedding(rows.clean_embedding),
                ],
            )
            times = np.stack([rows.time_ms, rows.until_ms], 1).astype("<i8").tobytes()
            vectors, middle = packed or (None, None)
            self.home.execute(
                "INSERT INTO vector (film, middle, times, vectors) VALUES (?, ?, ?, ?)",
                [film.id, middle, times, vectors],
            )
            self.note_change(about, film.id)
            self.write_about(about)
        return film

    def delete_rows(self, about: About, id: int) -> None:
        """Take out all rows of a film; in a transaction."""
        for table in ("still", "vector", "embedding"):
            self.home.execute(f"DELETE FROM {table} WHERE film = ?", [id])
        self.home.execute("DELETE FROM film WHERE id = ?", [id])
        self.note_change(about, id)

    def note_change(self, about: About, id: int) -> None:
        about.last_change += 1
        self.home.execute("INSERT INTO change (id, film) VALUES (?, ?)", [about.last_change, id])

    def remove_film(self, about: About, film: Film) -> None:
        with self.home.transaction():
            self.delete_rows(about, film.id)
            self.write_about(about)

    def rename_film(self, about: About, film: Film, title: str, year: int | None) -> Film:
        """Give a film, and its users' pictures, another title, also for what is added under the old one later.

        Raises UserError where another film has it.
        """
        if self.film(title):
            text = f"{title}: {self} has a film of this title already; remove or rename that one first"
            raise UserError(text, 2)
        with self.home.transaction():
            self.home.execute("UPDATE film SET title = ?, year = ? WHERE id = ?", [title, year, film.id])
            self.home.execute("UPDATE offered SET film = ? WHERE film = ?", [title, film.title])
            self.home.execute("UPDATE renamed SET title = ? WHERE title = ?", [title, film.title])
            self.home.execute("DELETE FROM renamed WHERE meant = ? OR meant = title", [film.title])
            self.home.execute("INSERT INTO renamed (meant, title) VALUES (?, ?)", [film.title, title])
            self.note_change(about, film.id)
            self.write_about(about)
        return replace(film, title=title, year=year)

    # -------------------------------------------------------------------------- what the user's files gave and meant

    def failures(self) -> dict[str, Failure]:
        """Files that could not be read, by their paths."""
        with self.snapshot():
            rows = self.home.execute("SELECT file, content_key, reason FROM failed ORDER BY file")
        return {file: Failure(content_key, reason) for file, content_key, reason in rows}

    def put_failure(self, file: str, failure: Failure) -> None:
        """Keep why a file could not be read; it is not tried again until its content key changes."""
        with self.home.transaction():
            self.home.execute("DELETE FROM failed WHERE file = ?", [file])
            row = [file, failure.content_key, failure.reason]
            self.home.execute("INSERT INTO failed (file, content_key, reason) VALUES (?, ?, ?)", row)

    def renames(self) -> dict[str, str]:
        """{title that a file means: title that the user gave it}."""
        with self.snapshot():
            return dict(self.home.execute("SELECT meant, title FROM renamed ORDER BY meant"))

    # --------------------------------------------------------------------------------------- stills and vectors

    def read_rows(self, film: Film) -> FilmRows:
        """All that is kept of a film's stills."""
        with self.snapshot():
            stills = self.home.execute(
                "SELECT file, time_ms, until_ms, shot, thumbnail FROM still WHERE film = ? ORDER BY number", [film.id]
            )
            embedding, degraded, clean = self.read_embedding(film)
        thumbnails = [bytes(row[4]) for row in stills]
        return FilmRows(
            embedding=embedding.astype(np.float16),
            degraded_embedding=degraded.astype(np.float16),
            clean_embedding=clean.astype(np.float16),
            name=np.array([row[0] for row in stills], dtype=str),
            time_ms=np.array([-1 if row[1] is None else row[1] for row in stills], np.int64),
            until_ms=np.array([-1 if row[2] is None else row[2] for row in stills], np.int64),
            shot=np.array([row[3] or "" for row in stills], dtype=str),
            thumbnails=np.frombuffer(b"".join(thumbnails), np.uint8),
            thumbnail_ends=np.cumsum([len(thumbnail) for thumbnail in thumbnails], dtype=np.int64),
        )

    def read_embedding(self, film: Film) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Embeddings float32 of a film's stills [n, D], of degraded copies [m, D], of the stills of these [m, D]."""
        query = "SELECT dims, stills, degraded, clean FROM embedding WHERE film = ?"
        rows = self.home.execute(query, [film.id])
        try:
            ((dims, *packed),) = rows
            return tuple(unpack_embedding(bytes(part), dims) for part in packed)
        except ValueError:
            raise self.damaged(f"embeddings of {film.title}") from None

    def read_times(self, film: Film) -> np.ndarray:
        """Milliseconds [n, 2] of a film's stills and of their last near-duplicates, -1 where not known."""
        rows = self.home.execute("SELECT times FROM vector WHERE film = ?", [film.id])
        return np.frombuffer(rows[0][0], "<i8").reshape(-1, 2)

    def read_projection(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(project float32 [D, d], offset [d]), None before the first fit."""
        parts = dict(self.home.execute("SELECT name, numbers FROM projection WHERE name <> ?", [STRANGERS]))
        if not parts:
            return None
        try:
            offset = np.frombuffer(parts["offset"], "<f4")
            return np.frombuffer(parts["project"], "<f4").reshape(-1, len(offset)), offset
        except (KeyError, ValueError):
            raise self.damaged("its projection") from None

    def read_vectors(self, after: int = 0, most: int = SLICE_FILMS) -> list[tuple[int, bytes, bytes]]:
        """(id, middle int8 [d], vectors int8 [n, d]) of the next films with vectors, by their ids."""
        return self.home.execute(
            "SELECT film, middle, vectors FROM vector WHERE film > ? AND vectors IS NOT NULL ORDER BY film LIMIT ?",
            [after, most],
        )

    def put_fit(self, about: About, basis: tuple[np.ndarray, np.ndarray], project) -> None:
        """Make a projection, with the rule in about, the collection's: all vectors anew, in one transaction.

        project: function from embeddings [n, D] to vectors [n, d].
        """
        with self.home.transaction():
            self.put_projection(basis)
            films = self.films()
            for film in films:
                packed, middle = pack_vectors(project(self.read_embedding(film)[0]))
                self.home.execute("UPDATE vector SET vectors = ?, middle = ? WHERE film = ?", [packed, middle, film.id])
            self.home.execute("DELETE FROM change")
            self.home.execute("DELETE FROM gathered")
            self.home.execute("DELETE FROM cell")
            about.fit += 1
            about.films_at_fit = len(films)
            about.gathered_through = 0
            about.stills_gathered = 0
            about.stills_at_cells = 0
            self.write_about(about)

    def put_projection(self, basis: tuple[np.ndarray, np.ndarray]) -> None:
        """Write (project [D, d], offset [d]) in place of what is there; in a transaction."""
        self.home.execute("DELETE FROM projection WHERE name <> ?", [STRANGERS])
        parts = zip(("project", "offset"), basis, strict=True)
        rows = [(name, np.ascontiguousarray(part, "<f4").tobytes()) for name, part in parts]
        self.home.execute_many("INSERT INTO projection (name, numbers) VALUES (?, ?)", rows)

    def read_strangers(self) -> bytes | None:
        """The films that projection and thresholds start from, as Strangers.to_bytes packs them; None without them."""
        with self.snapshot():
            rows = self.home.execute("SELECT numbers FROM projection WHERE name = ?", [STRANGERS])
        return bytes(rows[0][0]) if rows else None

    def put_strangers(self, packed: bytes) -> None:
        """Keep the films that projection and thresholds start from, in place of what there is; in a transaction."""
        self.home.execute("DELETE FROM projection WHERE name = ?", [STRANGERS])
        self.home.execute("INSERT INTO projection (name, numbers) VALUES (?, ?)", [STRANGERS, packed])

    # ---------------------------------------------------------------------------------------------- pictures

    def proof(self, id: int, number: int) -> tuple[str, bytes]:
        """File name and thumbnail of a film's still. Raises UserError where it is gone."""
        rows = self.home.execute("SELECT file, thumbnail FROM still WHERE film = ? AND number = ?", [id, number])
        if not rows:
            raise self.damaged(f"still {number} of film {id} is missing")
        return rows[0][0], bytes(rows[0][1])

    # ------------------------------------------------------------------------------------------------ damage

    def check(self) -> list[str]:
        """What is wrong, in lines; an empty list where all is sound. Raises NoCollection, UserError."""
        with self.snapshot():
            found = self.home.find_damage()
            if found:
                return found
            about = self.about()
            basis = self.read_projection()
            if (basis is None) != (about.fit == 0) or (about.rule is None) != (about.fit == 0):
                found.append("projection and rule do not belong together")
            dims = 0 if basis is None else len(basis[1])
            for film in self.films():
                found += [f"{film.title}: {fault}" for fault in self.film_faults(film, dims, basis)]
            found += self.stray_rows()
        return found

    def film_faults(self, film: Film, dims: int, basis) -> list[str]:
        """What is wrong with a film's rows."""
        faults = []
        stills = self.home.execute("SELECT thumbnail FROM still WHERE film = ? ORDER BY number", [film.id])
        if len(stills) != film.stored:
            faults.append(f"{len(stills)} stills of {film.stored}")
        pictures = sum(is_picture(row[0]) for row in stills)
        if pictures != len(stills):
            faults.append(f"{len(stills) - pictures} thumbnails are no pictures")
        rows = self.home.execute("SELECT times, middle, vectors FROM vector WHERE film = ?", [film.id])
        if len(rows) != 1 or len(rows[0][0]) != 16 * film.stored:
            faults.append("its times are damaged")
        elif basis is not None and (len(rows[0][2] or b"") != film.stored * dims or len(rows[0][1] or b"") != dims):
            faults.append("its vectors are damaged")
        try:
            embedding = self.read_embedding(film)[0]
            if len(embedding) != film.stored or (basis is not None and embedding.shape[1] != len(basis[0])):
                faults.append("its embeddings are of another model or number")
        except UserError:
            faults.append("its embeddings are damaged")
        return faults

    def stray_rows(self) -> list[str]:
        """Rows of films that are not there."""
        found = []
        for table in ("still", "vector", "embedding"):
            query = f"SELECT count(*) FROM {table} WHERE film NOT IN (SELECT id FROM film)"
            ((count,),) = self.home.execute(query)
            if count:
                found.append(f"{count} rows of {table} belong to no film")
        return found


def list_still_rows(film: Film, rows: FilmRows) -> list[tuple]:
    """Rows of the table still."""
    found = []
    source = "folder" if film.file is None else "video"
    times = zip(rows.time_ms.tolist(), rows.until_ms.tolist(), strict=True)
    for number, (name, (time_ms, until_ms), shot, thumbnail) in enumerate(
        zip(rows.name.tolist(), times, rows.shot.tolist(), rows.list_thumbnails(), strict=True)
    ):
        known = time_ms >= 0
        where = "telegram" if name.startswith(USER_STILL_PREFIX) else source
        row = (film.id, number, name, time_ms if known else None, until_ms if known else None, shot or None, where)
        found.append((*row, thumbnail.tobytes()))
    return found


def is_picture(thumbnail: object) -> bool:
    """Whether a value of the table still begins as a WebP or a JPEG does."""
    return not isinstance(thumbnail, str) and bytes(thumbnail[:4]).startswith((b"RIFF", b"\xff\xd8"))


def pack_vectors(vectors: np.ndarray) -> tuple[bytes, bytes]:
    """(vectors int8 [n, d], their middle int8 [d]) as the table vector has them; vectors: float [n, d]."""
    return quantise(vectors).tobytes(), quantise(vectors.sum(0, keepdims=True)).tobytes()


def copy_films(source: Collection, target: Collection, titles: Iterable[str], project=None) -> Iterator[Film]:
    """Put films of one collection into another of the same model, and yield each; inside target.writing().

    project: function from embeddings [n, D] to vectors [n, d] of the target; None where it has no projection yet.
    """
    about = target.about()
    for title in titles:
        film = source.film(title)
        if film is None:
            raise UserError(f"{title}: not in {source}", 2)
        rows = source.read_rows(film)
        packed = None if project is None else pack_vectors(project(rows.embedding))
        yield target.put_film(about, film, rows, packed)
