"""Turn a film's stills into rows of an index: an embedding, a thumbnail and a time each, without near-duplicates."""

import hashlib
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
from PIL import Image

from answering.console import UserError
from answering.model import Identifier
from answering.pictures import read_image
from answering.projection import unit_length
from answering.stills import Still
from answering.wear import COPIES, wear

DEGRADED_COPIES = 24  # of a film's stills, at most
CHUNK = 32  # frames in memory at a time
THUMBNAIL = 160  # pixels of the longer side
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
    thumbnails: np.ndarray  # uint8: JPEG files one after another
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
        """A JPEG file a still, uint8."""
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


@dataclass
class DecodedStill:
    """What the model and the index take of a still."""

    image: np.ndarray  # model input
    thumbnail: bytes  # a JPEG
    degraded: np.ndarray | None  # model input of a degraded copy, if one is wanted


def decode_still(still: Still, copy_kind: int | None, identifier: Identifier) -> DecodedStill | UserError:
    """A still, or the error that it gives. copy_kind: number in wear.COPIES of the degraded copy, None for none."""
    try:
        rgb = read_image(still.path, draft=2 * identifier.preprocessing["size"])
        image = Image.fromarray(rgb)
        degraded = None
        if copy_kind is not None:
            seed = int.from_bytes(hashlib.sha256(still.name.encode()).digest()[:4], "big")
            degraded = identifier.load(np.asarray(wear(image, copy_kind, np.random.default_rng(seed))))
        return DecodedStill(identifier.load(rgb), make_thumbnail(image), degraded)
    except UserError as error:
        return error


def make_thumbnail(image: Image.Image) -> bytes:
    """A small JPEG."""
    small = image.copy()
    packed = io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(packed, "JPEG", quality=80)
    return packed.getvalue()


def plan_copies(count: int) -> dict[int, int]:
    """{number of a still: kind of its degraded copy}: stills spread over a film of so many, kinds in turn."""
    places = np.linspace(0, count - 1, min(DEGRADED_COPIES, count)).astype(int).tolist()
    return {place: turn % len(COPIES) for turn, place in enumerate(dict.fromkeys(places))}


def decode_stills(stills: list[Still], identifier: Identifier):
    """Yield (still, DecodedStill) of those that can be read, in order; a line on stderr for each of the others."""
    kinds = plan_copies(len(stills))
    script = os.path.basename(sys.argv[0])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(stills), CHUNK):
            part = stills[start : start + CHUNK]
            wanted = [kinds.get(place) for place in range(start, start + len(part))]
            found = list(pool.map(decode_still, part, wanted, [identifier] * len(part)))
            for still, decoded in zip(part, found, strict=True):
                if isinstance(decoded, UserError):
                    print(f"{script}: skipped: {' '.join(str(decoded).split())}", file=sys.stderr)
                else:
                    yield still, decoded


# ---------------------------------------------------------------------------------------------- embedding


def embed(image: np.ndarray, identifier: Identifier) -> np.ndarray:
    """Model input uint8 [S, S, 3] -> float16 [D]."""
    return identifier.run(image[None])["embedding"][0].astype(np.float16)


def embed_film(stills: list[Still], identifier: Identifier) -> FilmRows:
    """A film's rows; near-duplicates are stored once. Raises UserError where no still can be read."""
    kept = []
    vectors = []
    thumbnails = []
    degraded = []  # embeddings of copies
    clean = []  # and numbers of the stills that they were made of
    for still, decoded in decode_stills(stills, identifier):
        vectors.append(embed(decoded.image, identifier))
        if decoded.degraded is not None:
            degraded.append(embed(decoded.degraded, identifier))
            clean.append(len(kept))
        thumbnails.append(decoded.thumbnail)
        kept.append(still)
    if not kept:
        raise UserError("no still in it can be read")
    embedding = np.stack(vectors)
    if not np.isfinite(embedding).all():
        raise UserError("the model gives numbers that are not finite; export it again")
    time_ms = np.array([still.milliseconds for still in kept], np.int64)
    rows, until_ms = drop_near_duplicates(embedding, time_ms)
    return FilmRows(
        embedding=embedding[rows],
        degraded_embedding=np.array(degraded, np.float16).reshape(len(degraded), embedding.shape[1]),
        clean_embedding=embedding[np.array(clean, int)],
        name=np.array([kept[row].name for row in rows]),
        time_ms=time_ms[rows],
        until_ms=until_ms[rows],
        shot=np.array([str(kept[row].shot or "") for row in rows]),
        thumbnails=np.frombuffer(b"".join(thumbnails[row] for row in rows), np.uint8),
        thumbnail_ends=np.cumsum([len(thumbnails[row]) for row in rows]),
    )


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
