"""Two homes for the tables of a collection: a file of SQLite, and a PostgreSQL that several hosts share.

Both have the same methods, and run the same SQL, written with ? for its parameters.
"""

import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from answering.console import UserError

APPLICATION = 0x6D6266  # "mbf", at byte 68 of a file of SQLite, tells it from those of other programs
PAGE_BYTES = 16_384  # holds five stills with their thumbnails
BUSY_SECONDS = 10.0  # that a reader waits while the writer cleans up
PUBLISHED = b'"published": true'  # begins an index.json that publish wrote
POSTGRES_SCHEMA = "movie_by_frame"
POSTGRES_LOCK = 0x6D6266  # number of the advisory lock that a writer holds


def is_postgres(place: str | Path) -> bool:
    """Whether a place names a PostgreSQL, and not a file."""
    return str(place).startswith(("postgresql://", "postgres://"))


def is_folder_of_before(path: str | Path) -> bool:
    """Whether a collection lies there in a folder, as the version before kept it; what publish wrote is none."""
    try:
        with open(Path(path) / "index.json", "rb") as file:
            return PUBLISHED not in file.read(100)
    except OSError:
        return False


def open_home(place: str | Path) -> "SqliteHome | PostgresHome":
    """The home at a place: a file, which need not be there yet, or postgresql://user:password@host:5432/database."""
    return PostgresHome(str(place)) if is_postgres(place) else SqliteHome(Path(place))


class NoCollection(UserError):
    """There is nothing at the place yet."""

    def __init__(self, home: "SqliteHome | PostgresHome"):
        super().__init__(f"--index {home}: no index there; python index.py add RAW --index {home}", 2)


# --------------------------------------------------------------------------------------------- a file of SQLite


