"""python -m pytest tests/test_bot.py"""

import asyncio
import base64
import collections
import contextlib
import copy
import csv
import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from aiogram import Bot, exceptions, methods
from aiogram.client.session.base import BaseSession
from aiogram.methods import (
    AnswerCallbackQuery,
    AnswerGuestQuery,
    AnswerInlineQuery,
    EditMessageMedia,
    EditMessageReplyMarkup,
    EditMessageText,
    GetFile,
    SendMessage,
    SendPhoto,
)
from aiogram.types import Chat, File, Message, SentGuestMessage, Update, User
from aiohttp import ClientConnectorError, ConnectionTimeoutError, ServerDisconnectedError
from conftest import draw_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from telegram_server import (
    BOT,
    Refusal,
    TelegramServer,
    business_update,
    callback_update,
    channel_update,
    checked_markup,
    edited,
    message_update,
    photo_sizes,
    photo_update,
    plain,
    refused,
    text_update,
)
from test_index import write_film, write_model

import bot
import index
from answering import collection
from answering.console import UserError
from answering.model import Identifier
from benchmarks.watched_bot import watched
from telegram_bot import (
    app,
    connection,
    database,
    figures,
    handlers,
    keyboards,
    marks,
    naming,
    updates,
    wording,
    worker,
)
from telegram_bot.worker import ModelDescription, Worker

EDITS = (EditMessageText, EditMessageReplyMarkup, EditMessageMedia)
ROOT = Path(bot.__file__).parent
SECRET = "AAF-never_to_be-seen"
TOKEN = f"123456:{SECRET}"
TITLES = ["Alien (1979)", "Brazil (1985)", "Contact (1997)"]
RUSSIAN = {"Alien (1979)": "Чужой"}
TEXTS = wording.load_texts(Path("no titles"))
EN, RU = TEXTS["en"], TEXTS["ru"]


def answer_of(kind: str, best: float = 0.97) -> dict:
    rest = [{"title": title, "confidence": 0.01} for title in TITLES[1:]]
    return {"kind": kind, "candidates": [{"title": TITLES[0], "confidence": best}, *rest], "ms": 5.0}


def proven(kind: str, similarity: float = 0.95, time_ms: int | None = 4_353_000) -> dict:
    """An answer with proof from an index, whose thumbnails are only bytes that differ."""
    answer = answer_of(kind)
    for k, candidate in enumerate(answer["candidates"]):
        proof = {"title": candidate["title"], "file": f"{k}.jpg", "similarity": similarity, "time_ms": time_ms}
        thumbnail = base64.b64encode(f"still {k}".encode()).decode()
        candidate["evidence"] = proof | {"from_ms": time_ms, "to_ms": time_ms, "thumbnail": thumbnail}
    return answer


# ----------------------------------------------------------------------- handlers, with a recorded Telegram


