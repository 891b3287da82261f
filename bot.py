"""A Telegram bot that names the film a frame comes from, on a small host; the model works in a process beside it.

TELEGRAM_BOT_TOKEN=... python bot.py --model export --check     # is everything there? says what is wrong in one line
python bot.py --model export                                    # the token may stand in .env, too
python bot.py --feedback labels.csv                             # what users said of the answers, for training
"""

import argparse
import asyncio
import collections
import contextlib
import csv
import gc
import hashlib
import json
import logging
import os
import re
import secrets
import sqlite3
import sys
import time
import tomllib
import weakref
from pathlib import Path

from aiogram import Bot, Dispatcher, exceptions
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import PRODUCTION, TelegramAPIServer
from aiogram.filters import Command
from aiogram.types import BotCommand, CallbackQuery, InlineKeyboardButton, InlineKeyboardMarkup, Message, User
from aiohttp import ClientError

from bot_updates import COMMANDS, IN_VAIN, OLD, Albums, Journal, Requests, open_base, reply, report, tidy
from bot_worker import SECONDS, Worker, name_film
from image import IMAGE_SUFFIXES, MAX_BYTES, UserError, atomic_write, one_line_errors

TEXTS = Path(__file__).with_name("bot_texts.toml")
FLOOD, FLOOD_SECONDS = 20, 60.0  # frames of a user in so many seconds
IN_HAND, PAGE = 3, 20  # frames fetched at a time, of which the model takes one; films a page
SAID = "text audio document voice contact location venue poll dice sticker video video_note story"  # not a pin, a join
log = logging.getLogger("bot")


def load_texts(titles: Path) -> dict[str, dict]:
    """{language: its table in bot_texts.toml, with "titles", the films' names there by the titles.csv of scrape.py}."""
    texts = tomllib.loads(TEXTS.read_text(encoding="utf-8"))
    rows = list(csv.DictReader(titles.read_text(encoding="utf-8").splitlines())) if titles.exists() else []
    for code, words in texts.items():
        words["titles"] = {row["title"]: row[code] for row in rows if row.get(code)}
    return texts


class App:
    """What the handlers share."""

    def __init__(self, base: sqlite3.Connection, key: str, worker: Worker, about, texts: dict, queue: int):
        self.base, self.key, self.worker, self.about, self.texts, self.queue = base, key, worker, about, texts, queue
        self.tasks, self.waiting = set(), set()  # of updates in hand; those of them that wait for the model
        self.models, self.users = asyncio.Semaphore(IN_HAND), weakref.WeakValueDictionary()  # a lock a user: take turns
        self.frames = collections.Counter()  # of a user in the last FLOOD_SECONDS

    def hash(self, user: User) -> str:
        return hashlib.blake2b(str(user.id).encode(), key=self.key.encode()[:64], digest_size=12).hexdigest()

    def words(self, user: User | None) -> dict:
        """Texts in the language that a user chose, else in that of his Telegram, else in English."""
        row = user and self.base.execute("SELECT code FROM languages WHERE who = ?", (self.hash(user),)).fetchone()
        code = row[0] if row else ((user and user.language_code) or "").split("-")[0]
        return next((words for words in self.texts.values() if code in words["codes"]), self.texts["en"])


def find_picture(message):
    """The best picture of a Message or ExternalReplyInfo that Telegram gives, with file_id and file_size, or None."""
    if message is None:
        return None
    if sizes := message.photo or (message.video and message.video.cover):
        return max(sizes, key=lambda size: size.width * size.height)
    sticker, document = message.sticker, message.document
    if sticker and not (sticker.is_animated or sticker.is_video):
        return sticker
    if document and not message.animation:
        suffix = Path((document.file_name or "")[-20:]).suffix.lower()
        if (document.mime_type or "").startswith("image/") or suffix in IMAGE_SUFFIXES:
            return document
    media = message.animation or message.video or message.video_note or sticker or document
    return media.thumbnail if media else find_picture(getattr(message, "external_reply", None))


def local_title(title: str, texts: dict) -> str:  # "Чужой / Alien (1979)"
    name = texts["titles"].get(title)
    return f"{name} / {title}" if name else title


def keyboard(*rows: list[tuple[str, str]]) -> InlineKeyboardMarkup:
    """Buttons from rows of (text, data); data is at most 64 bytes."""
    buttons = [[InlineKeyboardButton(text=text[:60], callback_data=data) for text, data in row] for row in rows]
    return InlineKeyboardMarkup(inline_keyboard=buttons)


