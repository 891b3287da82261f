"""From stills to the vectors of an index: embeddings, a projection in which films lie apart, thresholds.

Nothing to run here; index.py does. numpy and scipy, with any exported model.
"""

import hashlib
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from answering.console import UserError
from answering.model import Identifier
from answering.pictures import read_image
from answering.projection import unit_length
from answering.stills import Still
from answering.wear import COPIES, wear

WORN, CHUNK, THUMB = 24, 32, 160  # worn copies a film, frames in memory at a time, pixels of a thumbnail
DUPLICATE_COSINE, RUN_MS = 0.99, 10_000  # cosine about the film's mean, and time, so near that frames are stored once


def look_at(still: Still, kind: int | None, identifier: Identifier) -> tuple:
    """(model input, thumbnail as JPEG bytes, worn model input or None) of a still, or the UserError that it gives."""
    try:
        rgb = read_image(still.path, draft=2 * identifier.preprocessing["size"])
        image = Image.fromarray(rgb)
        worn = None
        if kind is not None:
            seed = int.from_bytes(hashlib.sha256(still.name.encode()).digest()[:4], "big")
            worn = identifier.load(np.asarray(wear(image, kind, np.random.default_rng(seed))))
        thumb, packed = image.copy(), io.BytesIO()
        thumb.thumbnail((THUMB, THUMB))
        thumb.save(packed, "JPEG", quality=80)
        return identifier.load(rgb), packed.getvalue(), worn
    except UserError as error:
        return error, None, None


def embed_film(stills: list[Still], identifier: Identifier) -> dict:
    """A film's rows as arrays: embedding float16 [n, D], worn and worn_of, file, time, until, shot, thumbs, ends.

    Near-duplicates are stored once; until is the time of the last of a run of them. Raises UserError without a still.
    """
    kinds = dict.fromkeys(np.linspace(0, len(stills) - 1, min(WORN, len(stills))).astype(int).tolist())
    kinds = {place: k % len(COPIES) for k, place in enumerate(kinds)}
    vectors, thumbs, kept, worn, worn_of = [], [], [], [], []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(stills), CHUNK):
            part = stills[start : start + CHUNK]
            looks = list(
                pool.map(look_at, part, [kinds.get(start + k) for k in range(len(part))], [identifier] * len(part))
            )
            for still, (image, thumb, copy) in zip(part, looks, strict=True):
                if isinstance(image, UserError):
                    print(f"index.py: skipped: {' '.join(str(image).split())}", file=sys.stderr)
                    continue
                vectors.append(identifier.run(image[None])["embedding"][0].astype(np.float16))
                if copy is not None:
                    worn.append(identifier.run(copy[None])["embedding"][0].astype(np.float16))
                    worn_of.append(len(kept))
                thumbs.append(thumb)
                kept.append(still)
    if not kept:
        raise UserError("no still in it can be read")
    embedding = np.stack(vectors)
    if not np.isfinite(embedding).all():
        raise UserError("the model gives numbers that are not finite; export it again")
    unit = unit_length(embedding.astype(np.float32) - embedding.mean(0, dtype=np.float32))
    first, until, stored = {}, {}, np.zeros(len(kept), bool)  # first: row -> the row that it is stored as
    for i, still in enumerate(kept):
        if i % CHUNK == 0:  # so many rows at a time: a long film's would fill the memory
            alike = unit[i : i + CHUNK] @ unit[: i + CHUNK].T
        near = np.flatnonzero(stored[:i] & (alike[i % CHUNK, :i] > DUPLICATE_COSINE)).tolist() if len(kept) > 2 else []
        near = [r for r in near if still.milliseconds < 0 or still.milliseconds - until[r] <= RUN_MS]
        first[i] = near[-1] if near else i
        until[first[i]], stored[i] = still.milliseconds, not near
    rows = np.flatnonzero(stored).tolist()
    place = {row: k for k, row in enumerate(rows)}
    return {
        "embedding": embedding[rows],
        "worn": np.array(worn, np.float16).reshape(len(worn), embedding.shape[1]),
        "of": embedding[np.array(worn_of, int)],
        "name": np.array([kept[r].name for r in rows]),
        "time": np.array([kept[r].milliseconds for r in rows], np.int64),
        "until": np.array([until[r] for r in place], np.int64),
        "shot": np.array([str(kept[r].shot or "") for r in rows]),
        "thumbs": np.frombuffer(b"".join(thumbs[r] for r in rows), np.uint8),
        "ends": np.cumsum([len(thumbs[r]) for r in rows]),
    }
