"""The living collection: films are added in a minute without training, and every answer shows its proof.

python index.py add data/raw --model export          # every folder of stills becomes a film; run again after changes
python index.py add ~/shots/Alien --title "Alien (1979)" --every 2
python index.py search frame.jpg --sheet nearest.png # the nearest stills beside the frame
python index.py list; python index.py check; python index.py remove "Alien (1979)"; python index.py rebuild

identify.py and bot.py load this file only when there is an index. No torch.
"""

import argparse
import base64
import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from PIL.Image import open as open_image  # ultralytics replaces Image.open in the whole process

from identify import Answer, Candidate, Identifier, draw_evidence, reference_frames, relative_error
from image import IMAGE_SUFFIXES, UserError, atomic_write, natural_key, one_line_errors, read_image

FORMAT = "movie-by-frame index 1"
# measured on 20 real films, DINOv2-S (RESULTS.md)
DIMS = 128  # numbers a vector: fewer tell films apart as well, more find worn frames of films known from video
SHRINK = 0.3  # of the covariance within films towards a multiple of the identity
EVEN = -0.1  # power of each dimension's variance by which it is weighed: a little less for those that part films most
WEAR, WORN = 0.1, 24  # weight of what wear changes beside what changes within a film; worn copies a film for that
SECOND = 0.3  # how much the second film's similarity counts against the first: dull frames are near to everything
FIT_FRAMES, FIT_FILMS, PARTS = 6000, 300, 4  # what projection and thresholds are fitted on; parts that films leave in
DENSE_MS = 10_000  # between frames: a film known so closely is asked for between its known frames, not beside them
SAME = 0.99  # cosine about the film's mean; frames nearer than that are stored once
RIGHT, CONTAINS, UNKNOWN_SHARE = 0.95, 0.80, 0.3  # targets of movie and shortlist, share of frames of unknown films
OWN = 0.03  # a film is named only above this quantile of the scores of its own frames
MANY, FEW = 4, 0.53  # with fewer films none can play a stranger to the others: then this threshold
STRETCH_MS, ALIKE = 5000, 0.1  # frames of a film so near in time, and nearly as like, are one stretch of proof
EXACT = 200_000  # frames up to which plain numpy searches
GROWTH = 1.25  # projection and thresholds are fitted anew when there are so many times more films
CHUNK = 32  # frames in memory at a time
THUMB = 160  # pixels

# ------------------------------------------------------------------------------------------------ frames


def find_folders(raw: list[Path], title: str | None) -> dict[str, Path]:
    """{title: folder}: folders of folders of images, or one that holds images itself. Raises UserError."""
    films: dict[str, Path] = {}
    for root in raw:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder", 2)
        entries = sorted(os.scandir(root), key=lambda e: e.name)
        own = any(e.is_file() and Path(e.name).suffix.lower() in IMAGE_SUFFIXES for e in entries)
        inside = [
            Path(e.path) for e in entries if e.is_dir(follow_symlinks=False) and not re.match(r"\.(?!\.)", e.name)
        ]
        for folder in [root] if own else inside:
            name = title or folder.resolve().name
            if name in films:
                raise UserError(f"{folder}: the title {name!r} is also in {films[name]}; rename one of them", 2)
            films[name] = folder
    if not films:
        raise UserError(f"{raw[0]}: no folders of images in it", 2)
    return films


