import pickle

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data import EvaluationRows, PretrainingRows
from piano_jax.data.rows import row_of
from piano_jax.music import Vocabulary

ARIA = Vocabulary("aria")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def plain(dataset, length: int = 64, seed: int = 0) -> PretrainingRows:
    return PretrainingRows(dataset, "train", length, seed, augmented=False, isolate=False)


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
def test_an_epoch_holds_every_token_once(numbered, length):
    rows = plain(numbered, length)
    ids = np.concatenate([numbered[piece] for piece in numbered.split("train")])
    assert rows.rows_per_epoch == len(ids) // length
    for epoch in range(2):
        first = epoch * rows.rows_per_epoch
        seen = np.concatenate([rows[first + row]["tokens"] for row in range(rows.rows_per_epoch)])
        assert len(np.unique(seen)) == len(seen) == rows.rows_per_epoch * length
        assert np.isin(seen, ids).all()


def test_rows_are_cuts_of_pieces_laid_end_to_end(numbered):
    rows = plain(numbered, 64)
    starts = {int(numbered[piece][0]) for piece in range(len(numbered))}
    for row in range(rows.rows_per_epoch):
        tokens = rows[row]["tokens"]
        assert all(int(token) in starts for token in tokens[1:][np.diff(tokens) != 1])


def test_order_differs_by_epoch_and_seed_and_is_shuffled_within(numbered):
    rows = plain(numbered)
    count = rows.rows_per_epoch
    firsts = [np.stack([rows[epoch * count + row]["tokens"] for row in range(count)]) for epoch in range(2)]
    assert not np.array_equal(*firsts)
    assert not np.array_equal(np.stack([plain(numbered, seed=1)[row]["tokens"] for row in range(count)]), firsts[0])
    # In the order of the line some rows would go on where the row before stopped; shuffled, hardly one does.
    follows = firsts[0][1:, 0] == firsts[0][:-1, -1] + 1
    assert follows.sum() <= 3


def test_rows_are_pure_functions_of_their_number(performances):
    rows = PretrainingRows(performances, "train", 128, seed=3, augmented=True, isolate=True)
    numbers = [5, 2 * rows.rows_per_epoch, 0, 10**9, rows.rows_per_epoch - 1]
    first = [rows[number] for number in numbers]
    fresh = pickle.loads(pickle.dumps(rows))
    assert all(same(fresh[number], row) for number, row in reversed(list(zip(numbers, first, strict=True))))


def test_augmentation_is_drawn_anew_each_epoch(performances):
    rows = PretrainingRows(performances, "train", 128, seed=3, augmented=True, isolate=True)
    unchanged = PretrainingRows(performances, "train", 128, seed=3, augmented=False, isolate=True)
    assert sum(same(rows[row], unchanged[row]) for row in range(8)) < 8
    assert all(rows[row]["tokens"].shape == (128,) for row in range(rows.rows_per_epoch))


def test_targets_segments_and_weights():
    end, pad = ARIA.end, ARIA.pad
    ids = np.array([50, 51, end, 6, 0, 52, end, 6], np.uint16)
    row = row_of(ids, 10, ARIA, isolate=True)
    assert row["tokens"].tolist() == [50, 51, end, 6, 0, 52, end, 6, pad, pad]
    assert row["targets"].tolist() == [51, end, 6, 0, 52, end, 6, pad, pad, pad]
    assert row["segment_ids"].tolist() == [1, 1, 1, 2, 2, 2, 2, 3, 0, 0]
    assert row["weights"].tolist() == [1, 1, 0, 1, 1, 1, 0, 0, 0, 0]
    assert [row[key].dtype for key in row] == [np.int32, np.int32, np.int32, np.float32]
    row = row_of(ids, 10, ARIA, isolate=False)
    assert row["segment_ids"].tolist() == [1] * 8 + [0] * 2
    assert row["weights"].tolist() == [1] * 7 + [0] * 3


def test_weights_are_none_where_a_target_is_of_another_segment(performances):
    rows = PretrainingRows(performances, "train", 256, seed=0, augmented=True, isolate=True)
    for row in map(rows.__getitem__, range(10)):
        later = np.append(row["segment_ids"][1:], 0)
        assert np.array_equal(row["weights"], (later == row["segment_ids"]) & (later > 0))


@pytest.mark.parametrize("length", [1, 100, 4096])
def test_evaluation_rows_cover_the_split_in_order(numbered, length):
    rows = EvaluationRows(numbered, "val", length, isolate=False)
    ids = np.concatenate([numbered[piece] for piece in numbered.split("val")])
    whole = np.concatenate([rows[row]["tokens"] for row in range(len(rows))])
    assert np.array_equal(whole[: len(ids)], ids) and len(whole) - len(ids) < length
    assert (whole[len(ids) :] == ARIA.pad).all()
    assert not rows[len(rows)]["weights"].any() and not rows[len(rows) + 7]["segment_ids"].any()
    again = pickle.loads(pickle.dumps(rows))
    assert all(same(again[row], rows[row]) for row in range(len(rows)))


def test_too_little(performances):
    with pytest.raises(BadInput, match="split test holds 0 tokens, less than a row of 64"):
        PretrainingRows(performances, "test", 64, 0, augmented=False, isolate=True)
    with pytest.raises(BadInput, match=r"split train holds [\d,]+ tokens, less than a row of 1,000,000"):
        PretrainingRows(performances, "train", 1_000_000, 0, augmented=False, isolate=True)
    with pytest.raises(BadInput, match="split test is empty"):
        EvaluationRows(performances, "test", 64, isolate=True)
