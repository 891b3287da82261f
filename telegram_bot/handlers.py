"""A Telegram bot that names the film a frame comes from, on a small host; the model works in a process beside it.

TELEGRAM_BOT_TOKEN=... python bot.py --model export --check     # is everything there? says what is wrong in one line
python bot.py --model export                                    # the token may stand in .env, too
python bot.py --feedback labels.csv                             # what users said of the answers, for training
python bot.py --wishes                                          # films that users named and the collection lacks
"""

import asyncio
import base64
import collections
import contextlib
import csv
import hashlib
import json
import logging
import re
import secrets
import sqlite3
import time
import tomllib
import weakref
from pathlib import Path

from aiogram import Dispatcher, F, exceptions, types
from aiogram.filters import Command
from aiogram.types import CallbackQuery, InlineKeyboardMarkup, InlineQuery, Message, User

from answering.console import UserError
from telegram_bot.connection import download
from telegram_bot.figures import figures
from telegram_bot.updates import COMMANDS, UNDELIVERABLE, Albums, Journal, find_picture, is_spoiler, reply, report
from telegram_bot.worker import Worker, name_film

TEXTS = Path(__file__).with_name("texts.toml")
FLOOD, FLOOD_SECONDS = 20, 60.0  # frames of a user in so many seconds
IN_HAND, PAGE = 3, 20  # frames fetched at a time, of which the model takes one; films a page
REFRESH_SECONDS, TITLE = (
    60.0,
    100,
)  # seconds until we ask again which films there are; letters of a title that users tell
STILL_CACHE_SIZE = 500  # answers whose stills stay in memory for "show another", 25 KB each
SIMILARITY_STEPS = (
    0.8,
    0.6,
    0.4,
)  # similarity, for words; a film's other copy has 0.73 to 0.99, other films under 0.62 (DINOv2-S)
LOOKS = {"x": "still", "m": "mirror"}  # by buttons; words for them stand in the texts
CONTENT_TYPES = (
    "text audio document voice contact location venue poll dice sticker video video_note story"  # not a pin, a join
)
log = logging.getLogger("bot")


def load_texts(titles: Path) -> dict[str, dict]:
    """{language: its table in bot_texts.toml, with "titles" and "imdb" of the films by the titles.csv of scrape.py}."""
    texts = tomllib.loads(TEXTS.read_text(encoding="utf-8"))
    rows = list(csv.DictReader(titles.read_text(encoding="utf-8").splitlines())) if titles.exists() else []
    for code, words in texts.items():
        words["titles"] = {row["title"]: row[code] for row in rows if row.get(code)}
        words["imdb"] = {row["title"]: row["tconst"] for row in rows if row.get("tconst")}
    return texts


class App:
    """What the handlers share. worker: started; owner: the id of the user who may see figures."""

    def __init__(self, base: sqlite3.Connection, key: str, worker: Worker, texts: dict, queue: int, owner: int = 0):
        self.base, self.key, self.worker, self.texts, self.queue, self.owner = base, key, worker, texts, queue, owner
        self.tasks, self.waiting = set(), set()  # of updates in hand; those of them that wait for the model
        self.models, self.users = asyncio.Semaphore(IN_HAND), weakref.WeakValueDictionary()  # a lock a user: take turns
        self.frames = collections.Counter()  # of a user in the last FLOOD_SECONDS
        self.times, self.stills = collections.deque([0.0], 1000), {}  # ms and stills of the last answers

    def set_description(self, about, _, films: dict[str, str | None], memory: int) -> None:
        """What describe_model tells."""
        self.about, self.films, self.memory, self.listed = about, films, memory, {}

    def find_titles(self, texts: dict, query: str) -> list[tuple[str, str]]:
        """(as shown, title) of the films that hold every word of the query, sorted."""
        listed = self.listed.get(texts["name"])
        if listed is None:
            listed = self.listed[texts["name"]] = sorted((local_title(title, texts), title) for title in self.films)
        words = query.casefold().split()
        return [pair for pair in listed if all(word in pair[0].casefold() for word in words)]

    def count(self, *what: str) -> None:
        insert = "INSERT INTO counts VALUES (date('now'), ?, 1) ON CONFLICT DO UPDATE SET n = n + 1"
        self.base.executemany(insert, [(name,) for name in what])

    def judge(self, answer: str, verdict: str, film: str | None) -> None:
        (before,) = self.base.execute("SELECT verdict FROM answers WHERE id = ?", (answer,)).fetchone()
        self.base.execute("UPDATE answers SET verdict = ?, film = ? WHERE id = ?", (verdict, film, answer))
        if verdict != before:  # a film may follow
            self.count(verdict)

    def hash(self, user: User) -> str:
        return hashlib.blake2b(str(user.id).encode(), key=self.key.encode()[:64], digest_size=12).hexdigest()

    def words(self, user: User | None) -> dict:
        """Texts in the language that a user chose, else in that of his Telegram, else in English."""
        row = user and self.base.execute("SELECT code FROM languages WHERE who = ?", (self.hash(user),)).fetchone()
        code = row[0] if row else ((user and user.language_code) or "").split("-")[0]
        return next((words for words in self.texts.values() if code in words["codes"]), self.texts["en"])


