"""Thresholds of an index, fitted by testing it on its own frames: known ones, and films held out in turn."""

import dataclasses
from dataclasses import dataclass, field

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
FALLBACK_THRESHOLD = 0.5  # with under MIN_FILMS films none can be held out as unknown to the others
FALLBACK_SLOPE = 12.0
TARGETS = {"movie": 0.95, "shortlist": 0.80}  # what is promised: named films right, shortlists that hold the film
MARGIN = 0.02  # thresholds are fitted so far above the promise of movie, since what people send is harder (RESULTS.md)
UNKNOWN_SHARE = 0.3  # of the frames that people send, how many are of films that the collection lacks
NEWTON_STEPS = 30
SLOPE_PRIOR = 1e-4  # weak, so that separable scores do not give an endless slope


@dataclass
class FilmSample:
    """What the thresholds take of a film."""

    embedding: np.ndarray  # [n, D]
    time_ms: np.ndarray  # [n], -1 where not known
    change: np.ndarray  # [m, D]: what degrading changed in some frames' embeddings


@dataclass
class LeaveOneOutScores:
    """Scores of questions that an index asks itself."""

    known: np.ndarray  # best score [N] of frames that were left out with their surroundings
    film: np.ndarray  # [N]: the film that each is of
    best: np.ndarray  # [N]: the film with the best score
    in_top_three: np.ndarray  # bool [N]: whether its film is among the three best
    unknown: np.ndarray  # best score [M] of frames that were left out with their film
    unknown_film: np.ndarray  # [M]: the film that each is of
    known_similarity: np.ndarray | None = None  # [N, F]: how like each known frame is to each film
    unknown_similarity: list[np.ndarray] = field(default_factory=list)  # the same of unknown frames, an array a film


@dataclass
class RuleFigures:
    """What a rule gave on the questions that it was fitted on."""

    auroc: float  # of the scores, known against unknown
    named: float  # share of known frames that are named
    strangers: float  # share of unknown frames that are named all the same
    exact: float  # share of known frames that are named rightly


@dataclass
class ShotRule:
    """The same of a Rule for frames of so many shots of a film, or more, that are asked together."""

    shots: int
    movie: float
    shortlist: float
    slope: float
    shift: float


@dataclass
class Rule:
    """Scores of movie or more name the film, of shortlist or more give three; confidence = sigmoid(slope s + shift)."""

    movie: float
    shortlist: float
    slope: float
    shift: float
    figures: RuleFigures | None = None  # None where there were too few films to measure them
    together: list[ShotRule] = field(default_factory=list)  # with rising shots

    def to_json(self) -> dict:
        """The rule, for JSON."""
        values = dataclasses.asdict(self)
        values["figures"] = values["figures"] or {}
        return values

    @classmethod
    def from_json(cls, values: dict) -> "Rule":
        """Raises TypeError for what to_json did not write."""
        figures = values.get("figures")
        together = [ShotRule(**part) for part in values.get("together", [])]
        return cls(**{**values, "figures": RuleFigures(**figures) if figures else None, "together": together})

    def for_shots(self, shots: int) -> "Rule | ShotRule":
        """The thresholds and the curve for frames of so many shots of a film."""
        fitting = [part for part in self.together if part.shots <= shots]
        return fitting[-1] if fitting else self


# ------------------------------------------------------------------------------------------ the questions


def leave_out_groups(time_ms: np.ndarray) -> np.ndarray:
    """Group numbers [n] of a film's frames in order: a frame is asked for with all of its group left out.

    Of a film known densely, from video, a question lies between known frames: each frame is a group of its own. Of one
    known by scattered stills it is an unseen scene: a tenth of the film. time_ms: -1 where not known.
    """
    places = np.arange(len(time_ms))
    return places if is_dense(time_ms) else places * 10 // len(time_ms)


def is_dense(time_ms: np.ndarray) -> bool:
    """Whether a film with frames at these milliseconds, -1 where not known, is known densely."""
    known = time_ms[time_ms >= 0]
    return 2 * len(known) > max(2, len(time_ms)) and bool(np.median(np.diff(np.sort(known))) <= DENSE_MS)


