"""The rule that names, offers three or refuses: scores of logits, how they are fitted to targets, and checked."""

from dataclasses import dataclass

import numpy as np
import torch

from answering.calibration import MARGIN, TARGETS, lowest_threshold
from training.metrics import area_under_risk_coverage, fit_temperature, known_unknown, weighted_share


def standardise(logits: torch.Tensor) -> torch.Tensor:
    """Logits [N, C] with mean 0 and unbiased standard deviation 1 in each row."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / ((centred**2).sum(1, keepdim=True) / max(1, logits.shape[1] - 1)).sqrt().clamp(min=1e-12)


def maximum_probability(logits: torch.Tensor) -> torch.Tensor:
    """Maximum softmax probability (Hendrycks 2017)."""
    return logits.softmax(1).amax(1)


def generalised_entropy(logits: torch.Tensor) -> torch.Tensor:
    """GEN of the 100 largest probabilities, gamma 0.1, negated (Liu 2023)."""
    top = logits.softmax(1)
    top = top.topk(100, 1).values if top.shape[1] > 100 else top
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


SCORES = {"maximum_probability": maximum_probability, "gen": generalised_entropy, "energy": energy}
SCORES |= {"p_norm": p_norm, "standardised": standardised}


@dataclass
class Rule:
    """How logits become probabilities and known, and from which known on a film is named or three are offered."""

    score: str  # of SCORES, of logits over temperature
    temperature: float = 1.0
    slope: float = 1.0  # known = sigmoid(slope * score + offset)
    offset: float = 0.0
    movie: float = 0.9
    shortlist: float = 0.83
    sigmoids: bool = False  # confidences are sigmoids of standardised logits, as the original's were

    def known(self, logits: torch.Tensor) -> torch.Tensor:
        """Float [N] in 0..1, higher = more surely a film of the collection, of logits [N, C]."""
        return torch.sigmoid(self.slope * SCORES[self.score](logits / self.temperature) + self.offset)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """A confidence a film, float [N, C]."""
        return (
            torch.sigmoid(self.slope * standardise(logits)) if self.sigmoids else (logits / self.temperature).softmax(1)
        )

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(known float [N], "movie", "shortlist" or "unknown" [N]) of logits [N, C]."""
        known = self.known(torch.from_numpy(logits)).numpy()
        return known, np.where(known >= self.movie, "movie", np.where(known >= self.shortlist, "shortlist", "unknown"))


ORIGINAL_RULE = Rule("standardised", slope=1 / 2.5, sigmoids=True)


def right_answers(logits: np.ndarray, labels: np.ndarray, unknown: int) -> tuple[np.ndarray, np.ndarray]:
    """(best guess is right, the film is among the best three), bool [N + unknown]; unknown films are always wrong."""
    hits = np.argsort(-logits, axis=1)[:, :3] == labels[:, None]
    return tuple(np.r_[hit, np.zeros(unknown, bool)] for hit in (hits[:, 0], hits.any(1)))


def frame_weights(known: int, unknown: int, share: float) -> np.ndarray:
    """Weights [known + unknown] with which unknown films make up this share of all frames."""
    each = share / (1 - share) * known / max(1, unknown)
    return np.r_[np.ones(known), np.full(unknown, each)]


def fit_rule(logits: np.ndarray, labels: np.ndarray, unknown: np.ndarray, share: float) -> tuple[Rule, list[dict]]:
    """The calibrated rule and the comparison of scores it was chosen from.

    logits [N, C], labels [N]: of frames that the head had not seen. unknown: logits [M, C] of other films, which are
    taken to make up this share of what people send. The score with the best AUROC of known against unknown films wins,
    AURC (unknown films count as wrong) breaks ties and decides where there are no unknown films.
    """
    temperature = fit_temperature(logits, labels)
    right, listed = right_answers(logits, labels, len(unknown))
    weights, every = (
        frame_weights(len(logits), len(unknown), share),
        torch.from_numpy(np.concatenate([logits, unknown])),
    )
    table, rules = [], {}
    for name, function in SCORES.items():
        score = function(every / temperature).numpy()
        # the whole range of scores inside the sigmoid's, where float32 still tells them apart
        middle, width = (score.max() + score.min()) / 2, max(float(np.ptp(score)), 1e-6)
        rule = Rule(name, temperature, 8 / width, float(-8 / width * middle))
        known = rule.known(every).numpy()
        rule.movie = lowest_threshold(known, right, weights, TARGETS["movie"] + MARGIN)
        below = known < rule.movie  # a shortlist is given only where no film is named
        rule.shortlist = min(
            rule.movie, lowest_threshold(known[below], listed[below], weights[below], TARGETS["shortlist"])
        )
        rules[name] = rule
        row = {"score": name, **known_unknown(known[: len(logits)], known[len(logits) :])}
        table.append(row | {"aurc": area_under_risk_coverage(known, right)})
    best = max(table, key=lambda row: (round(row["auroc"] or 0, 3), -row["aurc"]))
    return rules[best["score"]], table


def check_rule(rule: Rule, logits: np.ndarray, labels: np.ndarray, unknown: np.ndarray, share: float) -> dict:
    """How the rule answers frames it was not fitted on: shares of answers, and of them how many are right."""
    known, kinds = rule.decide(np.concatenate([logits, unknown]))
    weights, n = frame_weights(len(logits), len(unknown), share), len(logits)
    right, listed = right_answers(logits, labels, len(unknown))
    helpful = ((kinds == "movie") & right) | ((kinds == "shortlist") & listed)
    return {
        "named_right": weighted_share(right, kinds == "movie", weights),
        "shortlist_right": weighted_share(listed, kinds == "shortlist", weights),
        "known_named": weighted_share(kinds == "movie", np.arange(len(kinds)) < n),
        "known_shortlist": weighted_share(kinds == "shortlist", np.arange(len(kinds)) < n),
        "known_refused": weighted_share(kinds == "unknown", np.arange(len(kinds)) < n),
        "helpful": weighted_share(helpful, np.arange(len(kinds)) < n),
        "unknown_refused": weighted_share(kinds == "unknown", np.arange(len(kinds)) >= n),
        **known_unknown(known[:n], known[n:]),
        "aurc": area_under_risk_coverage(known, right),
    }