def list_stills(folder: Path, every: int) -> list[dict]:
    """Every so-manieth still of a film, in film order: {"file", "path", "time", "shot", "imdb"}, by frames.jsonl."""
    known = {}
    if (folder / "frames.jsonl").exists():
        for line in (folder / "frames.jsonl").read_text("utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # a line cut off by a kill
                frame = json.loads(line)
                known[str(frame["file"])] = frame
    paths = [
        p for p in sorted(folder.rglob("*"), key=natural_key) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    ]
    stills = []
    for path in paths:
        name = str(path.relative_to(folder)).encode(errors="replace").decode()
        frame = known.get(name, {})
        when, shot, imdb = frame.get("shot_time_ms"), frame.get("shot"), frame.get("imdb")
        number = isinstance(when, (int, float)) and not isinstance(when, bool) and 0 <= when < 1e12
        stills.append({"file": name, "path": path, "time": int(when) if number else -1})
        stills[-1] |= {"shot": shot if isinstance(shot, (int, str)) else None, "imdb": imdb}
    if stills and all(still["time"] >= 0 for still in stills):
        stills.sort(key=lambda still: still["time"])
    return stills[::every]


def wear(image: Image.Image, kind: int, rng: np.random.Generator) -> Image.Image:
    """The picture as people send it: 0 a photo of a screen, 1 a crop, 2 small and compressed several times."""
    if kind == 1:
        width, height = (int(side * rng.uniform(0.6, 0.9)) for side in image.size)
        left, top = int(rng.uniform(0, image.width - width)), int(rng.uniform(0, image.height - height))
        return image.crop((left, top, left + width, top + height))
    width = int(rng.integers(200, 360)) if kind == 2 else 640
    small = image.resize((width, max(16, round(width * image.height / image.width))), Image.Resampling.BILINEAR)
    if kind == 0:
        across, down = small.size
        corners = [(0, 0), (0, down), (across, down), (across, 0)]  # as Pillow goes round
        quad = [
            c + rng.uniform(-0.08, 0.05) * side
            for corner in corners
            for c, side in zip(corner, small.size, strict=True)
        ]
        small = small.transform(small.size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
        y, x = np.mgrid[:down, :across].astype(np.float32)
        angle, spot = rng.uniform(0, math.pi), rng.uniform(0, 1, 3)
        moire = 1 + 0.06 * np.sin(rng.uniform(0.8, 1.8) * (x * math.cos(angle) + y * math.sin(angle)))
        glare = 80 * np.exp(-(((x / across - spot[0]) ** 2 + (y / down - spot[1]) ** 2) / (0.05 + 0.2 * spot[2])))
        lit = np.asarray(small, np.float32) * (moire * rng.uniform(0.7, 1))[..., None] + glare[..., None] + 8
        small = Image.fromarray(lit.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0.7, 2)))
        small = ImageEnhance.Color(small).enhance(rng.uniform(0.7, 1.1))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=int(rng.integers(12, 40)) if kind == 2 else 60)
    return open_image(packed).convert("RGB")


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
    kinds = {place: k % 3 for k, place in enumerate(kinds)}
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
    unit = embedding.astype(np.float32) - embedding.mean(0, dtype=np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-6)
    first, until, rows = {}, {}, []  # first: row -> the row that it is stored as
    for i, still in enumerate(kept):
        near = np.flatnonzero(unit[rows] @ unit[i] > SAME).tolist() if rows and len(kept) > 2 else []
        near = [rows[r] for r in near if still["time"] < 0 or still["time"] - until[rows[r]] <= DENSE_MS]
        first[i] = near[-1] if near else i
        until[first[i]] = still["time"]
        rows += [] if near else [i]
    place = {row: k for k, row in enumerate(rows)}
    return {
        "embedding": embedding[rows],
        "worn": np.stack(worn),
        "of": embedding[worn_of],
        "name": np.array([kept[r]["file"] for r in rows]),
        "time": np.array([kept[r]["time"] for r in rows], np.int64),
        "until": np.array([until[r] for r in place], np.int64),
        "shot": np.array([str(kept[r]["shot"] or "") for r in rows]),
        "thumbs": np.frombuffer(b"".join(thumbs[r] for r in rows), np.uint8),
        "ends": np.cumsum([len(thumbs[r]) for r in rows]),
    }


# ----------------------------------------------------------------------------- the projection and the thresholds


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
    project = project * np.maximum(variance, 1e-3 * variance[-1]) ** EVEN / scale[:, None]
    return project.astype(np.float32), (mean @ project).astype(np.float32)


