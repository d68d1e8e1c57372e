import itertools

import numpy as np
import pytest

from piano_jax.data import EvaluationRows, PretrainingRows
from piano_jax.data.batches import batches


@pytest.fixture(scope="module")
def rows(performances) -> PretrainingRows:
    return PretrainingRows(performances, "train", 64, seed=0, augmented=True, isolate=True)


def take(count: int, *arguments, **options) -> list[dict]:
    stream = batches(*arguments, **options)
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def joined(parts: list[dict]) -> dict:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def assert_same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left)


def test_a_batch_is_its_rows_in_order(rows):
    for step, batch in enumerate(take(5, rows, 4)):
        assert batch["tokens"].shape == (4, 64)
        assert np.array_equal(batch["tokens"], np.stack([rows[4 * step + row]["tokens"] for row in range(4)]))


def places(hosts: int) -> list[np.ndarray]:
    """Where each host's rows lie in a batch of 8."""
    return np.split(np.arange(8), hosts)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_do_not_enter(rows, hosts):
    steps = 2 * rows.rows_per_epoch // 8  # over the end of an epoch
    parts = [take(steps, rows, 8, places=part) for part in places(hosts)]
    assert_same([joined(list(part)) for part in zip(*parts, strict=True)], take(steps, rows, 8))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_enter(rows, workers):
    assert_same(take(7, rows, 4, first_step=3, workers=workers), take(7, rows, 4, first_step=3))


def test_resuming_is_starting_at_another_step(rows):
    whole = take(12, rows, 4)
    for step in (1, 7):
        assert_same(take(12 - step, rows, 4, first_step=step), whole[step:])
    assert_same(take(1, rows, 4, first_step=10**12), take(1, rows, 4, first_step=10**12))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_gives_every_host_as_many_batches(performances, hosts):
    rows = EvaluationRows(performances, "val", 64, isolate=True)
    assert len(rows) % 8
    parts = [list(batches(rows, 8, places=part)) for part in places(hosts)]
    assert {len(part) for part in parts} == {-(-len(rows) // 8)}
    whole = joined([joined(list(part)) for part in zip(*parts, strict=True)])
    assert (whole["segment_ids"] > 0).sum() == performances.manifest["splits"]["val"]["tokens"]


def test_hosts_may_hold_the_same_rows_and_rows_apart(rows):
    whole = take(3, rows, 8)
    for part in (np.array([0, 1, 4, 5]), np.array([6])):
        expected = [{key: value[part] for key, value in batch.items()} for batch in whole]
        assert_same(take(3, rows, 8, places=part), expected)
