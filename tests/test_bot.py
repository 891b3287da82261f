"""python -m pytest tests/test_bot.py"""

import asyncio
import collections
import contextlib
import io
import itertools
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from aiogram import Bot
from aiogram.client.session.base import BaseSession
from aiogram.exceptions import (
    ClientDecodeError,
    TelegramBadRequest,
    TelegramForbiddenError,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.methods import (
    AnswerCallbackQuery,
    EditMessageReplyMarkup,
    EditMessageText,
    GetFile,
    GetMe,
    GetUpdates,
    SendChatAction,
    SendMessage,
)
from aiogram.types import Chat, File, Message, Update, User
from aiohttp import ClientConnectorError, ConnectionTimeoutError, ServerDisconnectedError
from conftest import draw_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from telegram_server import (
    BOT,
    Refusal,
    TelegramServer,
    callback_update,
    checked_markup,
    message_update,
    photo_sizes,
    photo_update,
    plain,
    refused,
    text_update,
)

import bot
from bot import App, Discreet, Flood, Line, Patience, Silence, Store, Worker, make_dispatcher
from image import UserError

ROOT = Path(bot.__file__).parent
SECRET = "AAF-never_to_be-seen"
TOKEN = f"123456:{SECRET}"
TITLES = ["Alien (1979)", "Brazil (1985)", "Contact (1997)"]
RUSSIAN = {"Alien (1979)": "Чужой"}


def judged(kind: str, best: float = 0.97) -> dict:
    """A reply of the worker's."""
    rest = [{"title": title, "confidence": 0.01} for title in TITLES[1:]]
    return {"kind": kind, "candidates": [{"title": TITLES[0], "confidence": best}, *rest], "ms": 5.0}


# ----------------------------------------------------------------------- handlers, with a recorded Telegram


class Recorder(BaseSession):
    """Keeps what Telegram is asked for and answers plausibly; wrong: what Telegram itself would refuse.

    fail(method) may give an exception to raise; updates: raw ones for getUpdates; stalled: a method that never ends;
    cuts: downloads that end early.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.wrong, self.files, self.updates, self.cuts = [], [], {}, [], 0
        self.fail, self.stalled, self.numbers = lambda method: None, (), itertools.count(1000)

    async def make_request(self, bot, method, timeout=None):
        self.calls.append(method)
        await asyncio.sleep(0)
        if isinstance(method, self.stalled):
            await asyncio.Event().wait()
        if error := self.fail(method):
            raise error
        form = {key: self.prepare_value(value, bot, {}) for key, value in method.model_dump(warnings=False).items()}
        form["reply_markup"] = json.loads(form.get("reply_markup") or "{}")
        try:
            checked_markup(form)
            if isinstance(method, (SendMessage, EditMessageText)):
                plain(form, "text")
        except Refusal as error:
            self.wrong.append(str(error))
        if isinstance(method, GetMe):
            return User(**BOT)
        if isinstance(method, GetFile):
            name, data = method.file_id, self.content(method.file_id)
            return File(file_id=name, file_unique_id=name, file_size=len(data), file_path=f"photos/{name}.jpg")
        if isinstance(method, SendMessage):
            chat = Chat(id=method.chat_id, type="private")
            return Message(message_id=next(self.numbers), date=int(time.time()), chat=chat, text=method.text)
        if isinstance(method, GetUpdates):
            found = [update for update in self.updates if update["update_id"] >= (method.offset or 0)]
            if not found:
                await asyncio.sleep(3600)
            return self.check_response(bot, method, 200, json.dumps({"ok": True, "result": found})).result
        return True

    def content(self, name: str) -> bytes:
        return self.files.get(name, name.encode())

    async def stream_content(self, url, headers=None, timeout=30, chunk_size=65536, raise_for_status=True):
        assert TOKEN in url
        self.cuts -= 1
        yield self.content(Path(url).stem)[: 2 if self.cuts >= 0 else None]

    async def close(self):
        pass


class Oracle:
    """A worker that gives one reply; with a gate it waits there."""

    def __init__(self):
        self.about = {"classes": list(TITLES), "architecture": "test_resnet", "commit": "abc1234", "why": "faked"}
        self.seconds, self.asked, self.result, self.gate = 0.1, [], judged("movie"), None

    async def ask(self, pictures):
        self.asked.append([data.decode(errors="replace") for data in pictures])
        if self.gate:
            await self.gate.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def start(self):
        pass

    async def stop(self):
        pass


class Desk:
    """The handlers of bot.py at work over a Recorder and an Oracle; errors: what they logged of errors."""

    def __init__(self, path=":memory:", size: int = 50, consumers: int = 1):
        self.session, self.worker, self.numbers, self.errors = Recorder(), Oracle(), itertools.count(1), []
        self.bot = Bot(TOKEN, session=self.session)
        self.session.middleware(Patience())
        self.app = App(self.bot, Store(path, TOKEN), self.worker, Line(size), local=RUSSIAN)
        self.dispatcher, self.runner = make_dispatcher(self.app), asyncio.Runner()
        self.services = [self.spawn(bot.serve(self.app)) for _ in range(consumers)]
        self.handler = logging.Handler(logging.ERROR)
        self.handler.emit = lambda record: self.errors.append(record.getMessage())

    def __enter__(self):
        bot.log.addHandler(self.handler)
        return self

    def __exit__(self, *_):
        bot.log.removeHandler(self.handler)
        self.runner.close()  # cancels what still runs
        self.app.store.base.close()

    def spawn(self, coroutine) -> asyncio.Task:
        return self.runner.get_loop().create_task(coroutine)

    def run(self, coroutine):
        return self.runner.run(asyncio.wait_for(coroutine, 10))

    def feed(self, *updates: dict, quiet: bool = True) -> list[SendMessage]:
        """What the bot says to these; quiet: when all is done, else as soon as it waits for the gate."""
        before = len(self.session.calls)
        self.run(self._feed(updates, quiet))
        return [call for call in self.session.calls[before:] if isinstance(call, SendMessage)]

    async def _feed(self, updates, quiet):
        for update in updates:
            update = Update.model_validate({"update_id": next(self.numbers), **update}, context={"bot": self.bot})
            await self.dispatcher.feed_update(self.bot, update)
        await asyncio.sleep(0.02)
        while quiet and (self.app.line.count or self.app.line.busy or self.app.tasks):
            await asyncio.sleep(0.005)

    def press(self, data: str, **more) -> tuple:
        """(what the button says, the edit of the message or None)."""
        before = len(self.session.calls)
        self.feed(callback_update(data, 77, **more))
        calls = self.session.calls[before:]
        (note,) = [call for call in calls if isinstance(call, AnswerCallbackQuery)]
        edits = [call for call in calls if isinstance(call, (EditMessageText, EditMessageReplyMarkup))]
        assert len(calls) == 1 + len(edits) <= 2
        return note.text, (edits or [None])[0]

    def named(self, kind) -> list:
        return [call for call in self.session.calls if isinstance(call, kind)]

    def verdict(self) -> tuple:
        return self.app.store.verdicts()[-1][-2:]


@pytest.fixture(autouse=True)
def albums_come_quickly(monkeypatch):
    monkeypatch.setattr(bot, "ALBUM_WAIT", 0.02)


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
        ({"video": video(cover=[part("small", 90), part("large", 900), part("middle", 200)])}, "large"),
        ({"video": video()}, "thumb"),
        ({"video_note": part("note", length=240, duration=3, thumbnail=part("thumb"))}, "thumb"),
        ({"sticker": sticker()}, "sticker"),
        ({"sticker": sticker(is_animated=True)}, "thumb"),
        ({"sticker": sticker(is_video=True)}, "thumb"),
        ({"text": "which one?", "external_reply": {"origin": ORIGIN, "photo": photo_sizes("theirs")}}, "theirs"),
        ({"text": "what film is this?", "reply_to": photo_update("asked", user=900)}, "asked"),
    ],
)  # fmt: skip
def test_the_best_picture_of_a_message_is_taken(desk, content, wanted):
    update = message_update(**content)
    (answer,) = desk.feed(update)
    assert desk.worker.asked == [[wanted]]
    assert answer.text == "This looks like Alien (1979). I am almost sure, but I may be wrong."
    assert answer.reply_parameters.message_id == update["message"]["message_id"]
    assert answer.reply_parameters.allow_sending_without_reply
    assert [call.action for call in desk.named(SendChatAction)] == ["typing"]


@pytest.mark.parametrize(
    "content",
    [
        {"text": "hello"},
        {"text": "/nonsense"},
        {"document": document("doc", "application/pdf", "a.pdf")},
        {"sticker": sticker(is_animated=True, thumbnail=None)},
        {"voice": {"file_id": "v", "file_unique_id": "v", "duration": 1}},
        {"contact": {"phone_number": "1", "first_name": "Bob"}},
        {"text": "and this?", "reply_to": text_update("no picture")},
    ],
)
def test_anything_else_gets_a_hint(desk, content):
    assert [call.text for call in desk.feed(message_update(**content))] == [bot.TEXTS["en"]["hint"]]
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


def test_a_bad_picture_does_not_spoil_an_album(desk, monkeypatch):
    monkeypatch.setattr(bot, "MAX_BYTES", 100)
    desk.session.files = {"large": b"x" * 101, "first": b"x" * 60, "too much": b"x" * 41, "last": b"x" * 40}
    desk.session.fail = lambda m: TelegramBadRequest(m, "?") if getattr(m, "file_id", "") == "gone" else None
    names = ["gone", "large", "first", "too much", "last"]
    assert "Alien" in desk.feed(*(photo_update(name, file_size=0, album="a") for name in names))[0].text
    assert desk.worker.asked == [["x" * 60, "x" * 40]]
    for names, text in ((["large", "gone"], "unreadable"), (["gone", "large"], "big")):
        (answer,) = desk.feed(*(photo_update(name, file_size=0, album=text) for name in names))
        assert answer.text == bot.TEXTS["en"][text]


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
    ("reply", "language", "text", "labels"),
    [
        (judged("movie"), "ru", "Похоже, это Чужой / Alien (1979). Почти уверен, но", ["Верно", "Неверно"]),
        (judged("movie", 0.8), "en", "This looks like Alien (1979). I am fairly sure, but", ["Right", "Wrong"]),
        (judged("movie", 0.8), "uk-UA", "Похоже, это Чужой / Alien (1979). Довольно уверен", ["Верно", "Неверно"]),
        (judged("movie", 0.5), None, "This looks like Alien (1979). I am not very sure", ["Right", "Wrong"]),
        (judged("shortlist"), "en", "- Alien (1979)\n- Brazil (1985)\n- Contact (1997)", [*TITLES, "None of these"]),
        (judged("shortlist"), "ru", "- Чужой / Alien", ["Чужой / Alien (1979)", *TITLES[1:], "Ничего из этого"]),
        (judged("unknown"), "en", "I don't know this movie. Try another frame.", ["Show the best guess"]),
        (judged("unknown"), "ru", "Я не знаю этот фильм. Попробуй другой кадр.", ["Показать лучшую догадку"]),
        ({"error": "image: damaged"}, "en", "I can't open this picture.", []),
        ({"error": "image: damaged"}, "ru", "Не могу открыть эту картинку.", []),
    ],
)  # fmt: skip
def test_answers_of_each_kind(desk, reply, language, text, labels):
    desk.worker.result = reply
    (answer,) = desk.feed(photo_update("a", language=language))
    assert text in answer.text and [label for label, _ in buttons(answer)] == labels


def test_titles_are_never_read_as_anything_else(desk):
    desk.worker.result = {"kind": "shortlist", "candidates": [{"title": "<b>{0} %s & _x_", "confidence": 1.0}] * 2}
    (answer,) = desk.feed(photo_update("a"))
    assert "- <b>{0} %s & _x_" in answer.text and desk.bot.default.parse_mode is None


def test_unknown_shows_its_guess_when_asked(desk):
    desk.worker.result = judged("unknown")
    ((_, show),) = buttons(desk.feed(photo_update("a"))[0])
    _, edit = desk.press(show)
    assert edit.text == "I don't know this movie, but it looks most like:\n" + "\n".join(f"- {t}" for t in TITLES)
    (_, right), (_, wrong) = buttons(edit)
    assert [label for label, _ in buttons(edit)] == ["Right", "Wrong"] and not desk.app.store.verdicts()
    desk.press(right)
    assert desk.verdict() == ("right", TITLES[0])
    assert desk.press(wrong)[1].reply_markup
    assert desk.verdict() == ("wrong", None)


def test_verdicts_are_kept(desk):
    (_, right), (_, wrong) = buttons(desk.feed(photo_update("a"))[0])
    note, edit = desk.press(right, language="ru")
    assert note == "Спасибо!" and isinstance(edit, EditMessageReplyMarkup) and edit.reply_markup is None
    assert desk.verdict() == ("right", TITLES[0])
    note, edit = desk.press(wrong)
    assert note == "Which movie is it, then?" and desk.verdict() == ("wrong", None)
    assert [label for label, _ in buttons(edit)] == [*TITLES[1:], "None of these"]
    assert desk.press(buttons(edit)[1][1])[0] == "Thank you!"
    assert desk.verdict() == ("wrong", TITLES[2])
    desk.worker.result = judged("shortlist")
    answer = desk.feed(photo_update("a"))[0]
    desk.press(buttons(answer)[1][1])
    assert desk.verdict() == ("right", TITLES[1])
    _, edit = desk.press(buttons(answer)[-1][1])  # none of these
    assert desk.verdict() == ("wrong", None)
    note, edit = desk.press(buttons(edit)[-1][1])
    assert note == "Thank you!" and edit.reply_markup is None and desk.verdict() == ("wrong", None)


def test_buttons_outlive_their_messages(desk):
    (_, right), _ = buttons(desk.feed(photo_update("a"))[0])
    assert desk.press(right, gone=True) == ("Thank you!", None)
    assert desk.verdict() == ("right", TITLES[0])
    assert desk.press(right, message=None)[1] is None  # an inline message
    assert desk.press("r:never-was") == ("I don't remember this answer any more.", None)
    gone = TelegramBadRequest(None, "Bad Request: message to edit not found")
    desk.session.fail = lambda method: (
        gone if isinstance(method, (EditMessageReplyMarkup, AnswerCallbackQuery)) else None
    )
    desk.press(right)


def test_feedback_becomes_labels(tmp_path, capsys):
    base, labels = tmp_path / "bot.sqlite", tmp_path / "labels.csv"
    assert bot.main(["--feedback", str(labels), "--db", str(base)]) == 2
    assert "--db" in capsys.readouterr().err and not labels.exists()
    base.write_bytes(b"no database at all" * 100)
    assert bot.main(["--feedback", str(labels), "--db", str(base)]) in (1, 2)
    assert "--db" in (error := capsys.readouterr().err) and error.count("\n") == 1
    base.unlink()
    with Desk(base) as desk:
        for verdict in (0, 1):
            desk.press(buttons(desk.feed(photo_update(f"shot{verdict}", user=4242))[0])[verdict][1])
        desk.feed(photo_update("no-verdict"))
    assert bot.main(["--feedback", str(labels), "--db", str(base)]) == 0
    head, *rows = [line.split(",") for line in labels.read_text().splitlines()]
    assert head == ["time", "file_id", "kind", "answer", "confidence", "verdict", "film"]
    assert [row[1:] for row in rows] == [
        ["shot0", "movie", TITLES[0], "0.97", "right", TITLES[0]],
        ["shot1", "movie", TITLES[0], "0.97", "wrong", ""],
    ]
    assert "2 verdicts" in capsys.readouterr().out and b"4242" not in base.read_bytes()


LONG = "Очень длинное название фильма, который никто не смотрел, часть"
MANY = [f"Film {n}" for n in range(60)]
MANY_RUSSIAN = {title: f"{LONG if n % 5 else 'Очень длинное название филина'} {n}" for n, title in enumerate(MANY)}


@pytest.fixture(scope="module")
def library():
    with Desk() as desk:
        desk.worker.about["classes"], desk.app.local = MANY, MANY_RUSSIAN
        desk.answer = buttons(desk.feed(photo_update("a"))[0])[0][1][2:]
        yield desk


ACTIONS = st.sampled_from(["", "l", "f", "g", "r", "w", "n", "c", "c0", "c2", "c3", "c-1", "c²", "c٣", "c" + "9" * 40])
PAGES = st.sampled_from(["-1", "0", "1", "2", "3", "99999", "100000", "٣", "²", "1e3", "", "9" * 50])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.one_of(TEXT, st.tuples(ACTIONS, TEXT), st.tuples(st.just("f"), PAGES, TEXT), st.tuples(ACTIONS, st.none())))
def test_hostile_buttons(library, data):
    if not isinstance(data, str):
        data = ":".join(library.answer if part is None else part for part in data)
    note, edit = library.press(data, language="ru")
    assert note is None or len(note) <= 200
    if isinstance(edit, EditMessageText) and not data.startswith(("l:", "g:")):
        assert data.startswith("f:") and edit.text.startswith(("Фильмов: ", "Такого"))
    assert library.errors == library.session.wrong == []


def walk(desk, query: str, language: str) -> tuple[int, list[str]]:
    """(films as counted, films seen on all pages)."""
    (page,) = desk.feed(text_update(f"/films {query}", language=language))
    count, seen = page.text.split("\n")[0].rpartition(" ")[2], page.text.split("\n")[2:]
    while further := [data for sign, data in buttons(page) if sign == ">"]:
        _, page = desk.press(further[0], language=language)
        seen += page.text.split("\n")[2:]
    return int(count) if seen else 0, seen


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        TEXT, st.sampled_from(["", "film", "FILM 1", "очень", LONG.lower(), LONG[::-1], f"{LONG} 7", "' OR 1=1; --"])
    )
)
def test_films_are_found_and_turned_page_by_page(library, query):
    for language in ("ru", "en"):
        count, seen = walk(library, query, language)
        assert count == len(seen) == len(set(seen))
    assert library.errors == library.session.wrong == []


def test_films_by_words(library):
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

    assert say("/start") == bot.TEXTS["en"]["start"].format(films=3)
    assert say("/start from-a-link", language="ru").startswith("Привет! Пришли мне кадр из фильма")
    assert say("/help") == bot.TEXTS["en"]["help"] and say("/help", language="ru") == bot.TEXTS["ru"]["help"]
    assert say("/about") == "Model test_resnet, 3 movies. Version abc1234."
    desk.worker.about["accuracy"] = {"top1": 0.876, "split": "group"}
    assert "Right on scenes that it has never seen: 88%." in say("/about")
    desk.worker.about["accuracy"]["split"] = "random"
    assert "Right on a random split (which flatters): 88%." in say("/about")
    assert [data for _, data in buttons(desk.feed(text_update("/lang"))[0])] == ["l:ru", "l:en"]
    note, edit = desk.press("l:ru", user=1)
    assert note == edit.text == "Хорошо, говорю по-русски."
    assert say("/help", user=1) == bot.TEXTS["ru"]["help"] and say("/help", user=2) == bot.TEXTS["en"]["help"]
    assert say("/lang EN", user=1) == "Fine, I speak English." and say("/help", user=1) == bot.TEXTS["en"]["help"]
    assert say("/lang '; DROP TABLE languages", user=1) == "Which language shall I speak?"
    assert set(bot.TEXTS["ru"]) == set(bot.TEXTS["en"])


def test_old_questions_are_not_answered(desk):
    old = int(time.time()) - 700
    assert not desk.feed(
        photo_update("a", date=old), text_update("/start", date=old), photo_update("b", date=old, album="x")
    )
    assert len(desk.feed(photo_update("a", date=old + 200))) == 1


def test_big_files_are_refused(desk, monkeypatch):
    assert desk.feed(photo_update("a", file_size=25_000_000))[0].text == bot.TEXTS["en"]["big"]
    assert not desk.named(GetFile)
    monkeypatch.setattr(bot, "MAX_BYTES", 1000)  # larger than it says
    desk.session.files["b"] = b"x" * 1001
    assert desk.feed(photo_update("b", file_size=0))[0].text == bot.TEXTS["en"]["big"]
    refusal = TelegramBadRequest(None, "Bad Request: file is too big")
    desk.session.fail = lambda method: refusal if isinstance(method, GetFile) else None
    assert desk.feed(photo_update("c", file_size=0))[0].text == bot.TEXTS["en"]["big"]
    assert not desk.worker.asked


def test_a_short_download_is_made_again(desk, pauses):
    desk.session.cuts = 1
    assert "Alien" in desk.feed(photo_update("frame"))[0].text and desk.worker.asked == [["frame"]]
    desk.session.cuts = 9
    assert desk.feed(photo_update("frame"))[0].text == bot.TEXTS["en"]["error"] and len(desk.worker.asked) == 1
    assert max(pauses) < 5 and desk.session.cuts == 6
    desk.errors.clear()


def test_a_flood_is_warned_of_once(desk):
    texts = [call.text for call in desk.feed(*(photo_update(f"f{n}") for n in range(25)))]
    assert texts.count(bot.TEXTS["en"]["flood"]) == 1 and len(texts) == 21 and len(desk.worker.asked) == 20
    assert len(desk.feed(photo_update("other", user=2))) == 1
    assert len(desk.feed(text_update("/help"))) == 1
    texts = [
        call.text for call in desk.feed(*(text_update("hello", user=3) for _ in range(25)), photo_update("f", user=3))
    ]
    assert texts.count(bot.TEXTS["en"]["flood"]) == 1 and len(texts) == 21
    flood = Flood(2, 0.05)
    assert [flood.check(1) for _ in range(4)] == ["ok", "ok", "warn", "drop"]
    time.sleep(0.06)
    assert [flood.check(1) for _ in range(4)] == ["ok", "ok", "warn", "drop"]


def test_a_full_line_refuses_honestly():
    with Desk(size=2) as desk:
        desk.worker.gate, desk.worker.seconds = asyncio.Event(), 30.0
        waiting = [photo_update(f"f{user}", user=user) for user in range(3)]
        assert not desk.feed(*waiting, quiet=False)
        (refusal,) = desk.feed(photo_update("late", user=8), quiet=False)
        assert refusal.text == bot.TEXTS["en"]["busy"].format(place=3, seconds=90) and refusal.chat_id == 8
        desk.worker.gate.set()
        assert sorted(call.chat_id for call in desk.feed()) == [0, 1, 2]
        assert not desk.app.owned and not desk.errors


@pytest.mark.parametrize("consumers", [1, 3])
def test_users_take_turns(consumers):
    with Desk(consumers=consumers) as desk:
        desk.worker.gate = asyncio.Event()
        desk.feed(*(photo_update(f"a{n}", user=1) for n in range(5)), photo_update("b", user=2), quiet=False)
        assert len(desk.worker.asked) == min(consumers, 2)  # each user has one in hand
        desk.worker.gate.set()
        desk.feed()
        assert [name for (name,) in desk.worker.asked] == ["a0", "b", "a1", "a2", "a3", "a4"]


def test_errors_bring_an_apology_and_say_nothing_in_the_log(monkeypatch):
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(Discreet(TOKEN))
    logging.getLogger().addHandler(handler)
    text = "my very private words"

    def burst(*_):
        raise RuntimeError(f"{text} at https://api.telegram.org/bot{TOKEN}/getMe")

    try:
        with Desk() as desk:
            monkeypatch.setattr(bot, "films_page", burst)
            assert [call.text for call in desk.feed(text_update(f"/films {text}"))] == [bot.TEXTS["en"]["error"]]
            assert desk.feed(text_update(f"/films {text}", language="ru"))[0].text == bot.TEXTS["ru"]["error"]
            desk.press(f"r:{text}")
            desk.worker.result = RuntimeError(text)
            assert desk.feed(photo_update("a", caption=text))[0].text == bot.TEXTS["en"]["error"]
            desk.worker.result = judged("movie")
            assert "Alien" in desk.feed(photo_update("a"))[0].text
            assert len(desk.errors) == 3
        try:
            burst()
        except RuntimeError:
            logging.getLogger("aiohttp").exception("GET https://api.telegram.org/file/bot%s/a.jpg", TOKEN)
    finally:
        logging.getLogger().removeHandler(handler)
    log = written.getvalue()
    assert log.count("ERROR RuntimeError at test_bot.py:") == 3 and "***" in log
    assert SECRET not in log and text not in log.partition("GET ")[0]
    assert "Ann" not in log and TOKEN not in repr(desk.app.bot.session)


def test_who_blocked_us_is_no_error(desk):
    def blocked(method):
        if isinstance(method, (SendMessage, SendChatAction)) and method.chat_id == 5:
            return TelegramForbiddenError(method, "Forbidden: bot was blocked by the user")

    desk.session.fail = blocked
    desk.feed(photo_update("a", user=5), text_update("/start", user=5))
    assert "Alien" in desk.feed(photo_update("b", user=6))[0].text


# ---------------------------------------------------------------------------------------- what stays up


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Pauses that asyncio.sleep was asked for; none of them is made."""
    found, real = [], asyncio.sleep

    async def sleep(seconds):
        found.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


def lost(cause: Exception) -> TelegramNetworkError:
    error = TelegramNetworkError(None, "?")
    error.__cause__ = cause
    return error


RESET, UNREACHED = lost(ServerDisconnectedError()), lost(ClientConnectorError(None, OSError("no route")))
SEND, FILE = SendMessage(chat_id=1, text="a"), GetFile(file_id="a")
HTML = ClientDecodeError("Failed to decode object", ValueError("no JSON"), "<html>502 Bad Gateway</html>")
ODD = ClientDecodeError("Failed to deserialize object", ValueError("a new type"), {"ok": True, "result": {}})


@pytest.mark.parametrize(
    ("method", "error", "waited"),
    [
        (SEND, TelegramRetryAfter(SEND, "Flood control", 3), 3.1),
        (SEND, TelegramRetryAfter(SEND, "Flood control", 100_000), None),  # nobody waits so long
        (SEND, TelegramServerError(SEND, "Bad Gateway"), 0.5),
        (SEND, HTML, 0.5),
        (SEND, UNREACHED, 0.5),
        (SEND, lost(ConnectionTimeoutError()), 0.5),
        (SEND, lost(TimeoutError()), None),
        (SEND, RESET, None),  # may have arrived
        (SEND, ODD, None),  # has arrived
        (SEND, TelegramForbiddenError(SEND, "blocked"), None),
        (FILE, RESET, 0.5),
        (EditMessageText(text="a"), RESET, 0.5),
        (AnswerCallbackQuery(callback_query_id="1"), RESET, 0.5),
        (SendChatAction(chat_id=1, action="typing"), TelegramRetryAfter(None, "Flood control", 3), None),
        (GetMe(), UNREACHED, None),  # patiently() says so at once, and waits
        (GetUpdates(), HTML, None),
        (GetUpdates(), UNREACHED, None),
    ],
)
def test_patience(pauses, monkeypatch, method, error, waited):
    if waited is None:
        with pytest.raises(type(error)):
            insist(method, error, "done")
        assert pauses == []
        return
    assert insist(method, error, "done") == "done" and pauses == [pytest.approx(waited)]
    monkeypatch.setattr(bot, "OLD", 0.0)
    with pytest.raises(type(error)):  # not for ever
        insist(method, error, "done")


def insist(method, *outcomes, held=None):
    """What Patience makes of these outcomes of requests."""
    outcomes = list(outcomes)

    async def make_request(*_):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def call():
        bot.SENDING.set(held)
        return await Patience()(make_request, None, method)

    return asyncio.run(call())


def test_patience_grows(pauses):
    assert insist(SEND, *[HTML] * 9, "done") == "done"
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_an_answer_that_may_have_arrived_is_not_sent_after_a_restart(pauses, monkeypatch):
    monkeypatch.setattr(bot, "OLD", 0.0)
    for error, waiting in ((RESET, []), (UNREACHED, [(5, "body")]), (HTML, [(5, "body")])):
        store = Store(":memory:", TOKEN)
        store.begin(5, "body")
        with pytest.raises(type(error)):
            insist(SEND, error, held=(store, [5]))
        assert store.waiting() == waiting


def test_trouble_is_logged_once(pauses, caplog):
    outcomes = [UNREACHED, HTML, RESET, TelegramRetryAfter(None, "Flood control", 7), TimeoutError(), "done"]

    async def call():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert asyncio.run(bot.patiently(call, Silence())) == "done"
    assert [record.getMessage() for record in caplog.records] == [
        "Telegram can't be reached (TelegramNetworkError), trying again until it works",
        "Telegram is back",
    ]
    assert pauses[:3] == sorted(pauses[:3]) and pauses[3] == 7 and max(pauses) <= 30
    outcomes.append(TelegramUnauthorizedError(None, "Unauthorized"))
    with pytest.raises(UserError, match="TELEGRAM_BOT_TOKEN"):
        asyncio.run(bot.patiently(call, Silence()))


def test_store(tmp_path):
    path = tmp_path / "bot.sqlite"
    store = Store(path, TOKEN)
    assert store.begin(7, "seven") and not store.begin(7, "seven") and store.begin(8, None) and store.begin(6, "six")
    assert store.waiting() == [(6, "six"), (7, "seven")]
    store.finish([7])
    assert store.waiting() == [(6, "six")] and not store.begin(7, "seven")
    assert store.waiting() == []  # what was there at two starts may be the reason for them
    assert store.begin(9, "nine") and store.begin(10, "ten")
    store.mark([9, 10], True)
    store.mark([10], False)
    assert store.waiting() == [(10, "ten")]  # the answer to 9 may have arrived
    store.base.execute("UPDATE updates SET time = time - 3 * 86400 WHERE id = 10")
    store.tidy()
    assert store.waiting() == [] and store.begin(10, "ten") and not store.begin(9, "nine")
    store.finish([10])
    store.set_language(987654321, "ru")
    assert (store.language(987654321), store.language(987654322)) == ("ru", None)
    answer = store.add_answer("file", "movie", judged("movie")["candidates"])
    assert store.get_answer(answer) == ("movie", judged("movie")["candidates"]) and store.get_answer("x") is None
    forgotten = store.add_answer("file", "movie", [])
    store.judge(answer, "right", TITLES[0])
    store.base.execute("UPDATE answers SET time = time - 91 * 86400")
    store.begin(11, "a name and words")
    store.tidy()
    assert store.get_answer(answer) and not store.get_answer(forgotten)
    assert b"a name and words" in path.read_bytes()
    store.finish([11])
    store.tidy()
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    store.base.close()
    for private in (b"987654321", SECRET.encode(), b"a name and words"):
        assert private not in everything and private not in path.read_bytes()
    assert Store(path, "another key").language(987654321) is None  # the hash is a keyed one


@pytest.mark.parametrize("kind", ["no-such-folder/bot.sqlite", "text.txt"])
def test_a_base_that_cannot_be_opened_is_named(tmp_path, kind):
    (tmp_path / "text.txt").write_text("no database " * 200)
    with pytest.raises(UserError, match="--db"):
        Store(tmp_path / kind, TOKEN)


def raw(update_id: int, update: dict) -> dict:
    return {"update_id": update_id, **update}


async def until(predicate) -> None:
    while not predicate():
        await asyncio.sleep(0.01)


def test_no_update_stops_the_others(desk, monkeypatch):
    """A kind of message that aiogram does not know yet, and one in the store that it knows no more."""

    async def wait(*_):
        await asyncio.sleep(0.01)

    monkeypatch.setattr(Silence, "wait", wait)
    desk.app.store.begin(1, '{"update_id": 1, "message": {"from_the": "past"}}')
    odd = text_update("?")
    odd["message"]["forward_origin"] = {"type": "from_the_future", "date": 1}
    desk.session.updates = [raw(2, text_update("/start", user=2)), raw(3, odd), raw(4, text_update("/start", user=4))]
    polling = desk.spawn(bot.poll(desk.app, desk.dispatcher))
    with contextlib.suppress(TimeoutError):
        desk.runner.run(asyncio.wait_for(until(lambda: len(desk.named(SendMessage)) == 2 or polling.done()), 2))
    assert [call.chat_id for call in desk.named(SendMessage)] == [2, 4] and not polling.done()
    desk.run(until(lambda: desk.named(GetUpdates)[-1].offset == 5))
    assert not any("past" in error or "future" in error for error in desk.errors)
    desk.errors.clear()


def test_a_killed_process_loses_nothing(tmp_path):
    """Killed with an answer on its way, a frame in hand and a command not yet, before Telegram has heard of them."""
    updates = [raw(1, text_update("/start", user=1)), raw(2, photo_update("a", user=2))]
    new = [raw(3, text_update("/start", user=3)), raw(4, text_update("/start", user=4))]
    with Desk(tmp_path / "bot.sqlite") as desk:
        desk.session.updates, desk.session.stalled, desk.worker.gate = updates, (SendMessage,), asyncio.Event()
        desk.spawn(bot.poll(desk.app, desk.dispatcher))
        desk.run(until(lambda: desk.named(SendMessage) and desk.worker.asked))
        desk.app.store.begin(3, json.dumps(new[0]))
    with Desk(tmp_path / "bot.sqlite") as desk:
        desk.session.updates = updates + new
        desk.spawn(bot.poll(desk.app, desk.dispatcher))
        desk.run(until(lambda: len(desk.named(SendMessage)) >= 3))
        desk.feed()
        assert sorted(call.chat_id for call in desk.named(SendMessage)) == [2, 3, 4]
        assert desk.app.store.waiting() == []


def test_stopping_finishes_what_is_in_hand(tmp_path):
    with Desk(tmp_path / "bot.sqlite", consumers=0) as desk:
        desk.worker.gate = asyncio.Event()
        desk.session.updates = [raw(n, photo_update(f"f{n}", user=1)) for n in (1, 2, 3)]

        async def stop():
            await until(lambda: desk.worker.asked)
            stopped.set()
            await asyncio.sleep(0.05)
            desk.worker.gate.set()

        desk.spawn(stop())
        stopped = asyncio.Event()
        desk.run(bot.run(desk.app, desk.dispatcher, stopped))
        assert len(desk.named(SendMessage)) == 1 and desk.worker.asked == [["f1"]] and not desk.errors
        assert [number for number, _ in desk.app.store.waiting()] == [2, 3]


def script(code: str) -> Worker:
    worker = Worker("no model")
    worker.command = [sys.executable, "-c", f"import os, sys, time\nprint('{{}}', flush=True)\n{code}"]
    return worker


ECHO = """
while head := sys.stdin.buffer.read(1):
    sizes = []
    for _ in range(head[0]):
        sizes.append(int.from_bytes(sys.stdin.buffer.read(4), "little"))
        data = sys.stdin.buffer.read(sizes[-1])
    if data == b"die":
        sys.exit(1)
    if data == b"hang":
        time.sleep(60)
    print(f'{{"sizes": {sizes}}}', flush=True)
"""


def test_worker_is_ended_and_started_anew(monkeypatch):
    monkeypatch.setattr(bot, "SECONDS", 0.5)

    async def talk():
        worker = script(ECHO)
        assert await worker.ask([b"a" * 300_000, b""]) == {"sizes": [300_000, 0]}
        for data in (b"die", b"hang"):
            with pytest.raises(RuntimeError, match="worker"):
                await worker.ask([data])
            monkeypatch.setattr(bot, "SECONDS", 20.0)  # a busy machine starts slowly
            assert await worker.ask([b"next"]) == {"sizes": [4]}
            monkeypatch.setattr(bot, "SECONDS", 0.5)
        asked = asyncio.create_task(worker.ask([b"hang"]))
        await asyncio.sleep(0.1)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        monkeypatch.setattr(bot, "SECONDS", 20.0)
        assert await asyncio.gather(*(worker.ask([b"x" * n]) for n in range(5))) == [{"sizes": [n]} for n in range(5)]
        await worker.stop()

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_a_worker_that_reads_nothing_is_ended_too(monkeypatch):
    monkeypatch.setattr(bot, "SECONDS", 0.5)

    async def talk():
        worker = script("time.sleep(60)")
        try:
            with pytest.raises(RuntimeError, match="worker"):
                await asyncio.wait_for(worker.ask([b"x" * 2_000_000]), 10)
        finally:
            await worker.stop()

    asyncio.run(talk())


def test_worker_says_why_it_cannot_start():
    with pytest.raises(UserError, match=r"^--model /nowhere: "):
        asyncio.run(Worker("/nowhere").start())


def check(monkeypatch, *arguments: str, token: str = TOKEN) -> int:
    """main(--check) in this process, with no model."""
    monkeypatch.setattr(bot, "Worker", lambda *_: Oracle())
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", token)
    monkeypatch.setattr(bot, "hide_environment", lambda: None)  # it and the umask would stay with the tests
    monkeypatch.setattr(bot.os, "umask", lambda _: None)
    return bot.main(["--check", *arguments])


def test_check_says_what_is_wrong(monkeypatch, tmp_path, capsys, pauses):
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
    for error, words in (
        (refused_, "@BotFather"), (unreachable, "--api-base"), (nonsense, "--api-base"),
        (malformed, "@BotFather"), (missing, ".env"),
    ):  # fmt: skip
        assert words in error and error.count("\n") == 1 and SECRET not in error and "no token at all" not in error
    for arguments in (["--queue", "0"], ["--threads", "-1"]):
        with pytest.raises(SystemExit) as caught:
            bot.main(arguments)
        assert caught.value.code == 2


def test_sigterm_while_the_model_loads(monkeypatch):
    async def start(self):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(Oracle, "start", start)
    assert check(monkeypatch) == 0


def test_token_is_read_from_the_environment_or_a_file(tmp_path):
    file = tmp_path / ".env"
    for line in (
        f"TELEGRAM_BOT_TOKEN={TOKEN}",
        f' export TELEGRAM_BOT_TOKEN = "{TOKEN}" ',
        f"\ufeffTELEGRAM_BOT_TOKEN='{TOKEN}'",
    ):
        file.write_text(f"{line}\r\n# a comment\nOTHER=1\n", encoding="utf-8")
        assert bot.read_token({}, file) == TOKEN
    assert bot.read_token({"TELEGRAM_BOT_TOKEN": "1:b"}, file) == "1:b"
    file.write_text("OTHER=1")
    for path in (file, tmp_path / "none"):
        with pytest.raises(UserError, match="TELEGRAM_BOT_TOKEN") as caught:
            bot.read_token({}, path)
        assert caught.value.code == 2


def test_titles_are_read_as_scrape_writes_them(tmp_path):
    path = tmp_path / "titles.csv"
    assert bot.read_titles(path) == bot.read_titles(None) == {}
    path.write_text("title,ru\nAlien (1979),Чужой\nBrazil (1985),\n", encoding="utf-8")
    assert bot.read_titles(path) == RUSSIAN


# --------------------------------------------------------------- the process, with a server on loopback


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


def processes(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def environment(token: str | None) -> dict:
    found = {key: value for key, value in os.environ.items() if key != "TELEGRAM_BOT_TOKEN"}
    return found | ({"TELEGRAM_BOT_TOKEN": token} if token else {})


class Service:
    """bot.py, the Telegram that it talks to, and how many answers each user must have had in the end.

    trouble: {(method, chat or file id): [how, ...]}, each used once, as TelegramServer's behave gives them.
    """

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model, self.log = folder, model, folder / "log.txt"
        self.frame = encoded(draw_frame(0, 0, 0, (640, 360)))
        self.trouble, self.wanted, self.process, self.users = {}, collections.Counter(), None, itertools.count(100)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.server = TelegramServer(TOKEN, {}, self._behave, free.getsockname()[1])

    def _behave(self, method, params, _):
        hows = self.trouble.get((method, params.get("file_id") or params.get("chat_id")))
        return hows.pop(0) if hows else None

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "bot.py"), "--model", str(self.model), "--api-base", self.server.base]
        command += ["--db", str(self.folder / "bot.sqlite"), "--threads", "1"]
        with open(self.log, "ab") as log:
            how = {"cwd": self.folder, "env": environment(TOKEN), "stdout": log, "stderr": log}
            self.process = subprocess.Popen(command, **how)

    def worker(self) -> int:
        (worker,) = processes(self.process.pid)
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
        """Calls of a method about these users' files or chats."""
        about = {*users, *(f"f{user}" for user in users)}
        return [
            call for call in self.server.named(method)
            if {call["params"].get("chat_id"), call["params"].get("file_id")} & about
        ]  # fmt: skip

    def until(self, predicate, seconds: float = 30) -> bool:
        return self.server.wait_for(lambda _: predicate(), seconds)

    def answers(self, user: int) -> list[str]:
        return [call["params"]["text"] for call in self.asked("sendMessage", user) if call["status"] == 200]

    def wait(self, *users: int, seconds: float = 30) -> list[str]:
        """The last answer of each."""
        self.until(lambda: all(map(self.answers, users)), seconds)
        return [(self.answers(user) or [""])[-1] for user in users]

    def exit(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def others(model: Path, base: str, folder: Path) -> list[subprocess.Popen]:
    """One that Telegram refuses, and a --check with its token in .env; they start while other tests run."""
    (folder / ".env").write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}\n")
    command = [sys.executable, str(ROOT / "bot.py"), "--model", str(model), "--api-base", base]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    refused_ = subprocess.Popen(command, env=environment("123456:BBB-some_other"), **how)
    return [refused_, subprocess.Popen([*command, "--check"], env=environment(None), **how)]


