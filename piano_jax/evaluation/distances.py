"""How far sets of performances lie apart: Fréchet distance of vectors, overlap and divergence of distributions."""

import numpy as np
from jaxtyping import Float, Num
from scipy.spatial.distance import cdist

BINS = 50  # of distances, which are from 0 to 1


def frechet(first: Num[np.ndarray, "N E"], second: Num[np.ndarray, "M E"]) -> float:
    """Squared Fréchet distance between the normal distributions of two sets of vectors, as FID and FAD report it.

    |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½) (Dowson and Landau, 1982). The last trace is the sum of the singular values of
    the product of the centred sets, so that fewer vectors than numbers in a vector do no harm to its precision. Sets of
    few vectors do lie farther apart than what they are drawn from: compare sets of the same size alone.
    """
    means = [np.mean(each, axis=0, dtype=float) for each in (first, second)]
    spread = [(each - mean) / np.sqrt(max(len(each) - 1, 1)) for each, mean in zip((first, second), means, strict=True)]
    shared = np.linalg.svd(spread[0] @ spread[1].T, compute_uv=False).sum()
    apart = np.square(means[0] - means[1]).sum() + sum(np.square(each).sum() for each in spread) - 2 * shared
    return max(float(apart), 0.0)


def overlap(first: Num[np.ndarray, "D"], second: Num[np.ndarray, "D"]) -> float:
    """Overlapping area of distributions that sum to 1: 1 where they are the same, 0 where they share nothing."""
    return float(np.minimum(first, second).sum())


def divergence(first: Num[np.ndarray, "D"], second: Num[np.ndarray, "D"]) -> float:
    """Kullback-Leibler divergence in nats from the second distribution to the first, of counts.

    Half a count more in every bin keeps it finite.
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (first, second))
    return float((p * np.log(p / q)).sum())


def pairwise(first: Num[np.ndarray, "N D"], second: Num[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
    """What each two histograms do not share: one less their overlapping area, if they sum to 1."""
    return cdist(first, second, "cityblock") / 2


def spread_alike(within: Num[np.ndarray, "_"], between: Num[np.ndarray, "_"]) -> tuple[float, float]:
    """Overlapping area, and divergence, of distances between a set's own members and those from another set to them.

    Both say whether one set varies about the other as that does in itself (Yang and Lerch, "On the evaluation of
    generative models in music", 2020): sets that are one in distribution have an area near 1 and a divergence near 0.
    A set's mean alone says less, for that of all keys is no key. Distances are those of `pairwise`, counted in 50 bins.
    """
    own, other = (np.histogram(distances, BINS, (0, 1))[0] for distances in (within, between))
    shares = [counts / max(counts.sum(), 1) for counts in (own, other)]
    return overlap(*shares), divergence(own, other)