def project_all(embedding: np.ndarray, project: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Embeddings [N, D] -> float32 [N, d] of length 1."""
    vectors = embedding.astype(np.float32) @ project - offset
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def pack_vectors(vectors: np.ndarray) -> np.ndarray:
    """Float [N, d] -> int8, the largest number of a row at 127; the length is got back when they are read."""
    return np.round(vectors * (127 / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-9))).astype(np.int8)


def film_scores(best: np.ndarray) -> np.ndarray:
    """Scores [N, F] from the similarity of each film's nearest frame [N, F]; with under 4 films they are the same."""
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
    dense = len(when) > 1 and when.min() >= 0 and np.median(np.diff(np.sort(when))) <= DENSE_MS
    return places if dense else places * 10 // len(when)


def ask_itself(films: list[dict], sample: int) -> dict:
    """Questions that an index asks itself: its frames with their surroundings left out, and with their film left out.

    films: {"embedding", "time", "change"} of each. Left out means of the projection too, else strangers look strange
    that are not. Gives scores of known [N] and unknown frames [M], which film each belongs to, which films were best
    and whether the three best hold the right one.
    """
    embedding = np.concatenate([film["embedding"] for film in films])
    owner = np.repeat(np.arange(len(films)), [len(film["embedding"]) for film in films])
    apart = np.concatenate([held_apart(film["time"]) for film in films])
    parts = np.random.default_rng(13).permutation(len(films)) % min(PARTS, len(films))
    asked = [np.flatnonzero(owner == f) for f in range(len(films))]
    asked = [at[np.linspace(0, len(at) - 1, min(sample, len(at))).astype(int)] for at in asked]
    found = {name: [] for name in ("known", "film", "best", "held", "second", "unknown", "stranger")}
    vectors = project_all(embedding, *fit_projection(embedding, owner, np.concatenate([f["change"] for f in films])))
    for f, at in enumerate(asked):
        alike = vectors[at] @ vectors.T
        alike[(owner == f) & (apart[at][:, None] == apart)] = -1
        best = nearest_by_film(alike, owner, len(films))
        scores = film_scores(best)
        found["second"] += np.sort(best, axis=1)[:, -2:][:, 0].tolist()
        found["known"] += scores.max(1).tolist()
        found["best"] += scores.argmax(1).tolist()
        found["held"] += (np.argsort(-scores, axis=1)[:, :3] == f).any(1).tolist()
        found["film"] += [f] * len(at)
    for part in range(parts.max() + 1) if len(films) >= MANY else []:
        stay = parts[owner] != part
        change = np.concatenate([film["change"] for film, p in zip(films, parts, strict=True) if p != part])
        vectors = project_all(embedding, *fit_projection(embedding[stay], owner[stay], change))
        for f in np.flatnonzero(parts == part).tolist():
            alike = vectors[asked[f]] @ vectors[owner != f].T
            number = owner[owner != f] - (owner[owner != f] > f)
            found["unknown"] += film_scores(nearest_by_film(alike, number, len(films) - 1)).max(1).tolist()
            found["stranger"] += [f] * len(asked[f])
    return {name: np.array(values) for name, values in found.items()}


def lowest_threshold(score: np.ndarray, good: np.ndarray, weight: np.ndarray, target: float) -> float:
    """Lowest threshold above which the weighted share of good reaches target; above all scores if none does."""
    order = np.argsort(-score, kind="stable")
    share = np.cumsum((good * weight)[order]) / np.cumsum(weight[order])
    reached = np.flatnonzero(share >= target)
    return float(score[order][reached[-1]]) if len(reached) else float(score.max()) + 1e-3


def fit_rule(asked: dict, sizes: np.ndarray) -> dict:
    """Thresholds and a logistic curve for the scores, from ask_itself; sizes: frames a film.

    Known frames count by the root of their film's size, unknown films alike, and UNKNOWN_SHARE of all are unknown.
    """
    known, film, right = asked["known"], asked["film"], asked["best"] == asked["film"]
    own = [float(np.quantile(np.where(right, known, -1)[film == f], OWN)) for f in range(len(sizes))]
    rule = {
        "movie": FEW,
        "shortlist": FEW / 2,
        "slope": 12.0,
        "shift": -12.0 * FEW,
        "own": own,
        "second": 0.0,
        "figures": {},
    }
    if not len(asked["unknown"]):
        return rule
    weights = np.sqrt(sizes[film]) / np.bincount(film)[film], 1 / np.bincount(asked["stranger"])[asked["stranger"]]
    weight = np.concatenate(
        [part / part.sum() * share for part, share in zip(weights, (1 - UNKNOWN_SHARE, UNKNOWN_SHARE), strict=True)]
    )
    score, none = np.concatenate([known, asked["unknown"]]), np.zeros(len(asked["unknown"]))
    good, held = np.concatenate([right, none]), np.concatenate([asked["held"], none])
    rule["second"] = float(asked["second"].mean())
    rule["movie"] = lowest_threshold(score, good, weight, RIGHT)
    rest = score < rule["movie"]
    rule["shortlist"] = min(rule["movie"], lowest_threshold(score[rest], held[rest], weight[rest], CONTAINS))
    line = np.zeros(2)  # the curve by Newton's method, its slope held by a weak prior
    design = np.stack([score - rule["movie"], np.ones(len(score))], 1)
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(design @ line, -30, 30)))
        gain = design.T @ (weight * (good - p)) - [1e-4 * line[0], 0]
        line += np.linalg.solve((design * (weight * p * (1 - p))[:, None]).T @ design + np.diag([1e-4, 1e-9]), gain)
    rule |= {"slope": float(line[0]), "shift": float(line[1] - line[0] * rule["movie"])}
    named, wrong = known >= np.maximum(rule["movie"], np.array(own)[asked["best"]]), asked["unknown"] >= rule["movie"]
    ranks = np.argsort(np.argsort(score))[: len(known)]
    auroc = (ranks.sum() - len(known) * (len(known) - 1) / 2) / (len(known) * len(none))
    taken, lost = (weights[0] * named).sum() / weights[0].sum(), (weights[1] * wrong).sum() / weights[1].sum()
    exact = (weights[0] * (named & right)).sum() / weights[0].sum()
    share = (1 - UNKNOWN_SHARE) * taken + UNKNOWN_SHARE * lost
    rule["figures"] = {
        "auroc": auroc,
        "named": taken,
        "right": (1 - UNKNOWN_SHARE) * exact / max(share, 1e-9),
        "strangers": lost,
    }
    return rule


