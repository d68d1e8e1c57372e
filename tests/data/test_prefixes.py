"""Labels that the vocabulary knows come before pieces as they are read, and nothing else changes."""

import pickle

import numpy as np
import pytest

from piano_jax.data import Dataset, EvaluationRows, Labelled, PretrainingRows
from piano_jax.data.shards import Writer, new_folder
from piano_jax.music import Notes, Vocabulary

ARIA = Vocabulary("aria")
LABELS = [
    ("0.mid", "bach", "fugue", "classical", "somebody"),
    ("1.mid", "", "etude", "", ""),
    ("2.mid", "nobody", "", "pop", ""),
    ("3.mid", "chopin", "étude", "", ""),
]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    with new_folder(tmp_path / "data") as folder:
        writer = Writer(folder, ARIA)
        for piece in range(4):
            writer.add(ARIA.encode(Notes([0, 9], [50, 50], [60 + piece, 64], [64, 64])), 2, 1.0)
        columns = ["path", "composer", "form", "genre", "performer"]
        writer.finish(columns, LABELS, ["train", "val"], np.array([0, 0, 0, 1], np.int8), {}, [])
    return Dataset(tmp_path / "data")


def test_pieces_begin_with_the_labels_that_the_vocabulary_knows(dataset):
    labelled = Labelled(dataset)
    pieces = labelled.read(np.arange(4))
    named = [[ARIA.tokens[id] for id in piece[: len(piece) - len(dataset[i])]] for i, piece in enumerate(pieces)]
    assert named == [
        ["composer:bach", "form:fugue", "genre:classical"],
        ["form:étude"],
        [],
        ["composer:chopin", "form:étude"],
    ]
    for i, piece in enumerate(pieces):
        assert (piece[len(named[i]) :] == dataset[i]).all()
    assert np.diff(labelled.offsets).tolist() == [len(piece) for piece in pieces]
    assert (pickle.loads(pickle.dumps(labelled)).read(np.array([3]))[0] == pieces[3]).all()


def test_rows_are_cut_from_the_longer_pieces(dataset):
    labelled = Labelled(dataset)
    rows = EvaluationRows(labelled, "train", 8, isolate=False)
    line = np.concatenate(labelled.read(np.arange(3)))
    tokens = np.concatenate([rows[row]["tokens"] for row in range(len(rows))])
    assert tokens[: len(line)].tolist() == line.tolist() and (tokens[len(line) :] == ARIA.pad).all()
    augmented = PretrainingRows(labelled, "train", len(line), 0, augmented=True, isolate=False)[0]["tokens"]
    assert np.isin(line[:3], augmented).all()


def test_a_vocabulary_without_labels_adds_none(tmp_path):
    piano = Vocabulary("piano")
    with new_folder(tmp_path / "data") as folder:
        writer = Writer(folder, piano)
        writer.add(piano.encode(Notes([0], [50], [60], [64])), 1, 1.0)
        writer.finish(["path", "composer"], [("0.mid", "bach")], ["train"], np.array([0], np.int8), {}, [])
    dataset = Dataset(tmp_path / "data")
    assert (Labelled(dataset).offsets == dataset.offsets).all()
