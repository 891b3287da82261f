"""Decide: name a film, offer three, or answer unknown. Scores of logits, thresholds fitted to targets, and checks."""

from dataclasses import dataclass

import numpy as np
import torch

from answering.calibration import Questions, fit_thresholds
from training.metrics import area_under_risk_coverage, auroc_fpr95, fit_temperature, weighted_share


def standardise(logits: torch.Tensor) -> torch.Tensor:
    """Logits [N, C] with mean 0 and unbiased standard deviation 1 in each row."""
    centred = logits - logits.mean(1, keepdim=True)
    variance = (centred**2).sum(1, keepdim=True) / max(1, logits.shape[1] - 1)
    return centred / variance.sqrt().clamp(min=1e-12)


def maximum_probability(logits: torch.Tensor) -> torch.Tensor:
    """Maximum softmax probability (Hendrycks 2017)."""
    return logits.softmax(1).amax(1)


def generalised_entropy(logits: torch.Tensor) -> torch.Tensor:
    """GEN of the 100 largest probabilities, gamma 0.1, negated (Liu 2023)."""
    top = logits.softmax(1)
    if top.shape[1] > 100:
        top = top.topk(100, 1).values
    return -((top * (1 - top)).clamp(min=1e-30) ** 0.1).sum(1)


def energy(logits: torch.Tensor) -> torch.Tensor:
    """Free energy of the centred logits, negated (Liu 2020)."""
    return (logits - logits.mean(1, keepdim=True)).logsumexp(1)


def p_norm(logits: torch.Tensor) -> torch.Tensor:
    """Largest centred logit over their p-norm, p = 5 (MaxLogit-pNorm, arXiv 2305.15508)."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred.amax(1) / ((centred.abs() ** 5).sum(1) ** 0.2).clamp(min=1e-12)


def standardised(logits: torch.Tensor) -> torch.Tensor:
    """Largest standardised logit, the original project's; at most (C - 1) / sqrt(C)."""
    return standardise(logits).amax(1)


SCORES = {
    "maximum_probability": maximum_probability,
    "gen": generalised_entropy,
    "energy": energy,
    "p_norm": p_norm,
    "standardised": standardised,
}


@dataclass
class Rule:
    """How logits become probabilities and known, and from which known on a film is named or three are offered."""

    score: str  # of SCORES, of logits over temperature
    temperature: float = 1.0
    slope: float = 1.0  # known = sigmoid(slope * score + offset)
    offset: float = 0.0
    movie: float = 0.9  # threshold of known
    shortlist: float = 0.83
    sigmoids: bool = False  # confidences are sigmoids of standardised logits, as the original's were

    def known(self, logits: torch.Tensor) -> torch.Tensor:
        """Float [N] in 0..1, higher = more surely a film of the collection, of logits [N, C]."""
        return torch.sigmoid(self.slope * SCORES[self.score](logits / self.temperature) + self.offset)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """A confidence a film, float [N, C]."""
        if self.sigmoids:
            return torch.sigmoid(self.slope * standardise(logits))
        return (logits / self.temperature).softmax(1)

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(known float [N], "movie", "shortlist" or "unknown" [N]) of logits [N, C]."""
        known = self.known(torch.from_numpy(logits)).numpy()
        below_movie = np.where(known >= self.shortlist, "shortlist", "unknown")
        return known, np.where(known >= self.movie, "movie", below_movie)


ORIGINAL_RULE = Rule("standardised", slope=1 / 2.5, sigmoids=True)


@dataclass(frozen=True)
class ScoreFigures:
    """How well a score tells known films from unknown ones, on the frames that the rule is fitted on."""

    score: str  # of SCORES
    auroc: float | None  # None where there are no unknown frames
    fpr95: float | None
    aurc: float  # area under the risk-coverage curve; unknown films count as wrong


@dataclass(frozen=True)
class RuleCheck:
    """How a rule answers frames that it was not fitted on: shares in 0..1, None where there are no such frames."""

    named_right: float | None  # of the frames whose film is named, weighted by how often people send unknown films
    shortlist_right: float | None  # of the shortlists, those that hold the film; weighted, too
    known_named: float | None  # of the frames of known films
    known_shortlist: float | None
    known_refused: float | None
    helpful: float | None  # of the frames of known films: named right, or a shortlist that holds the film
    unknown_refused: float | None  # of the frames of unknown films
    auroc: float | None
    fpr95: float | None
    aurc: float


def right_answers(logits: np.ndarray, labels: np.ndarray, unknown: int) -> tuple[np.ndarray, np.ndarray]:
    """(best guess is right, the film is among the best three), bool [N + unknown]; unknown films are always wrong."""
    hits = np.argsort(-logits, axis=1)[:, :3] == labels[:, None]
    wrong = np.zeros(unknown, bool)
    return np.r_[hits[:, 0], wrong], np.r_[hits.any(1), wrong]


def frame_weights(known: int, unknown: int, share: float) -> np.ndarray:
    """Weights [known + unknown] with which unknown films make up this share of all frames."""
    each = share / (1 - share) * known / max(1, unknown)
    return np.r_[np.ones(known), np.full(unknown, each)]


def spread_known(score: str, values: np.ndarray, temperature: float) -> Rule:
    """A rule whose sigmoid spans the whole range of these values, where float32 still tells them apart."""
    middle = (values.max() + values.min()) / 2
    width = max(float(np.ptp(values)), 1e-6)
    return Rule(score, temperature, slope=8 / width, offset=float(-8 / width * middle))


@dataclass(frozen=True)
class UnknownFrames:
    """What a classifier says of frames of films that it does not know."""

    logits: np.ndarray  # float32 [M, C]; nan in the column of a class that was left out
    film: np.ndarray  # [M]: number of each frame's film

    @property
    def films(self) -> int:
        return len(np.unique(self.film))


def join_unknown(parts: list[UnknownFrames]) -> UnknownFrames:
    """All of the parts' frames, whose films are different ones. parts: one at least."""
    film = []
    count = 0
    for part in parts:
        film.append(np.unique(part.film, return_inverse=True)[1].astype(int) + count)
        count += part.films
    return UnknownFrames(np.concatenate([part.logits for part in parts]), np.concatenate(film))


