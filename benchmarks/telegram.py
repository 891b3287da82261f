"""The bot's figures: bot.py as a process under load, against a Telegram Bot API on loopback."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from answering.collection import Index, fingerprint
from answering.console import UserError
from answering.model import Identifier
from answering.packing import make_thumbnail
from answering.store import Collection
from benchmarks.growth import DIMENSIONS, FILM_STILLS, write_drawn
from benchmarks.harness import sample, show

PICTURES = 30  # frames that users send, each again and again
POLL_LIMIT = 20  # updates that one request takes, as bot.py asks for
DRAWN_FILMS = 100  # of a drawn index
MAX_SECONDS = 1200.0  # until we give a run up


@dataclass
class SentReply:
    time: float  # perf_counter
    has_buttons: bool


class BotApi:
    """A Telegram Bot API for one bot: gives it photos of these pictures, notes when it replies."""

    def __init__(self, pictures: list[bytes]):
        self.pictures = pictures
        self.updates: list[dict] = []  # that the bot has not fetched
        self.news = asyncio.Event()  # set when there are updates
        self.polled = False  # whether the bot has ever asked for updates
        self.sent: dict[int, float] = {}  # message: perf_counter
        self.replies: dict[int, list[SentReply]] = {}  # by message

    def push(self, picture: int, user: int) -> int:
        """A photo from a user -> the number of its message."""
        number = len(self.sent) + 1
        file = {"file_id": str(picture), "file_unique_id": str(picture), "width": 1280, "height": 546}
        sender = {"id": user, "type": "private", "first_name": "Ann", "is_bot": False}
        message = {"message_id": number, "date": int(time.time()), "chat": sender, "from": sender, "photo": [file]}
        self.updates.append({"update_id": number, "message": message})
        self.sent[number] = time.perf_counter()
        self.news.set()
        return number

    async def handle(self, request):
        """Any request; methods that change nothing here are answered with true."""
        from aiohttp import web

        place = request.path.split("/")
        form = await request.post()
        if place[1] == "file":
            return web.Response(body=self.pictures[int(place[-1])])
        if place[-1] == "getUpdates":
            result = await self.get_updates(float(form.get("timeout", 0)))
        elif place[-1] == "getMe":
            result = {"id": 1, "is_bot": True, "first_name": "Bench", "username": "bench_bot"}
        elif place[-1] == "getFile":
            result = dict.fromkeys(("file_id", "file_unique_id", "file_path"), form["file_id"])
        elif place[-1] in ("sendMessage", "sendPhoto"):
            result = self.note_reply(form)
        else:
            result = True
        return web.json_response({"ok": True, "result": result})

    async def get_updates(self, timeout: float) -> list[dict]:
        """Up to POLL_LIMIT; waits so many seconds for the first."""
        self.polled = True
        if not self.updates:
            self.news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), timeout)
        found, self.updates = self.updates[:POLL_LIMIT], self.updates[POLL_LIMIT:]
        return found

    def note_reply(self, form) -> dict:
        """The message that the bot sent."""
        number = json.loads(form["reply_parameters"])["message_id"]
        self.replies.setdefault(number, []).append(SentReply(time.perf_counter(), "reply_markup" in form))
        chat = {"id": int(form["chat_id"]), "type": "private"}
        return {"message_id": 10**6 + number, "date": int(time.time()), "chat": chat}

    def delay(self, number: int) -> float:
        """Milliseconds from a photo to its first reply."""
        return 1000 * (self.replies[number][0].time - self.sent[number])


class BotProcess:
    """bot.py with a watcher on its event loop, in an empty folder. Raises UserError when it ends too early.

    cores: that it may use, the first ones; 0 for all.
    """

    def __init__(self, folder: Path, options: list[str], cores: int = 0):
        self.folder = folder
        self.cores = cores
        self.start_seconds = 0.0  # until it first asks for updates
        self.command = [sys.executable, "-P", str(Path(__file__).with_name("watched_bot.py")), *options]
        self.log = folder / "log"
        self.deadline = time.monotonic() + MAX_SECONDS
        self.memory = 0  # bytes at most, of the bot and the process with its model
        self.exit_code: int | None = None

    async def __aenter__(self) -> "BotProcess":
        environment = os.environ | {"TELEGRAM_BOT_TOKEN": "1:bench"}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, env=environment, stderr=log)
        if self.cores:
            os.sched_setaffinity(self.process.pid, sorted(os.sched_getaffinity(0))[: self.cores])
        return self

    async def wait_for_start(self, api: BotApi) -> None:
        start = time.perf_counter()
        await self.wait_for(lambda: api.polled)
        self.start_seconds = time.perf_counter() - start

    async def __aexit__(self, *_) -> None:
        self.process.terminate()
        self.exit_code = await asyncio.to_thread(self.process.wait, 60)

    async def wait_for(self, done: Callable[[], bool]) -> None:
        while not done():
            await asyncio.sleep(0.1)
            if self.process.poll() is not None or time.monotonic() > self.deadline:
                raise UserError(f"bot.py ended or lost frames: {self.log.read_text()[-300:]}")
            self.measure_memory()

    def measure_memory(self) -> None:
        import psutil

        with contextlib.suppress(psutil.Error):  # a child ended meanwhile
            bot = psutil.Process(self.process.pid)
            family = [bot, *bot.children(recursive=True)]
            self.memory = max(self.memory, sum(process.memory_info().rss for process in family))

    def longest_block(self) -> float:
        """Milliseconds, once it has ended."""
        (block,) = re.findall(r"longest block of the event loop: ([\d.]+) ms", self.log.read_text())
        return float(block)


def draw_index(place: Path, identifier: Identifier, films: int, stills: int) -> None:
    """An index of drawn films for this model, with so many stills each; it names every frame and shows its proof."""
    write_drawn(str(place), films, stills)
    collection = Collection(place)
    seen = fingerprint(identifier)
    project = np.random.default_rng(13).standard_normal((seen.shape[1], DIMENSIONS), np.float32)
    thumbnail = make_thumbnail(Image.new("RGB", (320, 180)))
    with collection.writing(), collection.home.transaction():
        about = collection.about()
        about.model.fingerprint = base64.b64encode(seen).decode()
        about.rule = replace(about.rule, movie=-1.0, shortlist=-1.0)
        about.fit += 1  # so that readers read all
        collection.put_projection((project, np.zeros(DIMENSIONS, np.float32)))
        proofs = itertools.product(range(1, films + 1), range(stills))
        query = "INSERT INTO still (film, number, file, source, thumbnail) VALUES (?, ?, 'a.jpg', 'drawn', ?)"
        collection.home.execute_many(query, ((*proof, thumbnail) for proof in proofs))
        collection.write_about(about)


async def ask_one_by_one(api: BotApi, bot: BotProcess, identifier: Identifier) -> tuple[list[float], list[float]]:
    """Send each picture when the one before is answered: milliseconds that the bot takes, and the model alone."""
    times, own = [], []
    for place, picture in enumerate(api.pictures):
        number = api.push(place, 1000 + place)
        await bot.wait_for(lambda number=number: number in api.replies)
        times.append(api.delay(number))
        own.append(identifier.identify(picture).ms)
    return times, own


async def ask_at_once(api: BotApi, bot: BotProcess, users: int, each: int) -> list[int]:
    """All frames of all users together; the numbers of their messages."""
    asked = [api.push(n % len(api.pictures), n % users + 1) for n in range(users * each)]
    await bot.wait_for(lambda: len(api.replies) == len(api.sent))
    return asked


def replace_index(place: Path) -> None:
    """Switch the link that an index lies behind to a copy of it, as docs/bot.md tells it."""
    link = place.parent
    folder = link.parent / "second"
    folder.mkdir()
    Collection(place).home.backup(folder / place.name)
    new = link.parent / "next"
    new.symlink_to(folder)
    new.replace(link)


async def load_bot(api: BotApi, bot: BotProcess, identifier: Identifier, loads: tuple[int, int], place: Path | None):
    """(milliseconds a frame alone, of the model alone, numbers of the messages sent at once).

    loads: users, and frames of each; place: of an index that is replaced while they wait.
    """
    await bot.wait_for_start(api)
    alone, own = await ask_one_by_one(api, bot, identifier)
    asked = asyncio.create_task(ask_at_once(api, bot, *loads))
    if place:
        await asyncio.to_thread(replace_index, place)
    return alone, own, await asked


async def bench_bot(
    *,
    frames: Path,
    model: Path = Path("export"),
    users: int = 50,
    each: int = 10,
    index: str = "",
    films: int = DRAWN_FILMS,
    stills: int = FILM_STILLS,
    replace: bool = False,
    cores: int = 0,
    runtime: str = "",
) -> None:
    """bot.py against a Bot API on loopback: 30 frames one by one, then all users at once (20 frames each at most).

    index: a file; one of so many films and stills of each is drawn where there is none. replace: by a copy, while all
    users wait. cores: that the bot may use, 0 for all. runtime: "openvino" or "onnxruntime".
    """
    from aiohttp.test_utils import RawTestServer

    api = BotApi([Path(file).read_bytes() for file in sample(frames, PICTURES)])
    identifier = Identifier(model, threads=cores, runtime=runtime or None)
    options = [f"--model={model.resolve()}", f"--queue={users * each}", f"--threads={cores}"]
    options += [f"--runtime={runtime}"] if runtime else []
    with tempfile.TemporaryDirectory() as folder:
        place = None
        if index:
            if not Path(index).exists():
                draw_index(Path(index), identifier, films, stills)
            identifier.index = Index(index, identifier)
            options.append(f"--index={Path(index).resolve()}")
        if index and replace:
            place = Path(folder, "current", Path(index).name)
            place.parent.symlink_to(Path(index).resolve().parent)
            options[-1] = f"--index={place}"
        async with RawTestServer(api.handle) as server:
            options.append(f"--api-base={server.make_url('')}")
            async with BotProcess(Path(folder), options, cores) as bot:
                alone, own, asked = await load_bot(api, bot, identifier, (users, each), place)
        block = bot.longest_block()
    replies = [api.replies[number] for number in asked]
    seconds = max(reply[0].time for reply in replies) - api.sent[asked[0]]
    rows = {
        "identify.py": {"a frame alone, ms": np.median(own)},
        "bot.py": {
            "start, s": bot.start_seconds,
            "a frame alone, ms": np.median(alone),
            "frames/s": len(asked) / seconds,
            "memory, MB": bot.memory / 1e6,
            "longest block of its loop, ms": block,
        },
    }
    once = sum(len(reply) == 1 for reply in replies)
    right = sum(reply[0].has_buttons for reply in replies)
    note = f"{once} of {len(asked)} frames got one reply, {right} an answer with buttons; exit code {bot.exit_code}."
    show(f"Bot, {model}, {identifier.runtime} {identifier.format}, {users} users x {each} frames at once", rows, note)
