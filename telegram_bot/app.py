"""What all handlers share: database, model, texts, the queue, and what was just shown."""

import asyncio
import collections
import contextlib
import hashlib
import sqlite3
import time
import weakref

from aiogram.types import Chat, User

from telegram_bot.database import DAY, KEEP_DAYS
from telegram_bot.worker import ModelDescription, Worker, describe_model

IN_HAND = 3  # frames that are fetched at a time; the model takes one of them
TIMES_KEPT = 1000  # answers whose times the median is of
REFRESH_SECONDS = 60.0  # until we ask again which films there are


class App:
    """worker: started; key: what users' ids are hashed with; texts: as load_texts gives them."""

    def __init__(
        self,
        base: sqlite3.Connection,
        key: str,
        worker: Worker,
        texts: dict,
        queue: int,
        owner: int = 0,
        keep_days: float = KEEP_DAYS,
    ):
        self.base = base
        self.key = key
        self.worker = worker
        self.texts = texts
        self.queue = queue  # frames that may wait
        self.owner = owner  # id of the user who may see figures
        self.keep_days = keep_days  # until answers are deleted
        self.model: ModelDescription | None = None  # see set_description
        self.titles: dict[str, list[tuple[str, str]]] = {}  # what find_titles looks through, by language
        self.tasks: set[asyncio.Task] = set()  # of updates in hand
        self.waiting: set[asyncio.Task] = set()  # those of them that wait for the model
        self.in_hand = asyncio.Semaphore(IN_HAND)
        self.turns: weakref.WeakValueDictionary[int, asyncio.Lock] = weakref.WeakValueDictionary()  # a lock a user
        self.frames: collections.Counter[int] = collections.Counter()  # of each user in the last FLOOD_SECONDS
        self.times = collections.deque([0.0], TIMES_KEPT)  # milliseconds that the last answers took
        self.asked: set[str] = set()  # hashes of questions in hand

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

    # ---------------------------------------------------------------------------------------------- users

    def hash(self, user: User) -> str:
        """All that the database knows of a user."""
        return self.hash_text(str(user.id))

    def hash_place(self, chat: Chat, user: User) -> str:
        """Where the next picture of a user may be awaited."""
        return self.hash_text(f"{chat.id} {user.id}")

    def hash_text(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), key=self.key.encode()[:64], digest_size=12).hexdigest()

    def count_frame(self, user: int, seconds: float) -> int:
        """How many frames a user has sent in so many seconds, with this one."""
        self.frames[user] += 1
        asyncio.get_running_loop().call_later(seconds, self.drop_frame, user)
        return self.frames[user]

    def drop_frame(self, user: int) -> None:
        """One of a user's frames is no more of the last seconds; of a user who is gone nothing stays."""
        self.frames[user] -= 1
        if self.frames[user] <= 0:
            del self.frames[user]

    def find_texts(self, user: User | None) -> dict:
        """Texts in the language that a user chose, else in that of his Telegram, else in English."""
        code = self.find_language(user) if user else ""
        return next((texts for texts in self.texts.values() if code in texts["codes"]), self.texts["en"])

    def find_language(self, user: User) -> str:
        """Its code; "" where nobody knows."""
        who = self.hash(user)
        row = self.base.execute("SELECT code, time FROM languages WHERE who = ?", (who,)).fetchone()
        if row is None:
            return (user.language_code or "").split("-")[0]
        code, seen = row
        if time.time() - (seen or 0.0) > DAY:  # who comes back keeps it
            self.base.execute("UPDATE languages SET time = ? WHERE who = ?", (time.time(), who))
        return code

    def set_language(self, user: User, code: str) -> None:
        self.base.execute("INSERT OR REPLACE INTO languages VALUES (?, ?, ?)", (self.hash(user), code, time.time()))

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
