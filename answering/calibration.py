"""calibration"""

import numpy as np

from answering.projection import (
    MIN_FILMS,
    blend_similarity,
    film_scores,
    fit_projection,
    nearest_by_film,
    project_all,
    unit_length,
)

HELD_OUT_PARTS = 4  # of the films; each is left out in turn
DENSE_MS = 10_000  # between frames: a film known so closely is asked for between its known frames, not beside them
FALLBACK_THRESHOLD = 0.5  # with fewer films than MIN_FILMS none can play a stranger to the others: then this threshold
TARGETS = {"movie": 0.95, "shortlist": 0.80}  # what is promised: named films right, shortlists that hold the film
MARGIN = 0.02  # thresholds are fitted so far above the promise of movie, since what people send is harder (RESULTS.md)
UNKNOWN_SHARE = 0.3  # of the frames that people send, how many are of films that the collection lacks


def leave_out_groups(when: np.ndarray) -> np.ndarray:
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
    apart = leave_out_groups(when)
    left_out = apart[asked][:, None] == apart
    nearest = np.where(left_out, -1, vectors[asked] @ vectors.T).max(1)
    middle = unit_length(vectors.sum(0) - left_out.astype(np.float32) @ vectors)
    return blend_similarity(nearest, (vectors[asked] * middle).sum(1))


def leave_one_out_scores(films: list[dict], sample: int, basis: tuple[np.ndarray, np.ndarray] | None = None) -> dict:
    """Questions that an index asks itself: its frames with their surroundings left out, and with their film left out.

    films: {"embedding", "time", "change"} of each; basis: what fit_projection makes of all, else it is made. Left out
    means of the projection too, else strangers look strange that are not. Gives scores of known [N] and unknown frames
    [M], which film each belongs to, which films were best and whether the three best hold the right one.
    """
    embedding = np.concatenate([film["embedding"] for film in films])
    owner = np.repeat(np.arange(len(films)), [len(film["embedding"]) for film in films])
    parts = np.random.default_rng(13).permutation(len(films)) % min(HELD_OUT_PARTS, len(films))
    asked = [np.linspace(0, len(film["time"]) - 1, min(sample, len(film["time"]))).astype(int) for film in films]
    found = {name: [] for name in ("known", "film", "best", "held", "unknown", "stranger")}

    def middles(vectors: np.ndarray) -> np.ndarray:
        return unit_length(np.add.reduceat(vectors, np.searchsorted(owner, np.arange(len(films)))))

    basis = basis or fit_projection(embedding, owner, np.concatenate([film["change"] for film in films]))
    vectors = project_all(embedding, *basis)
    middle = middles(vectors)
    for f, at in enumerate(asked):
        own = vectors[owner == f]
        best = blend_similarity(nearest_by_film(own[at] @ vectors.T, owner, len(films)), own[at] @ middle.T)
        best[:, f] = ask_within(own, films[f]["time"], at)
        scores = film_scores(best)
        found["known"] += scores.max(1).tolist()
        found["best"] += scores.argmax(1).tolist()
        found["held"] += (np.argsort(-scores, axis=1)[:, :3] == f).any(1).tolist()
        found["film"] += [f] * len(at)
    for part in range(parts.max() + 1) if len(films) >= MIN_FILMS else []:
        stay = parts[owner] != part
        change = np.concatenate([film["change"] for film, p in zip(films, parts, strict=True) if p != part])
        vectors = project_all(embedding, *fit_projection(embedding[stay], owner[stay], change))
        middle = middles(vectors)
        for f in np.flatnonzero(parts == part).tolist():
            own, rest = vectors[owner == f][asked[f]], np.delete(np.arange(len(films)), f)
            best = blend_similarity(nearest_by_film(own @ vectors.T, owner, len(films)), own @ middle.T)[:, rest]
            found["unknown"] += film_scores(best).max(1).tolist()
            found["stranger"] += [f] * len(own)
    return {name: np.array(values) for name, values in found.items()}


def fit_rule(asked: dict, sizes: np.ndarray, share: float = UNKNOWN_SHARE) -> dict:
    """Thresholds and a logistic curve for the scores, from leave_one_out_scores; sizes: frames a film.

    Known frames count by the root of their film's size, unknown films alike, and they make up this share of all.
    """
    known, film, right = asked["known"], asked["film"], asked["best"] == asked["film"]
    if not len(asked["unknown"]):
        return {
            "movie": FALLBACK_THRESHOLD,
            "shortlist": FALLBACK_THRESHOLD / 2,
            "slope": 12.0,
            "shift": -12.0 * FALLBACK_THRESHOLD,
            "figures": {},
        }
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


def lowest_threshold(score: np.ndarray, right: np.ndarray, weights: np.ndarray, target: float) -> float:
    """Least threshold at which a share `target` of the frames at or above it is right, weighted; 1.1 if there is none.

    score: float [N] in 0..1; right: bool [N]; weights: float [N].
    """
    order = np.argsort(-score, kind="stable")
    share = np.cumsum((right * weights)[order]) / np.cumsum(weights[order])
    last = np.r_[score[order][1:] < score[order][:-1], True]  # equal scores stand or fall together
    good = np.flatnonzero((share >= target) & last)
    return float(score[order][good[-1]]) if len(good) else 1.1


def named_right(named: float, exact: float, strangers: float, share: float = UNKNOWN_SHARE) -> float:
    """How many of the named films are right, where this share of frames is of unknown films; nan if nothing is named.

    named: share of known frames that are named, exact: named rightly; strangers: of unknown frames, named all the same.
    """
    counted = (1 - share) * named + share * strangers
    return float((1 - share) * exact / counted) if counted else float("nan")
