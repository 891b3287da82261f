"""Answer a question: wait for its turn, download the pictures, ask the model, save the answer."""

import asyncio
import base64
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiogram import Bot
from aiogram.types import User

from answering.console import UserError
from telegram_bot.app import App, local_title
from telegram_bot.connection import PictureTooBig, download, find_thumbnail
from telegram_bot.database import StoredAnswer, find_rejected, save_answer
from telegram_bot.replies import Reply
from telegram_bot.updates import log
from telegram_bot.wording import compose
from telegram_bot.worker import NO_FILMS, name_film, read_still

FLOOD = 20  # frames of a user in FLOOD_SECONDS; more are refused
FLOOD_SECONDS = 60.0
MAX_FRAMES = 8  # pictures of one question


@dataclass
class Question:
    """Pictures of one film, or a clip."""

    pictures: list  # as find_pictures gives them; at most MAX_FRAMES are asked, the last ones
    chat: int  # where the bot shows that it is at work
    user: int  # who takes turns with others: id of a user, channel or group
    asker: User | None  # who may judge the answer; None where nobody knows
    look: str | None = None  # as name_film takes it
    clip: object | None = None  # as find_clip gives it; the pictures, if there are any, are its cover
    business: str | None = None  # of the connection to a business account in whose chat it is
    mark: str | None = None  # hash of the message and what it asks
    small: bool = False  # the pictures are known to be thumbnails
    is_guest: bool = False  # it comes from a chat in which nobody can reply to us


def find_refusal(app: App, texts: dict, user: int) -> str | None:
    """What to say instead of an answer, nothing if it was said before, or None where there is room for a frame."""
    count = app.count_frame(user, FLOOD_SECONDS)
    if count > FLOOD:
        return texts["flood"] if count == FLOOD + 1 else ""
    place = len(app.waiting) + 1
    if place > app.queue:
        return texts["busy"].format(place=place, seconds=max(5, round(place * app.worker.seconds)))
    return None


async def answer_question(bot: Bot, app: App, texts: dict, question: Question) -> Reply:
    """What the model says to it, or why there is no answer. Raises what is nobody's picture's fault."""
    question.pictures = question.pictures[-MAX_FRAMES:]
    try:
        result = await ask_model(bot, app, question)
    except PictureTooBig:
        return Reply(texts["big"])
    except (UserError, TimeoutError):  # of the worker's: of a picture
        return Reply(texts["unreadable"])
    rejected = leave_rejected(app, question, result)
    answer, still = keep_answer(app, question, result)
    if "reason" in result or not answer.candidates:  # another look would not help
        text = texts["empty" if result.get("reason") == NO_FILMS else "flat" if "reason" in result else "stumped"]
        reply = Reply(text)
    else:
        if rejected and answer.kind != "unknown":  # the still that came is of a film that is not listed now
            still = await fetch_still(app, answer.candidates[0])
        is_last = question.is_guest or len(answer.files) >= MAX_FRAMES
        reply = compose(app, texts, answer, answer.kind, still=still, is_last=is_last)
    if rejected:
        titles = ", ".join(local_title(title, texts) for title in rejected)
        reply.text += "\n" + texts["rejected"].format(titles=titles)
    if "cover" in result:
        reply.text += "\n" + texts["cover"]
    elif answer.small:
        reply.text += "\n" + texts["small"]
    return reply


def leave_rejected(app: App, question: Question, result: dict) -> list[str]:
    """Take out of a result the films of which the asker said before, at the same picture, that it is not them.

    Returns the titles that were taken out. A film that comes first for want of another is offered, not named.
    """
    if not question.asker:
        return []
    rejected = find_rejected(app.base, app.hash(question.asker), result.get("marks", []))
    titles = [candidate["title"] for candidate in result["candidates"]]
    out = [title for title in titles if title in rejected]
    if not out:
        return []
    result["candidates"] = [candidate for candidate in result["candidates"] if candidate["title"] not in rejected]
    if titles[0] in rejected:
        is_open = result["kind"] != "unknown" and len(result["candidates"]) > 1
        result["kind"] = "shortlist" if is_open else "unknown"
    return out


async def ask_model(bot: Bot, app: App, question: Question) -> dict:
    """As name_film, in turn: of each user one frame at a time, first come first served."""
    task = asyncio.current_task()
    app.waiting.add(task)
    turn = app.turns.setdefault(question.user, asyncio.Lock())
    async with turn, app.in_hand:
        app.waiting.discard(task)
        action = bot.send_chat_action(question.chat, "typing", business_connection_id=question.business)
        typing = asyncio.create_task(action)
        try:
            if question.clip:
                return await ask_clip(bot, app, question)
            return await ask_pictures(bot, app, question)
        finally:
            typing.cancel()


async def ask_pictures(bot: Bot, app: App, question: Question) -> dict:
    """As name_film; of thumbnails, where the pictures are too big or can't be read."""
    found = await download(bot, question.pictures)
    question.pictures = found.pictures
    question.small |= found.small
    try:
        return await app.worker.call(name_film, found.contents, question.look)
    except (UserError, TimeoutError) as error:
        thumbnails = [find_thumbnail(picture) or picture for picture in found.pictures]
        if thumbnails == found.pictures:
            raise
        log.warning("a picture could not be asked (%s), but its thumbnail", type(error).__name__)
    found = await download(bot, thumbnails)
    question.pictures = found.pictures
    question.small = True
    return await app.worker.call(name_film, found.contents, question.look)


async def ask_clip(bot: Bot, app: App, question: Question) -> dict:
    """As name_film, of a clip; of its cover, if it has one, where the clip can't be had or read: with "cover" then."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # here, since the worker may be killed
            found = await download(bot, [question.clip], Path(folder))
            return await app.worker.call(name_film, found.contents, question.look)
    except (UserError, TimeoutError, RuntimeError, OSError, MemoryError) as error:
        if not question.pictures:
            raise
        log.warning("a clip could not be asked (%s), but its cover", type(error).__name__)
    found = await download(bot, question.pictures)
    return await app.worker.call(name_film, found.contents, question.look) | {"cover": True}


def keep_answer(app: App, question: Question, result: dict) -> tuple[StoredAnswer, bytes | None]:
    """Write down what its buttons need later, and count it; with the first candidate's still. result: of name_film."""
    still = None
    for place, candidate in enumerate(result["candidates"]):
        thumbnail = (candidate.get("evidence") or {}).pop("thumbnail", "")
        if thumbnail and place == 0:
            still = base64.b64decode(thumbnail)
    answer = StoredAnswer(
        id=secrets.token_urlsafe(9),
        file_id=(question.pictures or [question.clip])[0].file_id,
        kind=result["kind"],
        candidates=result["candidates"],
        asker=app.hash(question.asker) if question.asker else None,
        clip_id=question.clip.file_id if question.clip else None,
        frames=result.get("frames"),
        files=[picture.file_id for picture in question.pictures],
        small=question.small,
        marks=result.get("marks", []),
        question=question.mark,
    )
    save_answer(app.base, answer)
    app.count("frames", answer.kind)
    app.times.append(result["ms"])
    return answer, still


async def fetch_still(app: App, candidate: dict) -> bytes | None:
    """The still that is nearest in a candidate's film; None where there is none to be shown."""
    proof = candidate.get("evidence")
    if not proof:
        return None
    return await app.worker.call(read_still, candidate["title"], proof["file"]) or None