class Recorder(BaseSession):
    """Keeps what Telegram is asked for and answers plausibly; wrong: what Telegram itself would refuse.

    fail(method) may give an exception to raise; updates: raw ones for getUpdates; stalled: a method that never ends.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.wrong = []
        self.files = {}
        self.updates = []
        self.fail = lambda method: None
        self.stalled = ()
        self.numbers = itertools.count(1000)

    async def make_request(self, bot, method, timeout=None):
        self.calls.append(method.model_copy())
        error = self.fail(method)
        await asyncio.sleep(0)
        if isinstance(method, self.stalled):
            await asyncio.Event().wait()
        if error:
            raise error
        form = {key: self.prepare_value(value, bot, {}) for key, value in method.model_dump(warnings=False).items()}
        form["reply_markup"] = json.loads(form.get("reply_markup") or "{}")
        try:
            checked_markup(form)
            if isinstance(method, (SendMessage, EditMessageText)):
                plain(form, "text")
            if isinstance(method, SendPhoto):
                plain(form, "caption")
        except Refusal as error:
            self.wrong.append(str(error))
        if isinstance(method, methods.GetMe):
            return User(**BOT)
        if isinstance(method, GetFile):
            name, data = method.file_id, self.content(method.file_id)
            return File(file_id=name, file_unique_id=name, file_size=len(data), file_path=f"photos/{name}.jpg")
        if isinstance(method, (SendMessage, SendPhoto)):
            chat = Chat(id=method.chat_id, type="private")
            return Message(message_id=next(self.numbers), date=int(time.time()), chat=chat)
        if isinstance(method, AnswerGuestQuery):
            return SentGuestMessage(inline_message_id="1")
        if isinstance(method, methods.GetUpdates):
            found = [update for update in self.updates if update["update_id"] >= (method.offset or 0)][: method.limit]
            if not found:
                await asyncio.Event().wait()
            return self.check_response(bot, method, 200, json.dumps({"ok": True, "result": found})).result
        return True

    def content(self, name: str) -> bytes:
        return self.files.get(name, name.encode())

    async def stream_content(self, url, headers=None, timeout=30, chunk_size=65536, raise_for_status=True):
        assert TOKEN in url
        yield self.content(Path(url).stem)

    async def close(self):
        pass


class Model:
    """A worker that gives one result, or raises it; with a gate it waits there. asked: names of files."""

    def __init__(self, *_, **__):
        self.seconds = 0.1
        self.asked = []
        self.looks = []
        self.read = []  # stills that were asked for: (title, file)
        self.stills = {title: f"still {place}".encode() for place, title in enumerate(TITLES)}
        self.result = answer_of("movie")
        self.gate = None
        self.contract = SimpleNamespace(classes=TITLES, architecture="test_resnet", commit="abc1234", accuracy={})

    async def start(self):
        return self.describe(dict.fromkeys(self.contract.classes))

    def describe(self, films: dict) -> ModelDescription:
        return ModelDescription(self.contract, "faked", films, 50_000_000)

    async def call(self, function, *args):
        if function is worker.describe_model:
            return await self.start()
        if function is worker.read_still:
            self.read.append(args)
            return self.stills.get(args[0], b"")
        pictures, look = args
        self.asked.append([self.content(data) for data in pictures])
        self.looks.append(look)
        if self.gate:
            await self.gate.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return copy.deepcopy(self.result)

    @staticmethod
    def content(data: bytes | str) -> str:
        """What a picture or a clip holds; a path where there is no file."""
        if isinstance(data, str) and Path(data).exists():
            data = Path(data).read_bytes()
        return data if isinstance(data, str) else data.decode(errors="replace")

    async def stop(self):
        pass


class Desk:
    """bot.py at work between a Recorder and a Model. errors: what it logged of errors."""

    def __init__(self, path=":memory:", queue: int = 50, owner: int = 0):
        self.session = Recorder()
        self.worker = Model()
        self.numbers = itertools.count(1)
        self.errors = []
        self.bot = Bot(TOKEN, session=self.session)
        self.tasks = []
        self.texts = {code: words | {"titles": RUSSIAN if code == "ru" else {}} for code, words in TEXTS.items()}
        self.app = app.App(database.open_base(path), TOKEN, self.worker, self.texts, queue, owner)
        self.know(dict.fromkeys(TITLES))
        self.session.middleware(connection.Requests(self.app.base))
        self.dispatcher = handlers.make_dispatcher(self.app)
        self.runner = asyncio.Runner()
        self.handler = logging.Handler(logging.ERROR)
        self.handler.emit = lambda record: self.errors.append(record.getMessage())

    def __enter__(self):
        updates.log.addHandler(self.handler)
        return self

    def __exit__(self, *_):
        updates.log.removeHandler(self.handler)
        self.runner.close()  # cancels what still runs
        self.app.base.close()

    def know(self, films: dict) -> None:
        """Films of the model, with their IMDb ids."""
        self.app.set_description(self.worker.describe(films))

    def spawn(self, coroutine) -> asyncio.Task:
        return self.runner.get_loop().create_task(coroutine)

    def run(self, until) -> None:
        """Run until that is true, or fail."""

        async def wait():
            while not until():
                await asyncio.sleep(0.002)

        self.runner.run(asyncio.wait_for(wait(), 30))

    def feed(self, *updates: dict, until=None) -> list[SendMessage | SendPhoto]:
        """What the bot says to these, all at once, until everything is answered (or until that is true)."""
        before = len(self.session.calls)
        for update in updates:
            update = Update.model_validate({"update_id": next(self.numbers), **update}, context={"bot": self.bot})
            self.tasks.append(self.spawn(self.dispatcher.feed_update(self.bot, update)))
        self.run(until or (lambda: all(task.done() for task in self.tasks)))
        return [call for call in self.session.calls[before:] if isinstance(call, (SendMessage, SendPhoto))]

    def press(self, data: str, **more) -> tuple:
        """(what the button says, the edit of the message or None)."""
        before = len(self.session.calls)
        self.feed(callback_update(data, 77, **more))
        fetching = (GetFile, methods.SendChatAction)  # for a second look
        calls = [call for call in self.session.calls[before:] if not isinstance(call, fetching)]
        (note,) = [call for call in calls if isinstance(call, AnswerCallbackQuery)]
        edits = [call for call in calls if isinstance(call, EDITS)]
        assert len(edits) <= 1 and len(calls) == 1 + len(edits) + data.startswith("n:") * len(edits)  # it asks a title
        return note.text, (edits or [None])[0]

    def named(self, kind) -> list:
        return [call for call in self.session.calls if isinstance(call, kind)]

    def verdicts(self) -> list[tuple]:
        return self.app.base.execute("SELECT verdict, film FROM answers WHERE verdict IS NOT NULL").fetchall()

    def unanswered(self) -> list[int]:
        rows = self.app.base.execute("SELECT id FROM updates WHERE body IS NOT NULL AND NOT sending ORDER BY id")
        return [number for (number,) in rows]


@pytest.fixture(autouse=True)
def albums_come_quickly(monkeypatch):
    monkeypatch.setattr(updates, "ALBUM_WAIT", 0.02)


@pytest.fixture
def desk():
    with Desk() as desk:
        yield desk
    assert desk.errors == desk.session.wrong == []


def buttons(call) -> list[tuple[str, str]]:
    markup = call.reply_markup
    return [(button.text, button.callback_data) for row in markup.inline_keyboard for button in row] if markup else []


def part(file_id: str, side: int = 320, **more) -> dict:
    return {"file_id": file_id, "file_unique_id": file_id, "width": side, "height": side, "file_size": 9000, **more}


def document(file_id: str, mime: str | None = None, name: str | None = None, **more) -> dict:
    return {"file_id": file_id, "file_unique_id": file_id, "mime_type": mime, "file_name": name, **more}


def video(**more) -> dict:
    return part("video", 640, duration=5, thumbnail=part("thumb"), **more)


def sticker(**more) -> dict:
    still = {"is_animated": False, "is_video": False, "type": "regular", "thumbnail": part("thumb")}
    return part("sticker", 512, **(still | more))


STRANGER = {"id": 900, "is_bot": False, "first_name": "Bob"}
ORIGIN = {"type": "user", "date": 1, "sender_user": STRANGER}
CHANNEL = {"type": "channel", "date": 1, "chat": {"id": -5, "type": "channel", "title": "Films"}, "message_id": 1}


def paid(*media: dict) -> dict:
    return {"star_count": 5, "paid_media": list(media)}


POLL = {"id": "1", "question": "?", "options": [], "type": "quiz", "total_voter_count": 0} | dict.fromkeys(
    ("is_closed", "is_anonymous", "allows_multiple_answers", "allows_revoting", "members_only"), False
)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"photo": photo_sizes("big")}, "big"),
        ({"photo": photo_sizes("big")[::-1], "caption": "/film {0} %s <b>"}, "big"),
        ({"document": document("doc", "image/png", "a.png", thumbnail=part("thumb"))}, "doc"),
        ({"document": document("doc", None, "FRAME.JPG", thumbnail=part("thumb"))}, "doc"),
        ({"document": document("doc", "image/gif", "a.gif")}, "doc"),
        ({"document": document("doc", "application/pdf", "a.pdf", thumbnail=part("thumb"))}, "thumb"),
        ({"animation": video(), "document": document("gif", "video/mp4", "a.gif.mp4")}, "thumb"),
        ({"animation": video(), "document": document("gif", "image/gif", "a.gif")}, "thumb"),
        ({"video": video(cover=[part("small", 90), part("large", 900), part("middle", 200)])}, "large"),
        ({"video": video()}, "thumb"),
        ({"video_note": part("note", length=240, duration=3, thumbnail=part("thumb"))}, "thumb"),
        ({"sticker": sticker()}, "sticker"),
        ({"sticker": sticker(is_animated=True)}, "thumb"),
        ({"sticker": sticker(is_video=True)}, "thumb"),
        ({"live_photo": part("moving", duration=3, photo=photo_sizes("big"))}, "big"),
        ({"photo": photo_sizes("big"), "forward_origin": CHANNEL}, "big"),
        ({"poll": POLL | {"media": {"photo": photo_sizes("big")}}}, "big"),
        ({"rich_message": {"blocks": [{"type": "photo", "photo": photo_sizes("big")}]}}, "big"),
        ({"text": "which one?", "external_reply": {"origin": ORIGIN, "photo": photo_sizes("theirs")}}, "theirs"),
        ({"text": "what film is this?", "reply_to": photo_update("asked", user=900)}, "asked"),
    ],
)
def test_the_best_picture_of_a_message_is_taken(desk, content, wanted, monkeypatch):
    monkeypatch.setattr(updates, "find_spec", lambda name: None)  # without PyAV
    update = message_update(**content)
    (answer,) = desk.feed(update)
    assert desk.worker.asked == [[wanted]]
    assert answer.text == "This looks like Alien (1979). I am almost sure, but I may be wrong."
    assert answer.reply_parameters.message_id == update["message"]["message_id"]
    assert answer.reply_parameters.allow_sending_without_reply
    assert [call.action for call in desk.named(methods.SendChatAction)] == ["typing"]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"animation": video(), "document": document("gif", "video/mp4", "a.gif.mp4")}, "video"),
        ({"paid_media": paid({"type": "video", "video": video()})}, "video"),
        ({"video": video(cover=[part("small", 90), part("large", 900)])}, "video"),
        ({"video": video() | {"thumbnail": None}}, "video"),
        ({"video_note": part("note", length=240, duration=3, thumbnail=part("thumb"))}, "note"),
        ({"sticker": sticker(is_video=True)}, "sticker"),
        ({"document": document("film", "video/x-matroska", "a.mkv", thumbnail=part("thumb"))}, "film"),
        ({"document": document("film", None, "A.MKV")}, "film"),
        ({"text": "what is it?", "external_reply": {"origin": ORIGIN, "video": video()}}, "video"),
        ({"text": "what film is this?", "reply_to": message_update(video=video(), user=900)}, "video"),
        ({"photo": photo_sizes("big"), "external_reply": {"origin": ORIGIN, "video": video()}}, "big"),
        ({"sticker": sticker(is_animated=True)}, "thumb"),
        ({"live_photo": part("moving", duration=3, photo=photo_sizes("big"))}, "big"),
    ],
)
def test_with_pyav_a_clip_is_asked_itself(desk, content, wanted):
    desk.worker.result = proven("movie") | {"frames": 12}
    evidence = desk.worker.result["candidates"][0]["evidence"]
    evidence |= {"from_ms": 2_470_000, "to_ms": 2_480_000}
    (answer,) = desk.feed(message_update(**content))
    assert desk.worker.asked == [[wanted]]
    words = answer.caption.split("\n")
    moves = wanted in ("video", "note", "sticker", "film")
    assert words[1] == ("I looked at frames of the clip: 12." if moves else "I looked at 12 frames of it.")
    assert words[2].endswith("almost the same picture, seen from 0:41:10 to 0:41:20.")


def test_of_a_clip_its_cover_is_kept_for_the_index(desk):
    desk.worker.result |= {"frames": 12}
    desk.feed(message_update(video=video()), photo_update("shot", user=2))
    rows = desk.app.base.execute("SELECT file_id, clip, frames FROM answers ORDER BY file_id").fetchall()
    assert rows[0][:2] == ("shot", None) and rows[1] == ("thumb", "video", 12)


def test_the_covers_of_an_album_are_asked(desk):
    desk.feed(*(message_update(video=video(), album="a") for _ in range(2)))
    assert desk.worker.asked == [["thumb", "thumb"]]


@pytest.mark.parametrize("trouble", ["too big", "unreadable", "too long", "killed"])
def test_the_cover_is_asked_where_the_clip_can_not_be(desk, trouble, monkeypatch):
    size = {"file_size": 20_000_001} if trouble == "too big" else {}
    errors = {"unreadable": UserError("damaged"), "too long": TimeoutError(), "killed": RuntimeError()}
    failing = desk.worker.call
    result = desk.worker.result

    async def call(function, *args):
        desk.worker.result = result
        if args and trouble in errors and desk.worker.content(args[0][0]) == "video":
            desk.worker.result = errors[trouble]
        return await failing(function, *args)

    monkeypatch.setattr(desk.worker, "call", call)
    (answer,) = desk.feed(message_update(video=video(**size)))
    assert desk.worker.asked[-1] == ["thumb"] and answer.text.startswith("This looks like Alien")
    assert answer.text.endswith("\n" + EN["cover"])
    (answer,) = desk.feed(message_update(video=video(**size) | {"thumbnail": None}))
    texts = {"too big": EN["big"], "killed": EN["error"]}
    assert answer.text == texts.get(trouble, EN["unreadable"])
    if trouble == "killed":
        desk.errors.clear()


def test_a_clip_is_looked_at_again_as_a_clip(desk):
    desk.worker.result = answer_of("unknown") | {"frames": 12}
    (answer,) = desk.feed(message_update(video=video()))
    assert answer.text == EN["unknown"] + "\nI looked at frames of the clip: 12."
    (mirror,) = [data for text, data in buttons(answer) if text == EN["mirror"]]
    _, edit = desk.press(mirror)
    assert desk.worker.asked == [["video"], ["video"]] and desk.worker.looks == [None, "mirror"]
    assert edit.text == answer.text


@pytest.mark.parametrize(("language", "words"), [("en", "hardly anything"), ("ru", "почти ничего нет")])
def test_a_picture_with_too_little_in_it_is_told_so_without_buttons(desk, language, words):
    desk.worker.result = {"kind": "unknown", "candidates": [], "ms": 5.0, "reason": "too little in the picture"}
    for frames in (None, 0):
        if frames is not None:
            desk.worker.result["frames"] = frames
        (answer,) = desk.feed(photo_update("black", language=language))
        assert words in answer.text and "\n" not in answer.text and answer.reply_markup is None


@pytest.mark.parametrize(
    "content",
    [
        {"text": "hello"},
        {"text": "/nonsense"},
        {"document": document("doc", "application/pdf", "a.pdf")},
        {"sticker": sticker(is_animated=True, thumbnail=None)},
        {"voice": {"file_id": "v", "file_unique_id": "v", "duration": 1}},
        {"contact": {"phone_number": "1", "first_name": "Bob"}},
        {"poll": POLL},
        {"story": {"chat": {"id": 5, "type": "private"}, "id": 1}},  # Telegram gives no file of it
        {"text": "https://example.com/", "link_preview_options": {"url": "https://example.com/"}},  # nor of that
        {"text": "and this?", "reply_to": text_update("no picture")},
    ],
)
def test_anything_else_gets_a_hint(desk, content):
    assert [call.text for call in desk.feed(message_update(**content))] == [EN["hint"]]
    assert not desk.worker.asked


def test_an_album_gets_one_answer(desk):
    shots = [photo_update(name, album="a1") for name in "abc"]
    (answer,) = desk.feed(shots[1], shots[0], shots[2])
    assert desk.worker.asked == [["a", "b", "c"]]
    assert answer.reply_parameters.message_id == shots[0]["message"]["message_id"]
    papers = [message_update(album="a2", document=document("d", "application/pdf", "d.pdf")) for _ in range(3)]
    assert len(desk.feed(*papers)) == 1  # one hint
    assert len(desk.feed(photo_update("d", album="a3"), photo_update("e", user=2, album="a3"))) == 2  # of two people
    group = {"chat_type": "supergroup", "album": "a4"}
    assert not desk.feed(photo_update("f", **group), photo_update("g", **group))
    group["album"] = "a5"
    assert len(desk.feed(photo_update("f", **group), photo_update("g", caption="what, @film_bot?", **group))) == 1
    assert not desk.feed(photo_update("h", **group))  # a part that comes too late
    assert desk.unanswered() == []


def test_a_bad_picture_does_not_spoil_an_album(desk, monkeypatch):
    monkeypatch.setattr(connection, "MAX_BYTES", 100)
    desk.session.files = {"large": b"x" * 101, "first": b"x" * 60, "too much": b"x" * 41, "last": b"x" * 40}
    wrong = exceptions.TelegramBadRequest(None, "wrong file_id")
    desk.session.fail = lambda method: wrong if getattr(method, "file_id", "") == "gone" else None
    names = ["gone", "large", "first", "too much", "last"]
    assert "Alien" in desk.feed(*(photo_update(name, file_size=0, album="a") for name in names))[0].text
    assert desk.worker.asked == [["x" * 60, "x" * 40]]
    for names, text in ((["large", "gone"], "unreadable"), (["gone", "large"], "big")):
        (answer,) = desk.feed(*(photo_update(name, file_size=0, album=text) for name in names))
        assert answer.text == EN[text]


def in_group(**content) -> dict:
    return message_update(chat_type="supergroup", **content)


def ours(**content) -> dict:
    return in_group(**content)["message"] | {"from": BOT}


PHOTO = {"photo": photo_sizes("shot")}
THEIRS = in_group(**PHOTO)


@pytest.mark.parametrize(
    ("update", "answers"),
    [
        (in_group(**PHOTO), 0),
        (in_group(text="hello"), 0),
        (in_group(text="what film is this?", reply_to=THEIRS), 0),
        (in_group(**PHOTO, caption="@other_bot what is it?"), 0),
        (in_group(**PHOTO, caption="mail film_bot@film_bots.com"), 0),
        (in_group(text="/film@other_bot", reply_to=THEIRS), 0),
        (in_group(text="/help@other_bot"), 0),
        (in_group(text="/ban", reply_to=THEIRS), 0),  # another bot's command
        (in_group(**PHOTO, caption="/save"), 0),
        (in_group(text="@film_bot thanks!"), 0),
        (in_group(text="nice", reply_to=ours(text="This looks like Alien (1979)")), 0),
        ({"message": in_group(**PHOTO, caption="@film_bot")["message"] | {"from": STRANGER | {"is_bot": True}}}, 0),
        (in_group(new_chat_members=[STRANGER]), 0),
        (in_group(new_chat_title="Films", reply_to=ours(text="?")), 0),
        (message_update(pinned_message=THEIRS["message"]), 0),  # in private
        (message_update(message_auto_delete_timer_changed={"message_auto_delete_time": 60}), 0),
        (in_group(**PHOTO, caption="and this, @film_bot?"), 1),
        (in_group(**PHOTO, caption="🎬🎬 @Film_Bot"), 1),
        (in_group(text="@film_bot", reply_to=THEIRS), 1),
        (in_group(text="/film", reply_to=THEIRS), 1),
        (in_group(text="/film@FILM_bot", reply_to=THEIRS), 1),
        (in_group(**PHOTO, caption="/film"), 1),
        (in_group(**PHOTO, reply_to=ours(text="This looks like Alien (1979)")), 1),
        (in_group(text="/film"), 1),  # a hint
        (in_group(text="/help"), 1),
        (in_group(text="/help@film_bot"), 1),
    ],
)
def test_groups_hear_from_us_only_when_they_ask(desk, update, answers):
    assert len(desk.feed(update)) == answers


@pytest.mark.parametrize(
    ("result", "language", "text", "labels"),
    [
        (answer_of("movie"), "ru", "Похоже, это Чужой / Alien (1979). Почти уверен, но", ["Верно", "Неверно"]),
        (answer_of("movie", 0.8), "en", "This looks like Alien (1979). I am fairly sure, but", ["Right", "Wrong"]),
        (answer_of("movie", 0.8), "uk-UA", "Похоже, это Чужой / Alien (1979). Довольно уверен", ["Верно", "Неверно"]),
        (answer_of("movie", 0.5), None, "This looks like Alien (1979). I am not very sure", ["Right", "Wrong"]),
        (
            answer_of("shortlist"),
            "de",
            "- Alien (1979)\n- Brazil (1985)\n- Contact",
            [*TITLES, "None of these", EN["more"]],
        ),
        (
            answer_of("shortlist"),
            "ru",
            "- Чужой / Alien",
            ["Чужой / Alien (1979)", *TITLES[1:], RU["none"], RU["more"]],
        ),
        (answer_of("unknown"), "en", EN["unknown"], [EN["more"], EN["show"], EN["still"], EN["mirror"]]),
        (answer_of("unknown"), "ru", RU["unknown"], [RU["more"], RU["show"], RU["still"], RU["mirror"]]),
        (UserError("image: damaged"), "en", "I can't open this picture.", []),
        (TimeoutError(), "ru", "Не могу открыть эту картинку.", []),
    ],
)
def test_answers_of_each_kind(desk, result, language, text, labels):
    desk.worker.result = result
    (answer,) = desk.feed(photo_update("a", language=language))
    assert text in answer.text and [label for label, _ in buttons(answer)] == labels


def test_every_language_says_the_same():
    def holes(value) -> list:
        if isinstance(value, dict):
            return [(key, holes(item)) for key, item in sorted(value.items())]
        return sorted(re.findall(r"{.*?}", str(value)))

    for words in TEXTS.values():
        assert holes(words) == holes(EN)
        assert len(words["sure"]) == 3 and len(words["alike"]) == len(wording.SIMILARITY_STEPS) + 1


def test_titles_are_never_read_as_anything_else(desk):
    desk.worker.result = answer_of("shortlist")
    for candidate in desk.worker.result["candidates"]:
        candidate["title"] = "<b>{0} %s & _x_"
    (answer,) = desk.feed(photo_update("a"))
    assert "- <b>{0} %s & _x_" in answer.text and desk.bot.default.parse_mode is None


def test_verdicts_are_kept(desk):
    (_, right), (_, wrong) = buttons(desk.feed(photo_update("a"))[0])
    note, edit = desk.press(right, language="ru")
    assert note == "Спасибо!" and edit.reply_markup is None
    assert edit.text == "?\n\n" + RU["kept"].format(days=90)  # the first time alone
    assert desk.verdicts() == [("right", TITLES[0])]
    note, edit = desk.press(right, language="ru")
    assert note == "Спасибо!" and isinstance(edit, EditMessageReplyMarkup) and edit.reply_markup is None
    note, edit = desk.press(wrong)
    assert note == "Which movie is it, then?" and desk.verdicts() == [("wrong", None)]
    assert [label for label, _ in buttons(edit)] == [*TITLES[1:], "None of these"]
    assert desk.press(buttons(edit)[1][1])[0] == "Thank you!"
    assert desk.verdicts() == [("wrong", TITLES[2])]


def test_verdicts_on_a_shortlist(desk):
    desk.worker.result = answer_of("shortlist")
    answer = desk.feed(photo_update("a"))[0]
    desk.press(buttons(answer)[1][1])
    assert desk.verdicts() == [("right", TITLES[1])]
    _, edit = desk.press(dict(buttons(answer))[EN["none"]])
    assert desk.verdicts() == [("wrong", None)] and [label for label, _ in buttons(edit)] == [*TITLES, "None of these"]
    note, edit = desk.press(buttons(edit)[-1][1])
    assert note == "Thank you!" and edit.reply_markup is None and desk.verdicts() == [("wrong", None)]


def test_unknown_shows_its_guess_when_asked(desk):
    desk.worker.result = answer_of("unknown")
    show = dict(buttons(desk.feed(photo_update("a"))[0]))[EN["show"]]
    _, edit = desk.press(show)
    assert edit.text == "I don't know this movie, but it looks most like:\n" + "\n".join(f"- {t}" for t in TITLES)
    (_, right), _ = buttons(edit)
    assert [label for label, _ in buttons(edit)] == ["Right", "Wrong"] and not desk.verdicts()
    desk.press(right)
    assert desk.verdicts() == [("right", TITLES[0])]


def test_buttons_outlive_their_messages(desk):
    (_, right), _ = buttons(desk.feed(photo_update("a"))[0])
    assert desk.press(right, gone=True) == ("Thank you!", None)
    assert desk.verdicts() == [("right", TITLES[0])]
    assert desk.press(right, message=None)[1] is None  # an inline message
    assert desk.press("r:never-was") == ("I don't remember this answer any more.", None)
    gone = exceptions.TelegramBadRequest(None, "Bad Request: message to edit not found")
    desk.session.fail = lambda m: gone if isinstance(m, (EditMessageReplyMarkup, AnswerCallbackQuery)) else None
    assert isinstance(desk.press(right)[1], EditMessageReplyMarkup)


def test_an_answer_carries_its_proof(desk):
    desk.worker.result = proven("movie")
    (answer,) = desk.feed(photo_update("a"))
    assert isinstance(answer, SendPhoto) and answer.photo.data == b"still 0" and not answer.has_spoiler
    assert answer.caption == (
        "This looks like Alien (1979). I am almost sure, but I may be wrong.\n"
        "The nearest still that I know: almost the same picture, about 1:12:33 into the movie."
    )
    assert [label for label, _ in buttons(answer)] == ["Right", "Wrong", "Show another"]
    desk.worker.result = proven("movie", 0.5, None)
    (answer,) = desk.feed(photo_update("a", language="ru"))
    assert answer.caption.endswith("Ближайший кадр, который я знаю: отчасти похож.")
    desk.worker.result = proven("shortlist", 0.7)
    (answer,) = desk.feed(photo_update("a"))
    assert answer.caption.endswith(
        "The nearest still that I know of Alien (1979): much alike, about 1:12:33 into the movie."
    )
    desk.worker.result = proven("unknown")
    assert isinstance(desk.feed(photo_update("a"))[0], SendMessage)


def photo_press(desk, data: str, **more) -> tuple:
    """press() on a message of ours that has a picture."""
    message = photo_update("sent", **more)["message"] | {"message_id": 77, "from": BOT}
    return desk.press(data, message=message)


def test_show_another_goes_through_the_next_nearest_films(desk):
    desk.worker.result = proven("movie")
    data = buttons(desk.feed(photo_update("a"))[0])[2][1]
    assert not desk.worker.read  # the first still comes with the answer
    for place in (1, 2):
        note, edit = photo_press(desk, data)
        assert isinstance(edit, EditMessageMedia) and not note
        assert edit.media.media.data == f"still {place}".encode()
        assert edit.media.caption.startswith(f"The next nearest movie: {TITLES[place]}.\nThe nearest still")
        (_, right), (_, _), (_, data) = buttons(edit)
    assert photo_press(desk, right)[0] == EN["thanks"] and desk.verdicts() == [("wrong", TITLES[2])]
    assert photo_press(desk, data)[1].media.caption.startswith("This looks like Alien (1979).")
    assert desk.worker.read == [(title, f"{place}.jpg") for title, place in zip(TITLES[1:], (1, 2), strict=True)] + [
        (TITLES[0], "0.jpg")
    ]
    desk.worker.stills = {}  # the film was removed, or its stills are users'
    edit = photo_press(desk, data)[1]
    with Image.open(io.BytesIO(edit.media.media.data)) as blank:
        assert blank.getextrema() == ((128, 128),) * 3


def test_a_proof_of_an_unknown_film_is_shown_when_asked(desk):
    desk.worker.result = proven("unknown")
    data = dict(buttons(desk.feed(photo_update("a"))[0]))[EN["show"]]
    _, edit = desk.press(data)
    assert edit.media.media.data == b"still 0" and edit.media.caption.startswith(EN["guess"].split("{")[0])
    desk.session.fail = lambda method: NO_PHOTOS if isinstance(method, EditMessageMedia) else None
    desk.feed(callback_update(data, 77))
    assert desk.session.calls[-1].text == edit.media.caption


NO_PHOTOS = exceptions.TelegramBadRequest(None, "Bad Request: not enough rights to send photos to the chat")


def test_where_photos_are_forbidden_the_words_come_alone(desk):
    desk.worker.result = proven("movie")
    desk.session.fail = lambda method: NO_PHOTOS if isinstance(method, SendPhoto) else None
    photo, words = desk.feed(photo_update("a"))
    assert words.text == photo.caption and buttons(words) == buttons(photo)


def test_what_came_under_a_spoiler_is_answered_under_one(desk):
    desk.worker.result = proven("movie")
    hidden = photo_update("a", has_media_spoiler=True)
    asked = [hidden, text_update("what film is this?", reply_to=hidden)]
    asked += [
        text_update("and?", external_reply={"origin": ORIGIN, "photo": photo_sizes("b"), "has_media_spoiler": True})
    ]
    for update in asked:
        (answer,) = desk.feed(update)
        assert answer.has_spoiler
    _, edit = photo_press(desk, buttons(answer)[2][1], has_media_spoiler=True)
    assert edit.media.has_spoiler
    album = [photo_update("a", album="a"), photo_update("b", album="a", has_media_spoiler=True)]
    assert desk.feed(*album)[0].has_spoiler


def test_a_button_opens_the_page_of_the_film(desk, tmp_path):
    path = tmp_path / "titles.csv"
    path.write_text(
        "title,tconst,ru\nAlien (1979),tt0078748,Чужой\nBrazil (1985),javascript:alert(1),\n", encoding="utf-8"
    )
    desk.texts["en"]["imdb"] = wording.load_texts(path)["en"]["imdb"]
    desk.know(dict.fromkeys(TITLES) | {"Contact (1997)": "tt0118884"})
    pages = []
    for title in TITLES:
        desk.worker.result = answer_of("movie")
        desk.worker.result["candidates"][0]["title"] = title
        (answer,) = desk.feed(photo_update("a"))
        pages += [[button.url for row in answer.reply_markup.inline_keyboard for button in row if button.url]]
    assert pages == [["https://www.imdb.com/title/tt0078748/"], [], ["https://www.imdb.com/title/tt0118884/"]]
    _, edit = desk.press(buttons(answer)[0][1])
    assert [label for label, _ in buttons(edit)] == ["IMDb"]  # it stays


@pytest.mark.parametrize(
    ("words", "look"),
    [
        (None, None),
        ("cropped? flipper!", None),
        ("Crop, please", "still"),
        ("обрежь", "still"),
        ("MIRROR", "mirror"),
        ("{0} зеркало %s <b>", "mirror"),
        ("mirror" * 170, None),
    ],
)
def test_words_ask_for_a_second_look(desk, words, look):
    desk.feed(photo_update("a", caption=words))
    desk.feed(photo_update("a", album="x"), photo_update("b", album="x", caption=words))
    if words:
        desk.feed(text_update(words, reply_to=photo_update("c")))
    assert desk.worker.looks == [look] * (3 if words else 2)


def test_buttons_ask_for_a_second_look(desk):
    desk.worker.result = answer_of("unknown")
    _, _, (_, still), (_, mirror) = buttons(desk.feed(photo_update("a"))[0])
    note, edit = desk.press(still)
    assert note == EN["looking"] and edit.text == EN["unknown"]
    desk.worker.result = answer_of("movie")
    assert desk.press(mirror)[1].text.startswith("This looks like Alien (1979).")
    assert desk.worker.looks == [None, "still", "mirror"] and desk.worker.asked == [["a"]] * 3
    for _ in range(naming.FLOOD - 2):  # three frames were before
        note, edit = desk.press(mirror)
    assert note == EN["flood"] and edit is None
    assert desk.press(mirror, user=2) == (EN["theirs"], None)


def test_only_who_asked_may_judge(desk):
    (_, right), (_, wrong) = buttons(
        desk.feed(photo_update("a", user=1, chat_type="supergroup", caption="@film_bot"))[0]
    )
    for data in (right, wrong, wrong.replace("w", "c1", 1), wrong.replace("w", "n", 1), wrong.replace("w", "k", 1)):
        assert desk.press(data, user=2) == (EN["theirs"], None)
    assert not desk.verdicts()
    desk.press(right, user=1)
    assert desk.verdicts() == [("right", TITLES[0])]
    channel = {"sender_chat": {"id": -100, "type": "channel", "title": "Films"}, "chat_type": "supergroup"}
    (_, right), _ = buttons(desk.feed(photo_update("b", user=3, caption="@film_bot", **channel))[0])
    assert desk.press(right, user=4)[0] == EN["thanks"]  # of a channel's question nobody knows who asked


def question(desk, user: int = 1) -> dict:
    """The bot's message that asks for a title, as Telegram shows it in a reply."""
    wrong = buttons(desk.feed(photo_update("a", user=user))[0])[1][1]
    desk.press(wrong.replace("w", "n", 1), user=user)
    (ask,) = desk.session.calls[-1:]
    assert ask.text == EN["tell"] and len(buttons(ask)) == 1
    markup = json.loads(ask.reply_markup.model_dump_json(exclude_none=True))
    return {"message_id": 9, "date": 1, "chat": {"id": user, "type": "private"}, "from": BOT, "text": ask.text} | {
        "reply_markup": markup
    }


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("brazil (1985)", ("wrong", TITLES[1])),
        ("  Brazil ", ("wrong", TITLES[1])),
        ("чужой", ("wrong", TITLES[0])),
        ("Stalker\n(1979)", ("wish", "Stalker (1979)")),
        ("'; DROP TABLE answers; --", ("wish", "'; DROP TABLE answers; --")),
        ("x" * 4000, None),
    ],
)
def test_a_film_can_be_told_in_words(desk, words, verdict):
    asked = question(desk)
    (answer,) = desk.feed(text_update(words, reply_to=asked))
    if verdict:
        assert answer.text == EN["thanks"] and desk.verdicts()[-1:] == [verdict]
    else:
        assert answer.text == EN["tell"] and buttons(answer) and not desk.verdicts()
    assert desk.feed(text_update("Stalker", user=2, chat=1, reply_to=asked))[0].text == EN["theirs"]
    data = asked["reply_markup"]["inline_keyboard"][0][0]["callback_data"]
    assert desk.press(data)[1].text == EN["thanks"]
    desk.app.base.execute("DELETE FROM answers")
    assert desk.feed(text_update("Stalker", reply_to=asked))[0].text == EN["gone"]
    stranger = asked | {"from": STRANGER | {"is_bot": True}}
    assert desk.feed(text_update("Stalker", reply_to=stranger))[0].text == EN["hint"]


