"""A Telegram bot that names the film a frame comes from, on a small host; identify.py works in a process beside it.

TELEGRAM_BOT_TOKEN=... python bot.py --model export --check     # is everything there? says what is wrong in one line
python bot.py --model export                                    # the token may stand in .env, too
python bot.py --feedback labels.csv                             # what users said of the answers, for training
"""

import argparse
import asyncio
import collections
import contextlib
import contextvars
import csv
import ctypes
import gc
import hashlib
import json
import logging
import math
import os
import re
import secrets
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from aiogram import Bot, Dispatcher, F, Router
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.session.middlewares.base import BaseRequestMiddleware
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    AiogramError,
    ClientDecodeError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramForbiddenError,
    TelegramNetworkError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.filters import Command
from aiogram.methods import (
    AnswerCallbackQuery,
    DeleteWebhook,
    EditMessageReplyMarkup,
    EditMessageText,
    GetFile,
    GetMe,
    GetUpdates,
    SendChatAction,
    SendMessage,
    SetMyCommands,
)
from aiogram.types import (
    BotCommand,
    CallbackQuery,
    ErrorEvent,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    Message,
    Update,
)
from aiogram.utils.token import TokenValidationError
from aiohttp import ClientConnectorError, ClientError, ClientTimeout, ConnectionTimeoutError
from pydantic import ValidationError

from image import IMAGE_SUFFIXES, MAX_BYTES, UserError, atomic_write, one_line_errors

HERE = Path(__file__).parent
OLD = 600.0  # seconds; after an outage, older questions are not answered
ALBUM_WAIT = 1.0  # seconds in which the other pictures of an album arrive
DOWNLOADS = 3  # frames fetched at a time; the model takes one
SECONDS = 20.0  # for a download, and for the worker with one frame
FLOOD = (20, 60.0)  # frames of a user in so many seconds
PAGE = 20  # films a page
COMMANDS = {"start", "help", "about", "lang", "films", "film"}
RUSSIAN = ("ru", "be", "kk", "uk")  # language codes of those who read Russian
log = logging.getLogger("bot")

TEXTS = {
    "ru": {
        "start": "Привет! Пришли мне кадр из фильма, и я попробую угадать, откуда он. Я знаю {films} фильмов: /films",
        "help": "Пришли кадр: фотографией, файлом, стикером, гифкой или видео. Альбом получит один ответ.\n"
        "Можно ответить на чужую картинку вопросом «что это за фильм?».\n"
        "В группах я молчу, пока меня не упомянут, не ответят мне или не напишут /film в ответ на картинку.\n"
        "/films - какие фильмы я знаю, /films слова - поиск, /about - о модели, /lang - язык",
        "movie": "Похоже, это {title}. {sure}, но я могу ошибаться.",
        "shortlist": "Немного сомневаюсь. Возможно, это один из этих фильмов:\n{list}",
        "unknown": "Я не знаю этот фильм. Попробуй другой кадр.",
        "guess": "Я не знаю этот фильм, но больше всего это похоже на:\n{list}",
        "sure": ["Почти уверен", "Довольно уверен", "Не очень уверен"],
        "error": "Прости, что-то пошло не так. Попробуй ещё раз чуть позже.",
        "unreadable": "Не могу открыть эту картинку. Пришли её, пожалуйста, в JPEG или PNG.",
        "big": "Файл слишком большой, я беру картинки до 20 МБ.",
        "hint": "Я не понял. Пришли мне кадр из фильма картинкой.",
        "busy": "Сейчас много кадров: этот был бы в очереди на месте {place}. Пришли его ещё раз через {seconds} с.",
        "flood": "Так много кадров сразу я не успеваю смотреть. Подожди минуту, пожалуйста.",
        "right": "Верно", "wrong": "Неверно", "none": "Ничего из этого", "show": "Показать лучшую догадку",
        "which": "А какой это фильм?", "thanks": "Спасибо!", "gone": "Этот ответ я уже не помню.",
        "films": "Фильмов: {count}", "nothing": "Такого фильма я не знаю.",
        "about": "Модель {architecture}, фильмов {films}. {accuracy}Версия {commit}.",
        "accuracy": "Доля верных на сценах, которых она не видела: {top1:.0%}. ",
        "random": "Доля верных на случайном разбиении (завышена): {top1:.0%}. ",
        "lang": "На каком языке говорить?", "set": "Хорошо, говорю по-русски.",
        "commands": {"film": "назвать фильм картинки, на которую отвечаешь", "films": "какие фильмы я знаю",
                     "help": "что я умею", "about": "о модели", "lang": "язык"},
    },
    "en": {
        "start": "Hi! Send me a frame from a movie and I will try to name it. I know {films} of them: /films",
        "help": "Send a frame as a photo, a file, a sticker, a GIF or a video. An album gets one answer.\n"
        "You can also reply to somebody's picture with \"what film is this?\".\n"
        "In groups I keep quiet until I am mentioned, replied to, or told /film in reply to a picture.\n"
        "/films - the movies I know, /films words - search, /about - the model, /lang - language",
        "movie": "This looks like {title}. {sure}, but I may be wrong.",
        "shortlist": "I doubt a little. Perhaps it is one of these:\n{list}",
        "unknown": "I don't know this movie. Try another frame.",
        "guess": "I don't know this movie, but it looks most like:\n{list}",
        "sure": ["I am almost sure", "I am fairly sure", "I am not very sure"],
        "error": "Sorry, something went wrong. Please try again a little later.",
        "unreadable": "I can't open this picture. Please send it as JPEG or PNG.",
        "big": "This file is too big, I take pictures up to 20 MB.",
        "hint": "I did not understand. Send me a frame from a movie as a picture.",
        "busy": "I am busy: this frame would be at place {place}. Please send it again in {seconds} s.",
        "flood": "I can't look at so many frames at once. Please wait a minute.",
        "right": "Right", "wrong": "Wrong", "none": "None of these", "show": "Show the best guess",
        "which": "Which movie is it, then?", "thanks": "Thank you!", "gone": "I don't remember this answer any more.",
        "films": "Movies: {count}", "nothing": "I know no such movie.",
        "about": "Model {architecture}, {films} movies. {accuracy}Version {commit}.",
        "accuracy": "Right on scenes that it has never seen: {top1:.0%}. ",
        "random": "Right on a random split (which flatters): {top1:.0%}. ",
        "lang": "Which language shall I speak?", "set": "Fine, I speak English.",
        "commands": {"film": "name the movie of the picture you reply to", "films": "the movies I know",
                     "help": "what I can do", "about": "the model", "lang": "language"},
    },
}  # fmt: skip