def local_title(title: str, texts: dict) -> str:  # "Чужой / Alien (1979)"
    name = texts["titles"].get(title)
    return f"{name} / {title}" if name else title


def keyboard(*rows: list[tuple[str, str]]) -> InlineKeyboardMarkup | None:
    """Buttons from rows of (text, data or address); data is at most 64 bytes."""

    def button(text: str, data: str) -> types.InlineKeyboardButton:
        kind = "url" if data.startswith("https:") else "callback_data"
        return types.InlineKeyboardButton(text=text[:60], **{kind: data})

    buttons = [[button(*it) for it in row] for row in rows if row]
    return InlineKeyboardMarkup(inline_keyboard=buttons) if buttons else None


def link(app: App, texts: dict, title: str) -> list[tuple[str, str]]:
    """The button that opens a film's page, where its id is known."""
    imdb = texts["imdb"].get(title) or app.films.get(title) or ""
    return [("IMDb", f"https://www.imdb.com/title/{imdb}/")] if re.fullmatch("tt[0-9]{5,12}", imdb) else []


def describe_proof(texts: dict, proof: dict, of: str) -> str:
    """In words, how much alike the nearest known still is, and when it comes in its film."""
    alike = texts["alike"][sum(proof["similarity"] < limit for limit in SIMILARITY_STEPS)]
    seconds, at = (proof["time_ms"] or 0) // 1000, ""
    if proof["time_ms"] is not None:
        at = texts["at"].format(time=f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}")
    return texts["proof"].format(of=of, alike=alike, at=at)


def compose(app: App, texts: dict, kind: str, candidates: list[dict], answer: str, place: int = 0) -> tuple:
    """(words, buttons, JPEG or None) of an answer.

    kind: as Answer has it, "guess" for the best guess at an unknown film, "next" for the film at a place further down.
    """
    shown, titles = candidates[place], [local_title(candidate["title"], texts) for candidate in candidates[:3]]
    title, best, proof = local_title(shown["title"], texts), candidates[0]["confidence"], shown.get("evidence")
    words = {"title": title, "list": "\n".join(f"- {title}" for title in titles)}
    text = texts[kind].format(**words, sure=texts["sure"][(best < 0.95) + (best < 0.75)])
    if kind == "unknown":
        looks = [(texts[name], f"{action}:{answer}") for action, name in LOOKS.items()]
        return text, keyboard([(texts["show"], f"g:{answer}")], looks), None
    rows = [[(texts["right"], f"{f'c{place}' if place else 'r'}:{answer}"), (texts["wrong"], f"w:{answer}")]]
    if kind == "shortlist":
        rows = [[(title, f"c{i}:{answer}")] for i, title in enumerate(titles)] + [[(texts["none"], f"w:{answer}")]]
    still = app.stills.get(answer, {}).get(place)
    if proof:
        listed = kind in ("shortlist", "guess")
        text += "\n" + describe_proof(texts, proof, texts["of"].format(title=title) if listed else "")
    rows += [link(app, texts, shown["title"]) if kind != "shortlist" else []]
    if still and len(candidates) > 1:
        rows[-1] = [(texts["another"], f"s{(place + 1) % len(candidates)}:{answer}"), *rows[-1]]
    return text, keyboard(*rows), still


