"""The bot's SQLite file: answers and what users said of them, updates until they are answered, counts, languages."""

import asyncio
import csv
import json
import sqlite3
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from answering.console import UserError, atomic_write

DAY = 86400  # seconds
SCHEMA = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;
CREATE TABLE IF NOT EXISTS answers
    (id TEXT PRIMARY KEY, time REAL, file_id TEXT, kind TEXT, candidates TEXT, verdict TEXT, film TEXT, who TEXT,
     clip TEXT, frames INTEGER);
CREATE TABLE IF NOT EXISTS counts (day TEXT, what TEXT, n INTEGER, PRIMARY KEY (day, what));
CREATE TABLE IF NOT EXISTS updates (id INTEGER PRIMARY KEY, time REAL, body TEXT, sending INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS languages (who TEXT PRIMARY KEY, code TEXT);
"""


def open_base(path: Path | str) -> sqlite3.Connection:
    """The database at this path, made or brought up to date if need be. Raises UserError."""
    try:
        base = sqlite3.connect(path, isolation_level=None)
        base.executescript(SCHEMA)
        columns = [column[1] for column in base.execute("PRAGMA table_info(answers)")]
        for column, kind in (("who", "TEXT"), ("clip", "TEXT"), ("frames", "INTEGER")):
            if column not in columns:  # of an older bot
                base.execute(f"ALTER TABLE answers ADD COLUMN {column} {kind}")
    except sqlite3.Error as error:
        raise UserError(f"--db {path}: {error}; name a file that this bot can write") from None
    return base


def open_existing(path: Path) -> sqlite3.Connection:
    """As open_base, for those who only want to read it. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"--db {path}: there is no such file; the bot makes it when it runs", 2)
    return open_base(path)


# ------------------------------------------------------------------------------------------------ answers


@dataclass
class StoredAnswer:
    """What the bot answered, as its buttons find it again."""

    id: str  # stands in the buttons; nobody can guess another's
    file_id: str  # Telegram's, of the picture; of a clip that has one, of its cover, which learn.py may add to an index
    kind: str  # "movie", "shortlist" or "unknown"
    candidates: list[dict]  # as Answer.as_dict() gives them, without thumbnails
    asker: str | None  # hash of the user who may judge it; None where nobody knows who asked
    clip_id: str | None = None  # Telegram's, of the clip
    frames: int | None = None  # of the clip, that were asked


def save_answer(base: sqlite3.Connection, answer: StoredAnswer) -> None:
    candidates = json.dumps(answer.candidates)
    asked = (answer.asker, answer.clip_id, answer.frames)
    row = (answer.id, time.time(), answer.file_id, answer.kind, candidates, *asked)
    names = "id, time, file_id, kind, candidates, who, clip, frames"
    base.execute(f"INSERT INTO answers ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


def find_answer(base: sqlite3.Connection, number: str) -> StoredAnswer | None:
    """The answer with this id; None for one that is forgotten or never was."""
    query = "SELECT id, file_id, kind, candidates, who, clip, frames FROM answers WHERE id = ?"
    row = base.execute(query, (number,)).fetchone()
    if row is None:
        return None
    number, file_id, kind, candidates, *asked = row
    return StoredAnswer(number, file_id, kind, json.loads(candidates), *asked)


# ------------------------------------------------------------------------------------ what users said of them


def write_feedback(path: Path, labels: Path) -> None:
    """Write the verdicts in the database at path to a CSV of labels for training. Raises UserError."""
    query = (
        "SELECT strftime('%Y-%m-%dT%H:%M:%SZ', time, 'unixepoch'), file_id, kind,"
        " json_extract(candidates, '$[0].title'), json_extract(candidates, '$[0].confidence'), verdict, film"
        " FROM answers WHERE verdict IS NOT NULL ORDER BY time"
    )
    rows = open_existing(path).execute(query).fetchall()
    head = ["time", "file_id", "kind", "answer", "confidence", "verdict", "film"]
    with atomic_write(labels, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    print(f"{len(rows)} verdicts in {labels}")


def print_wishes(path: Path) -> None:
    """Print the films that users named and the collection lacked, by how many users wished for them."""
    users = defaultdict(set)  # by film, whatever its capitals
    names = {}  # as the first user wrote it
    for film, who, answer in open_existing(path).execute("SELECT film, who, id FROM answers WHERE verdict = 'wish'"):
        key = film.casefold()
        users[key].add(who or answer)
        names.setdefault(key, film)
    for key in sorted(users, key=lambda key: (-len(users[key]), key)):
        print(f"{len(users[key]):6}  {names[key]}")


# ------------------------------------------------------------------------------------------------ keeping


async def tidy(base: sqlite3.Connection) -> None:
    """Hourly: forget updates of two days ago and answers that nobody judged in 90, and wipe them from the disk."""
    while True:
        now = time.time()
        base.execute("DELETE FROM updates WHERE time < ?", (now - 2 * DAY,))
        base.execute("DELETE FROM answers WHERE verdict IS NULL AND time < ?", (now - 90 * DAY,))
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        await asyncio.sleep(3600)