# -------------------------------------------------------------------------------------------- what is kept


class Store:
    """SQLite: answers with their verdicts, updates in hand, chosen languages. Of people only a keyed hash of an id."""

    def __init__(self, path: Path | str, key: str):
        self.key = key
        try:
            self.base = sqlite3.connect(path, isolation_level=None)
            self.base.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;"
                "CREATE TABLE IF NOT EXISTS answers (id TEXT PRIMARY KEY, time REAL, file_id TEXT, kind TEXT,"
                " candidates TEXT, verdict TEXT, film TEXT);"
                "CREATE TABLE IF NOT EXISTS updates (id INTEGER PRIMARY KEY, time REAL, body TEXT,"
                " tries INTEGER DEFAULT 0, sending INTEGER DEFAULT 0);"
                "CREATE TABLE IF NOT EXISTS languages (who TEXT PRIMARY KEY, code TEXT);"
            )
        except sqlite3.Error as error:
            raise UserError(f"--db {path}: {error}; name a file that this bot can write") from None

    def begin(self, update_id: int, body: str | None) -> bool:
        """Note an update, and its body while it waits for an answer; False if it is known already."""
        row = (update_id, time.time(), body)
        query = "INSERT OR IGNORE INTO updates (id, time, body) VALUES (?, ?, ?)"
        return bool(self.base.execute(query, row).rowcount)

    def mark(self, ids: list[int], sending: bool) -> None:
        """Note that the answer to updates may have arrived from now on, or surely has not."""
        self.base.executemany("UPDATE updates SET sending = ? WHERE id = ?", [(sending, i) for i in ids])

    def finish(self, ids: list[int]) -> None:
        self.base.executemany("UPDATE updates SET body = NULL WHERE id = ?", [(i,) for i in ids])

    def waiting(self) -> list[tuple[int, str]]:
        """(id, body) of updates that a killed process left unanswered.

        Not those whose answer may have arrived, nor those that were there at two starts before: they may be the reason.
        """
        self.base.execute("UPDATE updates SET tries = tries + 1 WHERE body IS NOT NULL")
        self.base.execute("UPDATE updates SET body = NULL WHERE sending OR tries > 2")
        return self.base.execute("SELECT id, body FROM updates WHERE body IS NOT NULL ORDER BY id").fetchall()

    def tidy(self) -> None:
        """Forget updates of two days ago and answers that nobody judged in 90, and what lay where they were."""
        now = time.time()
        self.base.execute("DELETE FROM updates WHERE time < ?", (now - 2 * 86400,))
        self.base.execute("DELETE FROM answers WHERE verdict IS NULL AND time < ?", (now - 90 * 86400,))
        self.base.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def add_answer(self, file_id: str, kind: str, candidates: list[dict]) -> str:
        answer = secrets.token_urlsafe(9)  # in the buttons' data: nobody guesses another's
        row = (answer, time.time(), file_id, kind, json.dumps(candidates, ensure_ascii=False))
        self.base.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, NULL, NULL)", row)
        return answer

    def get_answer(self, answer: str) -> tuple[str, list[dict]] | None:
        row = self.base.execute("SELECT kind, candidates FROM answers WHERE id = ?", (answer,)).fetchone()
        return (row[0], json.loads(row[1])) if row else None

    def make_answers(self, answer: str, verdict: str, film: str | None) -> None:
        self.base.execute("UPDATE answers SET verdict = ?, film = ? WHERE id = ?", (verdict, film, answer))

    def verdicts(self) -> list[tuple]:
        query = (
            "SELECT time, file_id, kind, candidates, verdict, film FROM answers WHERE verdict IS NOT NULL ORDER BY time"
        )
        return self.base.execute(query).fetchall()

    def _who(self, user: int) -> str:
        return hashlib.blake2b(str(user).encode(), key=self.key.encode()[:64], digest_size=12).hexdigest()

    def language(self, user: int) -> str | None:
        row = self.base.execute("SELECT code FROM languages WHERE who = ?", (self._who(user),)).fetchone()
        return row[0] if row else None

    def set_language(self, user: int, code: str) -> None:
        self.base.execute("INSERT OR REPLACE INTO languages VALUES (?, ?)", (self._who(user), code))


# ------------------------------------------------------------------------------------------------ the worker