def test_wishes_are_listed_by_how_many_users_have_them(tmp_path, capsys):
    base = tmp_path / "bot.sqlite"
    with Desk(base) as desk:
        for user, wish in ((1, "Stalker"), (1, "stalker"), (1, "Stalker"), (2, "Solaris"), (3, "solaris")):
            desk.feed(text_update(wish, user=user, reply_to=question(desk, user)))
    database.print_wishes(base)
    assert capsys.readouterr().out == "     2  Solaris\n     1  Stalker\n"


def test_a_database_of_an_older_bot_goes_on(tmp_path):
    base = sqlite3.connect(tmp_path / "bot.sqlite")
    base.execute(
        "CREATE TABLE answers (id TEXT PRIMARY KEY, time REAL, file_id TEXT,"
        " kind TEXT, candidates TEXT, verdict TEXT, film TEXT)"
    )
    candidates = json.dumps(answer_of("movie")["candidates"])
    base.execute("INSERT INTO answers VALUES ('old', ?, 'a', 'movie', ?, NULL, NULL)", (time.time(), candidates))
    base.commit()
    with Desk(tmp_path / "bot.sqlite") as desk:
        assert desk.press("r:old", user=5)[0] == EN["thanks"] and desk.verdicts() == [("right", TITLES[0])]
        assert "Alien" in desk.feed(photo_update("a"))[0].text


# ------------------------------------------------------------------------------------- one more frame of it


def sent(call, number: int = 77, **more) -> dict:
    """A message of ours, as a user's reply quotes it."""
    markup = json.loads(call.reply_markup.model_dump_json(exclude_none=True))
    message = {"message_id": number, "date": 1, "chat": {"id": 1, "type": "private"}, "from": BOT, "text": "?"}
    return message | {"reply_markup": markup} | more


def test_frames_of_an_unknown_film_are_asked_together(desk):
    desk.worker.result = answer_of("unknown")
    (answer,) = desk.feed(photo_update("a"))
    desk.worker.result = answer_of("unknown") | {"frames": 2}
    (second,) = desk.feed(photo_update("b", reply_to=sent(answer)))
    assert desk.worker.asked == [["a"], ["a", "b"]]
    assert second.text == f"{EN['unknown']}\nI looked at 2 frames of it."
    more = dict(buttons(second))[EN["more"]]
    assert desk.press(more) == (EN["send"], None)
    desk.feed(text_update("wait"))
    desk.worker.result = proven("movie") | {"frames": 4}
    (named,) = desk.feed(photo_update("c", album="x"), photo_update("d", album="x"))
    assert desk.worker.asked[2:] == [["a", "b", "c", "d"]]
    assert named.caption.split("\n")[1] == "I looked at 4 frames of it."
    desk.feed(photo_update("e"))  # the button was for one picture or album
    desk.feed(photo_update("f", reply_to=sent(named)))  # a film that was named asks for no more frames
    assert desk.worker.asked[3:] == [["e"], ["f"]]