@pytest.fixture(scope="module")
def life(exported, tmp_path_factory):
    """A bot that finds no network at first. At the end each user must have had as many answers as were due."""
    service = Service(tmp_path_factory.mktemp("service"), exported / "model.onnx")
    service.start()
    service.others = []
    try:
        deadline = time.monotonic() + 14
        while time.monotonic() < deadline and "can't be reached" not in service.log.read_text():
            time.sleep(0.05)
        with service.server, TelegramServer(TOKEN, {}) as calm:
            service.others = others(service.model, calm.base, tmp_path_factory.mktemp("others"))
            yield service
            if service.process.poll() is None:
                assert service.exit(signal.SIGTERM) == 0
            log = service.log.read_text()
            assert "Traceback" not in log and SECRET not in log and TOKEN not in log
            answers = [call for call in service.server.named("sendMessage") if call["status"] == 200]
            assert collections.Counter(call["params"]["chat_id"] for call in answers) == +service.wanted
    finally:
        for process in (service.process, *service.others):
            process.kill()
            process.wait()


@pytest.fixture
def service(life):
    if life.process.poll() is not None:
        life.start()
    return life


ANSWERS = ("This looks like ", "I doubt a little.", "I don't know this movie.")


def test_no_network_at_start_is_waited_out(service):
    user = service.ask()
    assert service.wait(user)[0].startswith(ANSWERS)
    log = service.log.read_text()
    assert log.count("can't be reached") == 1 and log.count("Telegram is back") == 1 and "@film_bot answers, 3" in log