class Worker:
    """identify.py --worker in a process of its own: what hangs or bursts there is ended and started anew."""

    def __init__(self, model: str, threads: int = 0, runtime: str | None = None):
        self.command = [sys.executable, str(HERE / "identify.py"), "--worker", "--model", model]
        self.command += ["--threads", str(threads)] + (["--runtime", runtime] if runtime else [])
        self.process, self.about, self.lock, self.seconds, self.words = None, {}, asyncio.Lock(), 0.1, ""

    async def start(self) -> None:
        """Raises UserError with the worker's own words."""
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=pipe, stdout=pipe, stderr=pipe, limit=2**24, start_new_session=True
        )
        self.words = "the worker ended, or took over three minutes to start"
        self.listening = asyncio.create_task(self._listen(self.process.stderr))  # asyncio itself would not keep it
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(180):
                line = await self.process.stdout.readline()
        if not line:
            await self.stop()
            await self.listening
            raise UserError(self.words)
        self.about = json.loads(line)

    async def _listen(self, stream) -> None:
        while line := await stream.readline():
            self.words = line.decode(errors="replace").strip().removeprefix("identify.py: error: ") or self.words

    async def stop(self) -> None:
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # and what it started to measure formats
            await self.process.wait()

    async def ask(self, pictures: list[bytes]) -> dict:
        """{"kind", "candidates", "ms"} or {"error"}. Raises RuntimeError where the worker hung or died."""
        async with self.lock:
            start = time.perf_counter()
            try:
                if self.process is None or self.process.returncode is not None:
                    await self.start()
                async with asyncio.timeout(SECONDS):
                    self.process.stdin.write(bytes([len(pictures)]))
                    for data in pictures:
                        self.process.stdin.write(len(data).to_bytes(4, "little"))
                        self.process.stdin.write(data)
                        await self.process.stdin.drain()
                    line = await self.process.stdout.readline()
                reply = json.loads(line)
            except BaseException as error:  # what comes next must not read the reply to this
                await self.stop()
                if isinstance(error, Exception):
                    raise RuntimeError(f"worker: {type(error).__name__}") from None
                raise
            self.seconds += 0.1 * (time.perf_counter() - start - self.seconds)
            return reply


# ------------------------------------------------------------------------------------------------- the line


@dataclass
class Job:
    user: int
    message: Message  # of an album the first
    pictures: list[str]  # file ids
    updates: list[int]
    language: str


class Line:
    """Waiting frames, at most size of them; users take turns, and each has one frame in hand at a time."""

    def __init__(self, size: int):
        self.size, self.count = size, 0
        self.users: collections.OrderedDict[int, collections.deque] = collections.OrderedDict()
        self.busy: set[int] = set()
        self.changed = asyncio.Event()

    def put(self, job: Job) -> bool:
        if self.count >= self.size:
            return False
        self.users.setdefault(job.user, collections.deque()).append(job)
        self.count += 1
        self.changed.set()
        return True

    async def get(self) -> Job:
        while True:
            for user, jobs in self.users.items():
                if user not in self.busy:
                    job = jobs.popleft()
                    del self.users[user]
                    if jobs:
                        self.users[user] = jobs  # to the end: the others come first
                    self.count -= 1
                    self.busy.add(user)
                    return job
            self.changed.clear()
            await self.changed.wait()

    def done(self, job: Job) -> None:
        self.busy.discard(job.user)
        if job.user in self.users:
            self.users.move_to_end(job.user)  # those who came meanwhile go first
        self.changed.set()


class Flood:
    """Counts frames of each user: "ok", "warn" at the first one over the limit, then "drop"."""

    def __init__(self, limit: int, seconds: float):
        self.limit, self.seconds = limit, seconds
        self.times: dict[int, collections.deque] = {}
        self.warned: set[int] = set()

    def check(self, user: int) -> str:
        now = time.monotonic()
        if len(self.times) > 10_000:  # a year without a look: forget who was here long ago
            self.times = {u: t for u, t in self.times.items() if t and t[-1] > now - self.seconds}
            self.warned &= set(self.times)
        times = self.times.setdefault(user, collections.deque())
        while times and times[0] <= now - self.seconds:
            times.popleft()
        if len(times) < self.limit:
            times.append(now)
            self.warned.discard(user)
            return "ok"
        if user in self.warned:
            return "drop"
        self.warned.add(user)
        return "warn"


@dataclass
class App:
    """What the handlers share."""

    bot: Bot
    store: Store
    worker: Worker
    line: Line
    flood: Flood = field(default_factory=lambda: Flood(*FLOOD))
    local: dict[str, str] = field(default_factory=dict)  # Russian titles
    albums: dict[tuple, list] = field(default_factory=dict)
    tasks: set = field(default_factory=set)
    owned: set[int] = field(default_factory=set)  # updates whose end a job will tell
    late: dict[tuple, float] = field(default_factory=dict)  # albums that were answered, until when parts are ignored
    skipped: float = -math.inf  # when a message was last skipped for its age

    @property
    def classes(self) -> list[str]:
        return self.worker.about["classes"]

    def run(self, coroutine) -> None:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception():
            report(task.exception())

    def finish(self, updates: list[int]) -> None:
        self.store.finish(updates)
        self.owned.difference_update(updates)

    def language(self, user) -> str:
        """ "ru" or "en" for a Telegram user, or None where there is none, as in channels."""
        if user is None:
            return "en"
        return self.store.language(user.id) or ("ru" if (user.language_code or "").startswith(RUSSIAN) else "en")

    def title(self, title: str, language: str) -> str:
        local = self.local.get(title) if language == "ru" else None
        return f"{local} / {title}" if local else title


