"""python -m pytest tests/test_metrics.py"""

import numpy as np
import pytest
import torch

from image import UserError
from metrics import expected_calibration_error, measure, significantly_worse, weighted_share
from probe import cross_fit, fit_head


def test_measures_agree_with_sklearn_and_by_hand():
    from sklearn import metrics as theirs

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    logits[np.arange(200), labels] += 1
    unknown = rng.normal(size=(50, 7))
    figures = measure(logits, labels, unknown)
    top = torch.softmax(torch.tensor(logits), 1).numpy()
    assert figures["top1"] == pytest.approx(theirs.accuracy_score(labels, logits.argmax(1)))
    assert figures["top5"] == pytest.approx(theirs.top_k_accuracy_score(labels, top, k=5))
    assert figures["balanced"] == pytest.approx(theirs.balanced_accuracy_score(labels, logits.argmax(1)))
    assert figures["loss"] == pytest.approx(theirs.log_loss(labels, top))
    rest = torch.softmax(torch.tensor(unknown), 1).numpy()
    known, others = (-((p * (1 - p)) ** 0.1).sum(1) for p in (top, rest))
    pairs = np.mean([(a > b) + 0.5 * (a == b) for a in known for b in others])
    assert figures["auroc"] == pytest.approx(pairs)
    assert expected_calibration_error(np.eye(2)[[0, 1]], np.array([0, 1])) == 0
    assert expected_calibration_error(np.eye(2)[[0, 1]], np.array([1, 0])) == 1


def test_significance_asks_for_more_than_a_flip():
    right = np.ones(100, bool)
    one, many = right.copy(), right.copy()
    one[:2], many[:9] = False, False
    assert not significantly_worse(right, one) and significantly_worse(right, many)
    assert not significantly_worse(many, right) and not significantly_worse(right, right)


def test_shares_are_weighted():
    right, where = np.array([1, 0, 1, 0], bool), np.array([1, 1, 1, 0], bool)
    assert weighted_share(right, where) == pytest.approx(2 / 3)
    assert weighted_share(right, where, np.array([1, 2, 1, 9])) == pytest.approx(0.5)
    assert weighted_share(right, ~where[:4] & right) is None


def test_the_probe_is_fishers_discriminant():
    """Without shrinkage and with films of one size it is scikit-learn's."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    labels = np.arange(300) % 4
    x = rng.normal(size=(300, 10)) @ rng.normal(size=(10, 10)) + 2 * rng.normal(size=(4, 10))[labels]
    weight, bias = fit_head(torch.from_numpy(x), torch.from_numpy(labels), 0.0)
    ours = x @ weight.numpy().T + bias.numpy()
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.25] * 4).fit(x, labels).decision_function(x)
    ours, theirs = (z - z.mean(1, keepdims=True) for z in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    heavy = np.r_[np.arange(300), np.flatnonzero(labels == 0).repeat(9)]  # a long film weighs no more than a short one
    again, _ = fit_head(torch.from_numpy(x[heavy]), torch.from_numpy(labels[heavy]), 0.0)
    torch.testing.assert_close(again, weight, rtol=1e-4, atol=1e-4)


def test_cross_fit_answers_by_heads_that_had_not_seen_the_frame():
    rng = np.random.default_rng(0)
    labels, folds = np.arange(90) % 3, np.arange(90) // 3 % 6 - 1
    x = rng.normal(size=(90, 5)).astype(np.float32)
    logits = cross_fit(x, labels, folds, 0.3, torch.device("cpu"))
    assert (logits[folds == -1] == 0).all()
    for k in range(5):
        weight, bias = fit_head(torch.from_numpy(x[folds != k]), torch.from_numpy(labels[folds != k]), 0.3)
        np.testing.assert_allclose(logits[folds == k], x[folds == k] @ weight.numpy().T + bias.numpy(), atol=1e-4)


def test_broken_features_are_one_line():
    with pytest.raises(UserError, match="not finite"):
        fit_head(torch.tensor([[0.0, np.nan], [1.0, 1.0]]), torch.tensor([0, 1]), 0.3)
