"""The bot's SQLite file: answers and what users said of them, updates until they are answered, counts, languages."""

import asyncio
import csv
import json
import sqlite3
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from answering.console import UserError, atomic_write
from telegram_bot.marks import are_near

DAY = 86400  # seconds
KEEP_DAYS = 90  # until answers are deleted, unless the owner says otherwise
AWAITED_SECONDS = 600.0  # in which a picture counts as the frame that we asked for
LISTED = 3  # films of a shortlist or a guess
REMEMBERED = 200  # wrong answers of a user, of which a picture may be asked again
WISHED = 2  # users who must have wished for a film, before their words are kept longer than their answers
SCHEMA = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;
CREATE TABLE IF NOT EXISTS answers
    (id TEXT PRIMARY KEY, time REAL, file_id TEXT, kind TEXT, candidates TEXT, verdict TEXT, film TEXT, who TEXT,
     clip TEXT, frames INTEGER, files TEXT, small INTEGER, marks TEXT, question TEXT);
CREATE TABLE IF NOT EXISTS counts (day TEXT, what TEXT, n INTEGER, PRIMARY KEY (day, what));
CREATE TABLE IF NOT EXISTS updates (id INTEGER PRIMARY KEY, time REAL, body TEXT, sending INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS languages (who TEXT PRIMARY KEY, code TEXT, time REAL);
CREATE TABLE IF NOT EXISTS verdicts
    (verdict TEXT, named TEXT, film TEXT, n INTEGER, PRIMARY KEY (verdict, named, film));
CREATE TABLE IF NOT EXISTS awaited (place TEXT PRIMARY KEY, answer TEXT, time REAL);
CREATE TABLE IF NOT EXISTS forgotten (who TEXT PRIMARY KEY);
"""
# that tables of an older bot lack
NEWER_COLUMNS = {
    "answers": {
        "who": "TEXT",
        "clip": "TEXT",
        "frames": "INTEGER",
        "files": "TEXT",
        "small": "INTEGER",
        "marks": "TEXT",
        "question": "TEXT",
    },
    "languages": {"time": "REAL"},
}
INDEXES = """
CREATE INDEX IF NOT EXISTS answers_who ON answers (who);
CREATE INDEX IF NOT EXISTS answers_time ON answers (time);
CREATE INDEX IF NOT EXISTS answers_question ON answers (question);
"""


def open_base(path: Path | str) -> sqlite3.Connection:
    """The database at this path, made or brought up to date if need be. Raises UserError."""
    try:
        base = sqlite3.connect(path, isolation_level=None)
        base.executescript(SCHEMA)
        for table, newer in NEWER_COLUMNS.items():
            columns = [column[1] for column in base.execute(f"PRAGMA table_info({table})")]
            for column, kind in newer.items():
                if column not in columns:
                    base.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        base.executescript(INDEXES)
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
    frames: int | None = None  # that were asked, of a clip or of several pictures
    files: list[str] = field(default_factory=list)  # Telegram's ids of all pictures that were asked
    small: bool = False  # of one of them, only the preview was seen
    marks: list[str] = field(default_factory=list)  # of marks.py, of the frames that were asked
    question: str | None = None  # hash of what was asked, so that an edit of it is not answered twice


def save_answer(base: sqlite3.Connection, answer: StoredAnswer) -> None:
    row = {
        "id": answer.id,
        "time": time.time(),
        "file_id": answer.file_id,
        "kind": answer.kind,
        "candidates": json.dumps(answer.candidates),
        "who": answer.asker,
        "clip": answer.clip_id,
        "frames": answer.frames,
        "files": json.dumps(answer.files),
        "small": int(answer.small),
        "marks": json.dumps(answer.marks),
        "question": answer.question,
    }
    holes = ", ".join("?" * len(row))
    base.execute(f"INSERT INTO answers ({', '.join(row)}) VALUES ({holes})", list(row.values()))


def find_answer(base: sqlite3.Connection, number: str) -> StoredAnswer | None:
    """The answer with this id; None for one that is forgotten or never was."""
    query = (
        "SELECT id, file_id, kind, candidates, who, clip, frames, files, small, marks, question"
        " FROM answers WHERE id = ?"
    )
    row = base.execute(query, (number,)).fetchone()
    if row is None:
        return None
    number, file_id, kind, candidates, who, clip, frames, files, small, marks, question = row
    return StoredAnswer(
        id=number,
        file_id=file_id,
        kind=kind,
        candidates=json.loads(candidates),
        asker=who,
        clip_id=clip,
        frames=frames,
        files=json.loads(files) if files else [],  # of an older bot
        small=bool(small),
        marks=json.loads(marks) if marks else [],
        question=question,
    )


def was_answered(base: sqlite3.Connection, question: str) -> bool:
    """Whether there is an answer to this question, as StoredAnswer has it."""
    return base.execute("SELECT 1 FROM answers WHERE question = ?", (question,)).fetchone() is not None


def has_confirmed(base: sqlite3.Connection, who: str) -> bool:
    """Whether a user has ever said which film a picture is of, so that the picture may go into an index."""
    query = "SELECT 1 FROM answers WHERE who = ? AND verdict IN ('right', 'wrong') AND film IS NOT NULL"
    return base.execute(query, (who,)).fetchone() is not None


def find_rejected(base: sqlite3.Connection, who: str, marks: list[str]) -> set[str]:
    """Titles of which a user said, at pictures with nearly these marks, that they are not the film."""
    rejected = set()
    query = (
        "SELECT kind, candidates, film, marks FROM answers WHERE who = ? AND verdict IN ('wrong', 'wish')"
        " AND marks IS NOT NULL ORDER BY time DESC LIMIT ?"
    )
    for kind, candidates, film, seen in base.execute(query, (who, REMEMBERED)):
        if are_near(marks, json.loads(seen)):
            offered = json.loads(candidates)[: LISTED if kind == "shortlist" else 1]
            rejected |= {candidate["title"] for candidate in offered} - {film}
    return rejected


# -------------------------------------------------------------------------------------- one more frame of it


def await_frame(base: sqlite3.Connection, place: str, answer: str) -> None:
    """The next picture from this place, a hash of chat and user, belongs to that answer."""
    base.execute("INSERT OR REPLACE INTO awaited VALUES (?, ?, ?)", (place, answer, time.time()))


def find_awaited(base: sqlite3.Connection, place: str) -> str | None:
    """The answer that a picture from this place belongs to."""
    query = "SELECT answer FROM awaited WHERE place = ? AND time > ?"
    row = base.execute(query, (place, time.time() - AWAITED_SECONDS)).fetchone()
    return row[0] if row else None


def stop_awaiting(base: sqlite3.Connection, place: str) -> None:
    base.execute("DELETE FROM awaited WHERE place = ?", (place,))


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
    base = open_existing(path)
    users = defaultdict(set)  # by film, whatever its capitals
    names = {}  # as the first user wrote it
    for film, who, answer in base.execute("SELECT film, who, id FROM answers WHERE verdict = 'wish'"):
        key = film.casefold()
        users[key].add(who or answer)
        names.setdefault(key, film)
    wished = Counter({key: len(them) for key, them in users.items()})
    for film, count in base.execute("SELECT film, sum(n) FROM verdicts WHERE verdict = 'wish' GROUP BY film"):
        wished[film.casefold()] += count
        names.setdefault(film.casefold(), film)
    for key in sorted(wished, key=lambda key: (-wished[key], key)):
        print(f"{wished[key]:6}  {names[key]}")


@dataclass(frozen=True)
class Confusion:
    """A film that was asked, by the word of users, and the other film that the bot named first."""

    asked: str  # a title
    named: str
    times: int
    asked_still: str | None  # file name of the still that was nearest in the film that was asked, if it was listed
    named_still: str | None


def find_confusions(base: sqlite3.Connection) -> list[Confusion]:
    """All of them, the most frequent first."""
    times = Counter()
    stills = {}  # of the last such answer
    query = "SELECT film, candidates FROM answers WHERE verdict = 'wrong' AND film IS NOT NULL ORDER BY time"
    for asked, candidates in base.execute(query):
        listed = json.loads(candidates)
        if not listed or listed[0]["title"] == asked:
            continue
        proofs = {one["title"]: (one.get("evidence") or {}).get("file") for one in listed}
        pair = (asked, listed[0]["title"])
        times[pair] += 1
        stills[pair] = (proofs.get(asked), proofs[pair[1]])
    counted = "SELECT film, named, n FROM verdicts WHERE verdict = 'wrong' AND film != '' AND film != named"
    for asked, named, count in base.execute(counted):
        times[asked, named] += count
    ordered = sorted(times, key=lambda pair: (-times[pair], pair))
    return [Confusion(*pair, times[pair], *stills.get(pair, (None, None))) for pair in ordered]


# ------------------------------------------------------------------------------------------------ keeping


def forget_user(base: sqlite3.Connection, who: str) -> int:
    """Delete all that is kept of a user; how many answers there were.

    His hash stays until learn.py has taken his pictures out of what waits for the owner and out of the index.
    """
    base.execute("DELETE FROM awaited WHERE answer IN (SELECT id FROM answers WHERE who = ?)", (who,))
    count = base.execute("DELETE FROM answers WHERE who = ?", (who,)).rowcount
    base.execute("DELETE FROM languages WHERE who = ?", (who,))
    base.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (who,))
    return count


def expire(base: sqlite3.Connection, keep_days: float) -> None:
    """Delete what is older; of verdicts, how many there were of which films stays, and of no user."""
    limit = time.time() - keep_days * DAY
    base.execute("BEGIN IMMEDIATE")
    try:
        base.execute(
            "INSERT INTO verdicts SELECT verdict, named, film, n FROM (SELECT verdict,"
            " coalesce(json_extract(candidates, '$[0].title'), '') AS named, coalesce(film, '') AS film, count(*) AS n"
            " FROM answers WHERE verdict IN ('right', 'wrong') AND time < ? GROUP BY 1, 2, 3) WHERE true"
            " ON CONFLICT DO UPDATE SET n = n + excluded.n",
            (limit,),
        )
        base.execute(  # what one user alone has written may be anything
            "INSERT INTO verdicts SELECT 'wish', '', film, n FROM (SELECT film, count(DISTINCT coalesce(who, id)) AS n"
            " FROM answers WHERE verdict = 'wish' AND time < ? GROUP BY film COLLATE NOCASE) WHERE n >= ?"
            " ON CONFLICT DO UPDATE SET n = n + excluded.n",
            (limit, WISHED),
        )
        base.execute("DELETE FROM answers WHERE time < ?", (limit,))
        base.execute("DELETE FROM languages WHERE time < ?", (limit,))
        base.execute("DELETE FROM awaited WHERE time < ?", (time.time() - AWAITED_SECONDS,))
        base.execute("COMMIT")
    except BaseException:
        base.execute("ROLLBACK")
        raise


async def tidy(base: sqlite3.Connection, keep_days: float = KEEP_DAYS) -> None:
    """Hourly: forget updates of two days ago and answers that are older than that, and wipe them from the disk."""
    base.execute("UPDATE languages SET time = ? WHERE time IS NULL", (time.time(),))  # of an older bot
    while True:
        base.execute("DELETE FROM updates WHERE time < ?", (time.time() - 2 * DAY,))
        expire(base, keep_days)
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        await asyncio.sleep(3600)