def report(error: BaseException) -> None:
    """Log where an error came from, but none of its words: they may hold names, texts or addresses."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    log.error("%s at %s", type(error).__name__, place)


# ------------------------------------------------------------------------------------------------- messages


def find_picture(message) -> tuple[str, int] | None:
    """(file id, bytes) of the picture in a Message or ExternalReplyInfo: the best that Telegram gives, or None."""
    if message is None:
        return None
    if message.photo:
        best = max(message.photo, key=lambda size: size.width * size.height)
    elif message.animation:
        best = message.animation.thumbnail
    elif message.video:
        covers = message.video.cover or []
        best = max(covers, key=lambda size: size.width * size.height) if covers else message.video.thumbnail
    elif message.video_note:
        best = message.video_note.thumbnail
    elif message.sticker:
        moving = message.sticker.is_animated or message.sticker.is_video
        best = message.sticker.thumbnail if moving else message.sticker
    elif message.document:
        kind, name = message.document.mime_type or "", message.document.file_name or ""
        suffix = Path(name[-20:]).suffix.lower()
        best = message.document if kind.startswith("image/") or suffix in IMAGE_SUFFIXES else message.document.thumbnail
    else:
        best = None
    if best:
        return best.file_id, best.file_size or 0
    return find_picture(getattr(message, "external_reply", None))


def is_addressed(message: Message, me) -> bool:
    """Whether the bot should speak: always in private, in groups when it is mentioned, replied to or commanded."""
    if message.chat.type == "private":
        return True
    asked = message.reply_to_message
    if asked and asked.from_user and asked.from_user.id == me.id:
        return True
    text, entities = message.text or message.caption or "", message.entities or message.caption_entities or []
    for entity in entities:
        word = entity.extract_from(text).casefold()
        if entity.type == "mention" and word == f"@{me.username}".casefold():
            return True
        if entity.type == "bot_command" and entity.offset == 0:
            name, _, at = word[1:].partition("@")
            return at == me.username.casefold() if at else name in COMMANDS  # /ban is for somebody else
    return False


def keyboard(*rows: list[tuple[str, str]]) -> InlineKeyboardMarkup:
    """Buttons from rows of (text, data); data is at most 64 bytes."""
    return InlineKeyboardMarkup(
        inline_keyboard=[[InlineKeyboardButton(text=t, callback_data=d) for t, d in row] for row in rows if row]
    )


def compose(app: App, kind: str, candidates: list[dict], answer: str, language: str, guess: bool = False) -> tuple:
    """(text, keyboard) of an answer."""
    texts = TEXTS[language]
    listed = "\n".join(f"- {app.title(c['title'], language)}" for c in candidates[:3])
    judge = [(texts["right"], f"r:{answer}"), (texts["wrong"], f"w:{answer}")]
    if kind == "movie":
        best = candidates[0]
        sure = texts["sure"][0 if best["confidence"] >= 0.95 else 1 if best["confidence"] >= 0.75 else 2]
        return texts["movie"].format(title=app.title(best["title"], language), sure=sure), keyboard(judge)
    if kind == "shortlist":
        rows = [[(app.title(c["title"], language)[:60], f"c{i}:{answer}")] for i, c in enumerate(candidates[:3])]
        return texts["shortlist"].format(list=listed), keyboard(*rows, [(texts["none"], f"w:{answer}")])
    if guess:
        return texts["guess"].format(list=listed), keyboard(judge)
    return texts["unknown"], keyboard([(texts["show"], f"g:{answer}")])


async def reply(message: Message, text: str, markup: InlineKeyboardMarkup | None = None) -> None:
    """Answer a message as plain text: nothing of what users write or films are called is ever read as HTML."""
    parameters = message.as_reply_parameters(allow_sending_without_reply=True)
    with contextlib.suppress(TelegramForbiddenError):  # blocked, or thrown out of the group
        await message.answer(text, reply_parameters=parameters, reply_markup=markup)


async def download(bot: Bot, file_id: str, room: int = MAX_BYTES) -> bytearray:
    """The file's bytes, at most room. Raises UserError("big"), or RuntimeError without the address in it."""
    try:
        file = await bot.get_file(file_id)
    except TelegramBadRequest as error:
        raise UserError("big" if "too big" in error.message.lower() else "unreadable") from None
    if (file.file_size or 0) > room:
        raise UserError("big")
    url = bot.session.api.file_url(bot.token, file.file_path)
    for attempt in range(3):
        data = bytearray()
        with contextlib.suppress(ClientError, TimeoutError):
            async with asyncio.timeout(SECONDS):
                async for part in bot.session.stream_content(url, timeout=int(SECONDS)):
                    data += part
                    if len(data) > room:
                        raise UserError("big")
            if not file.file_size or len(data) == file.file_size:
                return data
        await asyncio.sleep(attempt)
    raise RuntimeError("download")


async def download_all(bot: Bot, file_ids: list[str]) -> list[bytearray]:
    """The pictures of an album, together at most MAX_BYTES; one that can't be had does not spoil it."""
    room, pictures = MAX_BYTES, []
    for file_id in file_ids:
        try:
            pictures.append(await download(bot, file_id, room))
            room -= len(pictures[-1])
        except (UserError, RuntimeError):
            if file_id == file_ids[-1] and not pictures:
                raise
    return pictures


@contextlib.asynccontextmanager
async def typing(message: Message):
    """Show that the bot is at work. aiogram's ChatActionSender would hold the answer up until its call is through."""

    async def show() -> None:
        while True:
            with contextlib.suppress(AiogramError):
                await message.bot(SendChatAction(chat_id=message.chat.id, action="typing"))
            await asyncio.sleep(4.5)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()


async def answer_job(app: App, job: Job) -> None:
    """Fetch, identify, answer. Whatever happens, the user hears of it once."""
    message, texts, markup = job.message, TEXTS[job.language], None
    try:
        async with typing(message):
            result = await app.worker.ask(await download_all(app.bot, job.pictures))
        if "error" in result:
            text = texts["unreadable"]
        else:
            answer = app.store.add_answer(job.pictures[0], result["kind"], result["candidates"])
            text, markup = compose(app, result["kind"], result["candidates"], answer, job.language)
    except UserError as error:
        text = texts.get(str(error), texts["error"])
    except Exception as error:
        report(error)
        text = texts["error"]
    app.run(deliver(app, job, text, markup))  # beside: a group that Telegram slows down keeps nobody else waiting


