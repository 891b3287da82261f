"""telegram"""

import asyncio
import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from answering.console import UserError
from answering.model import Identifier
from benchmarks.harness import sample, show


class BotApi:
    """A Telegram Bot API for one bot: gives it photos of these pictures, notes when it replies."""

    def __init__(self, pictures: list[bytes]):
        self.pictures, self.updates, self.news, self.polled = pictures, [], asyncio.Event(), False
        self.sent: dict[int, float] = {}  # message: perf_counter
        self.replies: dict[int, list] = {}  # message: [(perf_counter, whether it has buttons)]

    def push(self, picture: int, user: int) -> int:
        """A photo from a user -> the number of its message."""
        number, file = len(self.sent) + 1, {"file_id": str(picture), "file_unique_id": str(picture)}
        who = {"id": user, "type": "private", "first_name": "Ann", "is_bot": False}
        message = {"message_id": number, "date": int(time.time()), "chat": who, "from": who}
        message["photo"] = [file | {"width": 1280, "height": 546}]
        self.updates.append({"update_id": number, "message": message})
        self.sent[number] = time.perf_counter()
        self.news.set()
        return number

    async def handle(self, request):
        """Any request; methods that change nothing here are answered with true."""
        from aiohttp import web

        place, form, result = request.path.split("/"), await request.post(), True
        if place[1] == "file":
            return web.Response(body=self.pictures[int(place[-1])])
        if place[-1] == "getUpdates":
            self.polled = True
            if not self.updates:
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), float(form.get("timeout", 0)))
            result, self.updates = self.updates[:20], self.updates[20:]  # as many as bot.py takes
        elif place[-1] == "getMe":
            result = {"id": 1, "is_bot": True, "first_name": "Bench", "username": "bench_bot"}
        elif place[-1] == "getFile":
            result = dict.fromkeys(("file_id", "file_unique_id", "file_path"), form["file_id"])
        elif place[-1] in ("sendMessage", "sendPhoto"):
            number = json.loads(form["reply_parameters"])["message_id"]
            self.replies.setdefault(number, []).append((time.perf_counter(), "reply_markup" in form))
            chat = {"id": int(form["chat_id"]), "type": "private"}
            result = {"message_id": 10**6 + number, "date": int(time.time()), "chat": chat}
        return web.json_response({"ok": True, "result": result})


def draw_index(folder: Path, identifier: Identifier) -> None:
    """An index of 100,000 drawn stills for this model, which names every frame and shows its proof."""
    from answering.collection import fingerprint
    from answering.store import open_engine, read_state
    from benchmarks.collection import write_drawn

    write_drawn(folder, 100_000, 1)
    engine, seen = open_engine(folder), fingerprint(identifier)
    state, project = read_state(engine), np.random.default_rng(13).standard_normal((seen.shape[1], 128), np.float32)
    state.model.fingerprint = base64.b64encode(seen).decode()
    state.basis = engine.write_arrays(None, {"project": project, "offset": np.zeros(128, np.float32)})
    state.rule.movie = state.rule.shortlist = -1.0
    engine.commit(state)


async def bench_bot(
    *, frames: Path, model: Path = Path("export"), users: int = 50, each: int = 10, index: str = ""
) -> None:
    """bot.py as a process against a Bot API on loopback: 30 frames alone, then all users' at once (each 20 at most).

    index: a folder; one of 100,000 stills is drawn where there is none.
    """
    import psutil
    from aiohttp.test_utils import RawTestServer

    pictures = [Path(file).read_bytes() for file in sample(frames, 30)]
    identifier, api, own, sizes = Identifier(model), BotApi(pictures), [], []
    command = [sys.executable, Path(__file__).parent.with_name("bot.py"), f"--model={model.resolve()}"]
    if index:
        from answering.collection import Index

        if not Path(index).exists():
            draw_index(Path(index), identifier)
        identifier.index = Index(index, identifier)
        command += [f"--index={Path(index).resolve()}"]
    environment, end = os.environ | {"TELEGRAM_BOT_TOKEN": "1:bench", "MOVIE_BOT_LAG": "1"}, time.monotonic() + 1200
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w") as log:
        async with RawTestServer(api.handle) as server:
            command += [f"--queue={users * each}", f"--api-base={server.make_url('')}"]
            bot = subprocess.Popen(command, cwd=folder, env=environment, stderr=log)
            family = psutil.Process(bot.pid)

            async def wait_for(done) -> None:
                while not done():
                    await asyncio.sleep(0.1)
                    if bot.poll() is not None or time.monotonic() > end:
                        raise UserError(f"bot.py ended or lost frames: {Path(log.name).read_text()[-300:]}")
                    with contextlib.suppress(psutil.Error):  # a child ended meanwhile
                        sizes.append(sum(it.memory_info().rss for it in (family, *family.children(recursive=True))))

            try:
                await wait_for(lambda: api.polled)
                for k, picture in enumerate(pictures):
                    number = api.push(k, 1000 + k)
                    await wait_for(lambda number=number: number in api.replies)
                    own.append(identifier.identify(picture).ms)
                asked = [api.push(n % len(pictures), n % users + 1) for n in range(users * each)]
                await wait_for(lambda: len(api.replies) == len(api.sent))
            finally:
                bot.terminate()
                code = await asyncio.to_thread(bot.wait, 60)
        (block,) = re.findall(r"longest block of the event loop: ([\d.]+) ms", Path(log.name).read_text())
    times = [1000 * (api.replies[number][0][0] - api.sent[number]) for number in range(1, asked[0])]
    replies = [api.replies[number] for number in asked]
    speed = len(asked) / (max(reply[0][0] for reply in replies) - api.sent[asked[0]])
    rows = {"identify.py": {"a frame alone, ms": np.median(own)}, "bot.py": {"a frame alone, ms": np.median(times)}}
    rows["bot.py"] |= {"frames/s": speed, "memory, MB": max(sizes) / 1e6, "longest block of its loop, ms": float(block)}
    once, right = sum(len(reply) == 1 for reply in replies), sum(reply[0][1] for reply in replies)
    note = f"{once} of {len(asked)} frames got one reply, {right} an answer with buttons; exit code {code}."
    show(f"Bot, {model}, {identifier.runtime} {identifier.format}, {users} users x {each} frames at once", rows, note)
