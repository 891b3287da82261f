"""Turn a film's stills into rows of an index: an embedding, a thumbnail and a time each, without near-duplicates."""

import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
from PIL import Image

from answering.console import UserError, one_line
from answering.cores import count_cores
from answering.flat import is_flat
from answering.model import Identifier
from answering.packing import make_thumbnail
from answering.pictures import read_image
from answering.projection import unit_length
from answering.reading import keep_pool
from answering.stills import Still, shape_before
from answering.wear import COPIES, wear

DEGRADED_COPIES = 24  # of a film's stills, at most
AHEAD = 8  # pictures that are decoded before they are asked for
CHUNK = 32  # rows that are compared at a time
DUPLICATE_COSINE = 0.99  # about the film's mean: frames so near are stored once
RUN_MS = 10_000  # and so near in time, where times are known


@dataclass
class FilmRows:
    """A film's n stored stills, in film order, and the degraded copies that were made of some."""

    embedding: np.ndarray  # float16 [n, D]
    degraded_embedding: np.ndarray  # float16 [m, D]: of degraded copies
    clean_embedding: np.ndarray  # float16 [m, D]: of the stills that they were made of
    name: np.ndarray  # str [n]: file names
    time_ms: np.ndarray  # int64 [n], -1 where not known
    until_ms: np.ndarray  # int64 [n]: time of the last near-duplicate
    shot: np.ndarray  # str [n], "" where not known
    thumbnails: np.ndarray  # uint8: WebP files one after another
    thumbnail_ends: np.ndarray  # int64 [n]: where each ends

    ARRAY_NAMES: ClassVar[dict[str, str]] = {  # in an index
        "embedding": "embedding",
        "degraded_embedding": "worn",
        "clean_embedding": "of",
        "name": "name",
        "time_ms": "time",
        "until_ms": "until",
        "shot": "shot",
        "thumbnails": "thumbs",
        "thumbnail_ends": "ends",
    }
    PER_STILL: ClassVar[tuple[str, ...]] = ("embedding", "name", "time_ms", "until_ms", "shot")

    def __len__(self) -> int:
        return len(self.name)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays under the names that they have in an index."""
        return {self.ARRAY_NAMES[field.name]: getattr(self, field.name) for field in fields(self)}

    def list_thumbnails(self) -> list[np.ndarray]:
        """A small picture a still, the bytes of its file, uint8."""
        return np.split(self.thumbnails, self.thumbnail_ends[:-1])

    def select(self, keep: np.ndarray) -> "FilmRows":
        """The rows of these numbers; all degraded copies stay."""
        thumbnails = self.list_thumbnails()
        thumbnails = [thumbnails[row] for row in keep.tolist()]
        return replace(
            self,
            **{name: getattr(self, name)[keep] for name in self.PER_STILL},
            thumbnails=np.concatenate([np.zeros(0, np.uint8), *thumbnails]),
            thumbnail_ends=np.cumsum([len(thumbnail) for thumbnail in thumbnails], dtype=np.int64),
        )

    def append(self, new: "FilmRows") -> "FilmRows":
        """These rows and the new ones after them; of degraded copies, these alone."""
        joined = {name: np.concatenate([getattr(self, name), getattr(new, name)]) for name in self.PER_STILL}
        return replace(
            self,
            **joined,
            thumbnails=np.concatenate([self.thumbnails, new.thumbnails]),
            thumbnail_ends=np.concatenate([self.thumbnail_ends, new.thumbnail_ends + len(self.thumbnails)]),
        )


# ----------------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Picture:
    """A decoded frame on its way into an index."""

    still: Still
    rgb: np.ndarray  # uint8 [H, W, 3]
    place: float  # in the film, from 0 to 1


def read_ahead(read: Callable, items: Iterable, threads: int) -> Iterator:
    """As map(read, items), a few items ahead in threads; decoders and runtimes let several threads work at once."""
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_stills(stills: list[Still], identifier: Identifier) -> Iterator[Picture]:
    """The stills that can be read, in order; a line on stderr for each of the others."""
    script = os.path.basename(sys.argv[0])
    draft = 2 * identifier.preprocessing["size"]
    for number, rgb in enumerate(keep_pool(read_still, count_cores()).read_all(stills, draft)):
        if isinstance(rgb, UserError):
            print(f"{script}: skipped: {one_line(rgb)}", file=sys.stderr)
        else:
            yield Picture(stills[number], rgb, number / len(stills))


def read_still(still: Still, draft: int) -> np.ndarray:
    """Its pixels, RGB uint8 [H, W, 3]; draft: see read_image. Raises UserError."""
    return read_image(still.picture or still.path, draft)


def degrade(picture: Picture, kind: int) -> np.ndarray:
    """A degraded copy uint8 [H, W, 3], the same at each run. kind: number in wear.COPIES."""
    about = f"{picture.still.name} {picture.still.milliseconds}"
    seed = int.from_bytes(hashlib.sha256(about.encode()).digest()[:4], "big")
    return np.asarray(wear(Image.fromarray(picture.rgb), kind, np.random.default_rng(seed)))


# ---------------------------------------------------------------------------------------------- embedding


@dataclass(frozen=True)
class EmbeddedPicture:
    """What the index takes of a picture."""

    still: Still
    embedding: np.ndarray  # float16 [D]
    thumbnail: bytes  # a small WebP
    degraded: np.ndarray | None  # float16 [D]: of a degraded copy, where one was made


class FilmEmbedder:
    """Turns a film's pictures into rows, one after another, so that a film is never in memory."""

    def __init__(self, identifier: Identifier, streams: int = 1):
        """streams: pictures to embed at a time, each in a thread; more than one needs a model in ONNX Runtime."""
        self.identifier = identifier
        self.seen = 0  # pictures that came
        self.flat = 0  # of them, with too little in them to tell a film by
        self.copies = 0  # degraded ones that were asked for
        self.last_turn = -1  # the part of the film, of DEGRADED_COPIES, that has its degraded copy
        self.embedded: list[EmbeddedPicture] = []  # the others, in film order
        self.waiting: deque[Future] = deque()  # that are being embedded
        self.pool = ThreadPoolExecutor(streams) if streams > 1 else None

    def add(self, picture: Picture) -> None:
        """Take a picture; pictures come in film order."""
        self.seen += 1
        if is_flat(picture.rgb):
            self.flat += 1
            return
        copy_kind = None
        turn = int(picture.place * DEGRADED_COPIES)
        if turn > self.last_turn:
            copy_kind = self.copies % len(COPIES)
            self.copies += 1
            self.last_turn = turn
        if self.pool is None:
            self.embedded.append(self.embed_picture(picture, copy_kind))
            return
        self.waiting.append(self.pool.submit(self.embed_picture, picture, copy_kind))
        if len(self.waiting) > AHEAD:
            self.embedded.append(self.waiting.popleft().result())

    def embed_picture(self, picture: Picture, copy_kind: int | None) -> EmbeddedPicture:
        """copy_kind: number in wear.COPIES of the degraded copy, None for none."""
        embedding = self.embed(picture.rgb)
        thumbnail = make_thumbnail(Image.fromarray(picture.rgb), shape_before(picture.still.path))
        degraded = None if copy_kind is None else self.embed(degrade(picture, copy_kind))
        return EmbeddedPicture(picture.still, embedding, thumbnail, degraded)

    def embed(self, rgb: np.ndarray) -> np.ndarray:
        """The embedding float16 [D] of a picture uint8 [H, W, 3]."""
        return self.identifier.run(self.identifier.load(rgb)[None])["embedding"][0].astype(np.float16)

    def rows(self) -> FilmRows:
        """The film; near-duplicates are stored once. Raises UserError where no picture is left."""
        while self.waiting:
            self.embedded.append(self.waiting.popleft().result())
        pictures = self.embedded
        if self.flat and not pictures:
            raise UserError("nothing in it but black, fades and titles")
        if not pictures:
            raise UserError("no still in it can be read")
        return join_pictures(pictures)


