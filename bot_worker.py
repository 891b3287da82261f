"""The model of bot.py in a process of its own: a picture that hangs or bursts it costs that process and no other."""

import asyncio
import ctypes
import multiprocessing
import sys
import time
from pathlib import Path

from pebble import ProcessPool

from identify import Identifier
from image import UserError

SECONDS = 20.0  # for the pictures of one question, then the process is killed
ROOM = 300_000_000  # bytes that pictures may take there beside the model
model: Identifier | UserError  # in that process alone


def load_model(path: str, runtime: str | None, threads: int) -> None:
    """Before all else. An error is kept for describe_model to raise, since a pool tells nobody of it."""
    global model
    try:
        model = Identifier(path, runtime=runtime, threads=threads)
    except UserError as error:
        model = error
    if sys.platform == "linux":
        import resource

        ctypes.CDLL(None).malloc_trim(0)  # loading DeiT-B in int8 leaves up to 70 MB behind
        data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + ROOM,) * 2)


def describe_model() -> tuple:
    """(the model's contract, why it runs as it does). Raises UserError if it can't be loaded."""
    if isinstance(model, UserError):
        raise model
    return model.contract, model.reason


def name_film(pictures: list[bytes]) -> dict:
    """One answer to pictures of one film, as Answer.as_dict() gives it. Raises UserError if one can't be read."""
    return model.identify(pictures).as_dict()


class Worker:
    """Calls functions in the process that has the model, one at a time. seconds: what a call takes of late."""

    def __init__(self, path: str | Path, *, runtime: str | None = None, threads: int = 0):
        self.arguments, self.pool, self.lock, self.seconds = (str(path), runtime, threads), None, asyncio.Lock(), 0.1

    async def start(self) -> tuple:
        """As describe_model."""
        try:
            return await self.call(describe_model)
        except RuntimeError:
            why = "the process that loads it was killed; is there memory enough?"
            raise UserError(f"--model {self.arguments[0]}: {why}") from None

    async def call(self, function, *args):
        """function(*args). Raises what it raises, TimeoutError after SECONDS, and OSError or RuntimeError if killed."""
        async with self.lock:
            if self.pool and not self.pool.active:  # its process was killed between two calls
                await self.stop()
            if not self.pool:
                spawn = multiprocessing.get_context("spawn")  # a forked one would have the token in its memory
                self.pool = ProcessPool(1, initializer=load_model, initargs=self.arguments, context=spawn)
            start = time.perf_counter()
            try:
                return await asyncio.wrap_future(self.pool.schedule(function, args, timeout=SECONDS))
            finally:
                self.seconds += 0.1 * (time.perf_counter() - start - self.seconds)

    async def stop(self) -> None:
        if self.pool:
            pool, self.pool = self.pool, None
            pool.stop()
            await asyncio.to_thread(pool.join)
