"""From embeddings to vectors: a projection that separates films, and a film's score from similarities."""

from dataclasses import dataclass

import numpy as np

from answering.console import UserError

# measured on 20 real films, DINOv2-S (RESULTS.md)
DIMS = 128  # of a vector: with fewer, degraded frames of films known from video are found less often
SHRINKAGE = 0.3  # of the covariance within films towards a multiple of the identity
VARIANCE_POWER = -0.1  # weighs each dimension by its variance: those that part films most count a little less
WEAR_WEIGHT = 0.2  # of what degrading changes in an embedding, beside what changes within a film
MIDDLE_WEIGHT = 0.75  # of the middle of a film's frames, beside the nearest of them
RUNNER_UP_PENALTY = 0.3  # of the second film's similarity, against the first: dull frames are near to everything
START_SHARE_OF_ONE = 0.5  # of the films of the start, for a collection of one film
MIN_FILMS = 4  # with fewer films no other counts against the first


@dataclass(frozen=True)
class Scoring:
    """How similarities make a film's score; index.json carries it, so that the page computes the same."""

    middle_weight: float = MIDDLE_WEIGHT
    runner_up_penalty: float = RUNNER_UP_PENALTY
    min_films: int = MIN_FILMS


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows [n, d] as float32 of length 1."""
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


# ----------------------------------------------------------------------------------------- the projection


@dataclass(frozen=True)
class FilmFrames:
    """What a projection is fitted on."""

    embedding: np.ndarray  # [N, D]
    film: np.ndarray  # [N]: number of each row's film
    change: np.ndarray  # [M, D]: what degrading changed in some frames' embeddings


def fit_projection(
    embedding: np.ndarray, film: np.ndarray, change: np.ndarray, start: FilmFrames | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(project float32 [D, d], offset [d]): whitened by the covariance within films, the d directions of most variance.

    embedding: [N, D]; film: number of each row's film [N]; change: [M, D], what degrading changed in some frames'
    embeddings. Films weigh alike. start: films that are not the collection's; how much they count is weigh_start's.
    Whitening within classes is Hatch 2006 (WCCN); the directions are those of linear discriminant analysis, then of
    the whole. Raises UserError without scipy.
    """
    try:
        from scipy.linalg import eigh
    except ImportError:
        raise UserError("scipy is needed to fit an index: pip install scipy", 2) from None
    own = FilmFrames(embedding.astype(np.float32), film, change.astype(np.float32))
    parts = [own]
    if start is not None and len(start.film):
        parts.append(FilmFrames(start.embedding.astype(np.float32), start.film, start.change.astype(np.float32)))
    mean, scale = film_mean_and_scale(parts)
    x = np.concatenate([(part.embedding - mean) / scale for part in parts])
    change = np.concatenate([part.change for part in parts]) / scale
    x, change, span = span_rows(x, change)
    spreads = [measure_spread(x[: len(film)], film)]
    shares = [1.0]
    if len(parts) > 1:
        spreads.append(measure_spread(x[len(film) :], parts[1].film))
        share = weigh_start(*spreads)
        shares = [1 - share, share]
    within, whole = join_spreads(spreads, shares)
    within += WEAR_WEIGHT * change.T @ change / max(1, len(change))
    size = len(within)
    mean_variance = np.trace(within) / embedding.shape[1] or 1.0
    within = (1 - SHRINKAGE) * within + SHRINKAGE * mean_variance * np.eye(size, dtype=np.float32)
    variance, project = eigh(whole, within, subset_by_index=[max(0, size - DIMS), size - 1], check_finite=False)
    project = span @ project * np.maximum(variance, max(1e-3 * variance[-1], 1e-9)) ** VARIANCE_POWER / scale[:, None]
    return project.astype(np.float32), (mean @ project).astype(np.float32)


