"""What goes to Telegram and comes from it: the token, pictures, and requests that are made again after trouble."""

import asyncio
import contextlib
import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from aiogram import Bot, exceptions, methods
from aiogram.client.session.middlewares.base import BaseRequestMiddleware
from aiogram.client.telegram import PRODUCTION
from aiogram.types import Document, Update
from aiohttp import ClientConnectorError, ClientError, ClientTimeout, ConnectionTimeoutError

from answering.console import UserError
from answering.pictures import MAX_BYTES
from telegram_bot.updates import MAX_QUESTION_AGE, log, updates_in_hand
from telegram_bot.worker import LOCAL_BYTES, SECONDS

POLL_LIMIT = 20  # updates that one request may bring; more at once would hold up the loop
TIMEOUT = ClientTimeout(total=60, sock_connect=10)  # seconds, of a request
FIRST_PAUSE = 0.5  # seconds until a request is made again; each later pause is twice as long
LONGEST_PAUSE = 30.0
FOR_EVER = 1e9  # seconds
CONFLICT_SECONDS = 600.0  # in which the log speaks of another program once
STARTING = (methods.GetMe, methods.DeleteWebhook, methods.SetMyCommands)
EDITS = (
    methods.EditMessageText,
    methods.EditMessageCaption,
    methods.EditMessageReplyMarkup,
    methods.EditMessageMedia,
)
ANSWERS = (methods.AnswerCallbackQuery, methods.AnswerInlineQuery, methods.SendChatAction)
IDEMPOTENT = (*STARTING, *EDITS, *ANSWERS, methods.GetUpdates, methods.GetFile)  # may arrive twice: it does no harm


# ------------------------------------------------------------------------------------------------ the token


def read_token(environment: dict, file: Path = Path(".env")) -> str:
    """TELEGRAM_BOT_TOKEN from the environment, else from .env. Raises UserError, never with the token in it."""
    token = environment.get("TELEGRAM_BOT_TOKEN") or find_token(file)
    if not re.fullmatch(r"\d+:\S+", token):
        what = "is no token" if token else "is not set, in the environment or .env"
        raise UserError(f"TELEGRAM_BOT_TOKEN {what}; @BotFather gives one like 123456:ABC", 2)
    return token


def find_token(file: Path) -> str:
    """What a file of NAME=VALUE lines says of TELEGRAM_BOT_TOKEN; "" for nothing, or where there is no file."""
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    found = re.search(r"^\s*(?:export\s)?\s*TELEGRAM_BOT_TOKEN\s*=\s*[\"']?([^\"'\s]+)", text, re.MULTILINE)
    return found[1] if found else ""


# ------------------------------------------------------------------------------------------------- pictures


class PictureTooBig(UserError):
    """Larger than Telegram gives, or than the pictures of one question may be together."""


@dataclass
class Downloaded:
    """What was had of some pictures, in their order."""

    contents: list[bytes | str]  # of each its bytes, or its path
    pictures: list  # whose contents these are: pictures that were asked for, or their thumbnails
    small: bool = False  # whether there are thumbnails among them, of pictures that are too big


class PictureUnavailable(UserError):
    """Telegram does not give it, or not any more."""


async def download(bot: Bot, pictures: list, folder: Path | None = None) -> Downloaded:
    """Pictures, together at most MAX_BYTES, without those that can't be had; if none can, raises the last one's error.

    Of one that is too big the thumbnail is taken, where there is one. A Bot API server of one's own may run with
    --local: then its files are larger, and here are their paths. folder: where to write the bytes, as for clips, which
    are read from a file; then all are paths. Raises PictureTooBig, PictureUnavailable, or RuntimeError where the
    network fails.
    """
    room = MAX_BYTES if bot.session.api is PRODUCTION else LOCAL_BYTES
    found = Downloaded([], [])
    trouble = None
    for picture in pictures:
        try:
            taken, content, size = await download_or_thumbnail(bot, picture, room)
        except (UserError, RuntimeError) as error:
            trouble = error
            continue
        if folder and isinstance(content, bytes):
            path = folder / str(len(found.contents))
            await asyncio.to_thread(path.write_bytes, content)
            content = str(path)
        found.contents.append(content)
        found.pictures.append(taken)
        found.small |= taken is not picture
        room -= size
    if not found.contents:
        raise trouble
    return found


