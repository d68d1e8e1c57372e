import numpy as np
import pytest

from piano_jax.evaluation import retrieval as room
from piano_jax.evaluation.retrieval import nearest, retrieval


def plain(vectors: np.ndarray, groups: list[str]) -> tuple[float, float, int]:
    """One query at a time."""
    first, reciprocal = [], []
    for query, group in enumerate(groups):
        others = [other for other in range(len(groups)) if other != query]
        if not group or group not in [groups[other] for other in others]:
            continue

        def cosine(other: int, query: int = query) -> float:
            a, b = vectors[query], vectors[other]
            return float(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))

        ranked = sorted(others, key=cosine, reverse=True)
        rank = 1 + [groups[other] == group for other in ranked].index(True)
        first.append(rank == 1)
        reciprocal.append(1 / rank)
    return float(np.mean(first)), float(np.mean(reciprocal)), len(first)


def test_is_what_a_plain_search_finds(monkeypatch):
    monkeypatch.setattr(room, "BLOCK", 7)
    rng = np.random.default_rng(0)
    groups = [str(group) if group else "" for group in rng.integers(0, 15, 40)]
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    recall, mrr, queries = plain(vectors, groups)
    found = retrieval(vectors, groups)
    assert found == pytest.approx({"recall@1": recall, "mrr": mrr, "queries": queries})
    assert 0 < recall < mrr < 1


def test_extremes():
    vectors = np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 2, 2]] + 0.01
    assert retrieval(vectors, list("aabbcc")) == {"recall@1": 1, "mrr": 1, "queries": 6}
    assert retrieval(vectors, list("abcabc"))["recall@1"] == 0
    assert retrieval(vectors, ["", "", "a", "b", "c", "d"]) == {"queries": 0}
    same = np.ones((5, 3), np.float32)  # a collapsed embedding finds nothing
    assert retrieval(np.full((5, 3), np.nan, np.float32), list("aabcd"))["recall@1"] == 0
    assert retrieval(same, list("aabcd")) == pytest.approx({"recall@1": 0, "mrr": 0.25, "queries": 2})


def test_nearest():
    vectors = np.array([[1, 0], [0, 5], [3, 3], [-1, 0]], np.float32)
    found = nearest(np.array([2, 0.1], np.float32), vectors, 3)
    assert [place for place, _ in found] == [0, 2, 1] and found[0][1] == pytest.approx(0.99875, abs=1e-4)