def compose(texts: dict, kind: str, candidates: list[dict], answer: str) -> tuple[str, InlineKeyboardMarkup]:
    """Words and buttons of an answer. kind: as Answer has it, or "guess" for the best guess at an unknown film."""
    titles = [local_title(candidate["title"], texts) for candidate in candidates[:3]]
    listed, best = "\n".join(f"- {title}" for title in titles), candidates[0]["confidence"]
    words = {"title": titles[0], "list": listed, "sure": texts["sure"][(best < 0.95) + (best < 0.75)]}
    if kind == "shortlist":
        rows = [[(title, f"c{i}:{answer}")] for i, title in enumerate(titles)] + [[(texts["none"], f"w:{answer}")]]
    elif kind == "unknown":
        rows = [[(texts["show"], f"g:{answer}")]]
    else:
        rows = [[(texts["right"], f"r:{answer}"), (texts["wrong"], f"w:{answer}")]]
    return texts[kind].format(**words), keyboard(*rows)


async def download(bot: Bot, pictures: list) -> list[bytes]:
    """Pictures, together at most MAX_BYTES, without those that can't be had; if none can, the last one's error."""
    found, trouble, room = [], None, MAX_BYTES
    for picture in pictures:
        try:
            file = picture if (picture.file_size or 0) > room else await bot.get_file(picture.file_id)
            if (file.file_size or 0) > room:
                raise UserError("big")
            found.append(await fetch(bot, file.file_path))
            room -= len(found[-1])
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


async def on_command(message: Message, app: App, texts: dict, command) -> None:
    if command.command == "films":
        return await reply(message, *films_page(app, texts, 0, command.args or ""))
    figures, accuracy, markup = app.about.accuracy or {}, "", None
    if isinstance(figures.get("top1"), float):
        accuracy = texts["accuracy" if figures.get("split") == "group" else "random"].format(**figures)
    if command.command == "lang":
        markup = keyboard([(words["name"], f"l:{code}") for code, words in app.texts.items()])
    about = vars(app.about) | {"accuracy": accuracy, "films": len(app.about.classes)}
    await reply(message, texts[command.command].format(**about), markup)


def films_page(app: App, texts: dict, page: int, query: str) -> tuple[str, InlineKeyboardMarkup | None]:
    """Words and buttons of a page of the films that hold every word of the query."""
    query = query.encode()[:48].decode(errors="ignore")  # 64 bytes is all that a button holds
    words = query.casefold().split()
    found = [local_title(title, texts) for title in app.about.classes]
    found = sorted(title for title in found if all(word in title.casefold() for word in words))
    if not found:
        return texts["nothing"], None
    last = (len(found) - 1) // PAGE
    page = min(page, last)
    lines = [texts["films"].format(count=len(found)), "", *found[page * PAGE : (page + 1) * PAGE]]
    around = [(sign, f"f:{to}:{query}") for sign, to in (("<", page - 1), (">", page + 1)) if 0 <= to <= last]
    return "\n".join(lines)[:4000], keyboard(around) if around else None


async def on_message(message: Message, app: App, texts: dict, album: list[Message]) -> None:
    """Frames, albums, questions about a picture that is replied to; anything else gets a hint."""
    pictures = [picture for part in album if (picture := find_picture(part))]
    if not pictures and (message.text or "").strip() and (picture := find_picture(message.reply_to_message)):
        pictures = [picture]
    told = message.chat.type == "private" or (message.text or "").split("@")[0].strip() == "/film"
    if not pictures and not (told and message.content_type in SAID.split()):
        return
    who = (message.sender_chat or message.from_user or message.chat).id  # channels and hidden admins share one user
    app.frames[who] += 1
    asyncio.get_running_loop().call_later(FLOOD_SECONDS, app.frames.subtract, [who])
    place = len(app.waiting) + 1
    if app.frames[who] > FLOOD:
        if app.frames[who] == FLOOD + 1:
            await reply(message, texts["flood"])
    elif not pictures:
        await reply(message, texts["hint"])
    elif place > app.queue:
        await reply(message, texts["busy"].format(place=place, seconds=max(5, round(place * app.worker.seconds))))
    else:
        await reply(message, *await name_pictures(message, app, texts, pictures, who))


async def name_pictures(message: Message, app: App, texts: dict, pictures: list, who: int) -> tuple:
    """Words and buttons of an answer, in turn: of each user one frame at a time, first come first served."""
    app.waiting.add(asyncio.current_task())
    async with app.users.setdefault(who, asyncio.Lock()), app.models:
        app.waiting.discard(asyncio.current_task())
        typing = asyncio.create_task(message.bot.send_chat_action(message.chat.id, "typing"))
        try:
            result = await app.worker.call(name_film, await download(message.bot, pictures))
        except (UserError, TimeoutError) as error:  # of the worker's: of a picture
            return texts["big" if str(error) == "big" else "unreadable"], None
        finally:
            typing.cancel()
    answer = secrets.token_urlsafe(9)  # in the buttons' data: nobody guesses another's
    row = (answer, time.time(), pictures[0].file_id, result["kind"], json.dumps(result["candidates"]))
    app.base.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, NULL, NULL)", row)
    return compose(texts, result["kind"], result["candidates"], answer)


