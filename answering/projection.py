"""projection"""

import base64

import numpy as np

from answering.console import UserError

# measured on 20 real films, DINOv2-S (RESULTS.md)
DIMS = 128  # numbers a vector: fewer tell films apart as well, more find worn frames of films known from video
SHRINK = 0.3  # of the covariance within films towards a multiple of the identity
VARIANCE_POWER = (
    -0.1
)  # power of each dimension's variance by which it is weighed: a little less for those that part films most
WEAR = 0.2  # weight of what wear changes beside what changes within a film
MIDDLE_WEIGHT = 0.75  # how much the middle of a film's frames counts beside the nearest of them
MIN_FILMS = 4  # with fewer films no other counts against the first
RUNNER_UP_PENALTY = (
    0.3  # how much the second film's similarity counts against the first: dull frames are near to everything
)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows [n, d] as float32 of length 1."""
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


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
    project = project * np.maximum(variance, max(1e-3 * variance[-1], 1e-9)) ** VARIANCE_POWER / scale[:, None]
    return project.astype(np.float32), (mean @ project).astype(np.float32)


def project_all(embedding: np.ndarray, project: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Embeddings [N, D] -> float32 [N, d] of length 1."""
    return unit_length(embedding.astype(np.float32) @ project - offset)


def pack_vectors(vectors: np.ndarray) -> np.ndarray:
    """Float [N, d] -> int8, the largest number of a row at 127; the length is got back when they are read."""
    return np.round(vectors * (127 / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-9))).astype(np.int8)


def read_middles(films: list[dict]) -> np.ndarray:
    """The middles that store_vectors wrote, float32 [F, d]."""
    rows = np.stack([np.frombuffer(base64.b64decode(film["middle"]), np.int8) for film in films])
    return unit_length(rows.astype(np.float32))


def blend_similarity(nearest: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """How like a frame is to a film: by its nearest frame, and by the middle of its frames, of any equal shape."""
    return (nearest + MIDDLE_WEIGHT * middle) / (1 + MIDDLE_WEIGHT)


def film_scores(best: np.ndarray) -> np.ndarray:
    """Scores [N, F] from the similarity of each film [N, F]; with under 4 films they are the same."""
    if best.shape[1] < MIN_FILMS:
        return best
    order = np.sort(best, axis=1)
    return best - RUNNER_UP_PENALTY * np.where(best == order[:, -1:], order[:, -2:-1], order[:, -1:])


def nearest_by_film(alike: np.ndarray, film: np.ndarray, films: int) -> np.ndarray:
    """Greatest similarity [N, F] a film, from those to frames [N, M]; film: numbers [M] in rising order."""
    return np.maximum.reduceat(alike, np.searchsorted(film, np.arange(films)), axis=1)
