"""The model in a process of its own: a picture that hangs or crashes it costs that process and no other."""

import asyncio
import contextlib
import io
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pebble import ProcessPool
from PIL import Image

from answering import formats, pictures
from answering.clip import Clip, identify_clip, look_at_clip, read_question
from answering.collection import Index, attach_index
from answering.console import UserError, count_of
from answering.flat import is_flat
from answering.model import Answer, Contract, Evidence, Identifier
from answering.runtimes import trim_heap
from answering.screenshots import cut_still
from answering.search import NoFilms
from answering.store import USER_STILL_PREFIX
from telegram_bot.marks import mark_picture

SECONDS = 20.0  # for the pictures of one question, then the process is killed
PICTURE_MEMORY = 300_000_000  # bytes that pictures may take there beside the model
LOCAL_BYTES = 100_000_000  # of a picture that a Bot API server of one's own leaves on the disk
FILMS = 5  # that an answer lists with an index, for "show another"
CLASSIFIER_FILMS = 3  # that it lists without one
CLIP_FRAMES = 12  # that are asked of a clip; with 24 hardly more films are right (bench.py clip)
CLIP_SECONDS = 6.0  # for reading a clip; then the frames that were read are asked
LOOKS = {"still": cut_still, "mirror": lambda rgb: rgb[:, ::-1]}  # at a picture, other than as it is
RETRY_SECONDS = 60.0  # until a damaged index is read again
NO_FILMS = "no films"  # the reason of an answer where the last film of the index was removed
log = logging.getLogger("bot")


@dataclass
class ModelDescription:
    """What the bot knows of the model in the other process."""

    contract: Contract
    reason: str  # why it runs as it does: "openvino int8: the fastest here"
    films: dict[str, str | None]  # title: IMDb id, where it is known
    memory: int  # bytes that the process holds


# ------------------------------------------------------------------------------ in the process with the model

model: Identifier | Exception  # an error is kept for describe_model to raise, since a pool tells nobody of it
index_place: str | None = None  # as --index names it
show_users_stills = False  # whether a picture that a user sent is shown to others as a proof


def load_model(path: str, runtime: str | None, threads: int, index: str | None, show_users: bool = False) -> None:
    """Before all else in that process: load the model and its index, then cap the memory that pictures may take."""
    global model, index_place, show_users_stills
    formats.MAX_BYTES = pictures.MAX_BYTES = LOCAL_BYTES  # bot.py lets no larger ones through than it should
    index_place = index
    show_users_stills = show_users
    try:
        model = open_model(path, runtime, threads, index)
    except (UserError, OSError) as error:
        model = error
    if sys.platform == "linux":
        limit_memory()


def open_model(path: str, runtime: str | None, threads: int, index: str | None) -> Identifier:
    """The model with its index; a line in the log says why a classifier is left without one. Raises UserError."""
    identifier = Identifier(path, runtime=runtime, threads=threads)
    trim_heap()
    if trouble := attach_index(identifier, index, SteadyIndex):
        log.warning("%s", trouble)
    if not identifier.classes and not identifier.index:
        raise UserError(f"--model {path}: an embedder knows no films; name an --index, or export a trained run")
    return identifier


def attach_late() -> None:
    """Take an index that came, or was mended, after a classifier started without one."""
    if attach_index(model, index_place, SteadyIndex) is None and model.index:
        log.warning("the index is there now, with %s", count_of(len(model.index.films), "film"))


def limit_memory() -> None:
    """Pictures may take PICTURE_MEMORY beside what the process holds now; Linux."""
    import resource

    trim_heap()
    data = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[5]) * resource.getpagesize()
    limit = data + PICTURE_MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class SteadyIndex(Index):
    """An Index that answers on with what it has read when its collection is damaged or gone, and logs that once."""

    def __init__(self, place: str | Path, identifier: Identifier):
        self.logged: set[str] = set()
        self.retry_at = 0.0  # time.monotonic(), after trouble
        self.was_read = False
        super().__init__(place, identifier)
        self.was_read = True

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """As Index has it; where it can't be read, what was read before answers on."""
        with contextlib.ExitStack() as stack:
            self.try_to_read(stack)
            yield

    def try_to_read(self, stack: contextlib.ExitStack) -> None:
        """Begin a view of the collection, which stack ends, and read what changed."""
        if time.monotonic() < self.retry_at:
            return
        try:
            stack.enter_context(super().reading())
        except NoFilms as error:
            if not self.was_read:
                raise
            self.films = {}  # the last was removed; what was read before must not be named
            self.log_once(error, "no film of it is named")
        except (UserError, OSError, MemoryError) as error:
            if not self.was_read:  # there is nothing to answer on with
                raise
            self.retry_at = time.monotonic() + RETRY_SECONDS
            self.log_once(error)

    def evidence(self, *asked) -> Evidence | None:
        """As Index has it; None where its rows can't be read."""
        try:
            return super().evidence(*asked)
        except (UserError, OSError) as error:
            self.log_once(error)
            return None

    def still(self, title: str, file: str) -> bytes | None:
        """The thumbnail of a still by its film and file name; None where it is gone or can't be read."""
        query = "SELECT still.thumbnail FROM still JOIN film ON film.id = still.film WHERE title = ? AND still.file = ?"
        try:
            with self.reading():
                rows = self.collection.home.execute(f"{query} LIMIT 1", [title, file])
        except (UserError, OSError) as error:
            self.log_once(error)
            return None
        return bytes(rows[0][0]) if rows else None

    def imdb_ids(self) -> dict[str, str | None]:
        """As Index has it; without ids where its rows can't be read."""
        try:
            return super().imdb_ids()
        except (UserError, OSError) as error:
            self.log_once(error)
            return dict.fromkeys(self.films)

    def log_once(self, error: Exception, what: str = "the index answers on as it was") -> None:
        words = " ".join(str(error).split())
        if words not in self.logged:
            log.warning("%s; %s", words, what)
            self.logged.add(words)