async def on_button(query: CallbackQuery, app: App, texts: dict) -> None:
    """Verdicts, guesses, pages and languages. The data is whatever somebody sends."""
    action, _, rest = (query.data or "").partition(":")
    found = app.base.execute("SELECT kind, candidates FROM answers WHERE id = ?", (rest,)).fetchone()
    kind, candidates = (found[0], json.loads(found[1])) if found else (None, [])
    picks = {f"c{i}": candidate["title"] for i, candidate in enumerate(candidates)}
    note, text, markup, verdict, edit = texts["thanks"], None, None, None, isinstance(query.message, Message)
    if action == "l" and rest in app.texts:
        app.base.execute("INSERT OR REPLACE INTO languages VALUES (?, ?)", (app.hash(query.from_user), rest))
        note = text = app.texts[rest]["set"]
    elif action == "f" and (asked := re.fullmatch("([0-9]{1,5}):(.*)", rest, re.DOTALL)):
        note, (text, markup) = "", films_page(app, texts, int(asked[1]), asked[2])
    elif action == "g" and found:
        note, (text, markup) = "", compose(texts, "guess", candidates, rest)
    elif action == "r" and found:
        verdict = ("right", candidates[0]["title"])
    elif action == "w" and found:
        verdict, note = ("wrong", None), texts["which"]
        others = list(picks.items())[kind != "shortlist" :]  # the first was shown alone
        rows = [[(local_title(title, texts), f"{pick}:{rest}")] for pick, title in others]
        markup = keyboard(*rows, [(texts["none"], f"n:{rest}")])
    elif action in picks:
        verdict = ("right" if kind == "shortlist" else "wrong", picks[action])
    elif action != "n" or not found:
        note, edit = texts["gone"], False
    if verdict:
        app.base.execute("UPDATE answers SET verdict = ?, film = ? WHERE id = ?", (*verdict, rest))
    with contextlib.suppress(*IN_VAIN):
        await query.answer(note[:190])
    with contextlib.suppress(*IN_VAIN):
        if edit:
            change = query.message.edit_text if text else query.message.edit_reply_markup
            await change(**({"text": text} if text else {}), reply_markup=markup)


def make_dispatcher(app: App) -> Dispatcher:
    dispatcher = Dispatcher(app=app, disable_fsm=True)  # its memory would grow with every user
    dispatcher.update.outer_middleware(Journal())
    dispatcher.message.outer_middleware(Albums())
    dispatcher.message.register(on_command, Command(*COMMANDS))
    dispatcher.message.register(on_message)
    dispatcher.callback_query.register(on_button)
    dispatcher.errors.register(lambda event: report(event.exception) or True)  # of SQLite's: a full disk
    return dispatcher


async def watch_lag() -> None:
    """For the bench: at the end it says how long the event loop was ever blocked."""
    longest = 0.0
    try:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - start - 0.005)
    finally:
        log.warning("longest block of the event loop: %.1f ms", 1000 * longest)


async def serve(bot: Bot, app: App) -> None:
    """Answer until a signal; then finish the answers in hand, for at most SECONDS."""
    dispatcher, tasks = make_dispatcher(app), [asyncio.create_task(tidy(app.base))]
    tasks += [asyncio.create_task(watch_lag())] if os.environ.get("MOVIE_BOT_LAG") else []
    # nobody waits for the old ones any more, and those whose answer was being sent may have got it
    app.base.execute("UPDATE updates SET body = NULL WHERE sending OR time < ?", (time.time() - OLD,))
    for (body,) in app.base.execute("SELECT body FROM updates WHERE body IS NOT NULL ORDER BY id").fetchall():
        tasks.append(asyncio.create_task(dispatcher.feed_raw_update(bot, json.loads(body), kept=True)))
    await dispatcher.start_polling(bot, polling_timeout=25, close_bot_session=False)
    for task in app.waiting:
        task.cancel()  # they stay in SQLite for the next start
    if app.tasks:
        await asyncio.wait(app.tasks, timeout=SECONDS)
    for task in (*tasks, *app.tasks):
        task.cancel()
    await asyncio.gather(*tasks, *app.tasks, return_exceptions=True)


