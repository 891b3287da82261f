"""From stills to the vectors of an index: embeddings, a projection in which films lie apart, thresholds.

Nothing to run here; index.py does. numpy and scipy, with any exported model.
"""

import base64
import hashlib
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data import list_frames
from engines import unit_length
from identify import Identifier
from image import UserError, read_image
from metrics import MARGIN, TARGETS, UNKNOWN_SHARE, lowest_threshold
from wear import COPIES, wear

# measured on 20 real films, DINOv2-S (RESULTS.md)
DIMS = 128  # numbers a vector: fewer tell films apart as well, more find worn frames of films known from video
SHRINK = 0.3  # of the covariance within films towards a multiple of the identity
EVEN = -0.1  # power of each dimension's variance by which it is weighed: a little less for those that part films most
WEAR = 0.2  # weight of what wear changes beside what changes within a film
MEAN = 0.75  # how much the middle of a film's frames counts beside the nearest of them
SECOND = 0.3  # how much the second film's similarity counts against the first: dull frames are near to everything
PARTS = 4  # of the films; each is left out in turn
DENSE_MS = 10_000  # between frames: a film known so closely is asked for between its known frames, not beside them
WORN, CHUNK, THUMB = 24, 32, 160  # worn copies a film, frames in memory at a time, pixels of a thumbnail
SAME, RUN_MS = 0.99, 10_000  # cosine about the film's mean, and time, so near that frames are stored once
MANY, FEW = 4, 0.5  # with fewer films none can play a stranger to the others: then this threshold

# ------------------------------------------------------------------------------------------------ stills


def list_stills(folder: Path, every: int) -> list[dict]:
    """Every so-manieth still of a film, in film order: data.list_frames' rows with "path", and -1 for no time."""
    stills = []
    for frame in list_frames(folder)[::every]:
        name, when = frame["file"].encode(errors="replace").decode(), frame["time"]
        known = when is not None and 0 <= when < 1e12
        stills.append(frame | {"file": name, "path": folder / frame["file"], "time": int(when) if known else -1})
    return stills


def look_at(still: dict, kind: int | None, identifier: Identifier) -> tuple:
    """(model input, thumbnail as JPEG bytes, worn model input or None) of a still, or the UserError that it gives."""
    try:
        rgb = read_image(still["path"], draft=2 * identifier.preprocessing["size"])
        image = Image.fromarray(rgb)
        worn = None
        if kind is not None:
            seed = int.from_bytes(hashlib.sha256(still["file"].encode()).digest()[:4], "big")
            worn = identifier.load(np.asarray(wear(image, kind, np.random.default_rng(seed))))
        thumb, packed = image.copy(), io.BytesIO()
        thumb.thumbnail((THUMB, THUMB))
        thumb.save(packed, "JPEG", quality=80)
        return identifier.load(rgb), packed.getvalue(), worn
    except UserError as error:
        return error, None, None


def embed_film(stills: list[dict], identifier: Identifier) -> dict:
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
        near = np.flatnonzero(stored[:i] & (alike[i % CHUNK, :i] > SAME)).tolist() if len(kept) > 2 else []
        near = [r for r in near if still["time"] < 0 or still["time"] - until[r] <= RUN_MS]
        first[i] = near[-1] if near else i
        until[first[i]], stored[i] = still["time"], not near
    rows = np.flatnonzero(stored).tolist()
    place = {row: k for k, row in enumerate(rows)}
    return {
        "embedding": embedding[rows],
        "worn": np.array(worn, np.float16).reshape(len(worn), embedding.shape[1]),
        "of": embedding[np.array(worn_of, int)],
        "name": np.array([kept[r]["file"] for r in rows]),
        "time": np.array([kept[r]["time"] for r in rows], np.int64),
        "until": np.array([until[r] for r in place], np.int64),
        "shot": np.array([str(kept[r]["shot"] or "") for r in rows]),
        "thumbs": np.frombuffer(b"".join(thumbs[r] for r in rows), np.uint8),
        "ends": np.cumsum([len(thumbs[r]) for r in rows]),
    }


# ---------------------------------------------------------------------------- projection and thresholds


