"""What all handlers share: database, model, texts, the queue, and what was just shown."""

import asyncio
import collections
import contextlib
import hashlib
import sqlite3
import weakref

from aiogram.types import User

from telegram_bot.worker import ModelDescription, Worker, describe_model

IN_HAND = 3  # frames that are fetched at a time; the model takes one of them
STILL_CACHE_SIZE = 500  # answers whose stills stay in memory for "show another", 25 KB each
TIMES_KEPT = 1000  # answers whose times the median is of
REFRESH_SECONDS = 60.0  # until we ask again which films there are


class App:
    """worker: started; key: what users' ids are hashed with; texts: as load_texts gives them."""

    def __init__(self, base: sqlite3.Connection, key: str, worker: Worker, texts: dict, queue: int, owner: int = 0):
        self.base = base
        self.key = key
        self.worker = worker
        self.texts = texts
        self.queue = queue  # frames that may wait
        self.owner = owner  # id of the user who may see figures
        self.model: ModelDescription | None = None  # see set_description
        self.titles: dict[str, list[tuple[str, str]]] = {}  # what find_titles looks through, by language
        self.tasks: set[asyncio.Task] = set()  # of updates in hand
        self.waiting: set[asyncio.Task] = set()  # those of them that wait for the model
        self.in_hand = asyncio.Semaphore(IN_HAND)
        self.turns: weakref.WeakValueDictionary[int, asyncio.Lock] = weakref.WeakValueDictionary()  # a lock a user
        self.frames: collections.Counter[int] = collections.Counter()  # of each user in the last FLOOD_SECONDS
        self.times = collections.deque([0.0], TIMES_KEPT)  # milliseconds that the last answers took
        self.stills: dict[str, dict[int, bytes]] = {}  # JPEGs of the last answers, by place of the candidate

    # ------------------------------------------------------------------------------------------ the model

    def set_description(self, description: ModelDescription) -> None:
        """Take what the worker tells of its model, whose films may have changed."""
        self.model = description
        self.titles = {}

    @property
    def films(self) -> dict[str, str | None]:
        """Titles that the model knows, with their IMDb ids."""
        return self.model.films

    def find_titles(self, texts: dict, query: str) -> list[tuple[str, str]]:
        """(as shown, title) of the films that hold every word of the query, sorted."""
        language = texts["name"]
        if language not in self.titles:
            self.titles[language] = sorted((local_title(title, texts), title) for title in self.films)
        words = query.casefold().split()
        return [pair for pair in self.titles[language] if all(word in pair[0].casefold() for word in words)]

    def keep_stills(self, answer: str, stills: dict[int, bytes]) -> None:
        """Keep the stills of an answer for its buttons, and forget the oldest ones."""
        self.stills[answer] = stills
        if len(self.stills) > STILL_CACHE_SIZE:
            del self.stills[next(iter(self.stills))]

    # ---------------------------------------------------------------------------------------------- users

    def hash(self, user: User) -> str:
        """All that the database knows of a user."""
        return hashlib.blake2b(str(user.id).encode(), key=self.key.encode()[:64], digest_size=12).hexdigest()

    def find_texts(self, user: User | None) -> dict:
        """Texts in the language that a user chose, else in that of his Telegram, else in English."""
        code = self.find_language(user) if user else ""
        return next((texts for texts in self.texts.values() if code in texts["codes"]), self.texts["en"])

    def find_language(self, user: User) -> str:
        """Its code; "" where nobody knows."""
        row = self.base.execute("SELECT code FROM languages WHERE who = ?", (self.hash(user),)).fetchone()
        return row[0] if row else (user.language_code or "").split("-")[0]

    def set_language(self, user: User, code: str) -> None:
        self.base.execute("INSERT OR REPLACE INTO languages VALUES (?, ?)", (self.hash(user), code))

    # ------------------------------------------------------------------------------------- what is counted

    def count(self, *names: str) -> None:
        """One more of each today; of UTC."""
        insert = "INSERT INTO counts VALUES (date('now'), ?, 1) ON CONFLICT DO UPDATE SET n = n + 1"
        self.base.executemany(insert, [(name,) for name in names])

    def judge(self, answer: str, verdict: str, film: str | None) -> None:
        """Keep what a user says of an answer: "right", "wrong", or "wish" for a film that we don't know."""
        (before,) = self.base.execute("SELECT verdict FROM answers WHERE id = ?", (answer,)).fetchone()
        self.base.execute("UPDATE answers SET verdict = ?, film = ? WHERE id = ?", (verdict, film, answer))
        if verdict != before:  # after "wrong", the film may follow
            self.count(verdict)


def local_title(title: str, texts: dict) -> str:
    """As people of that language see it: "Чужой / Alien (1979)"."""
    name = texts["titles"].get(title)
    return f"{name} / {title}" if name else title


async def watch_films(app: App) -> None:
    """Hear of films that were added to the index or removed, every REFRESH_SECONDS."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        with contextlib.suppress(Exception):  # the model's process ended; the next answer starts it
            app.set_description(await app.worker.call(describe_model))