async def deliver(app: App, job: Job, text: str, markup: InlineKeyboardMarkup | None) -> None:
    SENDING.set((app.store, job.updates))
    try:
        await reply(job.message, text, markup)
    except AiogramError as error:
        report(error)
    app.finish(job.updates)


async def serve(app: App) -> None:
    """Take jobs from the line for ever; a cancelled one stays in the store for the next start."""
    while True:
        job = await app.line.get()
        try:
            await answer_job(app, job)
        except Exception as error:
            report(error)
        finally:
            app.line.done(job)


async def take(app: App, message: Message, pictures: list[str], updates: list[int]) -> None:
    """Put a frame, or an album as one, into the line, or say why not."""
    who, language = sender(message), app.language(message.from_user)
    verdict = app.flood.check(who)
    job = Job(who, message, pictures, updates, language)
    if verdict == "ok" and app.line.put(job):
        return
    place = app.line.count + 1
    if verdict == "ok":
        seconds = max(5, round(place * app.worker.seconds))
        await deliver(app, job, TEXTS[language]["busy"].format(place=place, seconds=seconds), None)
    elif verdict == "warn":
        await deliver(app, job, TEXTS[language]["flood"], None)
    else:
        app.finish(updates)


def sender(message: Message) -> int:
    """Who speaks: a channel or an anonymous admin by its chat, for they all share one user."""
    return (message.sender_chat or message.from_user or message.chat).id


async def take_album(app: App, key: tuple) -> None:
    """Wait until no more parts of an album arrive, then take it as one frame."""
    parts = app.albums[key]
    while (count := len(parts)) and len(parts) < 10:
        await asyncio.sleep(ALBUM_WAIT)
        if len(parts) == count:
            break
    del app.albums[key]
    now = time.monotonic()
    app.late = {k: until for k, until in app.late.items() if until > now} | {key: now + 60}
    me = await app.bot.me()
    updates = [update for _, _, update in parts]
    if any(is_addressed(message, me) for message, _, _ in parts):
        parts.sort(key=lambda part: part[0].message_id)
        await take(app, parts[0][0], [picture for _, picture, _ in parts], updates)
    else:
        app.finish(updates)


# ------------------------------------------------------------------------------------------------- handlers


async def skip_old(message: Message, app: App) -> None:
    """After an outage nobody waits for these any more."""
    now = time.monotonic()
    if now - app.skipped > 3600:  # a clock that is wrong shows here
        log.warning("skipped a message %d s old; is this host's clock right?", time.time() - message.date.timestamp())
    app.skipped = now


async def on_start(message: Message, app: App) -> None:
    text = TEXTS[app.language(message.from_user)]["start"]
    await reply(message, text.format(films=len(app.classes)))


async def on_help(message: Message, app: App) -> None:
    await reply(message, TEXTS[app.language(message.from_user)]["help"])


async def on_about(message: Message, app: App) -> None:
    texts, about = TEXTS[app.language(message.from_user)], app.worker.about
    accuracy, figures = "", about.get("accuracy") or {}
    if isinstance(figures.get("top1"), float):
        accuracy = texts["accuracy" if figures.get("split") == "group" else "random"].format(top1=figures["top1"])
    words = {"architecture": about.get("architecture"), "commit": about.get("commit"), "films": len(app.classes)}
    await reply(message, texts["about"].format(accuracy=accuracy, **words))


async def on_lang(message: Message, app: App, command) -> None:
    code = (command.args or "").strip().lower()
    if code in TEXTS and message.from_user:
        app.store.set_language(message.from_user.id, code)
        await reply(message, TEXTS[code]["set"])
        return
    choice = keyboard([("Русский", "l:ru"), ("English", "l:en")])
    await reply(message, TEXTS[app.language(message.from_user)]["lang"], choice)