def make_jpeg(thumbnail: bytes) -> bytes:
    """A JPEG of a thumbnail of an index. Raises OSError for what is no picture."""
    with Image.open(io.BytesIO(thumbnail)) as picture:
        if picture.format == "JPEG":
            return thumbnail
        packed = io.BytesIO()
        picture.convert("RGB").save(packed, "JPEG", quality=90)
    return packed.getvalue()


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def describe_model() -> ModelDescription:
    """Raises the UserError or OSError that loading the model ended with."""
    if isinstance(model, Exception):
        raise model
    films = dict.fromkeys(model.classes)
    if model.index:
        model.index.refresh()
        films |= model.index.imdb_ids()
    else:
        attach_late()
    return ModelDescription(model.contract, model.reason, films, resident())


def name_film(pictures: list[bytes | str], look: str | None = None) -> dict:
    """One answer to pictures of one film, as Answer.as_dict() gives it, and "marks" of its frames.

    The first candidate's still is there as a JPEG; read_still gives the others'. Raises UserError if none can be read.
    pictures: their bytes or paths; one alone may be an animation or a video. look: None, "still" for the still inside
    a screenshot, or "mirror".
    """
    clip = None
    if len(pictures) == 1:
        question = read_question(pictures[0], model.draft, most=CLIP_FRAMES, seconds=CLIP_SECONDS)
        clip = question.clip
        frames = [question.picture]
    else:
        frames = read_all(pictures)
    marks = [mark_picture(rgb) for rgb in (clip.pictures if clip else frames)]
    try:
        with without_empty_index() as knows_films:
            answer = ask(frames, clip, LOOKS.get(look)) if knows_films else Answer("unknown", [], 0.0, reason=NO_FILMS)
    except UserError as error:  # of the index's engine, and none of the picture's
        log.warning("%s", " ".join(str(error).split()))
        raise RuntimeError("index") from None
    return pack_answer(answer) | {"marks": marks}


def read_all(pictures: list[bytes | str]) -> list[np.ndarray]:
    """RGB uint8 [H, W, 3] of those that can be read. Raises UserError if none can."""
    frames = []
    trouble = None
    for picture in pictures:
        try:
            frames.append(model.read(picture))
        except UserError as error:
            trouble = error
    if not frames:
        raise trouble
    return frames


@contextlib.contextmanager
def without_empty_index() -> Iterator[bool]:
    """Ask the classifier alone while the index holds no films. Yields whether any film is known."""
    index = model.index
    if index:
        index.refresh()
        model.index = index if index.films else None
    try:
        yield bool(model.classes or model.index)
    finally:
        model.index = index


def ask(frames: list[np.ndarray], clip: Clip | None, change: Callable | None) -> Answer:
    """The answer to a clip, or to frames of one film; change: what is done to each picture before it is looked at."""
    count = FILMS if model.index else CLASSIFIER_FILMS
    if clip and change:
        return look_at_clip(model, clip.changed(change), count)
    if clip:
        return identify_clip(model, clip, count)
    answer = model.look([change(rgb) for rgb in frames], count) if change else model.identify(frames, count)
    if len(frames) > 1 and answer.frames is None:
        answer = replace(answer, frames=sum(not is_flat(rgb) for rgb in frames))
    return answer


def pack_answer(answer: Answer) -> dict:
    """As Answer.as_dict(), with no still but the first candidate's, which is a JPEG or empty."""
    candidates = []
    for place, candidate in enumerate(answer.candidates):
        proof = candidate.evidence
        if proof:
            thumbnail = show_still(proof.file, proof.thumbnail) if place == 0 else b""
            candidate = replace(candidate, evidence=replace(proof, thumbnail=thumbnail))
        candidates.append(candidate)
    return replace(answer, candidates=candidates).as_dict()


def read_still(title: str, file: str) -> bytes:
    """The JPEG of a still by its film and file name; empty where it is gone or not to be shown."""
    found = model.index.still(title, file) if model.index else None
    return show_still(file, found) if found else b""


def show_still(file: str, thumbnail: bytes) -> bytes:
    """A JPEG, which Telegram takes for a photo; empty for a user's picture that is not to be shown, or no picture."""
    if file.startswith(USER_STILL_PREFIX) and not show_users_stills:
        return b""
    try:
        return make_jpeg(thumbnail)
    except OSError:
        return b""


# -------------------------------------------------------------------------------------- in the bot's process


class Worker:
    """Calls functions in the process that has the model, one at a time."""

    def __init__(
        self,
        path: str | Path,
        *,
        runtime: str | None = None,
        threads: int = 0,
        index: str | None = None,
        show_users_stills: bool = False,
    ):
        self.arguments = (str(path), runtime, threads, index, show_users_stills)  # of load_model
        self.pool: ProcessPool | None = None
        self.lock = asyncio.Lock()
        self.seconds = 0.1  # that a call takes of late

    async def start(self) -> ModelDescription:
        """Load the model. Raises UserError where it can't be loaded."""
        try:
            return await self.call(describe_model)
        except RuntimeError:
            why = "the process that loads it was killed; is there memory enough?"
            raise UserError(f"--model {self.arguments[0]}: {why}") from None

    async def call(self, function: Callable, *args):
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
