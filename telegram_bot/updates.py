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
from telegram_bot.database import find_awaited
from telegram_bot.replies import Reply, send_reply

MAX_QUESTION_AGE = 600.0  # seconds; after an outage, older questions are not answered
ALBUM_WAIT = 1.0  # seconds in which the other pictures of an album arrive
ALBUM_MEMORY = 60.0  # seconds in which later parts of an album are known for what they are
COMMANDS = ("start", "help", "about", "lang", "films", "privacy", "forget")
MESSAGES = ("message", "guest_message", "channel_post", "business_message")  # fields of an update
EDITED_MESSAGES = ("edited_message", "edited_channel_post", "edited_business_message")
updates_in_hand: contextvars.ContextVar[list[int]] = contextvars.ContextVar("updates_in_hand")  # ids, of this task
log = logging.getLogger("bot")


def report(error: BaseException) -> None:
    """Log where an error came from, but none of its words: they may hold names, texts or the token."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    log.error("%s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)


# ------------------------------------------------------------------------------ which messages, which picture


def find_message(update: Update) -> Message | None:
    """The message that an update brings, new or edited."""
    return next((found for name in MESSAGES if (found := getattr(update, name))), None) or find_edit(update)


def is_addressed(message: Message, me: User) -> bool:
    """Whether the bot should speak.

    Always in private; in groups and channels when it is mentioned, replied to or commanded; in the chats of a business
    account, where people write to its owner, also to each picture that comes from the other side.
    """
    if message.business_connection_id:
        is_theirs = message.from_user is not None and message.from_user.id == message.chat.id
        if is_theirs and (find_pictures(message) or find_clip(message)):
            return True
    elif message.chat.type == "private" or message.guest_query_id:
        return True
    if message.is_automatic_forward:
        return False  # of a channel's post: it is answered there, if at all
    if is_ours(message.reply_to_message, me.id):
        return True
    text = message.text or message.caption or ""
    if command := re.match(r"/(\w+)(?:@(\w+))?", text):
        name, bot = command.groups()
        if bot:
            return bot.casefold() == me.username.casefold()
        return name in (*COMMANDS, "film")  # not /ban
    return bool(re.search(rf"(?<![\w/@])@{me.username}\b", text, re.IGNORECASE))


def is_ours(message: Message | None, bot: int) -> bool:
    """Whether the bot with this id wrote a message, in its own name or in that of a business account."""
    writers = (message.from_user, message.sender_business_bot) if message else ()
    return any(writer is not None and writer.id == bot for writer in writers)


def is_by_bot(message: Message) -> bool:
    """Whether a bot wrote it, as itself or for a business account: two bots would talk for ever."""
    if message.sender_business_bot:
        return True
    return bool(message.from_user and message.from_user.is_bot and not message.sender_chat)


async def is_for_us(update: Update, app) -> bool:
    """Whether somebody expects a word of ours, and still waits for it."""
    message = find_message(update)
    if not message:
        return update.callback_query is not None
    if is_by_bot(message):
        return False
    if time.time() - max(message.date.timestamp(), message.edit_date or 0) > MAX_QUESTION_AGE:
        return False
    is_of_album = message.media_group_id and not find_edit(update)  # what is said to another part may address us
    if is_of_album or is_addressed(message, await update.bot.me()):
        return True
    return brings_awaited(message, app)


def brings_awaited(message: Message, app) -> bool:
    """Whether it holds the one more frame that its writer was asked for."""
    if not message.from_user or not find_pictures(message):
        return False
    return find_awaited(app.base, app.hash_place(message.chat, message.from_user)) is not None


def find_pictures(message) -> list:
    """The pictures of a message: its own, or those of what it quotes or holds; none where it has none."""
    if picture := find_own_picture(message):
        return [picture]
    if paid := getattr(message, "paid_media", None):
        return [picture for part in paid.paid_media for picture in find_pictures(part)]
    return next((pictures for part in find_inside(message) if (pictures := find_pictures(part))), [])


def find_own_picture(message):
    """The best picture of a message or a part of one, with file_id and file_size; None for one that has none itself."""

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
    """What a message quotes or holds that may have pictures; of one that has media itself, nothing."""
    if any(getattr(message, name, None) for name in ("animation", "video", "video_note", "sticker", "document")):
        return []
    poll = getattr(message, "poll", None)
    inside = [getattr(message, "game", None), poll and poll.media]
    inside += [option.media for option in poll.options] if poll else []
    inside += getattr(message, "items", None) or []  # of a list in a rich message
    inside += getattr(message, "blocks", None) or []  # of a rich message, and of a collage or quotation in one
    inside += [getattr(message, "rich_message", None), getattr(message, "external_reply", None)]
    return [part for part in inside if part]


def is_locked(message) -> bool:
    """Whether it holds paid media that Telegram does not show the bot."""
    parts = (message, message.external_reply, message.reply_to_message)
    return any(getattr(part, "paid_media", None) and not find_pictures(part) for part in parts)


def is_image(document) -> bool:
    suffix = Path((document.file_name or "")[-20:]).suffix.lower()
    return (document.mime_type or "").startswith("image/") or suffix in IMAGE_SUFFIXES


def find_clip(message):
    """What moves in a Message, or in what it quotes or holds: a GIF, video, video note or sticker; None without one.

    Its cover is what find_pictures gives.
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
    if paid := getattr(message, "paid_media", None):
        only = paid.paid_media[0] if len(paid.paid_media) == 1 else None  # of several the covers are asked
        return find_clip(only) if only else None
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
        if not data.get("kept") and not (await is_for_us(update, app) and keep_update(app.base, update)):
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
        message = find_message(update)
        if message and message.business_connection_id and isinstance(error, exceptions.TelegramBadRequest):
            log.warning("a business account lets the bot read, but not answer; its owner has to allow replies")
            return
        report(error)
        if message and not isinstance(error, exceptions.AiogramError):  # else an answer was on its way
            with contextlib.suppress(exceptions.AiogramError):
                await send_reply(message, Reply(data["texts"]["error"]))


def find_edit(update: Update) -> Message | None:
    """The message that an update brings anew, since it was edited."""
    return next((found for name in EDITED_MESSAGES if (found := getattr(update, name))), None)


@dataclass
class Album:
    messages: list[Message]
    updates: list[int]  # ids; all are answered when the album is


class Albums(BaseMiddleware):
    """The first message of an album goes on with all of them, in data["album"], and with their updates.

    data["is_edit"]: it is a message that was edited, which comes alone.
    """

    def __init__(self):
        self.albums: dict[tuple, Album | None] = {}  # by chat and album; None: it went on, and other parts are late

    async def __call__(self, handler, message: Message, data: dict):
        messages = [message]
        data["is_edit"] = find_edit(data["event_update"]) is message
        if message.media_group_id and not data["is_edit"]:
            messages = await self.gather(message)
            me = await message.bot.me()
            app = data["app"]
            if not any(is_addressed(part, me) or brings_awaited(part, app) for part in messages):
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