async def download_or_thumbnail(bot: Bot, picture, room: int) -> tuple[object, bytes | str, int]:
    """(picture, or its thumbnail where it is too big; and as download_one)."""
    try:
        return picture, *await download_one(bot, picture, room)
    except PictureTooBig:
        thumbnail = find_thumbnail(picture)
        if not thumbnail:
            raise
    return thumbnail, *await download_one(bot, thumbnail, room)


def find_thumbnail(picture):
    """The small picture that Telegram made of a file; None for a photo, and for a clip, whose cover is asked for."""
    return picture.thumbnail if isinstance(picture, Document) else None


async def download_one(bot: Bot, picture, room: int) -> tuple[bytes | str, int]:
    """A picture of at most so many bytes, or its path on this host; and its size in bytes. Raises as download."""
    if (picture.file_size or 0) > room:
        raise PictureTooBig("a picture is too big")
    try:
        file = await bot.get_file(picture.file_id)
    except exceptions.TelegramBadRequest as error:
        if "too big" in error.message.lower():
            raise PictureTooBig("a picture is too big") from None
        raise PictureUnavailable("a picture can't be had") from None
    size = file.file_size or 0
    if size > room:
        raise PictureTooBig("a picture is too big")
    if bot.session.api is not PRODUCTION and file.file_path.startswith("/"):
        return file.file_path, size
    content = await fetch(bot, file.file_path)
    return content, len(content)


async def fetch(bot: Bot, path: str) -> bytes:
    """Three tries. Raises RuntimeError."""
    for pause in range(3):
        await asyncio.sleep(pause)
        with contextlib.suppress(ClientError, TimeoutError):
            return (await bot.download_file(path, timeout=int(SECONDS))).getvalue()
    raise RuntimeError("download")  # without the words of the others, which have the token in them


# ------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class RetryPolicy:
    """For how long and after which errors a request is made again."""

    for_ever: bool  # the bot can't work without it; otherwise as long as somebody waits for an answer
    polling: bool  # getUpdates: after every error
    idempotent: bool  # does no harm if the first one has arrived, although its answer did not

    @classmethod
    def of(cls, method: methods.TelegramMethod) -> "RetryPolicy":
        polling = isinstance(method, methods.GetUpdates)
        for_ever = polling or isinstance(method, STARTING)
        return cls(for_ever, polling, isinstance(method, IDEMPOTENT))

    @property
    def seconds(self) -> float:
        return FOR_EVER if self.for_ever else MAX_QUESTION_AGE

    def allows(self, error: exceptions.AiogramError) -> bool:
        """Whether to try again: after what surely did not arrive, or may arrive twice."""
        if self.polling:
            return True
        if isinstance(error, exceptions.ClientDecodeError):  # a proxy's page; a message of a new kind has arrived
            return self.idempotent or not isinstance(error.data, dict)
        if isinstance(error, exceptions.TelegramNetworkError):
            return self.idempotent or isinstance(error.__cause__, (ClientConnectorError, ConnectionTimeoutError))
        return isinstance(error, (exceptions.TelegramRetryAfter, exceptions.TelegramServerError))