# ------------------------------------------------------------------------------------------------ the folder


def fingerprint(identifier: Identifier) -> np.ndarray:
    """What a model makes of two fixed pictures, float32 [2, D]: all formats of one model nearly agree, others don't."""
    return identifier.run(reference_frames(identifier.preprocessing["size"], 2))["embedding"].astype(np.float32)


def read_state(path: Path) -> dict:
    """What index.json says. Raises UserError for a damaged one and for another version."""
    try:
        state = json.loads((path / "index.json").read_text("utf-8"))
        if state["format"] != FORMAT:
            raise UserError(
                f"--index {path}: is in the format {str(state['format'])[:40]!r}, not {FORMAT!r}; make it anew"
            )
        if not {"model", "basis", "rule", "films", "settled"} <= set(state):
            raise ValueError("keys are missing")
        return state
    except FileNotFoundError:
        raise UserError(
            f"--index {path}: no index there; make one with: python index.py add RAW --index {path}", 2
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"--index {path}: index.json is damaged ({str(error)[:60]}); make it anew") from None


def check_model(path: Path, state: dict, seen: np.ndarray) -> None:
    """Raise UserError unless the index was made with the model whose fingerprint is seen."""
    made = np.frombuffer(base64.b64decode(state["model"]["fingerprint"]), np.float32).reshape(2, -1)
    if made.shape != seen.shape or relative_error(seen, made) > 0.4:
        name = state["model"]["architecture"]
        raise UserError(f"--index {path}: was made with another model ({name}); use that one, or another --index", 2)