def test_one_more_frame_is_that_of_who_asked_and_of_the_next_ten_minutes(desk):
    desk.worker.result = answer_of("shortlist")
    group = {"chat_type": "supergroup"}
    (answer,) = desk.feed(photo_update("a", caption="@film_bot", **group))
    more = dict(buttons(answer))[EN["more"]]
    assert desk.press(more, user=2, **group) == (EN["theirs"], None)
    desk.press(more, **group)
    assert not desk.feed(photo_update("b", user=2, **group))  # somebody else's, and nobody asked us
    assert not desk.feed(text_update("hello", **group))
    assert len(desk.feed(photo_update("c", **group))) == 1 and desk.worker.asked[-1] == ["a", "c"]
    desk.press(more, **group)
    desk.app.base.execute("UPDATE awaited SET time = time - 601")
    assert not desk.feed(photo_update("d", **group))
    desk.feed(photo_update("e", user=2, reply_to=sent(answer), **group))  # to another's: a question of its own
    assert desk.worker.asked[-1] == ["e"]


def test_eight_frames_are_asked_at_most(desk):
    desk.worker.result = answer_of("unknown")
    (answer,) = desk.feed(*(photo_update(name, album="x") for name in "abcdefg"))
    (answer,) = desk.feed(*(photo_update(name, album="y", reply_to=sent(answer)) for name in "hi"))
    assert desk.worker.asked[-1] == list("bcdefghi")
    assert answer.text == EN["stumped"] and EN["more"] not in dict(buttons(answer))
    desk.press(dict(buttons(answer))[EN["mirror"]])
    assert desk.worker.asked[-1] == list("bcdefghi")  # a second look is at all of them


def test_after_a_clip_its_cover_and_the_frame_are_asked(desk):
    desk.worker.result = answer_of("unknown") | {"frames": 12}
    (answer,) = desk.feed(message_update(video=video()))
    desk.feed(photo_update("a", reply_to=sent(answer)))
    (answer,) = desk.feed(message_update(video=video() | {"thumbnail": None}))
    desk.feed(photo_update("b", reply_to=sent(answer)))
    assert desk.worker.asked == [["video"], ["thumb", "a"], ["video"], ["b"]]


MARKS = ["0f1e2d3c4b5a6978", "8796a5b4c3d2e1f0"]


def test_a_film_that_was_refused_is_not_named_first_at_the_same_picture(desk):
    desk.worker.result = proven("movie") | {"marks": MARKS[:1]}
    _, (_, wrong), _ = buttons(desk.feed(photo_update("a"))[0])
    desk.press(wrong)
    near = f"{int(MARKS[0], 16) ^ 0b111:016x}"  # made smaller, it differs in a few bits
    desk.worker.result["marks"] = [near]
    (answer,) = desk.feed(photo_update("again"))
    assert answer.caption.startswith("I doubt a little") and TITLES[0] not in dict(buttons(answer))
    assert f"- {TITLES[1]}\n- {TITLES[2]}\n" in answer.caption
    assert answer.caption.endswith(f"\nYou told me that it is not {TITLES[0]}.")
    assert answer.photo.data == b"still 1" and desk.worker.read == [(TITLES[1], "1.jpg")]
    assert "Alien" in desk.feed(photo_update("a", user=2))[0].caption.split("\n")[0]  # nobody else is told so
    desk.worker.result["marks"] = MARKS[1:]  # another picture
    assert desk.feed(photo_update("b"))[0].caption.startswith(f"This looks like {TITLES[0]}")
    desk.press(dict(buttons(answer))["None of these"])
    desk.worker.result["marks"] = [near]
    (answer,) = desk.feed(photo_update("again"))
    assert answer.text == f"{EN['stumped']}\nYou told me that it is not {', '.join(TITLES)}."


def test_black_pictures_are_not_taken_for_one():
    assert not marks.are_near(["0" * 16], ["0" * 16]) and marks.are_near(MARKS, MARKS[1:])
    assert not marks.are_near(MARKS[:1], MARKS[1:])


def test_a_mark_outlives_what_chats_do_to_a_picture():
    for film in range(8):
        frame = draw_frame(film, 3, 0, (1280, 720))
        mark = marks.mark_picture(np.asarray(frame))
        small = Image.open(io.BytesIO(encoded(frame.resize((320, 180))))).convert("RGB")
        assert marks.are_near([mark], [marks.mark_picture(np.asarray(small))])
        other = marks.mark_picture(np.asarray(draw_frame(film + 1, 3, 0, (1280, 720))))
        assert not marks.are_near([mark], [other])


# ------------------------------------------------------------------------------------------ what people send


def heic(**more) -> dict:
    return document("heic", "image/heic", "IMG_1.HEIC", thumbnail=part("thumb"), **more)


@pytest.mark.parametrize("error", [UserError("image: HEIC needs one more package"), TimeoutError()])
def test_what_can_not_be_read_is_seen_in_its_thumbnail(desk, error, monkeypatch):
    failing = desk.worker.call

    async def call(function, *args):
        desk.worker.result = error if "heic" in map(desk.worker.content, args[0]) else answer_of("unknown")
        return await failing(function, *args)

    monkeypatch.setattr(desk.worker, "call", call)
    (answer,) = desk.feed(message_update(document=heic()))
    assert desk.worker.asked == [["heic"], ["thumb"]] and answer.text == f"{EN['unknown']}\n{EN['small']}"
    _, edit = desk.press(dict(buttons(answer))[EN["mirror"]])
    assert desk.worker.asked[-1] == ["thumb"] and edit.text.endswith(EN["small"])
    (answer,) = desk.feed(message_update(document=heic() | {"thumbnail": None}))
    assert answer.text == EN["unreadable"]


def test_of_what_is_too_big_the_thumbnail_is_seen(desk):
    (answer,) = desk.feed(message_update(document=heic(file_size=25_000_000)))
    assert desk.worker.asked == [["thumb"]] and answer.text.endswith(f"\n{EN['small']}")
    album = [message_update(document=heic(file_size=25_000_000), album="x"), photo_update("shot", album="x")]
    (answer,) = desk.feed(*album)
    assert desk.worker.asked[-1] == ["thumb", "shot"] and answer.text.endswith(f"\n{EN['small']}")
    (answer,) = desk.feed(message_update(document=heic(file_size=25_000_000) | {"thumbnail": None}))
    assert answer.text == EN["big"]


PREVIEW = {"type": "preview", "width": 640, "height": 360}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"paid_media": paid({"type": "photo", "photo": photo_sizes("big")})}, ["big"]),
        ({"paid_media": paid(*({"type": "photo", "photo": photo_sizes(name)} for name in "ab"), PREVIEW)}, ["a", "b"]),
        (
            {"paid_media": paid({"type": "live_photo", "live_photo": part("x", duration=3, photo=photo_sizes("l"))})},
            ["l"],
        ),
        ({"paid_media": paid(*[{"type": "video", "video": video()}] * 2)}, ["thumb", "thumb"]),
        ({"text": "?", "external_reply": {"origin": ORIGIN, "paid_media": paid(PREVIEW)}}, None),
        ({"text": "?", "reply_to": message_update(paid_media=paid(PREVIEW))}, None),
        ({"paid_media": paid(PREVIEW)}, None),
        ({"text": "which?", "quote": {"text": "this", "position": 0}, "reply_to": photo_update("quoted")}, ["quoted"]),
        (
            {"poll": POLL | {"options": [{"text": "a", "voter_count": 0, "persistent_id": "1", "media": PHOTO}]}},
            ["shot"],
        ),
        (
            {
                "rich_message": {
                    "blocks": [{"type": "collage", "blocks": [{"type": "photo", "photo": photo_sizes("c")}]}]
                }
            },
            ["c"],
        ),
        ({"game": {"title": "?", "description": "?", "photo": photo_sizes("played")}}, ["played"]),
    ],
)
def test_rarer_messages_get_an_answer_or_one_plain_word(desk, content, wanted):
    (answer,) = desk.feed(message_update(**content))
    assert desk.worker.asked == ([wanted] if wanted else [])
    assert answer.text.startswith("This looks like Alien") if wanted else answer.text == EN["paid"]


def test_posts_of_channels_are_answered_when_they_ask(desk):
    assert not desk.feed(channel_update(**PHOTO), channel_update(text="hello"))
    (answer,) = desk.feed(channel_update(**PHOTO, caption="@film_bot"))
    assert answer.chat_id == -1002 and desk.worker.asked == [["shot"]]
    assert desk.press(buttons(answer)[0][1], user=5, chat=-1002)[0] == EN["thanks"]  # nobody knows who asked
    post = channel_update(**PHOTO, caption="@film_bot")["channel_post"]
    forward = in_group(**PHOTO, caption="@film_bot")["message"]
    forward |= {"sender_chat": post["chat"], "is_automatic_forward": True}
    assert not desk.feed({"message": forward})  # it was answered in the channel
    assert len(desk.feed(in_group(text="/film", reply_to=forward))) == 1


def test_an_edit_is_answered_where_it_asks_something_new(desk):
    asked = in_group(**PHOTO)
    assert not desk.feed(asked)
    mentioned = edited(asked, caption="what is it, @film_bot?")
    assert len(desk.feed(mentioned)) == 1
    assert not desk.feed(mentioned, edited(asked, caption="what is it, @film_bot??"))  # Telegram tells of other changes
    assert len(desk.feed(edited(asked, caption="@film_bot mirror"))) == 1 and desk.worker.looks[-1] == "mirror"
    assert len(desk.feed(edited(asked, photo=photo_sizes("other"), caption="@film_bot"))) == 1
    private = photo_update("a")
    assert len(desk.feed(private)) == 1 and not desk.feed(edited(private, caption="oops"))
    assert len(desk.feed(edited(private, photo=photo_sizes("b")))) == 1
    assert not desk.feed(edited(text_update("hello"), text="hello!"))  # no hint for each correction
    assert not desk.feed(edited(in_group(**PHOTO, album="x"), caption="nice"))
    post = channel_update(**PHOTO)
    assert len(desk.feed(edited(post, caption="@film_bot"))) == 1
    old = photo_update("c", date=int(time.time()) - 5000)
    assert not desk.feed(old) and len(desk.feed(edited(old))) == 1
    assert [names for (names,) in desk.worker.asked] == ["shot", "shot", "other", "a", "b", "shot", "c"]


def test_in_the_chats_of_a_business_account_pictures_of_the_other_side_are_answered(desk):
    assert not desk.feed(business_update(text="when do you open?"), business_update(voice=VOICE))
    (answer,) = desk.feed(business_update(**PHOTO))
    assert answer.business_connection_id == "business-1" and answer.chat_id == 1
    (typing,) = desk.named(methods.SendChatAction)
    assert typing.business_connection_id == "business-1"
    assert not desk.feed(business_update(user=9, customer=1, **PHOTO))  # the owner's own
    asked = business_update(user=9, customer=1, text="/film", reply_to=business_update(**PHOTO)["business_message"])
    assert len(desk.feed(asked)) == 1
    spoken = business_update(user=9, customer=1, **PHOTO)["business_message"]
    assert not desk.feed({"business_message": spoken | {"sender_business_bot": BOT}})  # what the bot itself has said
    assert len(desk.feed(edited(business_update(**PHOTO)))) == 1


VOICE = {"file_id": "v", "file_unique_id": "v", "duration": 1}

# ------------------------------------------------------------------------------------------------- privacy


def test_what_a_user_told_is_forgotten_when_he_says_so(tmp_path):
    with Desk(tmp_path / "bot.sqlite") as desk:
        desk.worker.result = answer_of("movie") | {"marks": MARKS}
        for user in (1, 2):
            right = buttons(desk.feed(photo_update("a", user=user))[0])[0][1]
            desk.press(right, user=user)
        desk.press("l:ru", user=1)
        desk.worker.result = answer_of("unknown")
        desk.press(dict(buttons(desk.feed(photo_update("b"))[0]))[RU["more"]])
        (told,) = desk.feed(text_update("/forget", language="ru"))
        assert told.text == RU["forgotten"].format(count=2) or told.text == EN["forgotten"].format(count=2)
        who = [desk.app.hash(User(id=user, is_bot=False, first_name="Ann")) for user in (1, 2)]
        assert desk.app.base.execute("SELECT who FROM answers").fetchall() == [(who[1],)]
        for table in ("languages", "awaited"):
            assert not desk.app.base.execute(f"SELECT * FROM {table}").fetchall()
        assert desk.app.base.execute("SELECT who FROM forgotten").fetchall() == [(who[0],)]
        assert desk.press(right, user=1)[0] == EN["theirs"]
        (said,) = desk.feed(text_update("/privacy"))
        assert said.text == EN["privacy"].format(days=90) and len(said.text) < 4096
        hidden = text_update("/forget", chat_type="supergroup", sender_chat={"id": -1001, "type": "supergroup"})
        assert desk.feed(hidden)[0].text == EN["nobody"]
        assert not desk.errors and not desk.session.wrong


def test_of_users_who_are_gone_no_counts_stay(desk, monkeypatch):
    monkeypatch.setattr(naming, "FLOOD_SECONDS", 0.01)
    desk.feed(*(photo_update("a", user=user) for user in range(1, 30)))
    desk.run(lambda: not desk.app.frames)
    assert len(desk.app.frames) == len(desk.app.turns) == 0 and not desk.app.asked