def fit_projection(embedding: np.ndarray, film: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(project float32 [D, d], offset [d]): whitened by the covariance within films, the d directions of most variance.

    embedding [N, D], film [N] numbers, change [M, D]: what wear did to some frames. Films weigh alike. Whitening within
    classes is Hatch 2006 (WCCN); the directions are those of linear discriminant analysis, then of the whole.
    """
    try:
        from scipy.linalg import eigh
    except ImportError:
        raise UserError("scipy is needed to fit an index: pip install scipy", 2) from None
    embedding = embedding.astype(np.float32)
    mean, scale = embedding.mean(0), np.maximum(embedding.std(0), 1e-6)
    x = (embedding - mean) / scale
    film = np.unique(film, return_inverse=True)[1]
    count = np.bincount(film)
    centre = np.zeros((len(count), x.shape[1]), np.float32)
    np.add.at(centre, film, x)
    centre /= count[:, None]
    within = (x - centre[film]) / np.sqrt(count[film] * len(count))[:, None]
    within = within.T @ within
    whole = within + centre.T @ centre / len(count)
    change = change.astype(np.float32) / scale
    within += WEAR * change.T @ change / max(1, len(change))
    level = np.trace(within) / len(within) or 1.0
    within = (1 - SHRINK) * within + SHRINK * level * np.eye(len(within), dtype=np.float32)
    size = len(within)
    variance, project = eigh(whole, within, subset_by_index=[max(0, size - DIMS), size - 1], check_finite=False)
    project = project * np.maximum(variance, max(1e-3 * variance[-1], 1e-9)) ** EVEN / scale[:, None]
    return project.astype(np.float32), (mean @ project).astype(np.float32)


def project_all(embedding: np.ndarray, project: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Embeddings [N, D] -> float32 [N, d] of length 1."""
    return unit_length(embedding.astype(np.float32) @ project - offset)


def pack_vectors(vectors: np.ndarray) -> np.ndarray:
    """Float [N, d] -> int8, the largest number of a row at 127; the length is got back when they are read."""
    return np.round(vectors * (127 / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-9))).astype(np.int8)


def keep_vectors(engine, title: str, vectors: np.ndarray) -> dict:
    """Give a film's vectors [n, d] to an engine; returns what the state says of them: their name, and their middle."""
    middle = pack_vectors(vectors.sum(0, keepdims=True))
    return {"vectors": engine.put_vectors(title, pack_vectors(vectors)), "middle": base64.b64encode(middle).decode()}


def read_middles(films: list[dict]) -> np.ndarray:
    """The middles that keep_vectors wrote, float32 [F, d]."""
    rows = np.stack([np.frombuffer(base64.b64decode(film["middle"]), np.int8) for film in films])
    return unit_length(rows.astype(np.float32))