async def on_command(message: Message, app: App, texts: dict, command) -> None:
    if command.command == "films":
        return await reply(message, *films_page(app, texts, 0, command.args or ""))
    figures, accuracy, markup = app.about.accuracy or {}, "", None
    if isinstance(figures.get("top1"), float):
        accuracy = texts["accuracy" if figures.get("split") == "group" else "random"].format(**figures)
    if command.command == "lang":
        markup = keyboard([(words["name"], f"l:{code}") for code, words in app.texts.items()])
    about = vars(app.about) | {"accuracy": accuracy, "films": len(app.films)}
    await reply(message, texts[command.command].format(**about), markup)


def films_page(app: App, texts: dict, page: int, query: str) -> tuple[str, InlineKeyboardMarkup | None]:
    """Words and buttons of a page of the films that hold every word of the query."""
    query = query.encode()[:48].decode(errors="ignore")  # 64 bytes is all that a button holds
    found = [shown for shown, _ in app.find_titles(texts, query)]
    if not found:
        return texts["nothing"], None
    last = (len(found) - 1) // PAGE
    page = min(page, last)
    lines = [texts["films"].format(count=len(found)), "", *found[page * PAGE : (page + 1) * PAGE]]
    around = [(sign, f"f:{to}:{query}") for sign, to in (("<", page - 1), (">", page + 1)) if 0 <= to <= last]
    return "\n".join(lines)[:4000], keyboard(around)


async def on_inline(query: InlineQuery, app: App, texts: dict) -> None:
    """Films of the collection by words, in any chat."""
    start = int(query.offset) if re.fullmatch("[0-9]{1,5}", query.offset) else 0
    found = app.find_titles(texts, query.query)
    articles = [
        types.InlineQueryResultArticle(
            id=str(start + place),
            title=shown,
            input_message_content=types.InputTextMessageContent(message_text=shown),
            reply_markup=keyboard(link(app, texts, title)),
        )
        for place, (shown, title) in enumerate(found[start : start + PAGE])
    ]
    further = str(start + PAGE) if start + PAGE < len(found) else ""
    with contextlib.suppress(*UNDELIVERABLE):  # it is too old
        await query.answer(articles, cache_time=int(REFRESH_SECONDS), is_personal=True, next_offset=further)


async def on_stats(message: Message, app: App, texts: dict) -> None:
    await reply(message, texts["stats"].format(**figures(app), **vars(app.about)))


def refuse(app: App, texts: dict, who: int) -> str | None:
    """What to say instead of an answer, nothing if it was said before, or None where there is room for a frame."""
    app.frames[who] += 1
    asyncio.get_running_loop().call_later(FLOOD_SECONDS, app.frames.subtract, [who])
    place = len(app.waiting) + 1
    if app.frames[who] > FLOOD:
        return texts["flood"] if app.frames[who] == FLOOD + 1 else ""
    if place > app.queue:
        return texts["busy"].format(place=place, seconds=max(5, round(place * app.worker.seconds)))
    return None


async def on_message(message: Message, app: App, texts: dict, album: list[Message]) -> None:
    """Frames, albums, questions about a picture that is replied to, titles; anything else gets a hint."""
    pictures = [picture for part in album if (picture := find_picture(part))]
    if not pictures and (answer := asked_about(message)):
        return await on_title(message, app, texts, answer)
    if not pictures and (message.text or "").strip() and (picture := find_picture(message.reply_to_message)):
        pictures = [picture]
    told = message.chat.type == "private" or message.guest_query_id
    told = told or (message.text or "").split("@")[0].strip() == "/film"
    if not pictures and not (told and message.content_type in CONTENT_TYPES.split()):
        return
    who = (message.sender_chat or message.from_user or message.chat).id  # channels and hidden admins share one user
    refusal = refuse(app, texts, who)
    if refusal is not None or not pictures:
        text = texts["hint"] if refusal is None else refusal
        return await reply(message, text) if text else None
    said = set(re.findall(r"\w+", " ".join(part.caption or part.text or "" for part in album).casefold()))
    looks = [look for words in app.texts.values() for look, names in words["looks"].items() if said & {*names}]
    asker, look = None if message.sender_chat else message.from_user, (looks or [None])[0]
    answer = await name_pictures(message, app, texts, pictures, who, asker, look)
    await reply(message, *answer, spoiler=any(map(is_spoiler, album)))