def test_a_users_still_is_a_proof_in_words_alone(desk):
    desk.worker.result = proven("movie")
    evidence = desk.worker.result["candidates"][0]["evidence"]
    evidence |= {"file": "telegram:someone-answer.jpg", "thumbnail": ""}  # as the worker gives it
    (answer,) = desk.feed(photo_update("a"))
    assert isinstance(answer, SendMessage) and answer.text.endswith(f"into the movie. {EN['theirs_hidden']}")


def test_wishes_outlive_their_rows_where_two_users_had_them(tmp_path, capsys):
    base = tmp_path / "bot.sqlite"
    with Desk(base) as desk:
        for user, wish in ((1, "Stalker"), (2, "stalker"), (3, "my secret")):
            desk.feed(text_update(wish, user=user, reply_to=question(desk, user)))
        desk.app.base.execute("UPDATE answers SET time = 0")
        database.expire(desk.app.base, 90)
        desk.feed(text_update("STALKER", user=4, reply_to=question(desk, 4)))
        assert len(desk.app.base.execute("SELECT * FROM answers").fetchall()) == 1
    database.print_wishes(base)
    assert capsys.readouterr().out == "     3  STALKER\n"


def guest(**content) -> dict:
    """A question from a chat that the bot is no member of, as Telegram's documentation has it."""
    message = in_group(**content)["message"] | {"guest_query_id": "guest-1"}
    return {"guest_message": message}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"photo": photo_sizes("a"), "caption": "@film_bot"}, "This looks like Alien (1979)."),
        ({"text": "@film_bot what is it?", "reply_to": THEIRS}, "This looks like Alien (1979)."),
        ({"text": "@film_bot"}, EN["hint"]),
        ({"text": "@film_bot", "date": 1}, None),
    ],
)
def test_a_guest_answers_once_and_without_buttons(desk, content, text):
    desk.worker.result = proven("movie")
    desk.know({TITLES[0]: "tt0078748"})
    assert not desk.feed(guest(**content))  # no message of a member
    answers = desk.named(AnswerGuestQuery)
    assert len(answers) == (text is not None)
    for answer in answers:
        assert answer.guest_query_id == "guest-1"
        assert answer.result.input_message_content.message_text.startswith(text)
        assert not [data for _, data in buttons(answer.result) if data]
        assert len(buttons(answer.result)) == text.startswith("This")  # the film's page


@pytest.mark.parametrize(
    ("query", "offset", "count", "further"),
    [
        ("", "", 20, "20"),
        ("", "40", 20, ""),
        ("film 5", "", 15, ""),
        ("nothing of the kind", "", 0, ""),
        ("", "٣", 20, "20"),
        ("", "99999", 0, ""),
        ("", "-1", 20, "20"),
        ("{0} <b> %s \0" * 15, "", 0, ""),
    ],
)
def test_titles_are_found_inline(library, query, offset, count, further):
    user = {"id": 5, "is_bot": False, "first_name": "Ann", "language_code": "en"}
    library.feed({"inline_query": {"id": "1", "from": user, "query": query, "offset": offset}})
    answer = library.session.calls[-1]
    assert isinstance(answer, AnswerInlineQuery) and answer.is_personal
    assert (len(answer.results), answer.next_offset) == (count, further)
    for result in answer.results:
        assert result.title == result.input_message_content.message_text and result.title in MANY
    library.session.fail = lambda method: exceptions.TelegramBadRequest(None, "query is too old")
    library.feed({"inline_query": {"id": "1", "from": user, "query": query, "offset": offset}})
    library.session.fail = lambda method: None
    assert library.errors == library.session.wrong == []


def test_figures_for_the_owner_alone():
    with Desk(owner=7) as desk:
        for kind in ("movie", "shortlist", "unknown", "movie"):
            desk.worker.result = answer_of(kind)
            data = buttons(desk.feed(photo_update("a"))[0])[0][1]
        wrong = desk.press(data) and data.replace("r", "w", 1)
        for press in (wrong, wrong.replace("w", "c1", 1)):  # then he changes his mind, and picks another
            desk.press(press)
        desk.app.base.execute("INSERT INTO counts VALUES ('2020-01-01', 'frames', 100), ('2020-01-01', 'movie', 100)")
        (told,) = desk.feed(text_update("/stats", user=7))
        assert "4 frames today, 104 in all: 102 named, 1 with a choice of three, 1 unknown" in told.text
        assert "Users said 1 times right, 1 times wrong" in told.text and "Median 5 ms" in told.text
        assert "Кадров сегодня 4, всего 104" in desk.feed(text_update("/stats", user=7, language="ru"))[0].text
        assert desk.feed(text_update("/stats", user=8))[0].text == EN["hint"]
        assert not desk.feed(text_update("/stats", user=7, chat_type="supergroup"))

        async def metrics() -> str:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            await figures.serve_metrics(desk.app, port)
            with pytest.raises(UserError, match=f"--metrics {port}"):
                await figures.serve_metrics(desk.app, port)
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                return await answer.text()

        lines = dict(line.rsplit(" ", 1) for line in desk.runner.run(metrics()).splitlines())
        assert (
            lines["movie_bot_frames"] == "104" and lines["movie_bot_today"] == "4" and lines["movie_bot_right"] == "1"
        )
        assert lines['movie_bot_info{architecture="test_resnet",version="abc1234"}'] == "1"