def join(nearest: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """How like a frame is to a film: by its nearest frame, and by the middle of its frames, of any equal shape."""
    return (nearest + MEAN * middle) / (1 + MEAN)


def film_scores(best: np.ndarray) -> np.ndarray:
    """Scores [N, F] from the similarity of each film [N, F]; with under 4 films they are the same."""
    if best.shape[1] < MANY:
        return best
    order = np.sort(best, axis=1)
    return best - SECOND * np.where(best == order[:, -1:], order[:, -2:-1], order[:, -1:])


def nearest_by_film(alike: np.ndarray, film: np.ndarray, films: int) -> np.ndarray:
    """Greatest similarity [N, F] a film, from those to frames [N, M]; film: numbers [M] in rising order."""
    return np.maximum.reduceat(alike, np.searchsorted(film, np.arange(films)), axis=1)


def held_apart(when: np.ndarray) -> np.ndarray:
    """Numbers [n] of a film's frames in order; of one number are those that are left out with a frame, to ask for it.

    Of a film known densely, from video, a question lies between known frames: the frame alone. Of one known by
    scattered stills it is an unseen scene: a tenth of the film. when: milliseconds, -1 where not known.
    """
    places = np.arange(len(when))
    return places if is_dense(when) else places * 10 // len(when)


def is_dense(when: np.ndarray) -> bool:
    """Whether a film with frames at these milliseconds, -1 where not known, is known densely."""
    known = when[when >= 0]
    return 2 * len(known) > max(2, len(when)) and bool(np.median(np.diff(np.sort(known))) <= DENSE_MS)


def ask_within(vectors: np.ndarray, when: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How like frames asked [n] of a film are to the rest of it, each with its surroundings left out."""
    apart = held_apart(when)
    left_out = apart[asked][:, None] == apart
    nearest = np.where(left_out, -1, vectors[asked] @ vectors.T).max(1)
    middle = unit_length(vectors.sum(0) - left_out.astype(np.float32) @ vectors)
    return join(nearest, (vectors[asked] * middle).sum(1))


def ask_itself(films: list[dict], sample: int, basis: tuple[np.ndarray, np.ndarray] | None = None) -> dict:
    """Questions that an index asks itself: its frames with their surroundings left out, and with their film left out.

    films: {"embedding", "time", "change"} of each; basis: what fit_projection makes of all, else it is made. Left out
    means of the projection too, else strangers look strange that are not. Gives scores of known [N] and unknown frames
    [M], which film each belongs to, which films were best and whether the three best hold the right one.
    """
    embedding = np.concatenate([film["embedding"] for film in films])
    owner = np.repeat(np.arange(len(films)), [len(film["embedding"]) for film in films])
    parts = np.random.default_rng(13).permutation(len(films)) % min(PARTS, len(films))
    asked = [np.linspace(0, len(film["time"]) - 1, min(sample, len(film["time"]))).astype(int) for film in films]
    found = {name: [] for name in ("known", "film", "best", "held", "unknown", "stranger")}

    def middles(vectors: np.ndarray) -> np.ndarray:
        return unit_length(np.add.reduceat(vectors, np.searchsorted(owner, np.arange(len(films)))))

    basis = basis or fit_projection(embedding, owner, np.concatenate([film["change"] for film in films]))
    vectors = project_all(embedding, *basis)
    middle = middles(vectors)
    for f, at in enumerate(asked):
        own = vectors[owner == f]
        best = join(nearest_by_film(own[at] @ vectors.T, owner, len(films)), own[at] @ middle.T)
        best[:, f] = ask_within(own, films[f]["time"], at)
        scores = film_scores(best)
        found["known"] += scores.max(1).tolist()
        found["best"] += scores.argmax(1).tolist()
        found["held"] += (np.argsort(-scores, axis=1)[:, :3] == f).any(1).tolist()
        found["film"] += [f] * len(at)
    for part in range(parts.max() + 1) if len(films) >= MANY else []:
        stay = parts[owner] != part
        change = np.concatenate([film["change"] for film, p in zip(films, parts, strict=True) if p != part])
        vectors = project_all(embedding, *fit_projection(embedding[stay], owner[stay], change))
        middle = middles(vectors)
        for f in np.flatnonzero(parts == part).tolist():
            own, rest = vectors[owner == f][asked[f]], np.delete(np.arange(len(films)), f)
            best = join(nearest_by_film(own @ vectors.T, owner, len(films)), own @ middle.T)[:, rest]
            found["unknown"] += film_scores(best).max(1).tolist()
            found["stranger"] += [f] * len(own)
    return {name: np.array(values) for name, values in found.items()}


def fit_rule(asked: dict, sizes: np.ndarray, share: float = UNKNOWN_SHARE) -> dict:
    """Thresholds and a logistic curve for the scores, from ask_itself; sizes: frames a film.

    Known frames count by the root of their film's size, unknown films alike, and they make up this share of all.
    """
    known, film, right = asked["known"], asked["film"], asked["best"] == asked["film"]
    if not len(asked["unknown"]):
        return {"movie": FEW, "shortlist": FEW / 2, "slope": 12.0, "shift": -12.0 * FEW, "figures": {}}
    weights = np.sqrt(sizes[film]) / np.bincount(film)[film], 1 / np.bincount(asked["stranger"])[asked["stranger"]]
    weights = [part / part.sum() for part in weights]
    weight = np.concatenate([(1 - share) * weights[0], share * weights[1]])
    score, none = np.concatenate([known, asked["unknown"]]), np.zeros(len(asked["unknown"]))
    good, held = np.concatenate([right, none]), np.concatenate([asked["held"], none])
    highest = float(score.max()) + 1e-3  # where no threshold is right so often: above all that it asked itself
    movie = min(highest, lowest_threshold(score, good, weight, TARGETS["movie"] + MARGIN))
    rest = score < movie
    shortlist = min(movie, lowest_threshold(score[rest], held[rest], weight[rest], TARGETS["shortlist"]))
    line = np.zeros(2)  # the curve by Newton's method, its slope held by a weak prior
    design = np.stack([score - movie, np.ones(len(score))], 1)
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(design @ line, -30, 30)))
        gain = design.T @ (weight * (good - p)) - [1e-4 * line[0], 0]
        line += np.linalg.solve((design * (weight * p * (1 - p))[:, None]).T @ design + np.diag([1e-4, 1e-9]), gain)
    ranks = np.argsort(np.argsort(score))[: len(known)]
    auroc = (ranks.sum() - len(known) * (len(known) - 1) / 2) / (len(known) * len(none))
    named, strangers = weights[0] @ (known >= movie), weights[1] @ (asked["unknown"] >= movie)
    figures = {"auroc": auroc, "named": named, "strangers": strangers, "exact": weights[0] @ (right & (known >= movie))}
    rule = {"movie": movie, "shortlist": shortlist, "slope": line[0], "shift": line[1] - line[0] * movie}
    return {name: float(value) for name, value in rule.items()} | {
        "figures": {name: float(value) for name, value in figures.items()}
    }
