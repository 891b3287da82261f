"""Figures of a classifier that may refuse: accuracy, calibration, known against unknown. numpy, scipy, scikit-learn."""

from dataclasses import dataclass

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64."""
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def generalised_entropy(probabilities: np.ndarray) -> np.ndarray:
    """GEN of probabilities [N, C], negated: higher = more surely known (Liu 2023; gamma 0.1, the 100 largest)."""
    top = np.sort(probabilities, axis=1)[:, -100:]
    return -((top * (1 - top)).clip(min=0) ** 0.1).sum(axis=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Temperature that minimises the negative log-likelihood (Guo 2017), in 0.001..1000.

    Labels are smoothed as if one frame more had been wrong (Platt 1999): where all are right it would shrink for ever.
    """
    from scipy.optimize import minimize_scalar

    doubt = 1 / (len(labels) + 2)

    def loss(log_t: float) -> float:
        logs = np.log(softmax(logits / np.exp(log_t)).clip(1e-30))
        return float(-((1 - doubt) * logs[np.arange(len(labels)), labels] + doubt * logs.mean(axis=1)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e3)), method="bounded").x))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """ECE in equal bins of the largest probability (Guo 2017). probabilities [N, C], labels [N]."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for b in set(index):
        inside = index == b
        error += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
    return float(error)


def auroc_fpr95(known: np.ndarray, unknown: np.ndarray) -> tuple[float | None, float | None]:
    """AUROC, and false positives at 95% true positives, of scores (higher = known), float [N] and [M].

    (None, None) where there are no known or no unknown frames.
    """
    from sklearn.metrics import roc_auc_score

    if not len(known) or not len(unknown):
        return None, None
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    threshold = np.sort(known)[int(0.05 * len(known))]
    return float(roc_auc_score(truth, np.r_[known, unknown])), float((unknown >= threshold).mean())


@dataclass(frozen=True)
class Figures:
    """How well a classifier names the frames of a split."""

    top1: float  # share of frames whose film is the first guess
    top5: float
    balanced: float  # mean over films of the share of their frames that are right
    macro_f1: float
    loss: float  # cross-entropy, nats
    ece: float  # expected calibration error
    auroc: float | None = None  # known films told from unknown ones; None where no unknown frames were asked
    fpr95: float | None = None  # share of unknown frames that pass where 95% of the known ones do


def measure(logits: np.ndarray, labels: np.ndarray, unknown: np.ndarray | None = None) -> Figures:
    """Figures of logits [N, C] against labels [N]; unknown: logits [M, C] of films the model has never seen."""
    from sklearn.metrics import f1_score, recall_score

    probabilities = softmax(logits)
    order = np.argsort(-logits, axis=1)
    options = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    auroc = None
    fpr95 = None
    if unknown is not None:
        scores = generalised_entropy(softmax(unknown)) if len(unknown) else np.zeros(0)
        auroc, fpr95 = auroc_fpr95(generalised_entropy(probabilities), scores)
    return Figures(
        top1=float((order[:, 0] == labels).mean()),
        top5=float((order[:, :5] == labels[:, None]).any(1).mean()),
        balanced=float(recall_score(labels, order[:, 0], **options)),
        macro_f1=float(f1_score(labels, order[:, 0], **options)),
        loss=float(-np.log(probabilities[np.arange(len(labels)), labels].clip(1e-12)).mean()),
        ece=expected_calibration_error(probabilities, labels),
        auroc=auroc,
        fpr95=fpr95,
    )


def significantly_worse(reference: np.ndarray, other: np.ndarray) -> bool:
    """McNemar's exact test at 5%, one-sided: are more frames lost than won? reference, other: bool [N], right answers.

    On a hundred frames one or two flips weigh points of balanced accuracy and mean nothing.
    """
    from scipy.stats import binomtest

    lost = int((reference & ~other).sum())
    won = int((other & ~reference).sum())
    return lost > won and binomtest(lost, lost + won, alternative="greater").pvalue < 0.05


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """p of McNemar's exact test, two-sided: how likely chance tells two classifiers this far apart, or further.

    one, other: right answers of both to the same frames, bool [N]. 1 where they are right on the same frames.
    """
    from scipy.stats import binomtest

    lost = int((one & ~other).sum())
    won = int((other & ~one).sum())
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def film_interval(right: np.ndarray, films: np.ndarray, *, by_frames: bool = False) -> tuple[float, float, float]:
    """(mean over films of the share that is right, low and high end of its 95% interval), from 2,000 draws of films.

    right: bool [N]; films: the title of each frame, str [N]. Frames of a film stand or fall together, so that films are
    drawn and not frames (Efron 1979). by_frames: of the films drawn, every frame counts alike.
    """
    titles = np.unique(films)
    sums = np.array([right[films == title].sum() for title in titles])
    counts = np.array([(films == title).sum() for title in titles])
    drawn = np.random.default_rng(13).choice(len(titles), (2000, len(titles)))
    if by_frames:
        mean = sums.sum() / counts.sum()
        means = sums[drawn].sum(1) / counts[drawn].sum(1)
    else:
        shares = sums / counts
        mean = shares.mean()
        means = shares[drawn].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(mean), float(low), float(high)


def area_under_risk_coverage(score: np.ndarray, right: np.ndarray) -> float:
    """AURC: mean error of the frames answered, over all coverages, most certain first (Geifman 2017).

    score: float [N]; right: bool [N]. 0 where there are no frames.
    """
    if not len(score):
        return 0.0
    wrong = ~right[np.argsort(-score, kind="stable")]
    risk = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    return float(risk.mean())


def weighted_share(hits: np.ndarray, where: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """Share of True in hits, bool [N], among the frames where where, bool [N], is True; weighted by weights [N].

    None where there are no such frames.
    """
    if not where.any():
        return None
    return float(np.average(hits[where], weights=None if weights is None else weights[where]))