def read_arrays(path: Path, file: str, *names: str) -> list[np.ndarray]:
    """Arrays of a .npz of the folder, or the one of a .npy. Raises UserError for a damaged one."""
    try:
        loaded = np.load(path / file, allow_pickle=False)
        if not names:
            return [loaded]
        with loaded:
            return [loaded[name] for name in names]
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise UserError(
            f"--index {path}: {file} is damaged ({str(error)[:60]}); python index.py check --index {path}"
        ) from None


def write_arrays(path: Path, file: str, arrays: dict | np.ndarray) -> str:
    """Write arrays whole to a new file of the folder; returns its name."""
    with atomic_write(path / file) as out:
        np.savez(out, **arrays) if isinstance(arrays, dict) else np.save(out, arrays)
    return file


@contextlib.contextmanager
def writing(path: Path):
    """Hold the folder against other writers; what a killed one left behind goes. Raises UserError if one is at work."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--index {path}: another index.py is writing to it; run this again when it is done"
            ) from None
        yield


def commit(path: Path, state: dict) -> None:
    """Make state the one that readers see, then remove the files that it does not name."""
    with atomic_write(path / "index.json", "w", encoding="utf-8") as file:
        json.dump(state, file, ensure_ascii=False, indent=1)
    named = {film[kind] for film in state["films"].values() for kind in ("frames", "vectors")} | {state["basis"]}
    named |= set((state.get("pack") or {}).get("files", []))
    for file in [*path.glob("films/*"), *path.glob("basis-*"), *path.glob("pack-*"), *path.glob(".*.part")]:
        if str(file.relative_to(path)) not in named:
            file.unlink()


def new_name(title: str, suffix: str) -> str:
    """A file name that was not there before, whatever signs the title has."""
    return f"films/{hashlib.sha256(title.encode(errors='replace')).hexdigest()[:12]}-{os.urandom(4).hex()}{suffix}"


def own_threshold(vectors: np.ndarray, when: np.ndarray, second: float) -> float:
    """The OWN quantile of a film's scores of its own frames; second: what the second film is like in the mean."""
    alike = vectors @ vectors.T
    apart = held_apart(when)
    alike[apart[:, None] == apart] = -1
    return float(np.quantile(alike.max(1), OWN) - SECOND * second)


def settle(path: Path, state: dict, force: bool = False) -> None:
    """Fit projection and thresholds if there are none or many more films now, and write all vectors anew."""
    films = state["films"]
    if not films or not (force or state["basis"] is None or len(films) >= GROWTH * state["settled"]):
        return
    chosen, count = {}, 0
    for title in sorted(films, key=lambda title: hashlib.sha256(title.encode(errors="replace")).digest())[:FIT_FILMS]:
        if not chosen or count + films[title]["stored"] <= FIT_FRAMES:
            chosen[title], count = len(chosen), count + films[title]["stored"]
    parts = []
    for title in chosen:
        embedding, when, worn, of = read_arrays(path, films[title]["frames"], "embedding", "time", "worn", "of")
        change = worn.astype(np.float32) - of.astype(np.float32)
        parts.append({"embedding": embedding, "time": when, "change": change})
    owner = np.repeat(np.arange(len(parts)), [len(part["time"]) for part in parts])
    embedding, change = (np.concatenate([part[name] for part in parts]) for name in ("embedding", "change"))
    project, offset = fit_projection(embedding, owner, change)
    rule = fit_rule(ask_itself(parts, 100), np.bincount(owner))
    name = f"basis-{os.urandom(4).hex()}.npz"
    state["basis"] = write_arrays(path, name, {"project": project, "offset": offset})
    own, state["rule"], state["settled"] = rule.pop("own"), rule, len(films)
    for title, film in films.items():
        embedding, when = read_arrays(path, film["frames"], "embedding", "time")
        vectors = project_all(embedding, project, offset)
        film["vectors"] = write_arrays(path, new_name(title, ".npy"), pack_vectors(vectors))
        film["own"] = own[chosen[title]] if title in chosen else own_threshold(vectors, when, rule["second"])
    commit(path, state)