def films_page(app: App, page: int, query: str, language: str) -> tuple:
    """(text, keyboard) of a page of the films that hold every word of the query."""
    query = query.encode()[:48].decode(errors="ignore")  # 64 bytes is all that a button holds
    words = query.casefold().split()
    found = [app.title(title, language) for title in app.classes]
    found = sorted(title for title in found if all(word in title.casefold() for word in words))
    if not found:
        return TEXTS[language]["nothing"], None
    pages = -(-len(found) // PAGE)
    page = min(max(page, 0), pages - 1)
    text = "\n".join([TEXTS[language]["films"].format(count=len(found)), "", *found[page * PAGE : (page + 1) * PAGE]])
    around = [("<", page - 1)] if page else []
    around += [(">", page + 1)] if page + 1 < pages else []
    return text[:4000], keyboard([(sign, f"f:{to}:{query}") for sign, to in around]) if around else None


async def on_films(message: Message, app: App, command) -> None:
    await reply(message, *films_page(app, 0, (command.args or "")[:100], app.language(message.from_user)))


async def on_message(message: Message, app: App, event_update: Update) -> None:
    """Frames, questions about a picture that is replied to, and everything else."""
    me = await app.bot.me()
    if message.from_user and message.from_user.is_bot and not message.sender_chat:
        return  # two bots would talk for ever
    picture, key = find_picture(message), (message.chat.id, message.media_group_id)
    if message.media_group_id and key in app.late:  # its answer was given
        return
    if picture and message.media_group_id:
        app.owned.add(event_update.update_id)
        app.albums.setdefault(key, []).append((message, picture[0], event_update.update_id))
        if len(app.albums[key]) == 1:
            app.run(take_album(app, key))
        return
    if not is_addressed(message, me):
        return
    asked = message.reply_to_message
    if picture is None and asked and (message.text or "").strip():
        picture = find_picture(asked)  # what that one replied to Telegram does not tell
    language = app.language(message.from_user)
    if picture is None:
        silent = message.chat.type != "private" and (message.text or "").split("@")[0].strip() != "/film"
        said = {"ok": "hint", "warn": "flood"}
        if not (silent or is_service(message)) and (text := said.get(app.flood.check(sender(message)))):
            if message.media_group_id:
                app.late[key] = time.monotonic() + 60
            await reply(message, TEXTS[language][text])
    elif picture[1] > MAX_BYTES:
        await reply(message, TEXTS[language]["big"])
    else:
        app.owned.add(event_update.update_id)
        await take(app, message, [picture[0]], [event_update.update_id])


def is_service(message: Message) -> bool:
    """Whether a message is a notice of Telegram's (somebody joined, a pin) and not a person's word."""
    return message.content_type not in {
        "text", "audio", "document", "voice", "contact", "location", "venue", "poll", "dice", "sticker", "video",
        "animation", "video_note", "photo", "story", "game", "paid_media", "unknown",
    }  # fmt: skip


async def on_button(query: CallbackQuery, app: App) -> None:
    """Verdicts, guesses, pages and languages. The data is whatever somebody sends."""
    language = app.language(query.from_user)
    texts = TEXTS[language]
    action, _, rest = (query.data or "").partition(":")
    note, text, markup = "", None, None
    if action == "l" and rest in TEXTS:
        app.store.set_language(query.from_user.id, rest)
        note = text = TEXTS[rest]["set"]
    elif action == "f":
        page, _, words = rest.partition(":")
        if page.isdecimal() and len(page) < 6:
            text, markup = films_page(app, int(page), words, language)
    elif found := app.store.get_answer(rest):
        kind, candidates = found
        if action == "g":
            text, markup = compose(app, kind, candidates, rest, language, guess=True)
        elif action == "r":
            app.store.make_answers(rest, "right", candidates[0]["title"])
            note = texts["thanks"]
        elif action == "w":
            app.store.make_answers(rest, "wrong", None)
            others = candidates if kind == "shortlist" else candidates[1:]
            others = [(i, c) for i, c in enumerate(candidates) if c in others]
            rows = [[(app.title(c["title"], language)[:60], f"c{i}:{rest}")] for i, c in others]
            note, markup = texts["which"], keyboard(*rows, [(texts["none"], f"n:{rest}")])
        elif action == "n":
            note = texts["thanks"]
        elif action[:1] == "c" and action[1:].isdecimal() and int(action[1:]) < len(candidates):
            film = candidates[int(action[1:])]["title"]
            app.store.make_answers(rest, "right" if kind == "shortlist" else "wrong", film)
            note = texts["thanks"]
        else:
            action = ""
    else:
        note, action = texts["gone"], ""
    with contextlib.suppress(TelegramBadRequest, TelegramForbiddenError):  # the message is gone, or was not changed
        await query.answer(note[:190])
    if not isinstance(query.message, Message) or not action:
        return
    with contextlib.suppress(TelegramBadRequest, TelegramForbiddenError):
        if text is not None:
            await query.message.edit_text(text, reply_markup=markup)
        elif action != "f":
            await query.message.edit_reply_markup(reply_markup=markup)


async def on_error(event: ErrorEvent, app: App) -> bool:
    """An apology instead of a trace; the next update finds the bot as it was."""
    report(event.exception)
    message = event.update.message
    sent = isinstance(event.exception, AiogramError)  # an answer was on its way: one is enough
    if message and not sent and is_addressed(message, await app.bot.me()):
        with contextlib.suppress(AiogramError):
            await reply(message, TEXTS[app.language(message.from_user)]["error"])
    return True


def make_dispatcher(app: App) -> Dispatcher:
    """The handlers, the first that fits takes an update."""
    router = Router()
    router.message.register(skip_old, F.date.func(lambda date: time.time() - date.timestamp() > OLD))
    commands = {"start": on_start, "help": on_help, "about": on_about, "lang": on_lang, "films": on_films}
    for name, handler in commands.items():
        router.message.register(handler, Command(name))
    router.message.register(on_message)
    router.callback_query.register(on_button)
    router.errors.register(on_error)
    dispatcher = Dispatcher(app=app, disable_fsm=True)  # its memory would grow with every user
    dispatcher.include_router(router)
    return dispatcher


# ------------------------------------------------------------------------------------------------- Telegram


# (store, updates) that the message being sent answers
SENDING: contextvars.ContextVar = contextvars.ContextVar("sending", default=None)
AT_ONCE = (GetUpdates, GetMe, DeleteWebhook, SetMyCommands, SendChatAction)  # who asks these waits by himself
HARMLESS = (GetFile, AnswerCallbackQuery, EditMessageText, EditMessageReplyMarkup)  # when they arrive twice


class Patience(BaseRequestMiddleware):
    """Wait as Telegram asks (429), and try again when it stumbles (5xx) or can't be reached, while a question lives.

    What may have arrived is not sent twice, unless twice does no harm; the store knows which answers may have.
    """

    async def __call__(self, make_request, bot, method):
        if isinstance(method, AT_ONCE):
            return await make_request(bot, method)
        held = SENDING.get() if isinstance(method, SendMessage) else None
        end, pause = time.monotonic() + OLD, 0.5
        while True:
            if held:
                held[0].mark(held[1], True)
            try:
                return await make_request(bot, method)
            except TelegramRetryAfter as error:
                failure, wait = error, error.retry_after + 0.1
            except (TelegramServerError, ClientDecodeError, TelegramNetworkError) as error:
                if may_have_arrived(error) and not isinstance(method, HARMLESS):
                    raise
                failure, wait, pause = error, pause, min(30.0, 2 * pause)
            if held:
                held[0].mark(held[1], False)
            if time.monotonic() + wait > end:
                raise failure
            await asyncio.sleep(wait)


def may_have_arrived(error: AiogramError) -> bool:
    """Whether Telegram may have done what was asked, although its answer did not reach us."""
    if isinstance(error, ClientDecodeError):  # a proxy's page has not, a message of a new kind has
        return isinstance(error.data, dict) and bool(error.data.get("ok"))
    if isinstance(error, TelegramNetworkError):
        return not isinstance(error.__cause__, (ClientConnectorError, ConnectionTimeoutError))
    return "immediately deleted" in error.message  # groups with a guard against spam


class Silence:
    """Says once that Telegram can't be reached, and once that it is back; waits longer and longer between."""

    def __init__(self):
        self.failures = 0

    async def wait(self, error: BaseException) -> None:
        if not self.failures:
            conflict = isinstance(error, TelegramConflictError)
            what = "another program polls with this token" if conflict else "Telegram can't be reached"
            log.warning("%s (%s), trying again until it works", what, type(error).__name__)
        self.failures += 1
        pause = (
            error.retry_after if isinstance(error, TelegramRetryAfter) else min(30.0, 0.5 * 2 ** min(self.failures, 6))
        )
        await asyncio.sleep(pause)

    def over(self) -> None:
        if self.failures:
            log.warning("Telegram is back")
        self.failures = 0


REFUSED = "TELEGRAM_BOT_TOKEN: Telegram refuses it; take a new one from @BotFather"


async def patiently(call, silence: Silence):
    """Result of call(), however long Telegram is away. Raises UserError where it refuses the token."""
    while True:
        try:
            result = await call()
        except (TelegramUnauthorizedError, TelegramNotFound):  # 404 for what has not the shape of a token
            raise UserError(REFUSED) from None
        except Exception as error:  # proxies and portals answer anything
            await silence.wait(error)
        else:
            silence.over()
            return result


def needs_body(update: Update, me) -> bool:
    """Whether a killed process must take an update up again; what nobody answers is not kept."""
    message = update.message
    return message is None or bool(message.media_group_id) or is_addressed(message, me)


async def handle(app: App, dispatcher: Dispatcher, update: Update) -> None:
    SENDING.set((app.store, [update.update_id]))
    await dispatcher.feed_update(app.bot, update)
    if update.update_id not in app.owned:
        app.finish([update.update_id])


async def fetch(app: App, offset: int | None) -> list[Update]:
    """New updates. One that aiogram can't read is passed over: it would come again for ever, and all behind it wait."""
    ask = GetUpdates(offset=offset, limit=20, timeout=25, allowed_updates=["message", "callback_query"])
    try:
        return await app.bot(ask, request_timeout=ClientTimeout(total=40, sock_connect=10))
    except ClientDecodeError as error:
        rows = error.data.get("result") if isinstance(error.data, dict) and error.data.get("ok") else None
        if not isinstance(rows, list):
            raise
        updates = []
        for row in rows:
            try:
                updates.append(Update.model_validate(row, context={"bot": app.bot}))
            except ValidationError:
                log.error("passed over an update of an unknown kind")
                updates.append(Update(update_id=row["update_id"]))
        return updates


async def poll(app: App, dispatcher: Dispatcher) -> None:
    """Fetch updates for ever. Each is in the store before Telegram is told to forget it."""
    offset, silence, me = None, Silence(), await app.bot.me()
    for number, body in app.store.waiting():
        try:
            app.run(handle(app, dispatcher, Update.model_validate_json(body, context={"bot": app.bot})))
        except ValidationError:  # kept by another version
            app.store.finish([number])
    while True:
        for update in await patiently(lambda offset=offset: fetch(app, offset), silence):
            offset = update.update_id + 1
            if update.message is None and update.callback_query is None:
                continue
            body = update.model_dump_json(by_alias=True, exclude_unset=True) if needs_body(update, me) else None
            if app.store.begin(update.update_id, body):
                app.run(handle(app, dispatcher, update))
            await asyncio.sleep(0)  # the others' turn


async def tidy_hourly(app: App) -> None:
    while True:
        try:
            app.store.tidy()
        except sqlite3.Error as error:
            report(error)
        await asyncio.sleep(3600)


async def watch_lag() -> None:
    """For the bench: how long the event loop was ever blocked, logged at the end."""
    longest, pause = 0.0, 0.005
    try:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(pause)
            longest = max(longest, time.perf_counter() - start - pause)
    finally:
        log.warning("longest block of the event loop: %.1f ms", 1000 * longest)


async def run(app: App, dispatcher: Dispatcher, stopped: asyncio.Event) -> None:
    """Answer until stopped; then finish the answers in hand, for at most SECONDS."""
    services = [asyncio.create_task(serve(app)) for _ in range(DOWNLOADS)]
    services.append(asyncio.create_task(tidy_hourly(app)))
    services += [asyncio.create_task(watch_lag())] if os.environ.get("MOVIE_BOT_LAG") else []
    polling = asyncio.create_task(start_polling(app, dispatcher))
    ending = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait([polling, ending], return_when=asyncio.FIRST_COMPLETED)
        if polling.done():
            polling.result()  # it ends only by an error
    finally:
        polling.cancel()
        app.line.users.clear()  # those stay in the store for the next start
        deadline = time.monotonic() + SECONDS
        while (app.line.busy or app.tasks) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        tasks = [*services, *app.tasks, polling, ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        app.store.tidy()


async def start_polling(app: App, dispatcher: Dispatcher) -> None:
    silence = Silence()
    me = await patiently(app.bot.me, silence)
    await patiently(app.bot.delete_webhook, silence)  # with one, Telegram gives no updates
    app.run(set_commands(app.bot))
    log.warning("@%s answers, %d films, %s", me.username, len(app.classes), app.worker.about.get("why"))
    await poll(app, dispatcher)


async def set_commands(bot: Bot) -> None:
    for code, texts in TEXTS.items():
        commands = [BotCommand(command=name, description=text) for name, text in texts["commands"].items()]
        with contextlib.suppress(AiogramError):
            await bot.set_my_commands(commands, language_code=None if code == "en" else code)


class Discreet(logging.Formatter):
    """A formatter through which the token does not pass, whoever logs it."""

    def __init__(self, token: str):
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.secret = token.rpartition(":")[2]

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace(self.secret, "***")


def read_token(environment: dict, file: Path = Path(".env")) -> str:
    """TELEGRAM_BOT_TOKEN from the environment, else from .env. Raises UserError, never with the token in it."""
    token = environment.get("TELEGRAM_BOT_TOKEN", "")
    if not token and file.is_file():
        for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            name, _, value = line.strip().removeprefix("export ").partition("=")
            if name.strip() == "TELEGRAM_BOT_TOKEN":
                token = value.strip().strip("\"'")
    if not token:
        raise UserError("TELEGRAM_BOT_TOKEN is not set, in the environment or .env; @BotFather gives one", 2)
    return token


def read_titles(path: Path | None) -> dict[str, str]:
    """{title: Russian title} from the titles.csv that scrape.py writes; empty without one."""
    if path is None or not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["title"]: row["ru"] for row in csv.DictReader(file) if row.get("title") and row.get("ru")}


def make_bot(token: str, api_base: str | None) -> Bot:
    try:
        session = AiohttpSession(api=TelegramAPIServer.from_base(api_base)) if api_base else AiohttpSession()
        session.timeout = ClientTimeout(total=60, sock_connect=10)
        session.middleware(Patience())
        return Bot(token, session=session)
    except TokenValidationError:
        raise UserError("TELEGRAM_BOT_TOKEN: this is no token; @BotFather gives one like 123456:ABC...", 2) from None


async def check(bot: Bot, worker: Worker) -> None:
    """Say that model and token are fine. Raises UserError where the token is not, or Telegram can't be reached."""
    try:
        me = await bot(GetMe(), request_timeout=20)
    except (TelegramUnauthorizedError, TelegramNotFound):
        raise UserError(REFUSED) from None
    except AiogramError as error:
        raise UserError(f"Telegram can't be reached ({type(error).__name__}); check network and --api-base") from None
    print(f"all is well: @{me.username}, {len(worker.about['classes'])} films, {worker.about['why']}")


async def main_async(args: argparse.Namespace, token: str) -> int:
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    bot, worker = make_bot(token, args.api_base), Worker(args.model, args.threads, args.runtime)
    try:
        starting, ending = asyncio.create_task(worker.start()), asyncio.create_task(stopped.wait())
        await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not starting.done():
            starting.cancel()
            return 0
        await starting
        if args.check:
            await check(bot, worker)
        else:
            app = App(bot, Store(args.db, token), worker, Line(args.queue), local=read_titles(args.titles))
            dispatcher = make_dispatcher(app)
            gc.collect()
            gc.freeze()  # aiogram's thousands of classes: to look through them again would block the loop
            await run(app, dispatcher, stopped)
        return 0
    finally:
        await worker.stop()
        await bot.session.close()


def hide_environment() -> None:
    """Keep /proc/PID/environ, where the token stays, from the worker that opens strangers' files (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def write_feedback(base: Path, path: Path) -> int:
    """Verdicts as a CSV of labels for training; returns how many."""
    if not base.exists():
        raise UserError(f"--db {base}: there is no such file; the bot makes it when it runs", 2)
    rows = Store(base, "").verdicts()
    with atomic_write(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["time", "file_id", "kind", "answer", "confidence", "verdict", "film"])
        for when, file_id, kind, candidates, verdict, film in rows:
            best = json.loads(candidates)[0]
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
            writer.writerow([stamp, file_id, kind, best["title"], best["confidence"], verdict, film or ""])
    return len(rows)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A Telegram bot that names the film of a frame.")
    parser.add_argument("--model", default="export", help="folder from export.py, .onnx or .xml (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="load the model, ask Telegram who we are, and exit")
    parser.add_argument("--feedback", type=Path, metavar="CSV", help="write the users' verdicts there, and exit")
    parser.add_argument(
        "--db", type=Path, default=Path("bot.sqlite"), help="answers and verdicts (default: %(default)s)"
    )
    parser.add_argument(
        "--titles", type=Path, default=Path("titles.csv"), help="Russian titles from scrape.py (default: %(default)s)"
    )
    parser.add_argument("--queue", type=int, default=200, help="frames that may wait (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of the model, 0 for all cores (default: %(default)s)")
    parser.add_argument(
        "--runtime",
        choices=["openvino", "onnxruntime"],
        help="onnxruntime takes less memory (default: the fastest on this CPU)",
    )
    parser.add_argument("--api-base", metavar="URL", help="a local Bot API server (default: api.telegram.org)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.queue < 1 or args.threads < 0:
        parser.error("--queue must be 1 or more, --threads 0 or more")
    if args.api_base and not re.match(r"https?://[^/]", args.api_base):
        parser.error(f"--api-base {args.api_base}: expected http://HOST:PORT or https://...")
    if args.feedback:
        print(f"{write_feedback(args.db, args.feedback)} verdicts in {args.feedback}")
        return 0
    token = read_token(dict(os.environ))
    os.environ.pop("TELEGRAM_BOT_TOKEN", None)  # the worker need not have it
    hide_environment()
    os.umask(0o077)  # the database holds messages while they wait
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet(token))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aiogram").setLevel(logging.CRITICAL)  # ours says it once
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(main_async(args, token))
    except (UserError, OSError):
        raise
    except Exception as error:  # without its words: there may be names in them
        report(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
