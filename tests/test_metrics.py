"""python -m pytest tests/test_metrics.py"""

from dataclasses import asdict

import numpy as np
import pytest
from sklearn import metrics as reference

from answering import calibration
from answering.calibration import Questions, careful_threshold, fit_thresholds, sums_before
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


def make_questions(score, right, film, is_unknown) -> Questions:
    """Known and unknown frames, as many of each as they are, and 0.3 of the weight on the unknown ones."""
    unknown = np.asarray(is_unknown, bool)
    weight = np.where(unknown, 0.3 / max(1, unknown.sum()), 0.7 / max(1, (~unknown).sum()))
    hits = np.asarray(right, bool)
    return Questions(np.asarray(score, float), hits, hits, weight, np.asarray(film), unknown)


def draw_questions(rng, films: int, frames: int) -> Questions:
    """So many known and unknown films with so many frames each; the films differ, and so do their frames."""
    count = films * frames
    own = np.repeat(rng.normal(0, 0.5, films), frames) + rng.normal(3, 1, count)
    right = rng.random(count) < 1 / (1 + np.exp(-1.5 * own + 0.75))
    other = np.repeat(rng.normal(0, 0.6, films), frames) + rng.normal(0, 1, count)
    return make_questions(
        np.r_[own, other],
        np.r_[right, np.zeros(count, bool)],
        np.arange(2 * count) // frames,
        np.arange(2 * count) >= count,
    )


def test_sums_before_against_a_loop():
    rng = np.random.default_rng(0)
    values, film = rng.normal(size=50), rng.integers(0, 5, 50)
    wanted = [sum(values[j] for j in range(k) if film[j] == film[k]) for k in range(50)]
    np.testing.assert_allclose(sums_before(values, film), wanted, atol=1e-12)


def test_careful_threshold_against_its_formula():
    """The bound of every threshold by plain sums over films."""
    from scipy.stats import t

    questions = draw_questions(np.random.default_rng(3), films=12, frames=15)
    found = careful_threshold(questions, questions.right, 0.9, 0.8)
    holds = []
    for threshold in np.unique(questions.score):
        named = questions.score >= threshold
        surplus = questions.weight * named * (questions.right - 0.9)
        variance = (calibration.UNSEEN_NAMED * 0.9 * 0.3 / 12) ** 2
        for group in (questions.is_unknown, ~questions.is_unknown):
            sums = [surplus[questions.film == film].sum() for film in np.unique(questions.film[group])]
            variance += 12 * np.var(sums, ddof=1)
        if surplus.sum() >= t.ppf(0.8, 22) * np.sqrt(variance):
            holds.append(threshold)
    assert found == min(holds)
    assert careful_threshold(questions, np.zeros(360, bool), 0.9, 0.8) is None


def test_a_threshold_keeps_its_promise_in_most_draws_and_wastes_little():
    rng = np.random.default_rng(1)
    everybody = draw_questions(rng, films=3000, frames=20)

    def answer(threshold: float) -> tuple[float, float]:
        named = everybody.score >= threshold
        return np.average(everybody.right[named], weights=everybody.weight[named]), named[~everybody.is_unknown].mean()

    could = max(share for right, share in map(answer, np.linspace(-1, 6, 200)) if right >= 0.95)
    for films, wanted in ((20, 0.75), (100, 0.9)):
        answers = [answer(fit_thresholds(draw_questions(rng, films, 20))[0]) for _ in range(60)]
        assert np.mean([right >= 0.95 for right, _ in answers]) >= 0.8
        assert np.mean([share for _, share in answers]) >= wanted * could


def test_few_questions_are_careful_and_three_ranges_are_left():
    rng = np.random.default_rng(2)
    few = [fit_thresholds(draw_questions(rng, 4, 12)) for _ in range(40)]
    many = [fit_thresholds(draw_questions(rng, 200, 25)) for _ in range(5)]
    assert np.median([movie for movie, _ in few]) > max(movie for movie, _ in many)
    assert all(shortlist < movie for movie, shortlist in few + many)


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


def test_area_under_risk_coverage_by_hand():
    score, right = np.array([0.9, 0.5, 0.7]), np.array([True, True, False])
    assert area_under_risk_coverage(score, right) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_shares_are_weighted():
    right, where = np.array([1, 0, 1, 0], bool), np.array([1, 1, 1, 0], bool)
    assert weighted_share(right, where) == pytest.approx(2 / 3)
    assert weighted_share(right, where, np.array([1, 2, 1, 9])) == pytest.approx(0.5)
    assert weighted_share(right, ~where & right) is None
