"""The model of bot.py in a process of its own: a picture that hangs or bursts it costs that process and no other."""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
from pebble import ProcessPool

from answering import pictures
from answering.collection import find_index
from answering.console import UserError
from answering.model import Identifier
from answering.pictures import cut_still

SECONDS = 20.0  # for the pictures of one question, then the process is killed
PICTURE_MEMORY = 300_000_000  # bytes that pictures may take there beside the model
LOCAL_BYTES = 100_000_000  # of a picture that a Bot API server of one's own leaves on the disk
FILMS, AGAIN = 5, 60.0  # films that an index names; seconds until a damaged one is read again
log = logging.getLogger("bot")
model: Identifier | UserError  # in that process alone


def load_model(path: str, runtime: str | None, threads: int, index: str | None) -> None:
    """Before all else. An error is kept for describe_model to raise, since a pool tells nobody of it."""
    global model
    try:
        pictures.MAX_BYTES = LOCAL_BYTES  # bot.py lets no larger ones through than it should
        model = Identifier(path, runtime=runtime, threads=threads)
        trim_heap()
        if place := index or find_index(path):
            model.index = open_index(place, model)
    except UserError as error:
        model = error
    if sys.platform == "linux":
        import resource

        trim_heap()
        data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + PICTURE_MEMORY,) * 2)


def trim_heap() -> None:
    """Memory that is free goes to the system: loading DeiT-B in int8 leaves up to 70 MB behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def open_index(place: str | Path, identifier: Identifier):
    """An Index that answers on with what it has read when its folder is damaged or gone, and logs that once."""
    from answering.collection import Index

    class Steady(Index):
        told, again = set(), 0.0  # what was logged; when a damaged one is read again

        def tell(self, error: Exception) -> None:
            if str(error) not in self.told:
                log.warning("%s; the index answers on as it was", " ".join(str(error).split()))
                self.told.add(str(error))

        def refresh(self) -> None:
            if time.monotonic() < self.again:
                return
            try:
                super().refresh()
            except (UserError, OSError, MemoryError) as error:
                if self.version is None:  # there is nothing to answer on with
                    raise
                self.again = time.monotonic() + AGAIN
                self.tell(error)

        def evidence(self, film: int, vector: np.ndarray) -> dict | None:
            try:
                return super().evidence(film, vector)
            except (UserError, OSError) as error:
                self.tell(error)

    return Steady(place, identifier)


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


def describe_model() -> tuple:
    """(the model's contract, why it runs as it does, {title: IMDb id or None}, memory). Raises UserError."""
    if isinstance(model, UserError):
        raise model
    films = dict.fromkeys(model.classes)
    if model.index:
        model.index.refresh()
        films |= {title: film.imdb for title, film in model.index.films.items()}
    return model.contract, model.reason, films, resident()


def name_film(pictures: list[bytes | str], look: str | None = None) -> dict:
    """One answer to pictures of one film, as Answer.as_dict() gives it. Raises UserError if one can't be read.

    pictures: their bytes or paths. look: None, "still" for the still inside a screenshot, or "mirror".
    """
    frames = [model.read(picture) for picture in pictures]
    if look == "still":
        frames = [cut_still(rgb) for rgb in frames]
    elif look == "mirror":
        frames = [rgb[:, ::-1] for rgb in frames]
    try:
        return (model.look if look else model.identify)(frames, FILMS if model.index else 3).as_dict()
    except UserError as error:  # of the index's engine, and none of the picture's
        log.warning("%s", " ".join(str(error).split()))
        raise RuntimeError("index") from None


class Worker:
    """Calls functions in the process that has the model, one at a time. seconds: what a call takes of late."""

    def __init__(self, path: str | Path, *, runtime: str | None = None, threads: int = 0, index: str | None = None):
        self.arguments, self.pool, self.lock = (str(path), runtime, threads, index), None, asyncio.Lock()
        self.seconds = 0.1

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