class Requests(BaseRequestMiddleware):
    """Makes each request again as its RetryPolicy has it, after ever longer pauses or when Telegram asks (429)."""

    def __init__(self, base: sqlite3.Connection):
        self.base = base
        self.away = False  # whether Telegram can't be reached, as far as the log says
        self.conflict_at = -FOR_EVER  # time.monotonic(), when the log last spoke of another program

    async def __call__(self, make_request, bot: Bot, method):
        policy = RetryPolicy.of(method)
        if policy.polling:
            method.limit = POLL_LIMIT
            await asyncio.sleep(0)  # the last ones come into SQLite before Telegram may forget them
        updates = [] if policy.idempotent else updates_in_hand.get([])
        deadline = time.monotonic() + policy.seconds
        pause = FIRST_PAUSE
        while True:
            self.mark_sending(updates, True)
            try:
                result = await make_request(bot, method, timeout=TIMEOUT)
            except exceptions.AiogramError as error:
                failure = error
            else:
                self.log_success(policy)
                return result
            if policy.polling and (number := find_update(failure)) is not None:
                if method.limit == 1:  # it would come again for ever, and all behind it wait
                    log.error("passed over an update of a kind that aiogram does not know; is there a newer one?")
                    return [Update(update_id=number)]
                method.limit = 1  # to find which one it is
                continue
            if mend(method, failure):
                continue
            if not policy.allows(failure):
                raise failure
            self.log_failure(policy, failure)
            self.mark_sending(updates, False)
            wait = find_pause(failure, pause)
            if time.monotonic() + wait > deadline:
                raise failure
            await asyncio.sleep(wait)
            pause = min(LONGEST_PAUSE, 2 * pause)

    def mark_sending(self, updates: list[int], sending: bool) -> None:
        """Note whether the answer to these updates may have arrived: after a kill it is not sent again."""
        rows = [(int(sending), number) for number in updates]
        self.base.executemany("UPDATE updates SET sending = ? WHERE id = ?", rows)

    def log_success(self, policy: RetryPolicy) -> None:
        if policy.for_ever and self.away:
            log.warning("Telegram is back")
            self.away = False

    def log_failure(self, policy: RetryPolicy, failure: exceptions.AiogramError) -> None:
        if isinstance(failure, exceptions.TelegramConflictError):
            self.log_conflict()
        elif policy.for_ever and not self.away:
            log.warning("Telegram can't be reached (%s), trying again until it works", type(failure).__name__)
            self.away = True

    def log_conflict(self) -> None:
        """Not at each poll: the two end each other's for as long as both run."""
        if time.monotonic() - self.conflict_at > CONFLICT_SECONDS:
            log.warning("another program polls with this token; waiting until it stops")
            self.conflict_at = time.monotonic()


def mend(method: methods.TelegramMethod, failure: exceptions.AiogramError) -> bool:
    """Whether a request works when it is changed, which is done: a group that moved, a question that was deleted."""
    if isinstance(failure, exceptions.TelegramMigrateToChat) and not isinstance(method, EDITS):
        moved = method.chat_id != failure.migrate_to_chat_id
        method.chat_id = failure.migrate_to_chat_id
        if getattr(method, "reply_parameters", None):
            method.reply_parameters = None  # messages have other numbers there
        return moved
    answers = isinstance(failure, exceptions.TelegramBadRequest) and getattr(method, "reply_parameters", None)
    if answers and "repl" in failure.message.lower():  # "message to be replied not found", in a topic even if allowed
        method.reply_parameters = None
        return True
    return False


def find_pause(failure: exceptions.AiogramError, pause: float) -> float:
    """Seconds until the next try; pause: those that it would be otherwise."""
    if isinstance(failure, exceptions.TelegramRetryAfter):
        return failure.retry_after + 0.1
    return LONGEST_PAUSE if isinstance(failure, exceptions.TelegramConflictError) else pause


def find_update(failure: exceptions.AiogramError) -> int | None:
    """The id of the first update in an answer to getUpdates that aiogram could not read; None without one."""
    answer = getattr(failure, "data", None)
    if isinstance(answer, dict) and answer.get("result"):
        return answer["result"][0]["update_id"]
    return None