async def run(args: argparse.Namespace, token: str) -> None:
    api = TelegramAPIServer.from_base(args.api_base) if args.api_base else PRODUCTION
    bot = Bot(token, session=AiohttpSession(api=api))
    worker = Worker(args.model, runtime=args.runtime, threads=args.threads)
    try:
        about, reason = await worker.start()
        known = f"{len(about.classes)} films, {reason}"
        if args.check:
            print(f"all is well: @{(await bot.me()).username}, {known}")
            return
        app = App(open_base(args.db), token, worker, about, load_texts(args.titles), args.queue)
        bot.session.middleware(Requests(app.base))
        log.warning("@%s answers, %s", (await bot.me()).username, known)
        await bot.delete_webhook()  # with one, Telegram gives no updates
        for code, words in app.texts.items():
            commands = [BotCommand(command=name, description=text) for name, text in words["commands"].items()]
            await bot.set_my_commands(commands, language_code=None if code == "en" else code)
        gc.freeze()  # aiogram's thousands of classes: to look through them again would block the loop
        await serve(bot, app)
    except (exceptions.TelegramUnauthorizedError, exceptions.TelegramNotFound):  # 404: it has not a token's shape
        raise UserError("TELEGRAM_BOT_TOKEN: Telegram refuses it; take a new one from @BotFather") from None
    except exceptions.AiogramError as error:
        raise UserError(f"Telegram can't be reached ({type(error).__name__}); check network and --api-base") from None
    finally:
        await worker.stop()
        await bot.session.close()


def read_token(environment: dict, file: Path = Path(".env")) -> str:
    """TELEGRAM_BOT_TOKEN from the environment, else from .env. Raises UserError, never with the token in it."""
    text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
    found = re.search(r"^\s*(?:export\s)?\s*TELEGRAM_BOT_TOKEN\s*=\s*[\"']?([^\"'\s]+)", text, re.MULTILINE)
    token = environment.get("TELEGRAM_BOT_TOKEN") or (found[1] if found else "")
    if not re.fullmatch(r"\d+:\S+", token):
        what = "is no token" if token else "is not set, in the environment or .env"
        raise UserError(f"TELEGRAM_BOT_TOKEN {what}; @BotFather gives one like 123456:ABC", 2)
    return token


def write_feedback(base: Path, path: Path) -> int:
    """Verdicts as a CSV of labels for training; returns how many."""
    if not base.exists():
        raise UserError(f"--db {base}: there is no such file; the bot makes it when it runs", 2)
    query = (
        "SELECT strftime('%Y-%m-%dT%H:%M:%SZ', time, 'unixepoch'), file_id, kind,"
        " json_extract(candidates, '$[0].title'), json_extract(candidates, '$[0].confidence'), verdict, film"
        " FROM answers WHERE verdict IS NOT NULL ORDER BY time"
    )
    rows = open_base(base).execute(query).fetchall()
    with atomic_write(path, "w", newline="", encoding="utf-8") as file:
        head = ["time", "file_id", "kind", "answer", "confidence", "verdict", "film"]
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return len(rows)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A Telegram bot that names the film of a frame.")
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--model", default="export", help=f"folder from export.py, .onnx or .xml {default}")
    add("--check", action="store_true", help="load the model, ask Telegram who we are, and exit")
    add("--feedback", type=Path, metavar="CSV", help="write the users' verdicts there, and exit")
    add("--db", type=Path, default=Path("bot.sqlite"), help=f"answers and verdicts {default}")
    add("--titles", type=Path, default=Path("titles.csv"), help=f"Russian titles from scrape.py {default}")
    add("--queue", type=int, default=200, help=f"frames that may wait {default}")
    add("--threads", type=int, default=0, help=f"of the model, 0 for all cores {default}")
    add("--runtime", choices=["openvino", "onnxruntime"], help="the second takes less memory (default: the faster)")
    add("--api-base", metavar="URL", help="a local Bot API server (default: api.telegram.org)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.queue < 1 or args.threads < 0:
        parser.error("--queue must be 1 or more, --threads 0 or more")
    if args.api_base and not re.match(r"https?://[^/]", args.api_base):
        parser.error(f"--api-base {args.api_base}: expected http://HOST:PORT or https://...")
    if args.feedback:
        print(f"{write_feedback(args.db, args.feedback)} verdicts in {args.feedback}")
        return 0
    token = read_token(dict(os.environ))
    os.environ.pop("TELEGRAM_BOT_TOKEN", None)  # the worker opens strangers' files
    os.umask(0o077)  # the database holds messages while they wait
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger().handlers[0].addFilter(logging.Filter("bot"))  # words of others may hold names and the token
    try:
        asyncio.run(run(args, token))
    except (UserError, OSError):
        raise
    except Exception as error:
        report(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.modules["__main__"].__file__ = None  # else the worker's process loads this script and aiogram, 135 MB
    sys.exit(main())
