"""Answer a question: wait for its turn, download the picture, ask the model, save the answer."""

import asyncio
import base64
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiogram import Bot
from aiogram.types import User

from answering.console import UserError
from telegram_bot.app import App
from telegram_bot.connection import PictureTooBig, download
from telegram_bot.database import StoredAnswer, save_answer
from telegram_bot.replies import Reply
from telegram_bot.updates import log
from telegram_bot.wording import compose
from telegram_bot.worker import name_film

FLOOD = 20  # frames of a user in FLOOD_SECONDS; more are refused
FLOOD_SECONDS = 60.0


@dataclass
class Question:
    """Pictures of one film, or a clip."""

    pictures: list  # as find_picture gives them
    chat: int  # where the bot shows that it is at work
    user: int  # who takes turns with others: id of a user, channel or group
    asker: User | None  # who may judge the answer; None where nobody knows
    look: str | None = None  # as name_film takes it
    clip: object | None = None  # as find_clip gives it; the pictures, if there are any, are its cover


def find_refusal(app: App, texts: dict, user: int) -> str | None:
    """What to say instead of an answer, nothing if it was said before, or None where there is room for a frame."""
    app.frames[user] += 1
    asyncio.get_running_loop().call_later(FLOOD_SECONDS, app.frames.subtract, [user])
    if app.frames[user] > FLOOD:
        return texts["flood"] if app.frames[user] == FLOOD + 1 else ""
    place = len(app.waiting) + 1
    if place > app.queue:
        return texts["busy"].format(place=place, seconds=max(5, round(place * app.worker.seconds)))
    return None


async def answer_question(bot: Bot, app: App, texts: dict, question: Question) -> Reply:
    """What the model says to it, or why there is no answer. Raises what is nobody's picture's fault."""
    try:
        result = await ask_model(bot, app, question)
    except PictureTooBig:
        return Reply(texts["big"])
    except (UserError, TimeoutError):  # of the worker's: of a picture
        return Reply(texts["unreadable"])
    answer = keep_answer(app, question, result)
    hopeless = "reason" in result  # there is too little in it, and another look would not help
    reply = Reply(texts["flat"]) if hopeless else compose(app, texts, answer, answer.kind)
    if "cover" in result:
        reply.text += "\n" + texts["cover"]
    return reply


async def ask_model(bot: Bot, app: App, question: Question) -> dict:
    """As name_film, in turn: of each user one frame at a time, first come first served."""
    task = asyncio.current_task()
    app.waiting.add(task)
    turn = app.turns.setdefault(question.user, asyncio.Lock())
    async with turn, app.in_hand:
        app.waiting.discard(task)
        typing = asyncio.create_task(bot.send_chat_action(question.chat, "typing"))
        try:
            if question.clip:
                return await ask_clip(bot, app, question)
            pictures = await download(bot, question.pictures)
            return await app.worker.call(name_film, pictures, question.look)
        finally:
            typing.cancel()


async def ask_clip(bot: Bot, app: App, question: Question) -> dict:
    """As name_film, of a clip; of its cover, if it has one, where the clip can't be had or read: with "cover" then."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # here, since the worker may be killed
            (clip,) = await download(bot, [question.clip], Path(folder))
            return await app.worker.call(name_film, [clip], question.look)
    except (UserError, TimeoutError, RuntimeError, OSError, MemoryError) as error:
        if not question.pictures:
            raise
        log.warning("a clip could not be asked (%s), but its cover", type(error).__name__)
    pictures = await download(bot, question.pictures)
    return await app.worker.call(name_film, pictures, question.look) | {"cover": True}


def keep_answer(app: App, question: Question, result: dict) -> StoredAnswer:
    """Write down what its buttons need later, and count it. result: of name_film."""
    stills = {}
    for place, candidate in enumerate(result["candidates"]):
        evidence = candidate.get("evidence") or {}
        if thumbnail := evidence.pop("thumbnail", ""):
            stills[place] = base64.b64decode(thumbnail)
    answer = StoredAnswer(
        id=secrets.token_urlsafe(9),
        file_id=(question.pictures or [question.clip])[0].file_id,
        kind=result["kind"],
        candidates=result["candidates"],
        asker=app.hash(question.asker) if question.asker else None,
        clip_id=question.clip.file_id if question.clip else None,
        frames=result.get("frames"),
    )
    app.keep_stills(answer.id, stills)
    save_answer(app.base, answer)
    app.count("frames", answer.kind)
    app.times.append(result["ms"])
    return answer
