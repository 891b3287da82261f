"""connection"""

import asyncio
import contextlib
import re
import sqlite3
import time
from pathlib import Path

from aiogram import Bot, exceptions, methods
from aiogram.client.session.middlewares.base import BaseRequestMiddleware
from aiogram.client.telegram import PRODUCTION
from aiogram.types import Update
from aiohttp import ClientConnectorError, ClientError, ClientTimeout, ConnectionTimeoutError

from answering.console import UserError
from answering.pictures import MAX_BYTES
from telegram_bot.updates import MAX_QUESTION_AGE, answering, log
from telegram_bot.worker import LOCAL_BYTES, SECONDS

STARTING = (methods.GetMe, methods.DeleteWebhook, methods.SetMyCommands)
EDITS = (methods.EditMessageText, methods.EditMessageReplyMarkup, methods.EditMessageMedia)
ASKED = (methods.AnswerCallbackQuery, methods.AnswerInlineQuery, methods.SendChatAction)
IDEMPOTENT = (*STARTING, *EDITS, *ASKED, methods.GetUpdates, methods.GetFile)  # does no harm


async def download(bot: Bot, pictures: list) -> list[bytes | str]:
    """Pictures, together at most MAX_BYTES, without those that can't be had; if none can, the last one's error.

    A Bot API server of one's own may run with --local: then its files are larger, and here are their paths.
    """
    found, trouble, room = [], None, MAX_BYTES if bot.session.api is PRODUCTION else LOCAL_BYTES
    for picture in pictures:
        try:
            file = picture if (picture.file_size or 0) > room else await bot.get_file(picture.file_id)
            if (file.file_size or 0) > room:
                raise UserError("big")
            local = bot.session.api is not PRODUCTION and file.file_path.startswith("/")
            found.append(file.file_path if local else await fetch(bot, file.file_path))
            room -= (file.file_size or 0) if local else len(found[-1])
        except exceptions.TelegramBadRequest as error:
            trouble = UserError("big" if "too big" in error.message.lower() else "unreadable")
        except (UserError, RuntimeError) as error:
            trouble = error
    if not found:
        raise trouble
    return found


async def fetch(bot: Bot, path: str) -> bytes:
    for pause in range(3):
        await asyncio.sleep(pause)
        with contextlib.suppress(ClientError, TimeoutError):
            return (await bot.download_file(path, timeout=int(SECONDS))).getvalue()
    raise RuntimeError("download")  # without the words of the others, which have the token in them


def read_token(environment: dict, file: Path = Path(".env")) -> str:
    """TELEGRAM_BOT_TOKEN from the environment, else from .env. Raises UserError, never with the token in it."""
    text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
    found = re.search(r"^\s*(?:export\s)?\s*TELEGRAM_BOT_TOKEN\s*=\s*[\"']?([^\"'\s]+)", text, re.MULTILINE)
    token = environment.get("TELEGRAM_BOT_TOKEN") or (found[1] if found else "")
    if not re.fullmatch(r"\d+:\S+", token):
        what = "is no token" if token else "is not set, in the environment or .env"
        raise UserError(f"TELEGRAM_BOT_TOKEN {what}; @BotFather gives one like 123456:ABC", 2)
    return token


class Requests(BaseRequestMiddleware):
    """Tries again, when Telegram asks (429) or ever later, what surely did not arrive or may arrive twice."""

    def __init__(self, base: sqlite3.Connection):
        self.base, self.away = base, False

    async def __call__(self, make_request, bot: Bot, method):
        polling = isinstance(method, methods.GetUpdates)
        for_ever, pause = polling or isinstance(method, STARTING), 0.5
        end = time.monotonic() + (1e9 if for_ever else MAX_QUESTION_AGE)
        updates = [] if isinstance(method, IDEMPOTENT) else [(number,) for number in answering.get([])]
        if polling:
            method.limit = 20  # more at once would hold up the loop
            await asyncio.sleep(0)  # the last ones come into SQLite before Telegram may forget them
        while True:
            self.base.executemany("UPDATE updates SET sending = 1 WHERE id = ?", updates)  # its answer may have arrived
            try:
                result = await make_request(bot, method, timeout=ClientTimeout(total=60, sock_connect=10))
                if for_ever and self.away:
                    log.warning("Telegram is back")
                    self.away = False
                return result
            except exceptions.AiogramError as error:
                answer = getattr(error, "data", None)
                if polling and isinstance(answer, dict) and answer.get("result"):
                    if method.limit == 1:  # it would come again for ever, and all behind it wait
                        log.error("passed over an update of a kind that aiogram does not know; is there a newer one?")
                        return [Update(update_id=answer["result"][0]["update_id"])]
                    method.limit = 1
                    continue
                if not (polling or can_be_repeated(error, isinstance(method, IDEMPOTENT))):
                    raise
                failure = error
            if for_ever and not self.away:
                log.warning("Telegram can't be reached (%s), trying again until it works", type(failure).__name__)
                self.away = True
            self.base.executemany("UPDATE updates SET sending = 0 WHERE id = ?", updates)
            wait = failure.retry_after + 0.1 if isinstance(failure, exceptions.TelegramRetryAfter) else pause
            if time.monotonic() + wait > end:
                raise failure
            await asyncio.sleep(wait)
            pause = min(30.0, 2 * pause)


def can_be_repeated(error: Exception, twice: bool) -> bool:
    """Whether to try again. twice: it does no harm if the first one has arrived, although its answer did not."""
    if isinstance(error, exceptions.ClientDecodeError):  # a proxy's page; a message of a new kind has arrived
        return twice or not isinstance(error.data, dict)
    if isinstance(error, exceptions.TelegramNetworkError):
        return twice or isinstance(error.__cause__, (ClientConnectorError, ConnectionTimeoutError))
    return isinstance(error, (exceptions.TelegramRetryAfter, exceptions.TelegramServerError))