async def name_pictures(message: Message, app: App, texts: dict, pictures, who: int, asker: User | None, look) -> tuple:
    """As compose, in turn: of each user one frame at a time, first come first served. asker: who may judge it."""
    app.waiting.add(asyncio.current_task())
    async with app.users.setdefault(who, asyncio.Lock()), app.models:
        app.waiting.discard(asyncio.current_task())
        typing = asyncio.create_task(message.bot.send_chat_action(message.chat.id, "typing"))
        try:
            result = await app.worker.call(name_film, await download(message.bot, pictures), look)
        except (UserError, TimeoutError) as error:  # of the worker's: of a picture
            return texts["big" if str(error) == "big" else "unreadable"], None, None
        finally:
            typing.cancel()
    answer, candidates = secrets.token_urlsafe(9), result["candidates"]  # in the buttons: nobody guesses another's
    stills = [(candidate.get("evidence") or {}).pop("thumbnail", "") for candidate in candidates]
    app.stills[answer] = {k: base64.b64decode(still) for k, still in enumerate(stills) if still}
    if len(app.stills) > STILL_CACHE_SIZE:
        del app.stills[next(iter(app.stills))]
    row = (answer, time.time(), pictures[0].file_id, result["kind"], json.dumps(candidates), asker and app.hash(asker))
    app.base.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, NULL, NULL, ?)", row)
    app.count("frames", result["kind"])
    app.times.append(result["ms"])
    return compose(app, texts, result["kind"], candidates, answer)


def asked_about(message: Message) -> str | None:
    """The answer whose film a text names: it replies to our question, in whose button the answer stands."""
    asked = message.reply_to_message
    if not (message.text and asked and asked.from_user and asked.from_user.id == message.bot.id and asked.reply_markup):
        return None
    data = [button.callback_data or "" for row in asked.reply_markup.inline_keyboard for button in row]
    return next((it[2:] for it in data if it.startswith("k:")), None)


async def on_title(message: Message, app: App, texts: dict, answer: str) -> None:
    """A film in the words of a user: one that we know, or a wish."""
    title = " ".join(message.text.split())
    row = app.base.execute("SELECT who FROM answers WHERE id = ?", (answer,)).fetchone()
    if not row or row[0] not in (None, message.from_user and app.hash(message.from_user)):
        return await reply(message, texts["theirs" if row else "gone"])
    if len(title) > TITLE:
        return await reply(message, texts["tell"], keyboard([(texts["skip"], f"k:{answer}")]))
    wanted = title.casefold()
    names = (
        (film, name) for words in app.texts.values() for film in app.films for name in (film, words["titles"].get(film))
    )
    known = next((film for film, name in names if name and wanted in (name.casefold(), name[:-7].casefold())), None)
    app.judge(answer, "wrong" if known else "wish", known or title)
    await reply(message, texts["thanks"])


