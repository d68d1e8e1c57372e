"""Distances: what their formulas say, nothing from a set to itself, and more the more noise is planted."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import entropy

from piano_jax.evaluation.distances import divergence, frechet, overlap, pairwise, spread_alike
from piano_jax.evaluation.statistics import statistics_vector
from piano_jax.music import Notes
from piano_jax.music.performances import performance


@pytest.fixture(scope="module")
def played() -> list[Notes]:
    return [performance(seed)[:300] for seed in range(24)]


def vectors(performances: list[Notes]) -> np.ndarray:
    return np.stack([statistics_vector(notes) for notes in performances])


def test_frechet_is_its_formula():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)), 1 + rng.normal(size=(60, 5))
    one, two = (np.cov(each, rowvar=False) for each in (first, second))
    mixed = np.trace(one + two - 2 * sqrtm(one @ two).real)
    expected = np.square(first.mean(0) - second.mean(0)).sum() + mixed
    assert frechet(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet(second, first) == pytest.approx(expected, rel=1e-6)
    line = rng.normal(size=(1000, 1))
    assert frechet(line, 3 * line + 7) == pytest.approx((2 * line.mean() + 7) ** 2 + 4 * line.var(ddof=1), rel=1e-9)


def test_a_set_is_nowhere_but_at_itself(played):
    found = vectors(played)
    assert len(found) < found.shape[1]  # covariances are singular
    assert frechet(found, found) < 1e-9 < 1e-3 < frechet(found, found[::-1] + 0.1)
    assert frechet(found, found[::-1]) < 1e-9
    many = np.random.default_rng(0).normal(size=(500, 8))
    assert frechet(many, many) < 1e-9
    assert frechet(found[:1], found[:1]) == 0


def other_pitches(notes: Notes, level: float, rng: np.random.Generator) -> Notes:
    moved = np.clip(np.rint(notes.pitch + rng.normal(0, level, len(notes))), 21, 108)
    return dataclasses.replace(notes, pitch=moved)


def other_times(notes: Notes, level: float, rng: np.random.Generator) -> Notes:
    onset = np.maximum(np.rint(notes.onset + rng.normal(0, 50 * level, len(notes))), 0)
    order = np.argsort(onset, kind="stable")
    return Notes(onset[order], notes.duration[order], notes.pitch[order], notes.velocity[order])


def other_velocities(notes: Notes, level: float, rng: np.random.Generator) -> Notes:
    return dataclasses.replace(
        notes, velocity=np.clip(np.rint(notes.velocity + rng.normal(0, 8 * level, len(notes))), 1, 127)
    )


@pytest.mark.parametrize("planted", [other_pitches, other_times, other_velocities])
def test_frechet_grows_with_noise(played, planted: Callable):
    original = vectors(played)
    levels = (0.0, 0.5, 1.0, 2.0, 4.0)
    apart = [
        frechet(
            original, vectors([planted(notes, level, np.random.default_rng(seed)) for seed, notes in enumerate(played)])
        )
        for level in levels
    ]
    assert apart[0] < 1e-9 and apart[1] > 1e-3
    assert (np.diff(apart) > 0.1 * apart[1]).all()


def test_overlap_and_divergence():
    p, q = np.array([0.5, 0.5, 0]), np.array([0, 0.25, 0.75])
    assert overlap(p, q) == 0.25 and overlap(p, p) == 1
    np.testing.assert_allclose(pairwise(np.stack([p, q]), np.stack([p])), [[0], [0.75]])
    counts = np.array([30, 5, 0]), np.array([2, 90, 8])
    expected = entropy(*((each + 0.5) / (each + 0.5).sum() for each in counts))
    assert divergence(*counts) == pytest.approx(expected) and divergence(counts[0], counts[0]) == 0


def test_a_set_varies_about_its_like_as_in_itself():
    rng = np.random.default_rng(0)

    def drawn(strength: float) -> np.ndarray:
        return rng.dirichlet(np.full(12, strength), 150)

    def figures(other: np.ndarray) -> tuple[float, float]:
        return spread_alike(pairwise(true, true)[np.triu_indices(150, 1)], pairwise(other, true).ravel())

    true = drawn(1)
    (area, apart), (same_area, none), (wild_area, far) = figures(drawn(30)), figures(drawn(1)), figures(drawn(0.05))
    assert same_area > 0.95 and none < 0.01  # the means of all three are the same
    assert area < 0.8 and wild_area < 0.8 and apart > 0.1 and far > 0.1
