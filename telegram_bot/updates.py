"""What Telegram sends: which messages the bot heeds, with which picture; each update is kept until it is answered."""

import asyncio
import contextlib
import contextvars
import logging
import re
import sqlite3
import time
import traceback
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from aiogram import BaseMiddleware, exceptions
from aiogram.types import Message, Update, User

from answering.pictures import IMAGE_SUFFIXES
from answering.video import is_video
from telegram_bot.replies import Reply, send_reply

MAX_QUESTION_AGE = 600.0  # seconds; after an outage, older questions are not answered
ALBUM_WAIT = 1.0  # seconds in which the other pictures of an album arrive
ALBUM_MEMORY = 60.0  # seconds in which later parts of an album are known for what they are
COMMANDS = ("start", "help", "about", "lang", "films")
updates_in_hand: contextvars.ContextVar[list[int]] = contextvars.ContextVar("updates_in_hand")  # ids, of this task
log = logging.getLogger("bot")


def report(error: BaseException) -> None:
    """Log where an error came from, but none of its words: they may hold names, texts or the token."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    log.error("%s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)


# ------------------------------------------------------------------------------ which messages, which picture


def is_addressed(message: Message, me: User) -> bool:
    """Whether the bot should speak: always in private, in groups when it is mentioned, replied to or commanded."""
    if message.chat.type == "private" or message.guest_query_id:
        return True
    asked = message.reply_to_message
    if asked and asked.from_user and asked.from_user.id == me.id:
        return True
    text = message.text or message.caption or ""
    if command := re.match(r"/(\w+)(?:@(\w+))?", text):
        name, bot = command.groups()
        if bot:
            return bot.casefold() == me.username.casefold()
        return name in (*COMMANDS, "film")  # not /ban
    return bool(re.search(rf"(?<![\w/@])@{me.username}\b", text, re.IGNORECASE))


async def is_for_us(update: Update) -> bool:
    """Whether somebody expects a word of ours, and still waits for it."""
    message = update.message or update.guest_message
    if not message:
        return update.callback_query is not None
    if message.from_user and message.from_user.is_bot and not message.sender_chat:
        return False  # two bots would talk for ever
    if time.time() - message.date.timestamp() > MAX_QUESTION_AGE:
        return False
    return bool(message.media_group_id or is_addressed(message, await update.bot.me()))


def find_picture(message):
    """The best picture of a Message, or of what it quotes or holds, with file_id and file_size; None without one."""

    if picture := find_own_picture(message):
        return picture
    return next((picture for part in find_inside(message) if (picture := find_picture(part))), None)


def find_own_picture(message):
    """As find_picture, but not of what the message quotes or holds."""

    def get(name: str):
        return getattr(message, name, None)

    video = get("video")
    sizes = get("photo") or (get("live_photo") and message.live_photo.photo) or (video and video.cover)
    if sizes:
        return max(sizes, key=lambda size: size.width * size.height)
    sticker = get("sticker")
    if sticker and not (sticker.is_animated or sticker.is_video):
        return sticker
    document = get("document")
    if document and not get("animation") and is_image(document):
        return document
    media = get("animation") or video or get("video_note") or sticker or document
    return media.thumbnail if media else None


def find_inside(message) -> list:
    """What a Message quotes or holds that may have pictures; of one that has media itself, nothing."""
    if any(getattr(message, name, None) for name in ("animation", "video", "video_note", "sticker", "document")):
        return []
    poll = getattr(message, "poll", None)
    inside = [getattr(message, "external_reply", None), poll and poll.media]
    rich = getattr(message, "rich_message", None)
    if rich:
        inside += rich.blocks
    return [part for part in inside if part]


def is_image(document) -> bool:
    suffix = Path((document.file_name or "")[-20:]).suffix.lower()
    return (document.mime_type or "").startswith("image/") or suffix in IMAGE_SUFFIXES


def find_clip(message):
    """What moves in a Message, or in what it quotes or holds: a GIF, video, video note or sticker; None without one.

    Its cover is what find_picture gives.
    """

    def get(name: str):
        return getattr(message, name, None)

    if media := get("animation") or get("video") or get("video_note"):
        return media
    sticker = get("sticker")
    if sticker and sticker.is_video:
        return sticker
    document = get("document")
    if document and not is_image(document) and is_clip(document):
        return document
    if find_own_picture(message):
        return None  # what the message holds itself goes before what it quotes
    return next((clip for part in find_inside(message) if (clip := find_clip(part))), None)


def is_clip(document) -> bool:
    return (document.mime_type or "").startswith("video/") or is_video((document.file_name or "")[-20:])


def can_read_clips() -> bool:
    """Whether PyAV is installed; without it the cover of a clip is asked."""
    return find_spec("av") is not None


# ------------------------------------------------------------------------------------- kept until answered


class Journal(BaseMiddleware):
    """Every update stands in SQLite until it is answered, once. data["kept"]: it comes from there, after a kill."""

    async def __call__(self, handler, update: Update, data: dict):
        app = data["app"]
        data["texts"] = app.find_texts(data.get("event_from_user"))
        if update.inline_query:  # asked at every key; nobody waits for an old one
            return await handler(update, data)
        if not data.get("kept") and not (await is_for_us(update) and keep_update(app.base, update)):
            return
        numbers = [update.update_id]
        updates_in_hand.set(numbers)
        task = asyncio.current_task()
        app.tasks.add(task)
        try:
            await answer_or_apologize(handler, update, data)
        finally:
            app.tasks.discard(task)
        # the number stays, since the update may come again
        app.base.executemany("UPDATE updates SET body = NULL WHERE id = ?", [(number,) for number in numbers])


def keep_update(base: sqlite3.Connection, update: Update) -> bool:
    """Write it down; False for one that was there before."""
    row = (update.update_id, time.time(), update.model_dump_json(by_alias=True, exclude_unset=True))
    return base.execute("INSERT OR IGNORE INTO updates (id, time, body) VALUES (?, ?, ?)", row).rowcount > 0


async def answer_or_apologize(handler, update: Update, data: dict) -> None:
    """Call the handler; what goes wrong is logged, and told to who sent a message."""
    try:
        with contextlib.suppress(exceptions.TelegramForbiddenError):  # blocked, or thrown out of the group
            await handler(update, data)
    except Exception as error:
        report(error)
        message = update.message or update.guest_message
        if message and not isinstance(error, exceptions.AiogramError):  # else an answer was on its way
            with contextlib.suppress(exceptions.AiogramError):
                await send_reply(message, Reply(data["texts"]["error"]))


@dataclass
class Album:
    messages: list[Message]
    updates: list[int]  # ids; all are answered when the album is


class Albums(BaseMiddleware):
    """The first message of an album goes on with all of them, in data["album"], and with their updates."""

    def __init__(self):
        self.albums: dict[tuple, Album | None] = {}  # by chat and album; None: it went on, and other parts are late

    async def __call__(self, handler, message: Message, data: dict):
        messages = [message]
        if message.media_group_id:
            messages = await self.gather(message)
            me = await message.bot.me()
            if not any(is_addressed(part, me) for part in messages):
                return
        data["album"] = messages
        await handler(messages[0], data)

    async def gather(self, message: Message) -> list[Message]:
        """All messages of an album for the first that comes, in their order; none for the others."""
        key = (message.chat.id, message.media_group_id)
        updates = updates_in_hand.get()
        if key in self.albums:
            if album := self.albums[key]:
                album.messages.append(message)
                album.updates.extend(updates)
                updates.clear()
            return []
        album = self.albums[key] = Album([message], updates)
        await asyncio.sleep(ALBUM_WAIT)
        self.albums[key] = None
        asyncio.get_running_loop().call_later(ALBUM_MEMORY, self.albums.pop, key)
        return sorted(album.messages, key=lambda part: part.message_id)
