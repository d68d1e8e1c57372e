"""Probes: the authors' agrees with scikit-learn's optimum, and scores and intervals are what their names say."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score

from piano_jax.evaluation import probes


@pytest.fixture(scope="module")
def clouds() -> tuple[np.ndarray, np.ndarray]:
    """3,000 vectors in five clouds that overlap, at scales that differ by axis."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 3000)
    centres = 0.6 * rng.normal(size=(5, 16))
    vectors = (centres[targets] + rng.normal(size=(3000, 16))) * np.geomspace(0.01, 100, 16) + 7
    return vectors.astype(np.float32), targets


def test_both_protocols_reach_the_optimum(clouds):
    vectors, targets = clouds
    learn, told = np.arange(1000), np.arange(1000, 3000)
    x = probes.standardised(vectors, learn)
    np.testing.assert_allclose(x[learn].std(0), 1, rtol=1e-3)
    optimum = LogisticRegression(C=1e6, max_iter=2000).fit(x[learn], targets[learn]).score(x[told], targets[told])
    found = probes.authors_probe(x, targets, learn, 5)
    assert abs((found == targets)[told].mean() - optimum) < 0.01 and 0.5 < optimum < 0.95
    found = probes.logistic(x, targets, learn[:700], learn[700:], learn)
    assert abs((found == targets)[told].mean() - optimum) < 0.01


def test_only_what_is_learnt_from_counts(clouds):
    vectors, targets = clouds
    x, learn = probes.standardised(vectors, np.arange(1000)), np.arange(203)
    other = np.where(np.arange(3000) < 203, targets, 0)
    moved = np.where(np.arange(3000)[:, None] < 203, x, 0)
    np.testing.assert_array_equal(
        probes.authors_probe(x, targets, learn, 5)[:203], probes.authors_probe(moved, other, learn, 5)[:203]
    )


def test_the_penalty_is_that_which_tells_best():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, 600)
    x = rng.normal(size=(600, 100)).astype(np.float32)
    x[:, 0] += 1.5 * targets
    learn, choose = np.arange(60), np.arange(60, 300)
    strengths = {
        penalty: LogisticRegression(C=penalty, max_iter=1000, tol=1e-3).fit(x[learn], targets[learn])
        for penalty in probes.PENALTIES
    }
    best = max(model.score(x[choose], targets[choose]) for model in strengths.values())
    found = probes.logistic(x, targets, learn, choose, learn)
    assert (found == targets)[choose].mean() == pytest.approx(best)
    assert best > min(model.score(x[choose], targets[choose]) for model in strengths.values())


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 3, 90)
    found = np.where(rng.random(90) < 0.7, targets, rng.integers(0, 3, 90))
    score = probes.score(targets, found, np.arange(90), 4)
    assert score.accuracy == pytest.approx((targets == found).mean())
    assert score.macro_f1 == pytest.approx(f1_score(targets, found, average="macro"))
    np.testing.assert_array_equal(score.confusion, confusion_matrix(targets, found, labels=range(4)))


def test_intervals_are_over_compositions():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 10)
    targets = rng.integers(0, 2, 400)
    right = rng.random(40)[groups] < 0.7  # a composition is right as a whole, or wrong
    found = np.where(right, targets, 1 - targets)
    by_composition = probes.score(targets, found, groups, 2)
    by_file = probes.score(targets, found, np.arange(400), 2)
    rate = right.mean()
    for score, count in ((by_composition, 40), (by_file, 400)):
        low, high = score.accuracy_interval
        assert low < rate < high
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(rate * (1 - rate) / count), rel=0.15)
    certain = probes.score(targets, targets, groups, 2)
    assert certain.accuracy_interval == certain.macro_f1_interval == (1.0, 1.0)