def span_rows(x: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [N, D] and change [M, D] in a basis of the r directions that they span, and that basis [D, r].

    A wide embedding has many more directions than a small collection has stills. Outside of those that are spanned
    nothing varies, so fit_projection finds the same in them, in a fraction of the time. All D where that gains nothing.
    """
    rows = len(x) + len(change)
    if not DIMS <= rows < x.shape[1]:
        return x, change, np.eye(x.shape[1], dtype=np.float32)
    span, _ = np.linalg.qr(np.concatenate([x, change]).T)
    return x @ span, change @ span, span


def film_mean_and_scale(parts: list[FilmFrames]) -> tuple[np.ndarray, np.ndarray]:
    """(mean [D], standard deviation [D]) of all rows where there is one part; of more, every film weighs alike."""
    if len(parts) == 1:
        return parts[0].embedding.mean(0), np.maximum(parts[0].embedding.std(0), 1e-6)
    films = [part.embedding[part.film == number] for part in parts for number in np.unique(part.film)]
    mean = np.mean([rows.mean(0) for rows in films], axis=0)
    variance = np.mean([((rows - mean) ** 2).mean(0) for rows in films], axis=0)
    return mean, np.maximum(np.sqrt(variance), 1e-6)


@dataclass(frozen=True)
class Spread:
    """How the frames of some films lie: about their films' centres, and the centres."""

    within: np.ndarray  # float32 [D, D]: mean of the films' covariances
    own_norms: np.ndarray  # [F]: squared Frobenius norm of each film's covariance
    centres: np.ndarray  # float32 [F, D]

    @property
    def variance(self) -> float:
        """Of the mean as an estimate from so few films, summed over its elements; infinite for one film."""
        count = len(self.centres)
        if count < 2:
            return np.inf
        return max(0.0, float(self.own_norms.mean() - (self.within**2).sum())) / (count - 1)


def measure_spread(x: np.ndarray, film: np.ndarray) -> Spread:
    """x: float32 [N, D]; film: number of each row's film [N]. Each film weighs alike."""
    film = np.unique(film, return_inverse=True)[1]
    count = np.bincount(film)
    centres = np.zeros((len(count), x.shape[1]), np.float32)
    np.add.at(centres, film, x)
    centres /= count[:, None]
    apart = x - centres[film]
    norms = [((rows @ rows.T / len(rows)) ** 2).sum() for rows in (apart[film == k] for k in range(len(count)))]
    apart /= np.sqrt(count[film] * len(count))[:, None]
    return Spread(apart.T @ apart, np.array(norms), centres)


def weigh_start(own: Spread, start: Spread) -> float:
    """The share of the start in the covariance within films, 0..1, by empirical Bayes.

    The mix of two estimates with the least expected error leans on the start by the variance of our own estimate over
    their squared distance (Ledoit and Wolf 2003, with the start as the target): it falls as one over the number of own
    films, and the less the start's films resemble them, the faster. Of one film, whose variance is not known, half.
    """
    if not np.isfinite(own.variance):
        return START_SHARE_OF_ONE
    distance = float(((own.within - start.within) ** 2).sum())
    return min(1.0, own.variance / max(distance, 1e-12))


def join_spreads(spreads: list[Spread], shares: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Covariances [D, D] within films and of the whole, of parts with these shares."""
    within = sum(share * spread.within for share, spread in zip(shares, spreads, strict=True))
    weights = np.concatenate(
        [
            np.full(len(spread.centres), share / len(spread.centres))
            for share, spread in zip(shares, spreads, strict=True)
        ]
    ).astype(np.float32)
    centres = np.concatenate([spread.centres for spread in spreads])
    centres = centres - weights @ centres
    return within, within + (centres * weights[:, None]).T @ centres


def project_all(embedding: np.ndarray, project: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Embeddings [N, D] -> float32 [N, d] of length 1."""
    return unit_length(embedding.astype(np.float32) @ project - offset)


# --------------------------------------------------------------------------------------- vectors as stored


def quantise(vectors: np.ndarray) -> np.ndarray:
    """Float [N, d] -> int8, the largest number of a row at 127; unit_length restores the length when they are read."""
    return np.round(vectors * (127 / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-9))).astype(np.int8)


# ------------------------------------------------------------------------------------------------- scores


def nearest_by_film(similarity: np.ndarray, film: np.ndarray, films: int) -> np.ndarray:
    """Greatest similarity [N, F] a film, from those to frames [N, M]; film: numbers [M] in rising order."""
    return np.maximum.reduceat(similarity, np.searchsorted(film, np.arange(films)), axis=1)


def blend_similarity(nearest: np.ndarray, middle: np.ndarray, scoring: Scoring = Scoring()) -> np.ndarray:
    """How like a frame is to a film: by its nearest frame, and by the middle of its frames, of any equal shape."""
    return (nearest + scoring.middle_weight * middle) / (1 + scoring.middle_weight)


def film_scores(best: np.ndarray, scoring: Scoring = Scoring()) -> np.ndarray:
    """Scores [N, F] from the similarity of each film [N, F]; with under min_films films they are the same."""
    if best.shape[1] < scoring.min_films:
        return best
    order = np.sort(best, axis=1)
    first = order[:, -1:]
    second = order[:, -2:-1]
    return best - scoring.runner_up_penalty * np.where(best == first, second, first)
