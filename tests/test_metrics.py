"""python -m pytest tests/test_metrics.py"""

from dataclasses import asdict

import numpy as np
import pytest
from sklearn import metrics as reference

from answering.calibration import lowest_threshold
from training.metrics import (
    area_under_risk_coverage,
    expected_calibration_error,
    film_interval,
    fit_temperature,
    mcnemar,
    measure,
    significantly_worse,
    softmax,
    weighted_share,
)


def test_measures_agree_with_sklearn_and_by_hand():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    logits[np.arange(200), labels] += 1
    unknown = rng.normal(size=(50, 7))
    figures = asdict(measure(logits, labels, unknown))
    top = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert figures["top1"] == pytest.approx(reference.accuracy_score(labels, logits.argmax(1)))
    assert figures["top5"] == pytest.approx(reference.top_k_accuracy_score(labels, top, k=5))
    assert figures["balanced"] == pytest.approx(reference.balanced_accuracy_score(labels, logits.argmax(1)))
    assert figures["macro_f1"] == pytest.approx(reference.f1_score(labels, logits.argmax(1), average="macro"))
    assert figures["loss"] == pytest.approx(reference.log_loss(labels, top))

    def gen(z):  # generalised entropy, by its formula
        p = np.exp(z) / np.exp(z).sum()
        return -sum((v * (1 - v)) ** 0.1 for v in p)

    known, rest = [gen(z) for z in logits], [gen(z) for z in unknown]
    assert figures["auroc"] == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a in known for b in rest]))
    kept = sorted(known)[10]  # 95% of 200 are at or above it
    assert figures["fpr95"] == pytest.approx(np.mean([b >= kept for b in rest]))
    assert measure(logits, labels, np.zeros((0, 1))).auroc is None


def test_calibration_error_of_what_is_sure():
    assert expected_calibration_error(np.eye(2)[[0, 1]], np.array([0, 1])) == 0
    assert expected_calibration_error(np.eye(2)[[0, 1]], np.array([1, 0])) == 1


def test_temperature_is_found_again():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits)])
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)


def test_significantly_worse_asks_for_more_than_a_flip():
    right = np.ones(100, bool)
    one, many = right.copy(), right.copy()
    one[:2], many[:9] = False, False
    assert not significantly_worse(right, one) and significantly_worse(right, many)
    assert not significantly_worse(many, right) and not significantly_worse(right, right)


def test_mcnemar_by_hand():
    right = np.ones(20, bool)
    one, other = right.copy(), right.copy()
    one[:1], other[1:8] = False, False
    assert mcnemar(one, other) == pytest.approx(2 * (1 + 8) / 2**8)  # 7 to 1: two tails of eight fair coins
    assert mcnemar(one, other) == mcnemar(other, one) and mcnemar(right, right) == 1


def test_film_interval_draws_films():
    films = np.repeat(["a", "b", "c", "d"], [10, 10, 10, 70])
    right = films == "d"
    mean, low, high = film_interval(right, films)
    assert mean == 0.25 and low == 0 and 0.5 <= high <= 0.75  # of four films drawn, none to three are d
    mean, low, high = film_interval(right, films, by_frames=True)
    assert mean == 0.7 and low == 0 and 0.8 < high < 1
    assert film_interval(np.ones(100, bool), films) == (1, 1, 1)


def test_lowest_threshold_is_the_lowest_that_holds():
    score = np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.1])
    right = np.array([True, True, False, True, True, False])
    for target in (0.5, 0.7, 0.75, 0.8, 1.0):
        found = lowest_threshold(score, right, np.ones(6), target)
        holds = [s for s in set(score) if right[score >= s].mean() >= target]
        assert found == min(holds)
    assert lowest_threshold(score, np.zeros(6, bool), np.ones(6), 0.5) == 1.1
    assert lowest_threshold(score, right, np.array([1, 1, 9, 1, 1, 1]), 0.9) == 0.9  # weights count


def test_area_under_risk_coverage_by_hand():
    score, right = np.array([0.9, 0.5, 0.7]), np.array([True, True, False])
    assert area_under_risk_coverage(score, right) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_shares_are_weighted():
    right, where = np.array([1, 0, 1, 0], bool), np.array([1, 1, 1, 0], bool)
    assert weighted_share(right, where) == pytest.approx(2 / 3)
    assert weighted_share(right, where, np.array([1, 2, 1, 9])) == pytest.approx(0.5)
    assert weighted_share(right, ~where & right) is None