def test_a_frame_gets_its_answer(service):
    user = service.ask(language="ru")
    assert service.wait(user)[0].startswith(("Похоже, это ", "Немного сомневаюсь.", "Я не знаю этот фильм."))
    (answer,) = service.asked("sendMessage", user)
    assert answer["params"]["reply_parameters"]["message_id"] > 0
    data = answer["params"]["reply_markup"]["inline_keyboard"][-1][-1]["callback_data"]
    service.server.push(callback_update(data, answer["result"]["message_id"], user))
    assert service.until(lambda: service.asked("editMessageText", user) + service.asked("editMessageReplyMarkup", user))
    assert len(service.server.named("answerCallbackQuery")) == 1


def test_the_token_is_nowhere(service):
    service.wait(service.ask())
    worker = service.worker()
    for pid in (service.process.pid, worker):
        assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
    assert SECRET not in Path(f"/proc/{worker}/environ").read_text()


HTML_502 = (502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html"})


def paper(file_id: str, user: int, **more) -> dict:
    return message_update(user, document=document(file_id, "image/jpeg", "frame.jpg", file_size=300), **more)


@pytest.fixture(scope="module")
def troubled(life) -> dict:
    """{case: (user, last answer)} of cases that come all at once."""
    blocked = (403, refused(403, "Forbidden: bot was blocked by the user"))
    flood = (429, refused(429, "Too Many Requests: retry after 1", retry_after=1))
    cases = {
        "429": {"trouble": {"sendMessage": [flood]}},
        "502": {"trouble": {"sendMessage": [HTML_502]}},
        "503": {"trouble": {"sendMessage": [(503, refused(503, "Service Unavailable"))]}},
        "cut download": {"trouble": {"file": ["cut"]}},
        "reset download": {"trouble": {"file": ["reset"]}},
        "404 download": {"trouble": {"file": [(404, b"Not Found")]}},
        "cut getFile": {"trouble": {"getFile": ["cut"]}},
        "reset getFile": {"trouble": {"getFile": ["reset"]}},
        "no typing": {"trouble": {"sendChatAction": [HTML_502] * 3}},
        "blocked": {"trouble": {"sendMessage": [blocked] * 9}, "answers": 0},
        "bomb": {"file": bomb(50_000)},
        "empty": {"file": b""},
        "cut for good": {"file": life.frame[:3000]},
        "text": {"file": b"not a picture at all" * 15, "make": paper},
        "big": {"file_size": 25_000_000},
        "big unsaid": {"file": bytes(25_000_000), "file_size": 0},
        "old": {"date": int(time.time()) - 700, "answers": 0},
        "after": {},
    }
    users = {name: life.ask(**case) for name, case in cases.items()}
    silent = {"old", "blocked"}
    return {name: (user, life.wait(user, seconds=0 if name in silent else 30)[0]) for name, user in users.items()}


MENDED = ("429", "502", "503", "cut download", "reset download", "404 download", "cut getFile", "reset getFile")


@pytest.mark.parametrize("case", [*MENDED, "no typing", "after"])
def test_troubles_are_waited_out(troubled, case):
    assert troubled[case][1].startswith(ANSWERS)


@pytest.mark.parametrize(
    ("case", "text"),
    [("bomb", "unreadable"), ("empty", "unreadable"), ("cut for good", "unreadable"), ("text", "unreadable"),
     ("big", "big"), ("big unsaid", "big")],
)  # fmt: skip
def test_poison_is_refused(troubled, case, text):
    assert troubled[case][1] == bot.TEXTS["en"][text]


def test_telegram_is_not_pestered(troubled, service):
    first, second = service.asked("sendMessage", troubled["429"][0])
    assert (first["status"], second["status"]) == (429, 200) and second["time"] - first["time"] >= 1
    assert not service.asked("getFile", troubled["big"][0]) and not service.asked("file", troubled["big unsaid"][0])
    assert len(service.asked("sendMessage", troubled["blocked"][0])) == 1


def test_an_update_that_comes_again_is_answered_once(service):
    user = service.ask()
    service.wait(user)
    twice = photo_update(f"f{user}", user) | {"update_id": 10_000}
    service.wanted[user] += 1
    service.trouble["getUpdates", None] = [(200, {"ok": True, "result": [twice]})] * 2  # never acknowledged
    service.server.push(twice, twice)
    assert service.until(lambda: not service.trouble["getUpdates", None] and len(service.answers(user)) >= 2)
    service.wait(service.ask())  # more than one would show at the end of life


def test_polling_goes_on_after_errors(service):
    before = service.log.read_text().count("can't be reached")
    service.trouble["getUpdates", None] = [HTML_502]
    assert service.wait(service.ask(), service.ask())[1].startswith(ANSWERS)
    assert service.until(lambda: not service.trouble["getUpdates", None])
    assert service.wait(service.ask())[0].startswith(ANSWERS)
    assert service.log.read_text().count("can't be reached") == before + 1


def test_an_outage_is_waited_out(service):
    log = service.log.read_text()
    service.server.__exit__()
    user = service.ask()
    time.sleep(2)
    service.server.__enter__()
    assert service.wait(user)[0].startswith(ANSWERS)
    after = service.log.read_text()
    assert after.count("can't be reached") == log.count("can't be reached") + 1
    assert after.count("is back") == log.count("is back") + 1


def test_an_album_is_one_question(service):
    user = next(service.users)
    service.server.files |= {f"album{n}": encoded(draw_frame(1, n, 0)) for n in range(3)}
    service.wanted[user] += 1
    service.server.push(*(photo_update(f"album{n}", user, album="a") for n in range(3)))
    assert service.wait(user)[0].startswith(ANSWERS)
    assert len([call for call in service.server.named("file") if call["params"]["file_id"].startswith("album")]) == 3


def test_a_killed_worker_is_replaced(service):
    before = service.worker()
    os.kill(before, signal.SIGKILL)
    first = service.wait(service.ask())[0]
    assert first.startswith((*ANSWERS, bot.TEXTS["en"]["error"]))
    assert service.wait(service.ask())[0].startswith(ANSWERS)
    assert service.worker() != before


def test_killed_and_started_again_it_answers_everything_once(service):
    worker, users = service.worker(), [service.ask(trouble={"file": [("sleep", 60)]}) for _ in range(6)]
    assert service.until(lambda: len(service.asked("file", *users)) == 3)  # as many as are fetched at a time
    assert service.until(lambda: not service.server.updates)  # all are acknowledged
    service.exit(signal.SIGKILL)
    service.trouble.clear()
    users.append(service.ask())  # while nobody listens
    service.start()
    assert all(text.startswith(ANSWERS) for text in service.wait(*users, seconds=40))
    with contextlib.suppress(FileNotFoundError):
        assert not Path(f"/proc/{worker}/cmdline").read_text()  # at most a zombie


def test_sigterm_finishes_the_answer_in_hand(service):
    user = service.ask(trouble={"file": [("sleep", 1)]})
    assert service.until(lambda: service.asked("file", user)) and not service.answers(user)
    worker = service.worker()
    assert service.exit(signal.SIGTERM) == 0
    assert service.answers(user)[0].startswith(ANSWERS)
    assert not Path(f"/proc/{worker}").exists()


def test_other_processes(life):
    refused_, check_ = life.others
    out, error = refused_.communicate(timeout=60)
    assert refused_.returncode == 1 and not out and error.count("\n") == 1 and "@BotFather" in error
    assert "BBB" not in error
    out, error = check_.communicate(timeout=60)
    assert (check_.returncode, error) == (0, "") and out.startswith("all is well: @film_bot, 3 films")