class SqliteHome:
    """A file of SQLite in WAL mode: one process writes, any number read. Not for network file systems.

    Only the writer ever checkpoints, since SQLite 3.7.0 to 3.51.2 can lose a commit where two connections do
    (https://sqlite.org/wal.html, "the WAL-reset bug"): readers open the file read-only, and a lock that is held for the
    writer's whole run lies in a file of its own, FILE-writer. Where nothing can be written beside the file, as on a
    read-only medium, it is read as one that does not change, and read anew when its date changes or when FILE-txid
    does, which Litestream writes beside a replica.
    """

    bytes_type = "BLOB"

    def __init__(self, path: Path):
        self.path = path
        self.connection: sqlite3.Connection | None = None
        self.is_writer = False
        self.immutable = False
        self.opened: tuple | None = None  # of the file that the connection reads, see stamp

    def __str__(self) -> str:
        return str(self.path)

    # ------------------------------------------------------------------------------------------ connections

    def stamp(self) -> tuple:
        """What tells one file from another at the same path; of one that is read as unchanging, its date too."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            raise NoCollection(self) from None
        if not self.immutable:
            return stat.st_dev, stat.st_ino
        replica = self.path.with_name(f"{self.path.name}-txid")
        if replica.exists():  # is written when all pages of a transaction are
            return stat.st_dev, stat.st_ino, replica.read_bytes()
        has_writer = self.path.with_name(f"{self.path.name}-shm").exists()
        return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size, has_writer

    def source(self) -> tuple:
        """What changes when another file comes to lie at the path."""
        return self.opened[:2]

    def open_reader(self) -> None:
        """Open the file read-only. Raises NoCollection, or UserError for a file of another program."""
        self.close()
        self.refuse_folder()
        self.immutable = self.path.with_name(f"{self.path.name}-txid").exists()
        self.opened = self.stamp()
        with self.asking():
            try:
                self.connect_reader()
            except sqlite3.OperationalError as error:
                if self.immutable or not self.may_be_immutable(error):
                    raise
                self.immutable = True
                self.opened = self.stamp()
                self.connect_reader()

    def refuse_folder(self) -> None:
        """Raise UserError for a folder, with the mend for one that the version before made."""
        if is_folder_of_before(self.path):
            new = self.path.with_suffix(".sqlite")
            text = f"is a folder of the version before; python index.py import {self} --index {new} takes it over"
            raise UserError(f"--index {self}: {text}", 2)
        if self.path.is_dir():
            raise UserError(f"--index {self}: is a folder, not a file of index.py", 2)

    def connect_reader(self) -> None:
        how = "immutable=1" if self.immutable else "mode=ro"
        self.connection = self.connect(f"file:{quote(str(self.path.absolute()))}?{how}")
        self.connection.execute("PRAGMA query_only = 1")
        self.check_program()

    def connect(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions begin where it is said, and nowhere else
            check_same_thread=False,  # identify.py reads each picture in a thread of its own, one after another
        )
        connection.execute("PRAGMA cache_size = -8000")  # kilobytes
        return connection

    def may_be_immutable(self, error: sqlite3.OperationalError) -> bool:
        """Whether a file could not be read only since nothing can be written beside it, and nobody is at work on it."""
        wal, shared = (self.path.with_name(f"{self.path.name}-{suffix}") for suffix in ("wal", "shm"))
        is_at_rest = not shared.exists() and (not wal.exists() or wal.stat().st_size == 0)
        return is_at_rest and any(words in str(error) for words in ("unable to open", "readonly database"))

    def check_program(self) -> None:
        """Raise UserError for a database that is not one of index.py."""
        (program,) = self.connection.execute("PRAGMA application_id").fetchone()
        if program == APPLICATION:
            return
        (tables,) = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            raise UserError(f"--index {self}: is a database of another program; name another --index", 2)
        if not self.is_writer:
            raise NoCollection(self)

    def close(self) -> None:
        if self.connection:
            self.connection.close()
            self.connection = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the collection against other writers, and open it to write. Raises UserError if one is at work."""
        self.refuse_folder()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.asking(), contextlib.closing(self.hold_lock()):
            self.close()
            self.is_writer = True
            self.immutable = False
            try:
                self.connection = self.connect(f"file:{quote(str(self.path.absolute()))}?mode=rwc")
                self.check_program()
                self.connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.connection.execute("PRAGMA synchronous = FULL")  # a film that was told to be added stays
                self.connection.execute("PRAGMA journal_size_limit = 0")
                self.opened = self.stamp()
                yield
                self.fold()
            finally:
                self.close()
                self.is_writer = False

    def fold(self) -> None:
        """Move what lies in FILE-wal into the file, as far as readers let it."""
        with contextlib.suppress(sqlite3.OperationalError):  # else the next writer does
            self.connection.execute("PRAGMA busy_timeout = 1000")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def hold_lock(self) -> sqlite3.Connection:
        """A connection that holds the writers' lock, on any system, until it is closed or its process ends."""
        lock = sqlite3.connect(f"{self.path.absolute()}-writer", timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            lock.close()
            if "locked" not in str(error):
                raise
            text = f"--index {self}: another index.py is writing to it; run this again after it"
            raise UserError(text) from None
        return lock

    # --------------------------------------------------------------------------------------------- statements

    def execute(self, sql: str, parameters: Iterable = ()) -> list[tuple]:
        """Rows of a statement. Raises UserError, also where opening the file failed."""
        if self.connection is None:
            raise UserError(f"--index {self}: can't be opened")
        with self.asking():
            return self.connection.execute(sql, tuple(parameters)).fetchall()

    def execute_many(self, sql: str, rows: Iterable[tuple]) -> None:
        with self.asking():
            self.connection.executemany(sql, rows)

    def execute_script(self, statements: list[str]) -> None:
        for statement in statements:
            self.execute(statement)

    def has_tables(self) -> bool:
        return bool(self.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'"))

    def mark(self) -> None:
        """Say in a new file whose it is; in a transaction."""
        self.execute(f"PRAGMA application_id = {APPLICATION}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing of it; inside another one it is a part of that."""
        if self.connection.in_transaction:
            yield
            return
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # some errors end the transaction themselves
                self.connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[object]:
        """One view of the collection for all reads inside; yields what changes when another process has committed."""
        if self.connection is not None and self.connection.in_transaction:
            yield None  # inside another one, or in a transaction of the writer
            return
        if not self.is_writer and (self.connection is None or self.stamp() != self.opened):
            self.open_reader()
        self.execute("BEGIN")
        try:
            self.execute("SELECT 1 FROM sqlite_master LIMIT 1")  # the view begins with the first read
            ((version,),) = self.execute("PRAGMA data_version")
            yield self.opened, version
        finally:
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("COMMIT")

    # --------------------------------------------------------------------------------------------- the file

    def find_damage(self) -> list[str]:
        """What SQLite finds wrong in the file, at most three lines."""
        lines = [str(line) for (line,) in self.execute("PRAGMA integrity_check(3)")]
        return [] if lines == ["ok"] else [" ".join(line.split()) for line in lines]

    def backup(self, path: Path) -> None:
        """Copy the file as it is at this moment, while others read and write; path is whole or not there."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with self.snapshot():
            try:
                with contextlib.closing(sqlite3.connect(part)) as copy:
                    self.connection.backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file that can be read on any medium
                os.replace(part, path)
            except sqlite3.Error as error:
                raise UserError(f"{path}: could not be written ({error})") from None
            finally:
                part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Raise what SQLite raises as a UserError of one line."""
        try:
            yield
        except sqlite3.Error as error:
            if not self.is_writer and "unable to open" in str(error) and not self.path.exists():
                raise NoCollection(self) from None
            raise UserError(f"--index {self}: {explain(str(error))}") from None


def explain(text: str) -> str:
    """What SQLite says, and the mend."""
    known = {
        "not a database": "is no file of index.py; name another --index",
        "malformed": "is damaged; a copy by index.py backup brings it back",
        "disk is full": "the disk is full; what was added before is there",
        "disk I/O error": "can't be read or written; is the disk full or gone? What was added before is there",
        "readonly database": "may not be written by this user, or lies on a read-only disk",
        "unable to open": "can't be opened; may this user write in its folder?",
        "locked": "another program holds it; try again",
    }
    return next((words for part, words in known.items() if part in text), text)


# ------------------------------------------------------------------------------------------------- PostgreSQL


class PostgresHome:
    """Tables in the schema movie_by_frame of a database of PostgreSQL, for several hosts with one collection."""

    bytes_type = "BYTEA"

    def __init__(self, place: str):
        self.place = place
        self.connection = None
        self.is_writer = False
        self.is_inside = False  # a transaction
        try:
            import psycopg
        except ImportError:
            raise UserError(f"--index {self}: needs psycopg: pip install 'psycopg[binary]'", 2) from None
        self.psycopg = psycopg

    def __str__(self) -> str:
        parts = urlsplit(self.place)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # no password in messages

    def open(self) -> None:
        self.close()
        with self.asking():
            self.connection = self.psycopg.connect(
                self.place,
                autocommit=True,  # transactions begin where it is said
                connect_timeout=10,
                application_name=Path(sys.argv[0]).name,
                options=f"-c search_path={POSTGRES_SCHEMA}",
            )
            self.connection.prepare_threshold = 1  # a reader asks the same again and again

    open_reader = open

    def close(self) -> None:
        if self.connection:
            self.connection.close()
            self.connection = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the collection against other writers, and open it to write. Raises UserError if one is at work."""
        self.open()
        try:
            ((held,),) = self.execute("SELECT pg_try_advisory_lock(?)", [POSTGRES_LOCK])  # until the connection ends
            if not held:
                text = f"--index {self}: another index.py is writing to it; run this again after it"
                raise UserError(text)
            self.execute(f"CREATE SCHEMA IF NOT EXISTS {POSTGRES_SCHEMA}")
            self.is_writer = True
            yield
        finally:
            self.is_writer = False
            self.close()

    def execute(self, sql: str, parameters: Iterable = ()) -> list[tuple]:
        if self.connection is None:
            raise UserError(f"--index {self}: there is no connection")
        with self.asking():
            cursor = self.connection.execute(sql.replace("?", "%s"), tuple(parameters))
            return cursor.fetchall() if cursor.description else []

    def execute_many(self, sql: str, rows: Iterable[tuple]) -> None:
        with self.asking(), self.connection.cursor() as cursor:
            cursor.executemany(sql.replace("?", "%s"), rows)

    def execute_script(self, statements: list[str]) -> None:
        for statement in statements:
            self.execute(statement)

    def source(self) -> str:
        """As SqliteHome has it; what a server holds, its tables tell."""
        return self.place

    def has_tables(self) -> bool:
        found = self.execute("SELECT to_regclass(?)", [f"{POSTGRES_SCHEMA}.about"])
        return found[0][0] is not None

    def mark(self) -> None:
        for table, column in (("vector", "vectors"), ("gathered", "records"), ("still", "thumbnail")):
            self.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")  # is packed already

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        if self.is_inside:
            yield
            return
        self.execute("BEGIN")
        self.is_inside = True
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(self.psycopg.Error):
                self.connection.execute("ROLLBACK")
            raise
        finally:
            self.is_inside = False

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[object]:
        """One view of the collection for all reads inside; yields what changes when another process has committed."""
        if self.is_inside:
            yield None
            return
        version = self.begin_snapshot()
        self.is_inside = True
        try:
            yield version
        finally:
            self.is_inside = False
            with contextlib.suppress(self.psycopg.Error):
                self.connection.execute("COMMIT")

    def begin_snapshot(self) -> list[tuple[str]]:
        """Begin a transaction that reads, over a new connection where the server was started anew meanwhile."""
        query = "SELECT value FROM about WHERE key IN ('identity', 'revision') ORDER BY key"
        for attempt in range(2):
            try:
                if self.connection is None or self.connection.closed:
                    self.open()
                with self.asking():
                    self.connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    return self.connection.execute(query).fetchall()
            except NoCollection:
                with contextlib.suppress(self.psycopg.Error):
                    self.connection.execute("ROLLBACK")
                raise
            except UserError:
                self.close()
                if attempt or self.is_writer:
                    raise
        raise AssertionError

    def find_damage(self) -> list[str]:
        return []  # PostgreSQL has pg_amcheck for that

    def backup(self, path: Path) -> None:
        raise UserError(f"--index {self}: is backed up by pg_dump; index.py export writes its films into a file", 2)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Raise what PostgreSQL raises as a UserError of one line."""
        try:
            yield
        except self.psycopg.errors.UndefinedTable:
            raise NoCollection(self) from None
        except self.psycopg.Error as error:
            text = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(f"--index {self}: PostgreSQL says: {text[:200]}") from None
