import pickle

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data import ContinuationEvaluation, ContinuationRows, Embeddings
from piano_jax.data.continuations import with_diminish
from piano_jax.music import Vocabulary
from piano_jax.music.performances import performance

ARIA = Vocabulary("aria")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.fixture
def embeddings(performances, tmp_path) -> Embeddings:
    """Of all pieces but number 7; that of piece p is p + 1, p + 1, p + 1."""
    paths = [f"{piece}.mid" for piece in range(40) if piece != 7]
    vectors = np.array([[int(path[:-4]) + 1.0] * 3 for path in paths], np.float32)
    np.savez(tmp_path / "embeddings.npz", paths=np.array(paths), embeddings=vectors)
    return Embeddings(tmp_path / "embeddings.npz", performances, 3)


@pytest.mark.parametrize("name", ["aria", "piano"])
def test_diminish_stands_about_100_tokens_before_the_end_and_in_no_note(name):
    vocabulary = Vocabulary(name)
    whole = vocabulary.encode(performance(1)).astype(np.int32)
    events = set(vocabulary.events(whole)[0].tolist())
    for length in range(140, 260):
        ids = whole[:length]
        found = with_diminish(ids, vocabulary)
        if length <= 150:
            assert np.array_equal(found, ids)
            continue
        (place,) = np.flatnonzero(found == vocabulary.diminish)
        assert np.array_equal(np.delete(found, place), ids)
        assert place in events and 100 <= length - place <= 110
        assert len(vocabulary.events(found)[0]) == len(vocabulary.events(ids)[0])


@pytest.mark.parametrize("length", [50, 128, 1000])
def test_an_epoch_holds_every_piece_from_its_start_in_rows(performances, length):
    """Unaugmented, the rows of an epoch in some order are those of the split in order, and these are the pieces."""
    rows = ContinuationRows(performances, "train", length, seed=1, augmented=False)
    plain = [
        row["tokens"]
        for row in map(
            ContinuationEvaluation(performances, "train", length, None).__getitem__, range(rows.rows_per_epoch)
        )
    ]
    expected = []
    for ids in performances.read(performances.split("train")):
        whole = with_diminish(ids, ARIA)
        expected += [whole[start : start + length] for start in range(0, len(whole), length)]
    assert len(expected) == rows.rows_per_epoch
    for tokens, part in zip(plain, expected, strict=True):
        assert np.array_equal(tokens[: len(part)], part) and (tokens[len(part) :] == ARIA.pad).all()
    for epoch in range(2):
        seen = [rows[epoch * len(plain) + place]["tokens"].tobytes() for place in range(len(plain))]
        assert sorted(seen) == sorted(tokens.tobytes() for tokens in plain)
        assert seen != [tokens.tobytes() for tokens in plain]


def test_rows_are_pure_functions_of_their_number(performances, embeddings):
    rows = ContinuationRows(performances, "train", 128, 3, True, embeddings)
    numbers = [5, 2 * rows.rows_per_epoch, 0, 10**9, rows.rows_per_epoch - 1]
    first = [rows[number] for number in numbers]
    fresh = pickle.loads(pickle.dumps(rows))
    assert all(same(fresh[number], row) for number, row in reversed(list(zip(numbers, first, strict=True))))
    plain = ContinuationRows(performances, "train", 128, 3, False, embeddings)
    assert sum(np.array_equal(rows[row]["tokens"], plain[row]["tokens"]) for row in range(8)) < 8


def test_half_of_the_rows_have_their_piece_s_embedding(performances, embeddings):
    rows = ContinuationRows(performances, "train", 10_000, 0, False, embeddings)  # a row a piece
    by_start = {performances[piece][:40].tobytes(): piece for piece in range(40)}
    given = []
    for number in range(8 * rows.rows_per_epoch):
        row = rows[number]
        piece = by_start[row["tokens"][:40].astype(np.uint16).tobytes()]
        given.append(row["embedding"].any())
        assert row["embedding"].tolist() in ([0.0] * 3, [piece + 1.0] * 3)
        assert piece != 7 or not given[-1]
    assert 0.4 < np.mean(given) < 0.6
    always = ContinuationEvaluation(performances, "val", 10_000, embeddings)
    assert [always[row]["embedding"].any() for row in range(10)].count(False) == 1  # that of piece 7
    assert not always[len(always)]["embedding"].any() and not always[len(always)]["weights"].any()


def test_embeddings_that_do_not_fit(performances, tmp_path):
    def refused(message: str, **arrays) -> None:
        np.savez(tmp_path / "other.npz", **arrays)
        with pytest.raises(BadInput, match=message):
            Embeddings(tmp_path / "other.npz", performances, 3)

    refused("other.npz: not a file of embeddings", paths=np.array(["0.mid"]))
    refused("of size 4, and the model takes 3", paths=np.array(["0.mid"]), embeddings=np.ones((1, 4), np.float32))
    refused("has none of the pieces", paths=np.array(["x.mid"]), embeddings=np.ones((1, 3), np.float32))
    with pytest.raises(BadInput, match="not a file of embeddings"):
        Embeddings(tmp_path / "absent.npz", performances, 3)
    with pytest.raises(BadInput, match="split test is empty"):
        ContinuationRows(performances, "test", 64, 0, False)