def join_pictures(pictures: list[EmbeddedPicture]) -> FilmRows:
    """The rows of a film's pictures, one or more, in film order; near-duplicates are stored once.

    Raises UserError for embeddings that are not finite.
    """
    embedding = np.stack([picture.embedding for picture in pictures])
    if not np.isfinite(embedding).all():
        raise UserError("the model gives numbers that are not finite; export it again")
    copied = [row for row, picture in enumerate(pictures) if picture.degraded is not None]
    degraded = [pictures[row].degraded for row in copied]
    time_ms = np.array([picture.still.milliseconds for picture in pictures], np.int64)
    rows, until_ms = drop_near_duplicates(embedding, time_ms)
    kept = [pictures[row] for row in rows]
    return FilmRows(
        embedding=embedding[rows],
        degraded_embedding=np.array(degraded, np.float16).reshape(len(degraded), embedding.shape[1]),
        clean_embedding=embedding[np.array(copied, int)],
        name=np.array([picture.still.name for picture in kept]),
        time_ms=time_ms[rows],
        until_ms=until_ms[rows],
        shot=np.array([str(picture.still.shot or "") for picture in kept]),
        thumbnails=np.frombuffer(b"".join(picture.thumbnail for picture in kept), np.uint8),
        thumbnail_ends=np.cumsum([len(picture.thumbnail) for picture in kept]),
    )


def embed_film(stills: list[Still], identifier: Identifier) -> FilmRows:
    """The rows of a film's stills. Raises UserError where none of them can be read, or has something in it."""
    film = FilmEmbedder(identifier)
    for picture in read_stills(stills, identifier):
        film.add(picture)
    return film.rows()


def drop_near_duplicates(embedding: np.ndarray, time_ms: np.ndarray) -> tuple[list[int], np.ndarray]:
    """(numbers of the rows to store, until_ms [n]): time of the last near-duplicate of each stored row.

    embedding: float16 [n, D]; time_ms: int64 [n], -1 where not known. Of one or two frames, all are stored.
    """
    count = len(embedding)
    unit = unit_length(embedding.astype(np.float32) - embedding.mean(0, dtype=np.float32))
    stored = np.zeros(count, bool)
    until_ms = time_ms.copy()
    for row in range(count):
        if row % CHUNK == 0:  # so many rows at a time: all of a long film's would fill the memory
            cosine = unit[row : row + CHUNK] @ unit[: row + CHUNK].T
        near = np.flatnonzero(stored[:row] & (cosine[row % CHUNK, :row] > DUPLICATE_COSINE)).tolist()
        if time_ms[row] >= 0:
            near = [earlier for earlier in near if time_ms[row] - until_ms[earlier] <= RUN_MS]
        if near and count > 2:
            until_ms[near[-1]] = time_ms[row]
        else:
            stored[row] = True
    return np.flatnonzero(stored).tolist(), until_ms
