"""database"""

import asyncio
import csv
import sqlite3
import time
from collections import defaultdict
from pathlib import Path

from answering.console import UserError, atomic_write

SCHEMA = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;
CREATE TABLE IF NOT EXISTS answers
    (id TEXT PRIMARY KEY, time REAL, file_id TEXT, kind TEXT, candidates TEXT, verdict TEXT, film TEXT, who TEXT);
CREATE TABLE IF NOT EXISTS counts (day TEXT, what TEXT, n INTEGER, PRIMARY KEY (day, what));
CREATE TABLE IF NOT EXISTS updates (id INTEGER PRIMARY KEY, time REAL, body TEXT, sending INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS languages (who TEXT PRIMARY KEY, code TEXT);
"""


def open_existing(base: Path):

    if not base.exists():
        raise UserError(f"--db {base}: there is no such file; the bot makes it when it runs", 2)
    return open_base(base)


def write_feedback(base: Path, path: Path) -> None:
    """Verdicts as a CSV of labels for training."""
    query = (
        "SELECT strftime('%Y-%m-%dT%H:%M:%SZ', time, 'unixepoch'), file_id, kind,"
        " json_extract(candidates, '$[0].title'), json_extract(candidates, '$[0].confidence'), verdict, film"
        " FROM answers WHERE verdict IS NOT NULL ORDER BY time"
    )
    rows = open_existing(base).execute(query).fetchall()
    with atomic_write(path, "w", newline="", encoding="utf-8") as file:
        head = ["time", "file_id", "kind", "answer", "confidence", "verdict", "film"]
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    print(f"{len(rows)} verdicts in {path}")


def print_wishes(base: Path) -> None:
    """Films that users named and the collection lacked, by how many users wished for them."""
    wishes, names = defaultdict(set), {}
    for film, who, answer in open_existing(base).execute("SELECT film, who, id FROM answers WHERE verdict = 'wish'"):
        wishes[film.casefold()].add(who or answer)
        names.setdefault(film.casefold(), film)
    for wish in sorted(wishes, key=lambda wish: (-len(wishes[wish]), wish)):
        print(f"{len(wishes[wish]):6}  {names[wish]}")


def open_base(path: Path | str) -> sqlite3.Connection:
    """Answers with verdicts, updates until they are answered, languages, counts. Raises UserError."""
    try:
        base = sqlite3.connect(path, isolation_level=None)
        base.executescript(SCHEMA)
        if "who" not in [column[1] for column in base.execute("PRAGMA table_info(answers)")]:  # of an older bot
            base.execute("ALTER TABLE answers ADD COLUMN who TEXT")
    except sqlite3.Error as error:
        raise UserError(f"--db {path}: {error}; name a file that this bot can write") from None
    return base


async def tidy(base: sqlite3.Connection) -> None:
    """Hourly: forget updates of two days ago, answers that nobody judged in 90, and what lay where they were."""
    while True:
        base.execute("DELETE FROM updates WHERE time < ?", (time.time() - 2 * 86400,))
        base.execute("DELETE FROM answers WHERE verdict IS NULL AND time < ?", (time.time() - 90 * 86400,))
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        await asyncio.sleep(3600)