def ask_within(vectors: np.ndarray, time_ms: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How like frames asked [n] of a film are to the rest of it, each with its group left out."""
    groups = leave_out_groups(time_ms)
    left_out = groups[asked][:, None] == groups
    nearest = np.where(left_out, -1, vectors[asked] @ vectors.T).max(1)
    middle = unit_length(vectors.sum(0) - left_out.astype(np.float32) @ vectors)
    return blend_similarity(nearest, (vectors[asked] * middle).sum(1))


class FilmVectors:
    """All sampled frames as vectors in one projection, to compare frames with every film."""

    def __init__(self, embedding: np.ndarray, owner: np.ndarray, count: int, basis: tuple[np.ndarray, np.ndarray]):
        self.owner = owner  # number of each frame's film, in rising order
        self.count = count  # films
        self.vectors = project_all(embedding, *basis)
        self.middles = unit_length(np.add.reduceat(self.vectors, np.searchsorted(owner, np.arange(count))))

    def similarities(self, asked: np.ndarray) -> np.ndarray:
        """How like vectors [n, d] are to each film, [n, F]."""
        return blend_similarity(nearest_by_film(asked @ self.vectors.T, self.owner, self.count), asked @ self.middles.T)


def leave_one_out_scores(
    films: list[FilmSample], sample: int, basis: tuple[np.ndarray, np.ndarray] | None = None
) -> LeaveOneOutScores:
    """Questions that an index asks itself: frames with their surroundings left out, and frames of films held out.

    sample: frames asked of a film, at most; basis: what fit_projection makes of all films, else it is made here. A film
    is held out of the projection too, else films that are unknown would look less so.
    """
    embedding = np.concatenate([film.embedding for film in films])
    owner = np.repeat(np.arange(len(films)), [len(film.embedding) for film in films])
    asked = []
    for film in films:
        count = len(film.time_ms)
        asked.append(np.linspace(0, count - 1, min(sample, count)).astype(int))
    basis = basis or fit_projection(embedding, owner, np.concatenate([film.change for film in films]))
    known_similarity = ask_known(films, FilmVectors(embedding, owner, len(films), basis), asked)
    film = np.repeat(np.arange(len(films)), [len(frames) for frames in asked])
    scores = film_scores(known_similarity)
    unknown_similarity = {}
    if len(films) >= MIN_FILMS:
        unknown_similarity = ask_unknown(films, embedding, owner, asked)
    unknown = [film_scores(similarity).max(1) for similarity in unknown_similarity.values()]
    return LeaveOneOutScores(
        known=scores.max(1).astype(np.float64),
        film=film,
        best=scores.argmax(1),
        in_top_three=(np.argsort(-scores, axis=1)[:, :3] == film[:, None]).any(1),
        unknown=np.concatenate([np.zeros(0), *unknown]),
        unknown_film=np.repeat(np.array(list(unknown_similarity), int), [len(best) for best in unknown]),
        known_similarity=known_similarity,
        unknown_similarity=list(unknown_similarity.values()),
    )


def ask_known(films: list[FilmSample], space: FilmVectors, asked: list[np.ndarray]) -> np.ndarray:
    """How like the frames asked of each film are to every film, [N, F]; to their own without their surroundings."""
    found = []
    for number, film in enumerate(films):
        own = space.vectors[space.owner == number]
        similarity = space.similarities(own[asked[number]])
        similarity[:, number] = ask_within(own, film.time_ms, asked[number])
        found.append(similarity)
    return np.concatenate(found)


def ask_unknown(
    films: list[FilmSample], embedding: np.ndarray, owner: np.ndarray, asked: list[np.ndarray]
) -> dict[int, np.ndarray]:
    """{number of the film held out: how like its frames are to the others, [n, F - 1]}; the projection lacks it too."""
    parts = np.random.default_rng(13).permutation(len(films)) % min(HELD_OUT_PARTS, len(films))
    found = {}
    for part in range(parts.max() + 1):
        stay = parts[owner] != part
        change = np.concatenate([film.change for film, own in zip(films, parts, strict=True) if own != part])
        basis = fit_projection(embedding[stay], owner[stay], change)
        space = FilmVectors(embedding, owner, len(films), basis)
        for number in np.flatnonzero(parts == part).tolist():
            frames = space.vectors[owner == number][asked[number]]
            others = np.delete(np.arange(len(films)), number)
            found[number] = space.similarities(frames)[:, others]
    return found


# ----------------------------------------------------------------------------------------------- the rule


def fit_rule(asked: LeaveOneOutScores, sizes: np.ndarray, share: float = UNKNOWN_SHARE) -> Rule:
    """Thresholds and a logistic curve for the scores; sizes: frames a film; share: of frames of unknown films.

    Known frames count by the root of their film's size, unknown films alike.
    """
    if not len(asked.unknown):
        return Rule(
            movie=FALLBACK_THRESHOLD,
            shortlist=FALLBACK_THRESHOLD / 2,
            slope=FALLBACK_SLOPE,
            shift=-FALLBACK_SLOPE * FALLBACK_THRESHOLD,
        )
    known_weights, unknown_weights = weigh_questions(asked, sizes)
    weights = np.concatenate([(1 - share) * known_weights, share * unknown_weights])
    scores = np.concatenate([asked.known, asked.unknown])
    never = np.zeros(len(asked.unknown))
    right = np.concatenate([asked.best == asked.film, never])
    movie, shortlist = fit_thresholds(scores, right, np.concatenate([asked.in_top_three, never]), weights)
    slope, height = fit_curve(scores - movie, right, weights)
    return Rule(
        movie=float(movie),
        shortlist=float(shortlist),
        slope=float(slope),
        shift=float(height - slope * movie),
        figures=measure_rule(asked, movie, known_weights, unknown_weights),
    )


def weigh_questions(asked: LeaveOneOutScores, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of known [N] and unknown frames [M], each adding up to 1."""
    known = np.sqrt(sizes[asked.film]) / np.bincount(asked.film)[asked.film]
    unknown = 1 / np.bincount(asked.unknown_film)[asked.unknown_film]
    return known / known.sum(), unknown / unknown.sum()


def fit_thresholds(
    scores: np.ndarray, right: np.ndarray, in_top_three: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """The lowest thresholds of movie and shortlist that keep TARGETS."""
    above_all = float(scores.max()) + 1e-3  # where no threshold is right often enough: above all that was asked
    movie = min(above_all, lowest_threshold(scores, right, weights, TARGETS["movie"] + MARGIN))
    rest = scores < movie
    shortlist = lowest_threshold(scores[rest], in_top_three[rest], weights[rest], TARGETS["shortlist"])
    return movie, min(movie, shortlist)


def fit_curve(scores: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(slope, height at 0) of a logistic curve by Newton's method, its slope held by a weak prior."""
    line = np.zeros(2)
    design = np.stack([scores, np.ones(len(scores))], 1)
    ridge = np.diag([SLOPE_PRIOR, 1e-9])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ line, -30, 30)))
        gradient = design.T @ (weights * (right - p)) - [SLOPE_PRIOR * line[0], 0]
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design + ridge
        line += np.linalg.solve(hessian, gradient)
    return line


def measure_rule(
    asked: LeaveOneOutScores, movie: float, known_weights: np.ndarray, unknown_weights: np.ndarray
) -> RuleFigures:
    """What the threshold of movie gives on the questions that it was fitted on."""
    count = len(asked.known)
    ranks = np.argsort(np.argsort(np.concatenate([asked.known, asked.unknown])))[:count]
    named = asked.known >= movie
    right = asked.best == asked.film
    return RuleFigures(
        auroc=float((ranks.sum() - count * (count - 1) / 2) / (count * len(asked.unknown))),
        named=float(known_weights @ named),
        strangers=float(unknown_weights @ (asked.unknown >= movie)),
        exact=float(known_weights @ (right & named)),
    )


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