async def on_button(query: CallbackQuery, app: App, texts: dict) -> None:
    """Verdicts, guesses, further stills, second looks, pages and languages. The data is whatever somebody sends."""
    action, _, rest = (query.data or "").partition(":")
    row = app.base.execute("SELECT kind, candidates, who, file_id FROM answers WHERE id = ?", (rest,)).fetchone()
    kind, candidates, who, file_id = row or (None, "[]", None, None)
    candidates = json.loads(candidates)
    picks = {f"c{i}": candidate["title"] for i, candidate in enumerate(candidates)}
    steps = {f"s{i}": i for i, candidate in enumerate(candidates) if candidate.get("evidence")}
    message = query.message if isinstance(query.message, Message) else None
    note, text, markup, still, verdict, edit = texts["thanks"], None, None, None, None, message
    if action in ("r", "w", "n", "k", *picks, *LOOKS) and who not in (None, app.hash(query.from_user)):
        note, edit = texts["theirs"], None
    elif action == "l" and rest in app.texts:
        app.base.execute("INSERT OR REPLACE INTO languages VALUES (?, ?)", (app.hash(query.from_user), rest))
        note = text = app.texts[rest]["set"]
    elif action == "f" and (asked := re.fullmatch("([0-9]{1,5}):(.*)", rest, re.DOTALL)):
        note, (text, markup) = "", films_page(app, texts, int(asked[1]), asked[2])
    elif (action == "g" or action in steps) and row:
        place = steps.get(action, 0)
        shown = "next" if place else "guess" if kind == "unknown" else kind
        note, (text, markup, still) = "", compose(app, texts, shown, candidates, rest, place)
        if message and message.photo and not still:  # it is gone, and another film's must not stay above these words
            note, edit = texts["gone"], None
    elif action in LOOKS and row and message:
        note, edit = refuse(app, texts, query.from_user.id), None
        if note is None:
            with contextlib.suppress(*UNDELIVERABLE):
                await query.answer(texts["looking"])
            pictures, asker = [types.File(file_id=file_id, file_unique_id="")], query.from_user
            looked = await name_pictures(message, app, texts, pictures, asker.id, asker, LOOKS[action])
            return await show(message, *looked)
    elif action == "r" and row:
        verdict = ("right", candidates[0]["title"])
    elif action == "w" and row:
        verdict, note = ("wrong", None), texts["which"]
        others = list(picks.items())[kind != "shortlist" :]  # the first was shown alone
        rows = [[(local_title(title, texts), f"{pick}:{rest}")] for pick, title in others]
        markup = keyboard(*rows, [(texts["none"], f"n:{rest}")])
    elif action in picks:
        verdict = ("right" if kind == "shortlist" else "wrong", picks[action])
    elif action == "k" and row:
        text = texts["thanks"]
    elif action != "n" or not row:
        note, edit = texts["gone"], None
    if verdict:
        app.judge(rest, *verdict)
        markup = markup or (keyboard(link(app, texts, verdict[1])) if verdict[1] else None)
    with contextlib.suppress(*UNDELIVERABLE):
        await query.answer((note or "")[:190])
    if edit:
        await show(edit, text, markup, still)
    if edit and action == "n":
        await reply(edit, texts["tell"], keyboard([(texts["skip"], f"k:{rest}")]))


async def show(message: Message, text: str | None, markup: InlineKeyboardMarkup | None, still: bytes | None) -> None:
    """Make a message of ours say something else, with a picture if there is one; without a text its buttons change."""
    with contextlib.suppress(*UNDELIVERABLE):
        if still:
            photo = types.BufferedInputFile(still, "still.jpg")
            media = types.InputMediaPhoto(media=photo, caption=text[:1024], has_spoiler=is_spoiler(message))
            with contextlib.suppress(exceptions.TelegramBadRequest):
                await message.edit_media(media, reply_markup=markup)
                return
        change = message.edit_text if text else message.edit_reply_markup
        await change(**({"text": text} if text else {}), reply_markup=markup)


def make_dispatcher(app: App) -> Dispatcher:
    dispatcher = Dispatcher(app=app, disable_fsm=True)  # its memory would grow with every user
    dispatcher.update.outer_middleware(Journal())
    albums = Albums()
    for kind in (dispatcher.message, dispatcher.guest_message):
        kind.outer_middleware(albums)
    dispatcher.message.register(on_command, Command(*COMMANDS))
    dispatcher.message.register(on_stats, Command("stats"), F.from_user.id == app.owner, F.chat.type == "private")
    dispatcher.message.register(on_message)
    dispatcher.guest_message.register(on_message)
    dispatcher.inline_query.register(on_inline)
    dispatcher.callback_query.register(on_button)
    dispatcher.errors.register(lambda event: report(event.exception) or True)  # of SQLite's: a full disk
    return dispatcher
