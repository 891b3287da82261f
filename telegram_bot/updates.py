"""How bot.py's updates come and go: each is kept until it is answered, once; albums as one; requests tried again."""

import asyncio
import contextlib
import contextvars
import logging
import re
import time
import traceback
from pathlib import Path

from aiogram import BaseMiddleware, exceptions, types
from aiogram.types import InlineKeyboardMarkup, Message, Update, User

from answering.pictures import IMAGE_SUFFIXES

MAX_QUESTION_AGE = 600.0  # seconds; after an outage, older questions are not answered
ALBUM_WAIT = 1.0  # seconds in which the other pictures of an album arrive
COMMANDS = ("start", "help", "about", "lang", "films")
UNDELIVERABLE = (
    exceptions.TelegramBadRequest,
    exceptions.TelegramForbiddenError,
)  # message gone or unchanged, bot blocked
answering: contextvars.ContextVar[list[int]] = contextvars.ContextVar("answering")  # ids of a task's updates
log = logging.getLogger("bot")


def report(error: BaseException) -> None:
    """Log where an error came from, but none of its words: they may hold names, texts or the token."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    log.error("%s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)


def is_addressed(message: Message, me: User) -> bool:
    """Whether the bot should speak: always in private, in groups when it is mentioned, replied to or commanded."""
    asked, text = message.reply_to_message, message.text or message.caption or ""
    if (
        message.chat.type == "private"
        or message.guest_query_id
        or (asked and asked.from_user and asked.from_user.id == me.id)
    ):
        return True
    if command := re.match(r"/(\w+)(?:@(\w+))?", text):
        name, at = command.groups()
        return at.casefold() == me.username.casefold() if at else name in (*COMMANDS, "film")  # not /ban
    return bool(re.search(rf"(?<![\w/@])@{me.username}\b", text, re.IGNORECASE))


def find_picture(message):
    """The best picture of a Message, or of what it quotes or holds, with file_id and file_size; None without one."""

    def get(name: str):
        return getattr(message, name, None)

    video = get("video")
    if sizes := get("photo") or (get("live_photo") and message.live_photo.photo) or (video and video.cover):
        return max(sizes, key=lambda size: size.width * size.height)
    sticker, document = get("sticker"), get("document")
    if sticker and not (sticker.is_animated or sticker.is_video):
        return sticker
    if document and not get("animation"):
        suffix = Path((document.file_name or "")[-20:]).suffix.lower()
        if (document.mime_type or "").startswith("image/") or suffix in IMAGE_SUFFIXES:
            return document
    if media := get("animation") or video or get("video_note") or sticker or document:
        return media.thumbnail
    inside = [get("external_reply"), get("poll") and message.poll.media]
    inside += message.rich_message.blocks if get("rich_message") else []
    return next((picture for part in inside if part and (picture := find_picture(part))), None)


def is_spoiler(message: Message) -> bool:
    """Whether the picture of a message, or of the one that it asks about, lies under a spoiler."""
    parts = (message, message.reply_to_message, message.external_reply)
    return any(getattr(part, "has_media_spoiler", None) for part in parts)


async def reply(
    message: Message,
    text: str,
    markup: InlineKeyboardMarkup | None = None,
    still: bytes | None = None,
    spoiler: bool = False,
) -> None:
    """Answer as plain text: nothing of what users write or films are called is ever read as HTML. still: a JPEG."""
    if message.guest_query_id:  # from a chat that we are no member of: links alone work there
        links = [[button for button in row if button.url] for row in (markup.inline_keyboard if markup else ())]
        how = {"reply_markup": InlineKeyboardMarkup(inline_keyboard=links) if any(links) else None}
        how["input_message_content"] = types.InputTextMessageContent(message_text=text)
        await message.answer_guest_query(types.InlineQueryResultArticle(id="1", title=text[:60], **how))
        return
    how = {"reply_parameters": message.as_reply_parameters(allow_sending_without_reply=True), "reply_markup": markup}
    if still:
        with contextlib.suppress(exceptions.TelegramBadRequest):  # no photos in this group, or no picture any more
            photo = types.BufferedInputFile(still, "still.jpg")
            await message.answer_photo(photo, caption=text[:1024], has_spoiler=spoiler, **how)
            return
    await message.answer(text, **how)


class Journal(BaseMiddleware):
    """Every update stands in SQLite until it is answered, once. data["kept"]: it comes from there, after a kill."""

    async def __call__(self, handler, update: Update, data: dict):
        app, task, message = data["app"], asyncio.current_task(), update.message or update.guest_message
        data["texts"] = texts = app.words(data.get("event_from_user"))
        if update.inline_query:  # asked at every key; nobody waits for an old one
            return await handler(update, data)
        if not data.get("kept"):
            row = (update.update_id, time.time(), update.model_dump_json(by_alias=True, exclude_unset=True))
            insert = "INSERT OR IGNORE INTO updates (id, time, body) VALUES (?, ?, ?)"
            if not (await is_for_us(update) and app.base.execute(insert, row).rowcount):
                return
        app.tasks.add(task)
        answering.set(updates := [update.update_id])
        try:
            with contextlib.suppress(exceptions.TelegramForbiddenError):  # blocked, or thrown out of the group
                await handler(update, data)
        except Exception as error:
            report(error)
            if message and not isinstance(error, exceptions.AiogramError):  # else an answer was on its way
                with contextlib.suppress(exceptions.AiogramError):
                    await reply(message, texts["error"])
        finally:
            app.tasks.discard(task)
        # the number stays, since the update may come again
        app.base.executemany("UPDATE updates SET body = NULL WHERE id = ?", [(number,) for number in updates])


async def is_for_us(update: Update) -> bool:
    """Whether somebody expects a word of ours, and still waits for it."""
    if not (message := update.message or update.guest_message):
        return update.callback_query is not None
    two_bots = message.from_user and message.from_user.is_bot and not message.sender_chat  # they would talk for ever
    old = time.time() - message.date.timestamp() > MAX_QUESTION_AGE
    addressed = message.media_group_id or is_addressed(message, await update.bot.me())
    return bool(addressed and not two_bots and not old)


class Albums(BaseMiddleware):
    """The first message of an album goes on with all of them, in data["album"], and with their updates."""

    def __init__(self):
        self.albums = {}

    async def __call__(self, handler, message: Message, data: dict):
        album, updates, key = [message], answering.get(), (message.chat.id, message.media_group_id)
        if message.media_group_id:
            if key in self.albums:
                if gathered := self.albums[key]:  # None: this part comes too late
                    gathered[0].append(message)
                    gathered[1].extend(updates)
                    updates.clear()
                return
            self.albums[key] = album, updates
            await asyncio.sleep(ALBUM_WAIT)
            self.albums[key] = None
            asyncio.get_running_loop().call_later(60, self.albums.pop, key)
            album.sort(key=lambda part: part.message_id)
            me = await message.bot.me()
            if not any(is_addressed(part, me) for part in album):
                return
        data["album"] = album
        await handler(album[0], data)