def test_feedback_becomes_labels(tmp_path, capsys):
    base, labels = tmp_path / "bot.sqlite", tmp_path / "labels.csv"
    with pytest.raises(UserError, match="--db") as missing:
        database.write_feedback(base, labels)
    assert missing.value.code == 2 and not labels.exists()
    for wrong in (base, tmp_path / "nowhere" / "bot.sqlite"):
        with contextlib.suppress(OSError):
            wrong.write_bytes(b"no database at all" * 100)
        with pytest.raises(UserError, match="--db"):
            database.open_base(wrong)
    base.unlink()
    with Desk(base) as desk:
        for verdict in (0, 1):
            desk.press(buttons(desk.feed(photo_update(f"shot{verdict}", user=4242))[0])[verdict][1], user=4242)
        desk.feed(photo_update("no-verdict"))
    database.write_feedback(base, labels)
    head, *rows = csv.reader(labels.read_text().splitlines())
    assert head == ["time", "file_id", "kind", "answer", "confidence", "verdict", "film"]
    assert [row[1:] for row in rows] == [
        ["shot0", "movie", TITLES[0], "0.97", "right", TITLES[0]],
        ["shot1", "movie", TITLES[0], "0.97", "wrong", ""],
    ]
    assert abs(time.mktime(time.strptime(rows[0][0], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone - time.time()) < 3600
    assert "2 verdicts" in capsys.readouterr().out


def test_feedback_and_wishes_say_where_they_went(capsys):
    assert bot.main(["--feedback", "labels.csv"]) == bot.main(["--wishes", "--db", "/data/bot.sqlite"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "bot.py: error: --feedback is now: python learn.py --db bot.sqlite --labels labels.csv",
        "bot.py: error: --wishes is now: python learn.py --db /data/bot.sqlite --wishes",
    ]
    options = bot.get_parser().format_help()
    assert "--feedback" not in options and "--wishes" not in options


def test_of_people_nothing_is_kept(tmp_path):
    with Desk(tmp_path / "bot.sqlite") as desk:
        group = {"user": 987654321, "chat": -1009876, "chat_type": "supergroup"}
        desk.feed(photo_update("a", caption="very private words, @film_bot", **group))
        desk.feed(text_update("between ourselves", **group), text_update("/help private words", user=987654321))
        desk.press("l:ru", user=987654321)
        desk.spawn(database.tidy(desk.app.base))
        desk.run(lambda: not (tmp_path / "bot.sqlite-wal").read_bytes())
        everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert b"languages" in everything
        for word in (b"987654321", b"1009876", b"private words", b"ourselves", b"Ann", SECRET.encode()):
            assert word not in everything


def test_what_is_old_is_forgotten(desk):
    def count(table: str) -> int:
        return desk.app.base.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    right = buttons(desk.feed(photo_update("judged"))[0])[0][1]
    other = buttons(desk.feed(photo_update("not judged"))[0])[0][1]
    desk.press(right)
    desk.press("l:ru", user=2)
    desk.app.base.execute("UPDATE updates SET time = time - 3 * 86400")
    for table in ("answers", "languages"):
        desk.app.base.execute(f"UPDATE {table} SET time = time - 9 * 86400")
    late = buttons(desk.feed(photo_update("late"))[0])[0][1]
    tidying = desk.spawn(database.tidy(desk.app.base, keep_days=10))
    desk.run(lambda: count("updates") == 1)
    assert (count("answers"), count("languages"), count("verdicts")) == (3, 1, 0)
    tidying.cancel()
    desk.spawn(database.tidy(desk.app.base, keep_days=8))
    desk.run(lambda: count("answers") == 1)
    assert [desk.press(data)[0] for data in (right, other, late)] == [EN["gone"], EN["gone"], EN["thanks"]]
    assert count("languages") == 0
    # how often which verdict was given stays, and no user with it
    assert desk.app.base.execute("SELECT * FROM verdicts").fetchall() == [("right", TITLES[0], TITLES[0], 1)]


LONG = "Очень длинное название фильма, который никто не смотрел, часть"
MANY = [f"Film {n}" for n in range(60)]
MANY_RUSSIAN = {title: f"{LONG if n % 5 else 'Очень длинное название филина'} {n}" for n, title in enumerate(MANY)}


@pytest.fixture(scope="module")
def library():
    with Desk() as desk:
        desk.texts["ru"]["titles"] = MANY_RUSSIAN
        desk.know(dict.fromkeys(MANY))
        desk.answer = buttons(desk.feed(photo_update("a"))[0])[0][1][2:]
        yield desk


ACTIONS = [
    "",
    "a",
    "l",
    "f",
    "g",
    "r",
    "w",
    "n",
    "k",
    "s",
    "s0",
    "s1",
    "c",
    "c0",
    "c2",
    "c3",
    "c-1",
    "c²",
    "c٣",
    "c" + "9" * 40,
]
ACTIONS = st.sampled_from(ACTIONS)
PAGES = st.sampled_from(["-1", "0", "1", "2", "3", "99999", "100000", "٣", "²", "1e3", "", "9" * 50])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.one_of(TEXT, st.tuples(ACTIONS, TEXT), st.tuples(st.just("f"), PAGES, TEXT), st.tuples(ACTIONS, st.none())))
def test_hostile_buttons(library, data):
    if not isinstance(data, str):
        data = ":".join(library.answer if part is None else part for part in data)
    note, edit = library.press(data, language="ru")
    assert note is None or len(note) <= 200
    if isinstance(edit, EditMessageText) and not data.startswith(("l:", "g:", "k:", "r:", "c")):
        assert data.startswith("f:") and edit.text.startswith(("Фильмов: ", "Такого"))
    assert library.errors == library.session.wrong == []


@pytest.mark.parametrize(
    ("button", "data"),
    [
        (keyboards.Right(answer="ID"), "r:ID"),
        (keyboards.Wrong(answer="ID"), "w:ID"),
        (keyboards.NoneOfThese(answer="ID"), "n:ID"),
        (keyboards.Skip(answer="ID"), "k:ID"),
        (keyboards.Guess(answer="ID"), "g:ID"),
        (keyboards.More(answer="ID"), "a:ID"),
        (keyboards.CutStill(answer="ID"), "x:ID"),
        (keyboards.Mirror(answer="ID"), "m:ID"),
        (keyboards.Pick(place=0, answer="ID"), "c0:ID"),
        (keyboards.Step(place=1, answer="ID"), "s1:ID"),
        (keyboards.Language(code="ru"), "l:ru"),
        (keyboards.Page(page=2, query="two words: {0}"), "f:2:two words: {0}"),
    ],
)
def test_buttons_in_peoples_chats_keep_their_meaning(button, data):
    assert button.pack() == data and type(button).unpack(data) == button


def walk(desk, query: str, language: str) -> tuple[int, list[str]]:
    """(films as counted, films seen on all pages)."""
    (page,) = desk.feed(text_update(f"/films {query}", language=language))
    count, seen = page.text.split("\n")[0].rpartition(" ")[2], page.text.split("\n")[2:]
    while further := [data for sign, data in buttons(page) if sign == ">"]:
        _, page = desk.press(further[0], language=language)
        seen += page.text.split("\n")[2:]
    return int(count) if seen else 0, seen


def test_films_by_words(library):
    for query, language in itertools.product(("", "очень", LONG.lower(), LONG[::-1], "' OR 1=1; --"), ("ru", "en")):
        count, seen = walk(library, query, language)
        assert count == len(seen) == len(set(seen))
    assert walk(library, "", "en") == (60, sorted(MANY))
    assert walk(library, " FILM   1 ", "en")[0] == 15  # 1, 10-19, 21, 31, 41, 51
    assert walk(library, "Film 59", "ru") == (1, [f"{LONG} 59 / Film 59"])
    assert library.feed(text_update("/films {0} <b>%s"))[0].text == "I know no such movie."
    back = library.press("f:99999:")[1]  # past the end: the last page
    assert [data for _, data in buttons(back)] == ["f:1:"]


def test_commands(desk):
    def say(text, **more):
        (answer,) = desk.feed(text_update(text, **more))
        return answer.text

    assert say("/start") == EN["start"].format(films=3)
    assert say("/start from-a-link", language="ru").startswith("Привет! Пришли мне кадр из фильма")
    assert say("/help") == EN["help"] and say("/help", language="ru") == RU["help"]
    assert say("/about") == "Model test_resnet, 3 movies. Version abc1234."
    desk.worker.contract.accuracy = {"top1": 0.876, "split": "group"}
    assert "Right on scenes that it has never seen: 88%." in say("/about")
    desk.worker.contract.accuracy["split"] = "random"
    assert "Right on a random split (which flatters): 88%." in say("/about")
    (choice,) = desk.feed(text_update("/lang"))
    assert sorted(buttons(choice)) == [("English", "l:en"), ("Русский", "l:ru")]
    note, edit = desk.press("l:ru", user=1)
    assert note == edit.text == "Хорошо, говорю по-русски."
    assert say("/help", user=1) == RU["help"] and say("/help", user=2) == EN["help"]
    assert desk.press("l:en", user=1)[0] == "Fine, I speak English." and say("/help", user=1) == EN["help"]


def test_old_questions_are_not_answered(desk):
    old = int(time.time()) - 700
    late = [photo_update("a", date=old), text_update("/start", date=old), photo_update("b", date=old, album="x")]
    assert not desk.feed(*late)
    assert len(desk.feed(photo_update("a", date=old + 200))) == 1


def test_big_files_are_refused(desk, monkeypatch):
    assert desk.feed(photo_update("a", file_size=25_000_000))[0].text == EN["big"]
    assert not desk.named(GetFile)
    monkeypatch.setattr(connection, "MAX_BYTES", 1000)  # larger than it says
    desk.session.files["b"] = b"x" * 1001
    assert desk.feed(photo_update("b", file_size=0))[0].text == EN["big"]
    refusal = exceptions.TelegramBadRequest(None, "Bad Request: file is too big")
    desk.session.fail = lambda method: refusal if isinstance(method, GetFile) else None
    assert desk.feed(photo_update("c", file_size=0))[0].text == EN["big"]
    assert not desk.worker.asked


def test_a_flood_is_told_once(desk, monkeypatch):
    texts = [call.text for call in desk.feed(*(photo_update(f"f{n}") for n in range(25)))]
    assert texts.count(EN["flood"]) == 1 and len(texts) == 21 and len(desk.worker.asked) == 20
    assert len(desk.feed(photo_update("other", user=2))) == 1
    assert len(desk.feed(text_update("/help"))) == 1
    hellos = [text_update("hello", user=3) for _ in range(25)]
    texts = [call.text for call in desk.feed(*hellos, photo_update("f", user=3))]
    assert texts.count(EN["flood"]) == 1 and texts.count(EN["hint"]) == 20
    monkeypatch.setattr(naming, "FLOOD_SECONDS", 0.0)
    assert len(desk.feed(*(photo_update("f", user=4) for _ in range(20)))) == 20
    desk.run(lambda: not desk.app.frames[4])
    assert "Alien" in desk.feed(photo_update("f", user=4))[0].text


def test_a_full_queue_refuses_honestly():
    with Desk(queue=2) as desk:
        desk.worker.gate, desk.worker.seconds = asyncio.Event(), 30.0
        waiting = [photo_update(f"f{user}", user=user) for user in range(app.IN_HAND + 2)]
        assert not desk.feed(*waiting, until=lambda: len(desk.worker.asked) == app.IN_HAND)
        late = lambda: desk.named(SendMessage)  # noqa: E731
        (refusal,) = desk.feed(photo_update("late", user=8), until=late)
        assert refusal.text == EN["busy"].format(place=3, seconds=90) and refusal.chat_id == 8
        desk.worker.gate.set()
        assert sorted(call.chat_id for call in desk.feed()) == [0, 1, 2, 3, 4]
        assert not desk.unanswered() and not desk.errors


@pytest.mark.parametrize("at_once", [1, 3])
def test_users_take_turns(monkeypatch, at_once):
    monkeypatch.setattr(app, "IN_HAND", at_once)
    with Desk() as desk:
        desk.worker.gate = asyncio.Event()
        frames = [*(photo_update(f"a{n}", user=1) for n in range(5)), photo_update("b", user=2)]
        desk.feed(*frames, until=lambda: len(desk.worker.asked) == min(at_once, 2))  # each user has one in hand
        desk.worker.gate.set()
        desk.feed()
        assert [name for (name,) in desk.worker.asked] == ["a0", "b", "a1", "a2", "a3", "a4"]


def test_errors_bring_an_apology_and_say_nothing_in_the_log(monkeypatch):
    def burst(*_):
        raise RuntimeError(f"private words at https://api.telegram.org/bot{TOKEN}/getMe")

    with Desk() as desk:
        monkeypatch.setattr(handlers, "films_page", burst)
        assert [call.text for call in desk.feed(text_update("/films private words"))] == [EN["error"]]
        desk.worker.result = RuntimeError("private words")
        assert desk.feed(photo_update("a", language="ru", caption="private words"))[0].text == RU["error"]
        desk.worker.result = answer_of("movie")
        assert "Alien" in desk.feed(photo_update("a"))[0].text
        assert [error.rpartition(":")[0] for error in desk.errors] == ["RuntimeError at test_bot.py"] * 2
        assert not desk.unanswered() and TOKEN not in repr(desk.bot.session)


def test_a_full_disk_is_told(desk):
    desk.app.base.execute(f"PRAGMA max_page_count = {desk.app.base.execute('PRAGMA page_count').fetchone()[0]}")
    desk.feed(*(photo_update("a", user=user) for user in range(50)))
    assert len(set(desk.errors)) == 1 and "OperationalError at updates.py:" in desk.errors[0]
    desk.errors.clear()


def test_who_blocked_us_is_no_error(desk):
    blocked = exceptions.TelegramForbiddenError(None, "Forbidden: bot was blocked by the user")
    desk.session.fail = lambda method: blocked if getattr(method, "chat_id", 0) == 5 else None
    desk.feed(photo_update("a", user=5), text_update("/start", user=5))
    assert "Alien" in desk.feed(photo_update("b", user=6))[0].text


# ---------------------------------------------------------------------------------------- what stays up


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Pauses that asyncio.sleep was asked for; none of them is made."""
    found, real = [], asyncio.sleep

    async def sleep(seconds):
        found.extend([seconds] if seconds else [])
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


def lost(cause: Exception) -> exceptions.TelegramNetworkError:
    error = exceptions.TelegramNetworkError(None, "?")
    error.__cause__ = cause
    return error


RESET, UNREACHED = lost(ServerDisconnectedError()), lost(ClientConnectorError(None, OSError("no route")))
SEND = SendMessage(chat_id=1, text="a")
FILE = GetFile(file_id="a")
ME = methods.GetMe()
UPDATES = methods.GetUpdates()
HTML = exceptions.ClientDecodeError("Failed to decode object", ValueError("no JSON"), "<html>502 Bad Gateway</html>")
ODD = exceptions.ClientDecodeError("Failed to deserialize", ValueError("a new type"), {"ok": True, "result": {}})
WAIT_3, WAIT_LONG = (exceptions.TelegramRetryAfter(SEND, "Flood control", seconds) for seconds in (3, 100_000))
CONFLICT = exceptions.TelegramConflictError(UPDATES, "terminated by other getUpdates request")
BUSY, BLOCKED = exceptions.TelegramServerError(SEND, "Bad Gateway"), exceptions.TelegramForbiddenError(SEND, "blocked")


def insist(method, *outcomes, answered=(), base=None):
    """What Requests makes of these outcomes of a request that answers these updates."""
    outcomes = list(outcomes)

    async def make_request(*_, **__):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def call():
        updates.updates_in_hand.set(list(answered))
        return await connection.Requests(base or database.open_base(":memory:"))(make_request, None, method)

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("method", "error", "waited"),
    [
        (SEND, WAIT_3, 3.1),
        (SEND, WAIT_LONG, None),  # nobody waits so long
        (SEND, BUSY, 0.5),
        (SEND, HTML, 0.5),
        (SEND, UNREACHED, 0.5),
        (SEND, lost(ConnectionTimeoutError()), 0.5),
        (SEND, lost(TimeoutError()), None),
        (SEND, RESET, None),  # may have arrived
        (SEND, ODD, None),  # has arrived
        (SEND, BLOCKED, None),
        (FILE, RESET, 0.5),
        (EditMessageText(text="a"), RESET, 0.5),
        (AnswerCallbackQuery(callback_query_id="1"), RESET, 0.5),
        (methods.SendChatAction(chat_id=1, action="typing"), RESET, 0.5),
        (ME, exceptions.TelegramUnauthorizedError(ME, "Unauthorized"), None),
        (ME, UNREACHED, 0.5),
        (UPDATES, WAIT_LONG, 100_000.1),
        (UPDATES, HTML, 0.5),
        (UPDATES, CONFLICT, 30),
    ],
)
def test_requests_are_made_again(pauses, monkeypatch, method, error, waited):
    if waited is None:
        with pytest.raises(type(error)):
            insist(method, error, "done")
        assert pauses == []
        return
    assert insist(method, error, "done") == "done" and pauses == [pytest.approx(waited)]
    if method in (SEND, FILE):
        monkeypatch.setattr(connection, "MAX_QUESTION_AGE", 0.0)
        with pytest.raises(type(error)):  # not for ever
            insist(method, error, "done")


def test_pauses_grow_and_trouble_is_logged_once(pauses, caplog):
    assert insist(SEND, *[HTML] * 9, "done") == "done" and not caplog.records
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert insist(UPDATES, UNREACHED, HTML, RESET, WAIT_3, "done") == "done"
    assert [record.getMessage() for record in caplog.records] == [
        "Telegram can't be reached (TelegramNetworkError), trying again until it works",
        "Telegram is back",
    ]


def test_another_program_with_this_token_is_named(pauses, caplog, monkeypatch):
    monkeypatch.setattr(updates.log, "disabled", False)
    assert insist(UPDATES, CONFLICT, CONFLICT, CONFLICT, "done") == "done" and pauses == [30, 30, 30]
    assert [record.getMessage() for record in caplog.records] == [
        "another program polls with this token; waiting until it stops"
    ]


def test_an_answer_that_may_have_arrived_is_not_sent_after_a_restart(pauses, monkeypatch):
    monkeypatch.setattr(connection, "MAX_QUESTION_AGE", 0.0)
    for error, sent in ((RESET, True), (UNREACHED, False), (HTML, False)):
        base = database.open_base(":memory:")
        base.execute("INSERT INTO updates (id, body) VALUES (5, 'body'), (6, 'of the same album'), (7, 'another')")
        with pytest.raises(type(error)):
            insist(SEND, error, answered=(5, 6), base=base)
        assert base.execute("SELECT sending FROM updates ORDER BY id").fetchall() == [(sent,), (sent,), (0,)]


def raw(update_id: int, update: dict) -> dict:
    return {"update_id": update_id, **update}


def test_no_update_stops_the_others(desk):
    """A kind of message that aiogram does not know yet, and one in the database that it knows no more."""
    past = '{"update_id": 1, "message": {"from_the": "past"}}'
    desk.app.base.execute("INSERT INTO updates (id, time, body) VALUES (1, ?, ?)", (time.time(), past))
    odd = text_update("?")
    odd["message"]["forward_origin"] = {"type": "from_the_future", "date": 1}
    desk.session.updates = [raw(2, text_update("/start", user=2)), raw(3, odd), raw(4, text_update("/start", user=4))]
    desk.spawn(bot.serve(desk.bot, desk.app))
    desk.run(lambda: len(desk.named(SendMessage)) == 2 and desk.named(methods.GetUpdates)[-1].offset == 5)
    assert [call.chat_id for call in desk.named(SendMessage)] == [2, 4]
    assert len(desk.errors) == 1 and "does not know" in desk.errors.pop()


def test_a_killed_process_loses_nothing(tmp_path):
    """Killed with an answer on its way, two frames in hand and a command not yet, before Telegram has heard of them."""
    updates = [raw(1, text_update("/start", user=1)), raw(2, photo_update("a", user=2))]
    updates += [raw(n, photo_update(f"of-an-album-{n}", user=5, album="a")) for n in (5, 6)]
    new = [raw(n, text_update("/start", user=n)) for n in (7, 8)]
    with Desk(tmp_path / "bot.sqlite") as desk:
        desk.session.updates = updates
        desk.session.stalled = (SendMessage,)
        desk.worker.gate = asyncio.Event()
        desk.spawn(bot.serve(desk.bot, desk.app))
        desk.run(lambda: desk.named(SendMessage) and len(desk.worker.asked) == 2)
        kept = [(7, time.time(), json.dumps(new[0])), (3, time.time() - 700, json.dumps(raw(3, text_update("/help"))))]
        desk.app.base.executemany("INSERT INTO updates (id, time, body) VALUES (?, ?, ?)", kept)
        assert desk.unanswered() == [2, 3, 5, 6, 7]
    with Desk(tmp_path / "bot.sqlite") as desk:
        desk.session.updates = updates + new
        desk.spawn(bot.serve(desk.bot, desk.app))
        desk.run(lambda: desk.named(methods.GetUpdates)[-1:] and desk.named(methods.GetUpdates)[-1].offset == 9)
        desk.run(lambda: len(desk.named(SendMessage)) >= 4 and not desk.unanswered())
        assert sorted(call.chat_id for call in desk.named(SendMessage)) == [2, 5, 7, 8]
        assert sorted(map(len, desk.worker.asked)) == [1, 2]


def test_updates_are_kept_before_telegram_forgets_them(desk):
    def stored(method) -> None:
        if isinstance(method, methods.GetUpdates) and method.offset:  # those below it are forgotten
            kept.append(desk.app.base.execute("SELECT count(*) FROM updates").fetchone()[0])

    kept, desk.session.fail = [], stored
    desk.session.updates = [raw(n, text_update("/start", user=n)) for n in range(1, 31)]
    desk.spawn(bot.serve(desk.bot, desk.app))
    desk.run(lambda: len(desk.named(SendMessage)) == 30)
    assert kept == [20, 30]


def test_stopping_finishes_what_is_in_hand(tmp_path):
    with Desk(tmp_path / "bot.sqlite") as desk:
        desk.worker.gate = asyncio.Event()
        desk.session.updates = [raw(n, photo_update(f"f{n}", user=1)) for n in (1, 2, 3)]
        serving = desk.spawn(bot.serve(desk.bot, desk.app))
        desk.run(lambda: desk.worker.asked and len(desk.app.waiting) == 2)
        signal.raise_signal(signal.SIGTERM)
        desk.run(lambda: len(desk.app.tasks) == 1)
        desk.worker.gate.set()
        desk.run(serving.done)
        assert len(desk.named(SendMessage)) == 1 and desk.worker.asked == [["f1"]] and not desk.errors
        assert desk.unanswered() == [2, 3]


def test_worker_is_ended_and_started_anew(monkeypatch):
    async def talk():
        worker = Worker("/nowhere")
        try:
            with pytest.raises(UserError, match=r"^--model /nowhere: "):
                await worker.start()
            pids = [await worker.call(os.getpid)]
            with pytest.raises(MemoryError):
                await worker.call(bytearray, 10**10)
            assert await worker.call(os.getpid) == pids[0] != os.getpid()
            with pytest.raises(OSError, match="Abnormal"):
                await worker.call(os._exit, 1)
            pids.append(await worker.call(os.getpid))
            monkeypatch.setattr("telegram_bot.worker.SECONDS", 0.2)
            with pytest.raises(TimeoutError):
                await worker.call(time.sleep, 60)
            pids.append(await worker.call(os.getpid))
            os.kill(pids[-1], signal.SIGKILL)  # from outside, while it has nothing to do
            while worker.pool.active:
                await asyncio.sleep(0.01)
            assert len({*pids, await worker.call(os.getpid)}) == 4
            await worker.stop()
            worker.arguments = ("export",)  # it ends while it starts, as one that finds no memory does
            with pytest.raises(UserError, match=r"^--model export: .* memory"):
                await worker.start()
        finally:
            await worker.stop()

    asyncio.run(asyncio.wait_for(talk(), 120))


def test_the_bench_hears_of_a_blocked_loop(caplog, monkeypatch):
    monkeypatch.setattr(updates.log, "disabled", False)

    async def serve(seconds: float) -> None:
        await asyncio.sleep(0.01)
        time.sleep(seconds)
        await asyncio.sleep(0.01)

    asyncio.run(watched(serve)(0.2))
    (line,) = [record.getMessage() for record in caplog.records]
    assert float(re.fullmatch(r"longest block of the event loop: ([\d.]+) ms", line)[1]) > 150


def check(monkeypatch, *arguments: str, token: str = TOKEN) -> int:
    """main(--check) in this process, with no model."""
    monkeypatch.setattr(bot, "Worker", Model)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", token)
    monkeypatch.setattr(bot.os, "umask", lambda _: None)  # it would stay with the tests
    return bot.main(["--check", *arguments])


def test_check_says_what_is_wrong(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with TelegramServer("123456:another", {}) as server:
        assert check(monkeypatch, "--api-base", server.base) == 1
        refused_, away = capsys.readouterr().err, server.base
    assert check(monkeypatch, "--api-base", away) == 1
    unreachable = capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        check(monkeypatch, "--api-base", "nonsense")
    nonsense = capsys.readouterr().err.splitlines()[-1] + "\n"  # below the usage
    assert check(monkeypatch, token="no token at all") == 2
    malformed = capsys.readouterr().err
    assert check(monkeypatch, token="") == 2
    missing = capsys.readouterr().err
    wanted = {refused_: "@BotFather", unreachable: "--api-base", nonsense: "--api-base", malformed: "@BotFather"}
    for error, words in {**wanted, missing: ".env"}.items():
        assert words in error and error.count("\n") == 1 and SECRET not in error and "no token at all" not in error
    for arguments in (["--queue", "0"], ["--threads", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            bot.main(arguments)


def test_token_is_read_from_the_environment_or_a_file(tmp_path):
    file, tail = tmp_path / ".env", "\r\n# a comment\nOTHER=1\n"
    lines = ("TELEGRAM_BOT_TOKEN={}", 'A=1\n export TELEGRAM_BOT_TOKEN = "{}" ', "\ufeffTELEGRAM_BOT_TOKEN='{}'")
    for line in lines:
        file.write_text(line.format(TOKEN) + tail, encoding="utf-8")
        assert connection.read_token({}, file) == TOKEN
    assert connection.read_token({"TELEGRAM_BOT_TOKEN": "1:b"}, file) == "1:b"
    file.write_text("#TELEGRAM_BOT_TOKEN=1:b\nOTHER=1")
    for path in (file, tmp_path / "none"):
        with pytest.raises(UserError, match="TELEGRAM_BOT_TOKEN") as caught:
            connection.read_token({}, path)
        assert caught.value.code == 2


def test_titles_are_read_as_scrape_writes_them(tmp_path):
    path = tmp_path / "titles.csv"
    path.write_text("title,ru\nAlien (1979),Чужой\nBrazil (1985),\n", encoding="utf-8")
    texts = wording.load_texts(path)
    assert texts["ru"]["titles"] == RUSSIAN and texts["en"]["titles"] == EN["titles"] == {}


# ------------------------------------------------- the process, each with a server of its own on loopback


def encoded(image, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(5_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def cmdline(pid: int) -> str:
    """Empty where there is no such process, or nothing but its exit code."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def environment(token: str | None) -> dict:
    found = {key: value for key, value in os.environ.items() if key != "TELEGRAM_BOT_TOKEN"}
    return found | ({"TELEGRAM_BOT_TOKEN": token} if token else {})


class Service:
    """bot.py, the Telegram that it talks to, and how many answers each user must have had in the end.

    trouble: {(method, chat or file id): [how, ...]}, each used once, as TelegramServer's behave gives them.
    """

    def __init__(self, folder: Path, model: Path, *options: str, local: Path | None = None):
        self.folder = folder
        self.model = model
        self.options = options
        self.log = folder / "log.txt"
        self.frame = encoded(draw_frame(0, 0, 0, (640, 360)))
        self.trouble = {}
        self.wanted = collections.Counter()
        self.process = None
        self.users = itertools.count(100)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.server = TelegramServer(TOKEN, {}, self._behave, free.getsockname()[1], local)

    def _behave(self, method, params, _):
        hows = self.trouble.get((method, params.get("file_id") or params.get("chat_id")))
        return hows.pop(0) if hows else None

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "bot.py"), "--model", str(self.model), "--api-base", self.server.base]
        command += ["--db", str(self.folder / "bot.sqlite"), "--threads", "1", *self.options]
        with open(self.log, "ab") as log:
            how = {"cwd": self.folder, "env": environment(TOKEN), "stdout": log, "stderr": log}
            self.process = subprocess.Popen(command, **how)

    def worker(self) -> int:
        """Its process, of all that bot.py started."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                found += [int(stat.parent.name)] if parent == self.process.pid else []
        (worker,) = [pid for pid in found if "spawn_main" in cmdline(pid)]
        return worker

    def ask(self, make=photo_update, *, file: bytes | None = None, answers: int = 1, trouble=(), **more) -> int:
        """Send a frame as a new user, who is returned. make(file id, user, **more): the update; trouble: by method."""
        user = next(self.users)
        self.server.files[f"f{user}"] = self.frame if file is None else file
        for method, hows in dict(trouble).items():
            self.trouble[method, user if method.startswith("send") else f"f{user}"] = list(hows)
        self.wanted[user] += answers
        self.server.push(make(f"f{user}", user, **more))
        return user

    def asked(self, method: str, *users: int) -> list[dict]:
        """Calls of a method about these users' files or chats, in order; "send" for messages and photos."""
        about = {*users, *(f"f{user}" for user in users)}
        calls = self.server.named(method)
        if method == "send":
            calls = [*self.server.named("sendMessage"), *self.server.named("sendPhoto")]
        return [call for call in calls if {call["params"].get("chat_id"), call["params"].get("file_id")} & about]

    def until(self, predicate, seconds: float = 60) -> bool:
        return self.server.wait_for(lambda _: predicate(), seconds)

    def answers(self, user: int) -> list[str]:
        calls = [call["params"] for call in self.asked("send", user) if call["status"] == 200]
        return [params.get("text") or params["caption"] for params in calls]

    def wait(self, *users: int) -> list[str]:
        """The last answer of each."""
        self.until(lambda: all(map(self.answers, users)))
        return [(self.answers(user) or [""])[-1] for user in users]

    def exit(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def served(service: Service):
    """At the end each user must have had as many answers as were due, and the log no secret and no trace."""
    service.start()
    try:
        with service.server:
            yield service
            worker = service.worker()
            assert service.exit(signal.SIGTERM) == 0 and not cmdline(worker)
            answers = [*service.server.named("sendMessage"), *service.server.named("sendPhoto")]
            answers = [call["params"]["chat_id"] for call in answers if call["status"] == 200]
            assert collections.Counter(answers) == +service.wanted
            log = service.log.read_text()
            assert "Traceback" not in log and SECRET not in log and TOKEN not in log
    finally:
        service.process.kill()
        service.process.wait()


@pytest.fixture
def service(exported, tmp_path):
    with served(Service(tmp_path, exported / "model.onnx")) as service:
        yield service


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    """A folder with an embedder in export and an index of five films beside it."""
    home = tmp_path_factory.mktemp("indexed")
    write_model(home / "export", 8)
    for film in range(5):
        write_film(home / "raw" / f"Film {film} ({1990 + film})", film, range(8))
    command = ["add", str(home / "raw"), "--model", str(home / "export"), "--index", str(home / "index.sqlite")]
    assert index.main(command) == 0
    return home


def test_proof_comes_from_an_index_that_changes_and_breaks(indexed, tmp_path):
    home = Path(shutil.copytree(indexed, tmp_path / "home"))
    (tmp_path / "local").mkdir()
    with served(Service(tmp_path, home / "export", local=tmp_path / "local")) as service:
        user = service.ask(file=encoded(draw_frame(1, 5, 99)))
        (text,) = service.wait(user)
        assert text.startswith("This looks like Film 1 (1991).")
        assert "The nearest still that I know: almost the same picture, seen from 0:00:3" in text
        (call,) = service.asked("sendPhoto", user)
        photo = call["params"][call["params"]["photo"].removeprefix("attach://")]
        with Image.open(io.BytesIO(photo)) as still:
            assert still.format == "JPEG" and still.width == 200
        another = call["params"]["reply_markup"]["inline_keyboard"][1][0]["callback_data"]
        service.server.push(callback_update(another, call["result"]["message_id"], user))
        assert service.until(lambda: service.asked("editMessageMedia", user))
        assert service.asked("editMessageMedia", user)[0]["status"] == 200
        film = [str(write_film(tmp_path / "stills", 7, range(60, 64))), "--title", "New (2001)"]
        assert index.main(["add", *film, "--model", str(home / "export"), "--index", str(home / "index.sqlite")]) == 0
        added = encoded(draw_frame(7, 60, 9))
        assert "New (2001)" in service.wait(service.ask(file=added))[0]
        (home / "other").write_bytes(b"{" * 100_000)
        (home / "other").replace(home / "index.sqlite")
        assert all("New (2001)" in text for text in service.wait(*(service.ask(file=added) for _ in range(3))))
        assert service.log.read_text().count("is no file of index.py") == 1
        large = service.ask(paper, file=encoded(draw_frame(2, 3, 9).resize((3000, 2500)), "BMP"))  # 22 MB
        assert "Film 2 (1992)" in service.wait(large)[0]
        assert not service.server.named("file")  # all by their paths
        sender = {"id": 5, "is_bot": False, "first_name": "Ann"}
        service.server.push({"inline_query": {"id": "1", "from": sender, "query": "film 2", "offset": ""}})
        service.server.files["guest"] = encoded(draw_frame(2, 3, 9))
        service.server.push(guest(photo=photo_sizes("guest"), caption="@film_bot"))
        for method in ("answerInlineQuery", "answerGuestQuery"):
            assert service.until(lambda method=method: service.server.named(method))
            assert [call["status"] for call in service.server.named(method)] == [200]
            assert "Film 2 (1992)" in json.dumps(service.server.named(method)[0]["params"])


def test_an_index_answers_on_when_its_files_go(indexed, tmp_path, monkeypatch, caplog):
    place = Path(shutil.copy(indexed / "index.sqlite", tmp_path))
    identifier = Identifier(indexed / "export")
    identifier.index = worker.SteadyIndex(place, identifier)
    monkeypatch.setattr(worker, "model", identifier, raising=False)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(worker.log, "disabled", False)  # the configuration of another package may have done it

    def ask() -> list[dict]:
        return worker.name_film([encoded(draw_frame(2, 3, 99))])["candidates"]

    before = ask()
    assert before[0]["title"] == "Film 2 (1992)" and len(before) == worker.FILMS and "evidence" in before[0]
    place.unlink()
    assert ask() == before  # the file is open still
    place.write_bytes(b"{" * 100_000)
    for _ in range(2):
        gone = ask()
        assert gone[0]["title"] == "Film 2 (1992)" and not any("evidence" in candidate for candidate in gone)
    told = [record.getMessage() for record in caplog.records]
    assert "no index there" in told[0] and len(told) == len(set(told))
    place.unlink()
    shutil.copy(indexed / "index.sqlite", place)
    assert ask() == before
    with pytest.raises(UserError, match="--index"):
        worker.SteadyIndex(tmp_path / "nowhere", identifier)


def test_without_its_index_a_classifier_answers_on_and_an_embedder_stops(
    exported, indexed, tmp_path, monkeypatch, caplog
):
    """Where the index is damaged, empty, missing, or of another model."""
    monkeypatch.setattr(worker.log, "disabled", False)
    damaged = Path(shutil.copy(indexed / "index.sqlite", tmp_path / "damaged"))
    damaged.write_bytes(damaged.read_bytes()[:20_000])
    empty = Path(shutil.copy(indexed / "index.sqlite", tmp_path / "empty"))
    for film in range(5):
        assert index.main(["remove", f"Film {film} ({1990 + film})", "--index", str(empty)]) == 0
    for place in (damaged, empty, tmp_path / "nowhere", indexed / "index.sqlite"):
        caplog.clear()
        monkeypatch.setattr(worker, "model", worker.open_model(str(exported), None, 1, str(place)), raising=False)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"--index {place}: ") and line.endswith("; the classifier answers alone")
        assert len(worker.describe_model().films) == 3
        answer = worker.name_film([encoded(draw_frame(0, 0, 99))])
        assert len(answer["candidates"]) == worker.CLASSIFIER_FILMS
    caplog.clear()
    for place in (damaged, empty, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^--index {place}: "):
            worker.open_model(str(indexed / "export"), None, 1, str(place))
    alone = shutil.copytree(indexed / "export", tmp_path / "alone")
    with pytest.raises(UserError, match="an embedder knows no films"):
        worker.open_model(str(alone), None, 1, None)
    assert not caplog.records


def use_index(monkeypatch, home: Path, place: Path) -> None:
    """A worker with the embedder of home and an index, in this process."""
    monkeypatch.setattr(worker, "model", worker.open_model(str(home / "export"), None, 1, str(place)), raising=False)
    monkeypatch.setattr(worker.log, "disabled", False)  # the configuration of another package may have done it


def test_when_the_last_film_is_removed_no_film_is_named(indexed, exported, tmp_path, monkeypatch, caplog):
    place = Path(shutil.copy(indexed / "index.sqlite", tmp_path))
    asked = encoded(draw_frame(2, 3, 99))
    use_index(monkeypatch, indexed, place)
    assert worker.name_film([asked])["candidates"][0]["title"] == "Film 2 (1992)"
    for film in range(5):
        assert index.main(["remove", f"Film {film} ({1990 + film})", "--index", str(place)]) == 0
    for _ in range(2):
        result = worker.name_film([asked])
        assert (result["kind"], result["candidates"], result["reason"]) == ("unknown", [], worker.NO_FILMS)
        assert worker.describe_model().films == {}
    assert [record.getMessage().count("no film of it is named") for record in caplog.records] == [1]
    film = str(write_film(tmp_path / "stills", 2, range(8)))
    command = ["add", film, "--title", "Back (2001)", "--model", str(indexed / "export"), "--index", str(place)]
    assert index.main(command) == 0
    assert worker.name_film([asked])["candidates"][0]["title"] == "Back (2001)"


def test_a_classifier_takes_an_index_that_comes_late(exported, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(worker.log, "disabled", False)
    home = Path(shutil.copytree(exported, tmp_path / "export"))
    place = tmp_path / "index.sqlite"
    monkeypatch.setattr(worker, "index_place", str(place))
    monkeypatch.setattr(worker, "model", worker.open_model(str(home), None, 1, str(place)), raising=False)
    assert len(worker.describe_model().films) == 3
    film = str(write_film(tmp_path / "stills", 7, range(8)))
    assert index.main(["add", film, "--title", "New (2001)", "--model", str(home), "--index", str(place)]) == 0
    worker.describe_model()  # once a minute
    assert "New (2001)" in worker.describe_model().films
    assert caplog.records[-1].getMessage() == "the index is there now, with 1 film"
    assert "evidence" in worker.name_film([encoded(draw_frame(7, 3, 99))])["candidates"][0]


def test_an_index_is_replaced_by_switching_a_link(indexed, tmp_path, monkeypatch):
    """As docs/bot.md tells it: a new folder beside the old one, and a link that is renamed over the one before."""
    for name, film in (("1", 1), ("2", 4)):
        (tmp_path / name).mkdir()
        stills = str(write_film(tmp_path / "stills", film, range(8)))
        command = ["add", stills, "--title", f"Of {name} (2001)", "--model", str(indexed / "export")]
        assert index.main([*command, "--index", str(tmp_path / name / "index.sqlite")]) == 0
    link = tmp_path / "current"
    link.symlink_to("1")
    use_index(monkeypatch, indexed, link / "index.sqlite")
    asked = encoded(draw_frame(4, 3, 99))
    assert [one["title"] for one in worker.name_film([asked])["candidates"]] == ["Of 1 (2001)"]
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(link)
    found = worker.name_film([asked])["candidates"]
    assert [one["title"] for one in found] == ["Of 2 (2001)"] and found[0]["evidence"]["thumbnail"]
    assert worker.read_still("Of 2 (2001)", found[0]["evidence"]["file"])[:2] == b"\xff\xd8"
    assert worker.read_still("Of 1 (2001)", found[0]["evidence"]["file"]) == b""


def test_of_other_candidates_the_still_is_read_when_it_is_asked_for(indexed, monkeypatch):
    use_index(monkeypatch, indexed, indexed / "index.sqlite")
    first, *others = worker.name_film([encoded(draw_frame(2, 3, 99))])["candidates"]
    assert first["evidence"]["thumbnail"] and len(others) == 4
    for candidate in others:
        assert candidate["evidence"]["thumbnail"] == ""
        still = worker.read_still(candidate["title"], candidate["evidence"]["file"])
        with Image.open(io.BytesIO(still)) as picture:
            assert picture.format == "JPEG"


def test_users_stills_are_shown_only_if_the_owner_says_so(indexed, monkeypatch):
    thumbnail = base64.b64decode(worker_thumbnail(indexed, monkeypatch))
    assert worker.show_still("telegram:a.jpg", thumbnail) == b"" and worker.show_still("a.jpg", thumbnail)
    monkeypatch.setattr(worker, "show_users_stills", True)
    assert worker.show_still("telegram:a.jpg", thumbnail) == thumbnail


def worker_thumbnail(indexed, monkeypatch) -> str:
    use_index(monkeypatch, indexed, indexed / "index.sqlite")
    return worker.name_film([encoded(draw_frame(2, 3, 99))])["candidates"][0]["evidence"]["thumbnail"]


def test_an_unreadable_picture_does_not_spoil_the_others(indexed, monkeypatch):
    use_index(monkeypatch, indexed, indexed / "index.sqlite")
    frames = [encoded(draw_frame(2, scene, 99)) for scene in (3, 5)]
    result = worker.name_film([frames[0], b"no picture", frames[1]])
    assert result["frames"] == 2 and len(result["marks"]) == 2
    assert result["candidates"][0]["title"] == "Film 2 (1992)"
    with pytest.raises(UserError):
        worker.name_film([b"no picture", b""])


def test_second_looks(indexed, monkeypatch):
    monkeypatch.setattr(worker, "model", Identifier(indexed / "export"), raising=False)
    worker.model.index = collection.Index(indexed / "index.sqlite", worker.model)
    frame = draw_frame(3, 6, 99, (640, 360))
    screenshot = Image.new("RGB", (640, 520))
    screenshot.paste(frame, (0, 80))
    alike = {}
    for name, picture in (("mirror", ImageOps.mirror(frame)), ("still", screenshot)):
        (best, *_), (plain, *_) = (worker.name_film([encoded(picture)], look)["candidates"] for look in (name, None))
        alike[name] = best["evidence"]["similarity"], plain["evidence"]["similarity"]
        assert best["title"] == "Film 3 (1993)" and alike[name][0] > 0.9
    assert alike["mirror"][1] < alike["mirror"][0]


ANSWERS = ("This looks like ", "I doubt a little, ", "I am not sure yet")


def test_outages_are_waited_out(service):
    service.server.__exit__()  # before it ever came so far
    while "can't be reached" not in service.log.read_text():
        assert service.process.poll() is None
        time.sleep(0.05)
    service.server.__enter__()
    user = service.ask(language="ru")
    assert service.wait(user)[0].startswith(("Похоже, это ", "Немного сомневаюсь: ", "Пока не уверен: "))
    (answer,) = service.asked("sendMessage", user)
    data = answer["params"]["reply_markup"]["inline_keyboard"][-1][-1]["callback_data"]
    service.server.push(callback_update(data, answer["result"]["message_id"], user))
    edits = ("editMessageText", "editMessageReplyMarkup")
    assert service.until(lambda: any(service.asked(edit, user) for edit in edits))
    for pid in (service.process.pid, service.worker()):
        assert SECRET not in cmdline(pid)
    assert SECRET not in Path(f"/proc/{service.worker()}/environ").read_text()
    service.server.__exit__()
    while service.log.read_text().count("can't be reached") == 1:
        time.sleep(0.05)
    user = service.ask()
    service.server.__enter__()
    assert service.wait(user)[0].startswith(ANSWERS)
    log = service.log.read_text()
    assert log.count("can't be reached") == log.count("is back") == 2 and "@film_bot answers, 3" in log


HTML_502 = (502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html"})


def paper(file_id: str, user: int, **more) -> dict:
    return message_update(user, document=document(file_id, "image/jpeg", "frame.jpg", file_size=300), **more)


def test_troubles_are_waited_out_and_poison_is_refused(service):
    blocked = (403, refused(403, "Forbidden: bot was blocked by the user"))
    flood = (429, refused(429, "Too Many Requests: retry after 1", retry_after=1))
    troubles = [
        {"sendMessage": [flood]},
        {"sendMessage": [HTML_502]},
        {"sendMessage": [(503, refused(503, "Service Unavailable"))]},
        {"sendChatAction": [HTML_502] * 3},
        {"getFile": ["cut"]},
        {"getFile": ["reset"]},
        {"file": ["cut"]},
        {"file": ["reset"]},
        {"file": [(404, b"Not Found")]},
    ]
    poison = [
        {"file": bomb(50_000)},
        {"file": b""},
        {"file": service.frame[:3000]},
        {"file": b"no picture", "make": paper},
    ]
    mended = [service.ask(trouble=trouble) for trouble in troubles]
    poisoned = [service.ask(**how) for how in poison]
    silent = service.ask(trouble={"sendMessage": [blocked] * 9}, answers=0)
    old = service.ask(date=int(time.time()) - 700, answers=0)
    last = service.ask()
    assert all(text.startswith(ANSWERS) for text in service.wait(*mended, last))
    assert service.wait(*poisoned) == [EN["unreadable"]] * len(poisoned)
    first, second = service.asked("sendMessage", mended[0])
    assert (first["status"], second["status"]) == (429, 200) and second["time"] - first["time"] >= 1
    assert not service.asked("getFile", old)
    assert service.until(lambda: service.asked("sendMessage", silent))


def test_answers_find_their_way(service):
    """A question that was deleted, in a topic too; a group that moved; a business account that lets the bot answer."""
    chats = [{"chat": -1005, "chat_type": "supergroup"}, {"chat": -77, "chat_type": "group"}]
    topic = {"message_thread_id": 3, "is_topic_message": True}
    updates = [
        photo_update("f", user=11, caption="@film_bot", **chats[0]),
        photo_update("f", user=12, caption="@film_bot", **chats[0], **topic),
        photo_update("f", user=13, caption="@film_bot", **chats[1]),
        business_update(user=14, photo=photo_sizes("f")),
        business_update(user=15, connection="business-2", photo=photo_sizes("f")),
    ]
    server = service.server
    server.files["f"] = service.frame
    server.deleted = {(-1005, update["message"]["message_id"]) for update in updates[:2]}
    server.moved = {-77: -1006}
    server.connections = {"business-1": True, "business-2": False}
    server.push(*updates)
    service.wanted.update({-1005: 2, -1006: 1, 14: 1})
    assert service.until(lambda: len([call for call in server.named("sendMessage") if call["status"] == 200]) == 4)
    answers = [call["params"] for call in server.named("sendMessage") if call["status"] == 200]
    found = {params["chat_id"]: params for params in answers}
    assert found[-1005]["text"].startswith(ANSWERS) and "reply_parameters" not in found[-1006]
    assert found[14]["business_connection_id"] == "business-1"
    while "its owner has to allow replies" not in service.log.read_text():
        assert service.process.poll() is None
        time.sleep(0.05)


def test_a_killed_worker_is_replaced(service):
    service.wait(service.ask())
    before = service.worker()
    os.kill(before, signal.SIGKILL)
    assert service.wait(service.ask())[0].startswith((*ANSWERS, EN["error"]))
    assert service.wait(service.ask())[0].startswith(ANSWERS)
    assert service.worker() != before


def test_killed_and_started_again_it_answers_everything_once(service):
    service.wait(service.ask())
    worker, users = service.worker(), [service.ask(trouble={"file": [("sleep", 60)]}) for _ in range(6)]
    assert service.until(lambda: len(service.asked("file", *users)) == app.IN_HAND)
    assert service.until(lambda: not service.server.updates)  # all are acknowledged
    service.exit(signal.SIGKILL)
    service.trouble.clear()
    users.append(service.ask())  # while nobody listens
    service.start()
    assert all(text.startswith(ANSWERS) for text in service.wait(*users))
    assert service.until(lambda: not cmdline(worker))


def test_a_check_with_the_token_in_a_file(exported, tmp_path):
    (tmp_path / ".env").write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}\n")
    with TelegramServer(TOKEN, {}) as server:
        command = [sys.executable, str(ROOT / "bot.py"), "--check", "--model", str(exported / "model.onnx")]
        how = {"cwd": tmp_path, "env": environment(None), "capture_output": True, "text": True, "timeout": 120}
        command += ["--api-base", server.base]
        done = subprocess.run(command, **how)
        without = subprocess.run([*command, "--index", "nowhere"], **how)
    assert without.stdout == done.stdout and without.returncode == 0
    assert without.stderr.startswith("--index nowhere: no index there") and without.stderr.count("\n") == 1
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("all is well: @film_bot, 3 films")