def add_film(path: Path, state: dict, title: str, folder: Path, identifier: Identifier, every: int) -> str:
    """Put a film into the index, in place of what it had of that title; returns what was done, in words."""
    stills = list_stills(folder, every)
    if not stills:
        raise UserError("no images in it")
    stats = [(still["file"], still["time"], still["path"].stat()) for still in stills]
    mark = hashlib.sha256(repr([(f, t, s.st_size, s.st_mtime_ns) for f, t, s in stats]).encode()).hexdigest()[:16]
    before = state["films"].get(title)
    if before and before["mark"] == mark:
        return "unchanged"
    rows = embed_film(stills, identifier)
    year = re.search(r"\((\d{4})\)$", title)
    film = {"frames": write_arrays(path, new_name(title, ".npz"), rows), "vectors": None, "own": -1.0, "mark": mark}
    film |= {"stills": len(stills), "stored": len(rows["time"]), "year": int(year[1]) if year else None}
    film["imdb"] = next((str(still["imdb"]) for still in stills if still["imdb"]), None)
    if state["basis"]:
        vectors = project_all(rows["embedding"], *read_arrays(path, state["basis"], "project", "offset"))
        film["vectors"] = write_arrays(path, new_name(title, ".npy"), pack_vectors(vectors))
        film["own"] = own_threshold(vectors, rows["time"], state["rule"]["second"])
    state["films"][title] = film
    commit(path, state)
    return f"{film['stored']} of {len(stills)} stills stored" + (", updated" if before else "")


# ------------------------------------------------------------------------------------------------ answering


