"""Thresholds of an index, fitted by testing it on its own frames: known ones, and films held out in turn."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from answering.projection import (
    MIN_FILMS,
    FilmFrames,
    Scoring,
    blend_similarity,
    film_scores,
    fit_projection,
    nearest_by_film,
    project_all,
    unit_length,
)

HELD_OUT_PARTS = 4  # of the films, and of each film's frames; each is left out in turn
DENSE_MS = 10_000  # between frames: a film known so closely is asked for between its known frames, not beside them
MIN_UNKNOWN_FILMS = 4  # that are asked about, held-out films among them; with fewer nothing is promised
FALLBACK_THRESHOLD = 0.5  # where there are fewer
FALLBACK_SLOPE = 12.0
TARGETS = {"movie": 0.95, "shortlist": 0.80}  # what is promised: named films right, shortlists that hold the film
CONFIDENCE = 0.9  # with which a threshold keeps the promise of movie, over draws of films (RESULTS.md)
LESS_CONFIDENCE = 0.75  # where it would name under LEAST_NAMED else
LEAST_NAMED = 0.02  # of the known frames
SHORTLIST_CONFIDENCE = 0.7  # a shortlist that errs costs less
UNSEEN_NAMED = 0.1  # of the frames of one more unknown film, named: doubt where no unknown frame was named yet
LEAST_SHORTLIST = 0.05  # of the frames that are not named, a shortlist is given to so many at least
UNKNOWN_SHARE = 0.3  # of the frames that people send, how many are of films that the collection lacks
NEWTON_STEPS = 30
SLOPE_PRIOR = 1e-4  # weak, so that separable scores do not give an endless slope


@dataclass
class FilmSample:
    """What the thresholds take of a film."""

    embedding: np.ndarray  # [n, D]
    time_ms: np.ndarray  # [n], -1 where not known
    change: np.ndarray  # [m, D]: what degrading changed in some frames' embeddings

    def parts(self) -> np.ndarray:
        """The part [n], of HELD_OUT_PARTS, that each frame is in: each a run of frames, since neighbours are alike."""
        count = len(self.embedding)
        return np.arange(count) * HELD_OUT_PARTS // count

    def without(self, part: int) -> "FilmSample":
        """The film without a part; whole where it has no other."""
        keep = self.parts() != part
        if not keep.any():
            return self
        return FilmSample(self.embedding[keep], self.time_ms[keep], self.change)


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

    def __init__(self, frames: FilmFrames, count: int, basis: tuple[np.ndarray, np.ndarray]):
        self.owner = frames.film  # number of each frame's film, in rising order
        self.count = count  # films
        self.vectors = project_all(frames.embedding, *basis)
        self.middles = unit_length(np.add.reduceat(self.vectors, np.searchsorted(self.owner, np.arange(count))))

    def similarities(self, asked: np.ndarray) -> np.ndarray:
        """How like vectors [n, d] are to each film, [n, F]."""
        return blend_similarity(nearest_by_film(asked @ self.vectors.T, self.owner, self.count), asked @ self.middles.T)


def join_samples(films: list[FilmSample]) -> FilmFrames:
    """The frames of all films, numbered from 0."""
    return FilmFrames(
        embedding=np.concatenate([film.embedding for film in films]),
        film=np.repeat(np.arange(len(films)), [len(film.embedding) for film in films]),
        change=np.concatenate([film.change for film in films]),
    )


def fit_on_samples(films: list[FilmSample], strangers: list[FilmSample]) -> tuple[np.ndarray, np.ndarray]:
    """What fit_projection makes of films, starting from strangers; of strangers alone where there is no film."""
    if not films:
        films = strangers
        strangers = []
    own = join_samples(films)
    return fit_projection(own.embedding, own.film, own.change, join_samples(strangers) if strangers else None)


def leave_one_out_scores(
    films: list[FilmSample], sample: int, strangers: list[FilmSample] | None = None
) -> LeaveOneOutScores:
    """Questions that an index asks itself: frames with their surroundings left out, and frames of unknown films.

    sample: frames asked of a film, at most; strangers: films that the index does not have. Unknown are these, with
    numbers after those of the films, and each film in turn, held out. What is asked is held out of the projection too:
    a film's frames would else be more alike than new ones, and an unknown film less unknown.
    """
    strangers = strangers or []
    asked = [spread_over(len(film.embedding), sample) for film in films]
    film = np.repeat(np.arange(len(films)), [len(frames) for frames in asked])
    known_similarity = ask_known(films, strangers, asked)
    scores = film_scores(known_similarity)
    unknown_similarity = ask_unknown(films, strangers, sample)
    scoring = unknown_scoring(len(films))
    unknown = [film_scores(similarity, scoring).max(1) for similarity in unknown_similarity.values()]
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


def unknown_scoring(films: int) -> Scoring:
    """How frames of unknown films are scored by a collection of so many: with one of its own held out as with all."""
    return Scoring(min_films=0 if films >= MIN_FILMS else MIN_FILMS)


def spread_over(count: int, sample: int) -> np.ndarray:
    """At most sample of the numbers under count, evenly spread."""
    return np.linspace(0, count - 1, min(sample, count)).astype(int)


def ask_known(films: list[FilmSample], strangers: list[FilmSample], asked: list[np.ndarray]) -> np.ndarray:
    """How like the frames asked of each film are to every film, [N, F]; to their own without their surroundings."""
    found = [np.zeros((len(frames), len(films)), np.float32) for frames in asked]
    everything = join_samples(films)
    for part in range(HELD_OUT_PARTS):
        space = FilmVectors(everything, len(films), fit_on_samples([film.without(part) for film in films], strangers))
        for number, film in enumerate(films):
            rows = np.flatnonzero(film.parts()[asked[number]] == part)
            if not len(rows):
                continue
            own = space.vectors[space.owner == number]
            frames = asked[number][rows]
            similarity = space.similarities(own[frames])
            similarity[:, number] = ask_within(own, film.time_ms, frames)
            found[number][rows] = similarity
    return np.concatenate(found)


def ask_unknown(films: list[FilmSample], strangers: list[FilmSample], sample: int) -> dict[int, np.ndarray]:
    """{number of a film: how like its frames are to the films of the index, [n, F]}, of strangers and films held out.

    Those of a film held out are to the others, [n, F - 1]; there is none where no other is left.
    """
    everything = [*films, *strangers]
    count = len(films)
    own = join_samples(films)
    parts = np.random.default_rng(13).permutation(len(everything)) % min(HELD_OUT_PARTS, len(everything))
    found = {}
    for part in range(parts.max() + 1):
        stay = [film for film, own_part in zip(everything[:count], parts[:count], strict=True) if own_part != part]
        prior = [film for film, own_part in zip(strangers, parts[count:], strict=True) if own_part != part]
        if not stay and not prior:
            continue
        basis = fit_on_samples(stay, prior)
        space = FilmVectors(own, count, basis)
        for number in np.flatnonzero(parts == part).tolist():
            others = np.flatnonzero(np.arange(count) != number)
            if not len(others):
                continue
            embedding = everything[number].embedding
            frames = project_all(embedding[spread_over(len(embedding), sample)], *basis)
            found[number] = space.similarities(frames)[:, others]
    return found


# ----------------------------------------------------------------------------------------------- the rule


def fit_rule(asked: LeaveOneOutScores, sizes: np.ndarray, share: float = UNKNOWN_SHARE) -> Rule:
    """Thresholds and a logistic curve for the scores; sizes: frames a film; share: of frames of unknown films.

    Known frames count by the root of their film's size, unknown films alike. With frames of under MIN_UNKNOWN_FILMS
    unknown films the thresholds are fixed ones, without figures, and promise nothing.
    """
    if len(np.unique(asked.unknown_film)) < MIN_UNKNOWN_FILMS:
        return Rule(
            movie=FALLBACK_THRESHOLD,
            shortlist=FALLBACK_THRESHOLD / 2,
            slope=FALLBACK_SLOPE,
            shift=-FALLBACK_SLOPE * FALLBACK_THRESHOLD,
        )
    known_weights, unknown_weights = weigh_questions(asked, sizes)
    never = np.zeros(len(asked.unknown), bool)
    questions = Questions(
        score=np.concatenate([asked.known, asked.unknown]),
        right=np.concatenate([asked.best == asked.film, never]),
        in_top_three=np.concatenate([asked.in_top_three, never]),
        weight=np.concatenate([(1 - share) * known_weights, share * unknown_weights]),
        film=np.concatenate([asked.film, len(sizes) + asked.unknown_film]),
        is_unknown=np.arange(len(asked.known) + len(asked.unknown)) >= len(asked.known),
    )
    movie, shortlist = fit_thresholds(questions)
    slope, height = fit_curve(questions.score - movie, questions.right, questions.weight)
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


@dataclass
class Questions:
    """Frames whose answers are known, to fit thresholds on: N of them."""

    score: np.ndarray  # float [N]
    right: np.ndarray  # bool [N]: the best guess is right; never for a frame of an unknown film
    in_top_three: np.ndarray  # bool [N]: one of the three best guesses is
    weight: np.ndarray  # float [N]
    film: np.ndarray  # [N]: whose frame it is, known and unknown films numbered apart
    is_unknown: np.ndarray  # bool [N]: of an unknown film

    def select(self, rows: np.ndarray) -> "Questions":
        """Those of these rows, bool [N]."""
        return Questions(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})


def fit_thresholds(questions: Questions) -> tuple[float, float]:
    """The lowest thresholds of movie and shortlist that keep TARGETS; shortlist is always the lower one."""
    score = questions.score
    above_all = float(score.max()) + 1e-3  # where no threshold is right often enough: above all that was asked
    movie = above_all
    for confidence in (CONFIDENCE, LESS_CONFIDENCE):
        found = careful_threshold(questions, questions.right, TARGETS["movie"], confidence)
        movie = above_all if found is None else found
        if (score[~questions.is_unknown] >= movie).mean() >= LEAST_NAMED:
            break
    rest = questions.select(score < movie)
    if not len(rest.score):
        return movie, movie - 1e-3
    shortlist = careful_threshold(rest, rest.in_top_three, TARGETS["shortlist"], SHORTLIST_CONFIDENCE)
    some = float(np.quantile(rest.score[~rest.is_unknown], 1 - LEAST_SHORTLIST)) if (~rest.is_unknown).any() else movie
    return movie, min(movie - 1e-3, some if shortlist is None else min(some, shortlist))


def careful_threshold(questions: Questions, hits: np.ndarray, target: float, confidence: float) -> float | None:
    """Least score from which on a share `target` of the frames hits, by weight, allowing for how few there are.

    None where there is none. Films are the units, since frames of one film are alike: the surplus of hits over the
    target must be above zero with this confidence by Student's t, its variance that of sums over films (Liang and Zeger
    1986), known and unknown films apart, and that of one more unknown film of which UNSEEN_NAMED is named. Selective
    classification with a guarantee is Geifman 2017.
    """
    from scipy.special import stdtrit

    order = np.argsort(-questions.score, kind="stable")
    score = questions.score[order]
    weight = questions.weight[order]
    film = questions.film[order]
    surplus = weight * (hits[order] - target)
    # the square of a film's sum grows by 2 x the sum before x the new one + the new one squared
    squares = 2 * sums_before(surplus, film) * surplus + surplus**2
    variance = np.zeros(len(score))
    films = 0
    for group in (~questions.is_unknown[order], questions.is_unknown[order]):
        count = len(np.unique(film[group]))
        if not count:
            continue
        total = np.cumsum(np.where(group, surplus, 0))
        spread = np.cumsum(np.where(group, squares, 0)) - total**2 / count
        variance += np.maximum(0, spread) * count / max(1, count - 1)
        films += count
    unknown = questions.is_unknown[order]
    if unknown.any():
        variance += (UNSEEN_NAMED * target * weight[unknown].sum() / len(np.unique(film[unknown]))) ** 2
    allowance = stdtrit(max(1, films - 2), confidence) * np.sqrt(variance)
    last = np.r_[score[1:] < score[:-1], True]  # equal scores stand or fall together
    good = np.flatnonzero((np.cumsum(surplus) >= allowance) & last)
    return float(score[good[-1]]) if len(good) else None


def sums_before(values: np.ndarray, film: np.ndarray) -> np.ndarray:
    """For each of values [N] the sum of those before it that are of its film, film [N]."""
    order = np.argsort(film, kind="stable")
    running = np.cumsum(values[order]) - values[order]
    starts = np.flatnonzero(np.r_[True, np.diff(film[order]) != 0])
    first = np.repeat(running[starts], np.diff(np.r_[starts, len(film)]))
    before = np.empty(len(values))
    before[order] = running - first
    return before


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


def named_right(named: float, exact: float, strangers: float, share: float = UNKNOWN_SHARE) -> float:
    """How many of the named films are right, where this share of frames is of unknown films; nan if nothing is named.

    named: share of known frames that are named, exact: named rightly; strangers: of unknown frames, named all the same.
    """
    counted = (1 - share) * named + share * strangers
    return float((1 - share) * exact / counted) if counted else float("nan")