def leave_films_out(logits: np.ndarray, labels: np.ndarray) -> UnknownFrames:
    """Frames of each film with its class left out, as unknown ones. logits [N, C], labels [N]: as fit_rule takes them.

    A discriminant's row for a class hardly depends on the others, so this is nearly a head fitted without the film.
    """
    logits = logits.astype(np.float32)
    logits[np.arange(len(labels)), labels] = np.nan
    return UnknownFrames(logits, labels)


def known_of(rule: Rule, logits: np.ndarray) -> np.ndarray:
    """rule.known of logits [N, C], over the classes that are not nan; one is nan in each row, or none in any."""
    if not len(logits):
        return np.zeros(0, np.float32)
    known = np.zeros(len(logits), np.float32)
    left_out = np.isnan(logits).any(1)
    for rows in (left_out, ~left_out):
        if rows.any():
            part = logits[rows]
            part = part[~np.isnan(part)].reshape(len(part), -1)
            known[rows] = rule.known(torch.from_numpy(part)).numpy()
    return known


def fit_rule(
    logits: np.ndarray, labels: np.ndarray, unknown: UnknownFrames, share: float
) -> tuple[Rule, list[ScoreFigures]]:
    """The calibrated rule and the comparison of scores it was chosen from.

    logits [N, C], labels [N]: of frames that the head had not seen. unknown: of other films, which are taken to make up
    this share of what people send. The score with the best AUROC of known against unknown films wins, AURC (unknown
    films count as wrong) breaks ties and decides where there are no unknown films.
    """
    logits = logits.astype(np.float32)
    temperature = fit_temperature(logits, labels)
    right, listed = right_answers(logits, labels, len(unknown.film))
    weights = frame_weights(len(logits), len(unknown.film), share)
    table = []
    rules = {}
    for name, score in SCORES.items():
        rule = spread_known(name, score(torch.from_numpy(logits / temperature)).numpy(), temperature)
        known = np.r_[known_of(rule, logits), known_of(rule, unknown.logits)].astype(np.float64)
        questions = Questions(
            score=known,
            right=right,
            in_top_three=listed,
            weight=weights / weights.sum(),
            film=np.r_[labels, logits.shape[1] + unknown.film],
            is_unknown=np.arange(len(known)) >= len(logits),
        )
        rule.movie, rule.shortlist = (max(0.0, threshold) for threshold in fit_thresholds(questions))
        rules[name] = rule
        auroc, fpr95 = auroc_fpr95(known[: len(logits)], known[len(logits) :])
        table.append(ScoreFigures(name, auroc, fpr95, area_under_risk_coverage(known, right)))
    best = max(table, key=lambda row: (round(row.auroc or 0, 3), -row.aurc))
    return rules[best.score], table


def check_rule(rule: Rule, logits: np.ndarray, labels: np.ndarray, unknown: np.ndarray, share: float) -> RuleCheck:
    """How the rule answers logits [N, C] with labels [N], and logits [M, C] of unknown films, this share of all."""
    known, kinds = rule.decide(np.concatenate([logits, unknown]))
    right, listed = right_answers(logits, labels, len(unknown))
    weights = frame_weights(len(logits), len(unknown), share)
    named = kinds == "movie"
    offered = kinds == "shortlist"
    refused = kinds == "unknown"
    of_known_film = np.arange(len(kinds)) < len(logits)
    auroc, fpr95 = auroc_fpr95(known[: len(logits)], known[len(logits) :])
    return RuleCheck(
        named_right=weighted_share(right, named, weights),
        shortlist_right=weighted_share(listed, offered, weights),
        known_named=weighted_share(named, of_known_film),
        known_shortlist=weighted_share(offered, of_known_film),
        known_refused=weighted_share(refused, of_known_film),
        helpful=weighted_share((named & right) | (offered & listed), of_known_film),
        unknown_refused=weighted_share(refused, ~of_known_film),
        auroc=auroc,
        fpr95=fpr95,
        aurc=area_under_risk_coverage(known, right),
    )