class Index:
    """The films of an index folder, for reading; what a writer adds meanwhile is there at the next answer.

    Raises UserError for a folder that is missing, damaged, or of another model or version.
    """

    def __init__(self, path: str | Path, identifier: Identifier):
        self.path, self.identifier, self.stamp, self.seen = Path(path), identifier, None, fingerprint(identifier)
        self.refresh()

    def refresh(self) -> None:
        """Read the folder if it has changed. A writer renames index.json last, then removes what it no longer names."""
        for attempt in range(10):
            try:
                stat = (self.path / "index.json").stat()
                if (stat.st_mtime_ns, stat.st_ino) != self.stamp:
                    self._read(read_state(self.path))
                    self.stamp = (stat.st_mtime_ns, stat.st_ino)
                return
            except FileNotFoundError:  # renewed while we read
                time.sleep(0.02 * attempt)
        read_state(self.path)  # says so if there is none
        raise UserError(f"--index {self.path}: files are missing; python index.py check --index {self.path}")

    def _read(self, state: dict) -> None:
        check_model(self.path, state, self.seen)
        films = {title: film for title, film in state["films"].items() if film["vectors"]}
        if not films:
            raise UserError(f"--index {self.path}: holds no films yet; python index.py add RAW --index {self.path}", 2)
        basis = read_arrays(self.path, state["basis"], "project", "offset")
        parts = [read_arrays(self.path, film["vectors"])[0] for film in films.values()]
        self.starts = np.cumsum([0] + [len(part) for part in parts])
        vectors = np.concatenate(parts).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        self.vectors, self.basis, self.rule, self.films, self.titles = vectors, basis, state["rule"], films, [*films]

    def answers(self, embedding: np.ndarray, top: int = 3) -> list[Answer]:
        """An answer a row of embeddings float [N, D]; each candidate carries its evidence."""
        self.refresh()
        found = []
        for vector in project_all(embedding, *self.basis):
            alike = self.vectors @ vector
            scores = film_scores(np.maximum.reduceat(alike, self.starts[:-1])[None])[0]
            order = np.argsort(-scores, kind="stable")[:top].tolist()
            score, own = scores[order[0]], self.films[self.titles[order[0]]]["own"]
            named = score >= max(self.rule["movie"], own)
            kind = "movie" if named else "shortlist" if score >= self.rule["shortlist"] else "unknown"
            sure = 1 / (1 + np.exp(-np.clip(self.rule["slope"] * scores + self.rule["shift"], -30, 30)))
            proof = [self.evidence(f, alike[self.starts[f] : self.starts[f + 1]]) for f in order]
            listed = [Candidate(self.titles[f], float(sure[f]), e) for f, e in zip(order, proof, strict=True)]
            found.append(Answer(kind, listed, 0.0))
        return found

    def evidence(self, film: int, alike: np.ndarray) -> dict:
        """The nearest still of a film, by the similarity of each [n], and the stretch of film around it."""
        about = self.films[self.titles[film]]
        files, when, until, thumbs, ends = read_arrays(
            self.path, about["frames"], "name", "time", "until", "thumbs", "ends"
        )
        best = int(alike.argmax())
        start, end = int(when[best]), int(until[best])
        near = np.flatnonzero(alike >= alike[best] - ALIKE)
        spans = sorted(zip(when[near].tolist(), until[near].tolist(), strict=True)) if start >= 0 else []
        for a, b in [*spans, *spans[::-1]]:
            if a - end < STRETCH_MS and start - b < STRETCH_MS:
                start, end = min(start, a), max(end, b)
        times = [int(t) if t >= 0 else None for t in (when[best], start, end)]
        found = {"title": self.titles[film], "file": str(files[best]), "similarity": round(float(alike[best]), 4)}
        found |= dict(zip(("time_ms", "from_ms", "to_ms"), times, strict=True))
        cut = [0, *ends.tolist()][best : best + 2]
        return found | {"thumbnail": thumbs[cut[0] : cut[1]].tobytes()}


# ------------------------------------------------------------------------------------------------ commands


def run_add(args: argparse.Namespace) -> int:
    """Add films; a folder that can't be read is one line, and the others go on."""
    films = find_folders(args.raw, args.title)
    identifier = Identifier(args.model)
    failed, seen, clock = 0, fingerprint(identifier), time.perf_counter()
    with writing(args.index):
        if (args.index / "index.json").exists():
            state = read_state(args.index)
            check_model(args.index, state, seen)
        else:
            model = {"architecture": identifier.contract.architecture, "fingerprint": base64.b64encode(seen).decode()}
            state = {"format": FORMAT, "model": model, "basis": None, "rule": None, "settled": 0, "films": {}}
        for place, (title, folder) in enumerate(films.items(), 1):
            try:
                done = add_film(args.index, state, title, folder, identifier, args.every)
            except UserError as error:
                failed, done = failed + 1, f"error: {error}"
            print(
                f"[{place}/{len(films)}] {title}: {done}",
                file=sys.stderr if "error" in done else sys.stdout,
                flush=True,
            )
        settle(args.index, state)
    count = sum(film["stored"] for film in state["films"].values())
    print(f"{len(state['films'])} films, {count} stills in {args.index}; {time.perf_counter() - clock:.1f} s")
    print(f"next: python identify.py FRAME --model {args.model} --index {args.index}")
    return 1 if failed else 0


def run_remove(args: argparse.Namespace) -> int:
    with writing(args.index):
        state = read_state(args.index)
        if args.title not in state["films"]:
            near = [title for title in state["films"] if args.title.casefold() in title.casefold()][:3]
            hint = f"; did you mean {', '.join(near)}?" if near else "; python index.py list shows its films"
            raise UserError(f"{args.title}: not in {args.index}{hint}", 2)
        del state["films"][args.title]
        commit(args.index, state)
    print(f"{args.title}: removed, {len(state['films'])} films left")
    return 0


