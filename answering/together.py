"""Several frames of one film asked together: which of them are of one shot, and thresholds for so many shots."""

import numpy as np

from answering.calibration import MIN_UNKNOWN_FILMS, LeaveOneOutScores, ShotRule, fit_rule, unknown_scoring
from answering.projection import film_scores

SAME_SHOT = 0.6  # cosine of two frames' vectors from which on they count as one shot; chosen on folds 0 to 3
SHOTS = (2, 4, 8)  # that thresholds are fitted for; for a number between them those of the one below hold
RUNS = 40  # questions of so many shots a film, at most


def label_shots(vectors: np.ndarray) -> np.ndarray:
    """Number of the shot of each frame, from 0, int [N]: frames are of one shot where they are alike, or linked so.

    vectors: float [N, d] of length 1.
    """
    alike = vectors @ vectors.T >= SAME_SHOT
    label = np.arange(len(vectors))
    for row in range(len(vectors)):
        joined = np.unique(label[alike[row]])
        label[np.isin(label, joined)] = joined.min()
    return np.unique(label, return_inverse=True)[1]


def mean_of_shots(values: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """Mean [...] of values of frames [N, ...] where every shot weighs alike; shots: of each frame, [N] from 0."""
    weights = (1 / np.bincount(shots))[shots]
    return np.tensordot(weights / weights.sum(), values, axes=1)


# -------------------------------------------------------------------------------------------- thresholds


def fit_together(asked: LeaveOneOutScores, sizes: np.ndarray, share: float) -> list[ShotRule]:
    """What Rule.together holds: thresholds and a curve for each of SHOTS, fitted as those for one frame are.

    asked: with the similarities of each question; sizes: frames a film; share: of frames of unknown films. Nothing
    where frames of too few unknown films were asked to fit a rule.
    """
    if len(np.unique(asked.unknown_film)) < MIN_UNKNOWN_FILMS:
        return []
    rules = []
    for shots in SHOTS:
        fitted = fit_rule(pool_questions(asked, shots), sizes, share)
        rules.append(ShotRule(shots, fitted.movie, fitted.shortlist, fitted.slope, fitted.shift))
    return rules


def pool_questions(asked: LeaveOneOutScores, shots: int) -> LeaveOneOutScores:
    """The same questions, so many of a film at a time: neighbours among those asked, as the shots of a clip are."""
    films = np.unique(asked.film)
    known = [pool_runs(asked.known_similarity[asked.film == film], shots) for film in films]
    owner = np.repeat(films, [len(similarity) for similarity in known])
    scores = film_scores(np.concatenate(known))
    scoring = unknown_scoring(scores.shape[1])
    unknown = [film_scores(pool_runs(similarity, shots), scoring).max(1) for similarity in asked.unknown_similarity]
    return LeaveOneOutScores(
        known=scores.max(1).astype(np.float64),
        film=owner,
        best=scores.argmax(1),
        in_top_three=(np.argsort(-scores, axis=1)[:, :3] == owner[:, None]).any(1),
        unknown=np.concatenate(unknown).astype(np.float64),
        unknown_film=np.repeat(unique_in_order(asked.unknown_film), [len(best) for best in unknown]),
    )


def unique_in_order(numbers: np.ndarray) -> list[int]:
    """The different numbers, in the order in which they come."""
    return list(dict.fromkeys(numbers.tolist()))


def pool_runs(similarity: np.ndarray, shots: int) -> np.ndarray:
    """Mean similarities [R, F] of runs of so many neighbouring questions, from similarities [n, F] of a film's."""
    count = len(similarity)
    length = min(shots, count)
    starts = np.unique(np.linspace(0, count - length, min(RUNS, count - length + 1)).astype(int))
    return np.stack([similarity[start : start + length].mean(0) for start in starts])
