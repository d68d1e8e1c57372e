"""Whether vectors of one composition, played by different people, find each other."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

BLOCK = 1024  # queries at a time


def retrieval(vectors: Float32[np.ndarray, "N E"], groups: Sequence[str]) -> dict[str, float]:
    """Recall at 1 and mean reciprocal rank, by cosine similarity, of finding another vector of the same group.

    Every vector of a group of two or more is a query, and all other vectors are candidates, those of no group ("") too.
    The rank of a query is that of its best candidate of the group; ties rank behind. `queries` is how many there were.
    """
    names, group = np.unique(np.asarray(groups, str), return_inverse=True)
    group = np.where(names[group] == "", -1 - np.arange(len(group)), group)  # alone
    _, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[place] > 1)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    ranks = [_ranks(unit, group, queries[first : first + BLOCK]) for first in range(0, len(queries), BLOCK)]
    rank = np.concatenate([np.empty(0), *ranks])
    found = {"recall@1": np.mean(rank == 1), "mrr": np.mean(1 / rank)} if len(rank) else {}
    return {name: float(value) for name, value in found.items()} | {"queries": float(len(rank))}


def _ranks(unit: Float32[np.ndarray, "N E"], group: np.ndarray, queries: np.ndarray) -> Float[np.ndarray, "Q"]:
    alike = unit[queries] @ unit.T
    alike[np.arange(len(queries)), queries] = -np.inf  # not itself
    same = group[queries][:, None] == group
    same[np.arange(len(queries)), queries] = False
    best = np.where(same, alike, -np.inf).max(1)
    return 1.0 + (~(alike < best[:, None]) & ~same).sum(1)  # what is not a number ranks last


def nearest(
    query: Float32[np.ndarray, "E"], vectors: Float32[np.ndarray, "N E"], count: int
) -> list[tuple[int, float]]:
    """Which vectors are most like a query by cosine, the most similar first, and how similar."""
    alike = vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query) + 1e-12)
    return [(int(place), float(alike[place])) for place in np.argsort(-alike, kind="stable")[:count]]