def run_rebuild(args: argparse.Namespace) -> int:
    with writing(args.index):
        state = read_state(args.index)
        settle(args.index, state, force=True)
    return run_check(args)


def run_list(args: argparse.Namespace) -> int:
    for title, film in sorted(read_state(args.index)["films"].items()):
        print(f"{film['stored']:6} of {film['stills']:6} stills  {film['imdb'] or '':10}  {title}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Read every file, and print what the thresholds promise, film by film."""
    state = read_state(args.index)
    for title, film in sorted(state["films"].items()):
        when, ends = read_arrays(args.index, film["frames"], "time", "ends")
        if film["vectors"] is None or not len(when) == len(ends) == len(read_arrays(args.index, film["vectors"])[0]):
            raise UserError(f"--index {args.index}: {title} is not whole; add it again")
        kind = (
            "from video: asked between its stills"
            if len(set(held_apart(when))) > 10
            else "scattered stills: asked by unseen scenes"
        )
        print(f"{len(when):6} stills, own threshold {film['own']:5.2f}, {kind}  {title}")
    rule = state["rule"] or {"movie": 0, "shortlist": 0, "figures": {}}
    print(f"{len(state['films'])} films; named from {rule['movie']:.3f}, shortlist from {rule['shortlist']:.3f}")
    if figures := rule["figures"]:
        print(
            f"asked by itself, at {UNKNOWN_SHARE:.0%} unknown: {figures['named']:.0%} of known frames named, "
            f"{figures['right']:.1%} of the named right, {figures['strangers']:.1%} of the frames of films left out "
            f"named, AUROC {figures['auroc']:.3f}"
        )
    return 0


def run_search(args: argparse.Namespace) -> int:
    identifier = Identifier(args.model)
    index = Index(args.index, identifier)
    (answer,) = index.answers(identifier.run(identifier.load(args.frame)[None])["embedding"], args.top)
    for candidate in answer.candidates:
        proof = candidate.evidence
        at = "" if proof["time_ms"] is None else f" at {proof['time_ms'] / 1000:.1f} s"
        print(f"{proof['similarity']:.3f}  {candidate.title}  {proof['file']}{at}")
    if args.sheet:
        draw_evidence(args.frame, answer, args.sheet)
        print(f"wrote {args.sheet}")
    return 0


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Keep a collection of known frames, to answer with proof and without training."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "add": (run_add, "add or update films from folders of stills"),
        "remove": (run_remove, "take a film out"),
        "list": (run_list, "the films"),
        "check": (run_check, "read every file, and show what the thresholds promise"),
        "search": (run_search, "the nearest stills to a frame"),
        "rebuild": (run_rebuild, "fit projection and thresholds anew on the films of now"),
    }
    for name, (function, text) in helps.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.set_defaults(run=function)
        command.add_argument(
            "--index", type=Path, default=Path("index"), help="the index's folder (default: %(default)s)"
        )
        if name in ("add", "search"):
            command.add_argument("--model", default="export", help="folder from export.py (default: %(default)s)")
    add, search = commands.choices["add"], commands.choices["search"]
    add.add_argument("raw", nargs="+", type=Path, metavar="RAW", help="folders of folders of stills, or of one film")
    add.add_argument("--title", help="of the one film in RAW (default: the folder's name)")
    add.add_argument("--every", type=int, default=1, help="take every so-manieth still (default: %(default)s, all)")
    commands.choices["remove"].add_argument("title", metavar="TITLE", help="as list shows it")
    search.add_argument("frame", metavar="FRAME", help="an image file")
    search.add_argument("--top", type=int, default=5, help="films (default: %(default)s)")
    search.add_argument("--sheet", type=Path, help="draw frame and stills side by side into this file (default: none)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if getattr(args, "every", 1) < 1 or getattr(args, "top", 1) < 1:
        parser.error("--every and --top must be 1 or more")
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
