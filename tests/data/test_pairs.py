import pickle

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data import Dataset, PairRows, ValidationPairs
from piano_jax.data.batches import batches
from piano_jax.music import Vocabulary

from .conftest import random_notes, write

ARIA = Vocabulary("aria")
CUT = {"shortest": 10, "longest": 30}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def rows(dataset: Dataset, length: int = 128, batch: int = 4, seed: int = 0, augmented: bool = True, **cut) -> PairRows:
    return PairRows(dataset, "train", length, batch, seed, augmented=augmented, **CUT | cut)


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> Dataset:
    """Pieces of 5 to 60 notes; the dataset knows how many."""
    random = np.random.default_rng(3)
    notes = [random_notes(random, count) for count in range(5, 60, 3)]
    pieces = [ARIA.encode(piece) for piece in notes]
    return write(tmp_path_factory.mktemp("counted") / "data", pieces, [0] * 16 + [1] * 3, 2000, [*map(len, notes)])


def test_a_slice_is_notes_of_its_piece_from_its_own_start(counted):
    plain = rows(counted, length=1024, augmented=False)
    for row in range(plain.rows_per_epoch):
        pair = plain[row]
        piece = plain.pieces[[same(pair, plain.pair(0, int(piece))) for piece in plain.pieces].index(True)]
        whole = ARIA.decode(counted[int(piece)])
        for tokens, end in zip(pair["tokens"], pair["ends"], strict=True):
            assert tokens[end] == ARIA.end and (tokens[end + 1 :] == ARIA.pad).all() and ARIA.pad not in tokens[:end]
            notes = ARIA.decode(tokens)
            assert CUT["shortest"] <= len(notes) <= CUT["longest"] and notes.onset[0] < 5000
            starts = range(len(whole) - len(notes) + 1)
            found = [first for first in starts if np.array_equal(whole.pitch[first : first + len(notes)], notes.pitch)]
            assert any(
                np.array_equal(np.diff(whole.onset[first : first + len(notes)]), np.diff(notes.onset))
                and np.array_equal(whole.duration[first : first + len(notes)], notes.duration)
                for first in found
            )
            assert notes.onset[0] == 0


def test_pairs_are_pure_functions_of_seed_epoch_and_piece(counted):
    some = rows(counted)
    numbers = [3, 2 * some.rows_per_epoch + 1, 0, 10**9]
    first = [some[number] for number in numbers]
    again = pickle.loads(pickle.dumps(some))
    assert all(same(again[number], row) for number, row in reversed(list(zip(numbers, first, strict=True))))
    piece = int(some.pieces[0])
    # Neither the batch nor how the pieces are ordered is part of it.
    assert same(rows(counted, batch=7).pair(5, piece), some.pair(5, piece))
    assert not same(some.pair(6, piece), some.pair(5, piece))
    assert not same(rows(counted, seed=1).pair(5, piece), some.pair(5, piece))


def test_views_differ_and_are_augmented_each_for_itself(counted):
    one = rows(counted, shortest=20, longest=20, length=1024)
    moved = set()
    for row in range(one.rows_per_epoch):
        a, b = (ARIA.decode(tokens) for tokens in one[row]["tokens"])
        moved.add(int(a.pitch.min()) - int(b.pitch.min()))
        assert len(a) == len(b) == 20  # augmentation, slower too, loses no note of a slice
    assert len(moved) > 3


def test_keys_may_stay_while_tempi_move(counted):
    kept = rows(counted, shortest=20, longest=20, length=1024, semitones=0)
    for row in range(kept.rows_per_epoch):
        whole = ARIA.decode(
            counted[int(kept.pieces[[same(kept[row], kept.pair(0, int(p))) for p in kept.pieces].index(True)])]
        )
        for notes in (ARIA.decode(tokens) for tokens in kept[row]["tokens"]):
            assert set(notes.pitch) <= set(whole.pitch)
    with pytest.raises(BadInput, match="semitones -1"):
        rows(counted, semitones=-1)


def test_long_slices_are_cut_with_their_end_last(counted):
    short = rows(counted, length=24)
    for row in range(short.rows_per_epoch):
        assert (short[row]["ends"] == 23).all() and (short[row]["tokens"][:, -1] == ARIA.end).all()


def test_an_epoch_is_whole_batches_of_different_pieces(counted):
    some = rows(counted, batch=4)
    assert some.left_out == sum(count < 20 for count in range(5, 60, 3)[:16])
    assert some.rows_per_epoch == (16 - some.left_out) // 4 * 4
    for epoch in range(3):
        firsts = [some[epoch * some.rows_per_epoch + row]["tokens"].tobytes() for row in range(some.rows_per_epoch)]
        assert len(set(firsts)) == len(firsts)
    orders = [[same(some[row], some.pair(0, int(piece))) for piece in some.pieces].index(True) for row in range(8)]
    assert len(set(orders)) == 8 and orders != sorted(orders)


def test_validation_pairs_never_change(counted):
    rows = ValidationPairs(counted, "val", 128, **CUT)
    assert len(rows) == 3
    assert all(same(rows[row], pickle.loads(pickle.dumps(rows))[row]) for row in range(3))
    assert rows[2]["weights"] == 1 and not rows[3]["weights"] and (rows[3]["tokens"] == ARIA.pad).all()
    batch = next(batches(rows, 4))
    assert batch["tokens"].shape == (4, 2, 128) and batch["ends"].shape == (4, 2)
    assert batch["weights"].tolist() == [1, 1, 1, 0]


def test_too_little(counted):
    with pytest.raises(BadInput, match="split train holds 11 pieces of 20 notes or more, fewer than a batch of 64"):
        rows(counted, batch=64)
    with pytest.raises(BadInput, match="slices of 30 to 10 notes"):
        rows(counted, shortest=30, longest=10)
