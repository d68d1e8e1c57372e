"""Labelled slices: all of a piece's notes once an epoch, a pure function of the row, and few labels of all classes."""

import pickle

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data import ClassRows, Dataset, ValidationSlices
from piano_jax.data.batches import batches
from piano_jax.data.chunks import chunks
from piano_jax.data.shards import Writer, new_folder
from piano_jax.data.tasks import Task
from piano_jax.music import Vocabulary

from .conftest import random_notes

ARIA, MOOD = Vocabulary("aria"), Task("mood", ("wild", "mild"))
LENGTH, NOTES = 64, 15


def write(path, compositions) -> Dataset:
    """24 pieces of 5 to 60 notes, of two moods and of none, the last six in val."""
    random = np.random.default_rng(5)
    with new_folder(path) as folder:
        writer = Writer(folder, ARIA)
        for count in random.integers(5, 60, 24).tolist():
            writer.add(ARIA.encode(random_notes(random, count)), count, 60.0)
        labels = [(f"{n}.mid", compositions[n], ("wild", "mild", "")[n % 3]) for n in range(24)]
        split = np.array([0] * 18 + [1] * 6, np.int8)
        writer.finish(("path", "piece_id", "mood"), labels, ("train", "val"), split, {}, [])
    return Dataset(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return write(tmp_path_factory.mktemp("moods") / "data", [str(n) for n in range(24)])


def rows(dataset: Dataset, seed: int = 0, augmented: bool = False, shots: int = 0) -> ClassRows:
    return ClassRows(dataset, "train", MOOD, LENGTH, NOTES, seed, augmented, shots)


def slices_of(dataset: Dataset, pieces) -> list[tuple[list[int], int]]:
    parts = [(piece, part) for piece in pieces for part in chunks(ARIA.decode(dataset[piece]), ARIA, NOTES, LENGTH)]
    return sorted((part.tolist(), piece % 3) for piece, part in parts)


def held(row: dict) -> tuple[list[int], int]:
    assert row["tokens"][row["ends"]] == ARIA.end and row["weights"] == 1
    assert (row["tokens"][row["ends"] + 1 :] == ARIA.pad).all()
    return row["tokens"][: row["ends"] + 1].tolist(), int(row["targets"])


def test_an_epoch_is_every_slice_once_in_an_order_of_its_own(dataset):
    plain = rows(dataset)
    size = plain.rows_per_epoch
    epochs = [[held(plain[epoch * size + place]) for place in range(size)] for epoch in range(2)]
    labelled = [piece for piece in range(18) if piece % 3 < 2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == slices_of(dataset, labelled)
    assert epochs[0] != epochs[1] and max(len(tokens) for tokens, _ in epochs[0]) <= LENGTH


def test_a_row_is_a_pure_function_of_its_number(dataset):
    drawn = rows(dataset, augmented=True)
    again = pickle.loads(pickle.dumps(rows(dataset, augmented=True)))
    for row in (100, 3, 57):
        assert held(drawn[row]) == held(again[row])
    size = drawn.rows_per_epoch
    assert sorted(held(drawn[row]) for row in range(size)) != sorted(held(drawn[size + row]) for row in range(size))
    assert [held(drawn[row]) for row in range(9)] != [held(rows(dataset, 1, True)[row]) for row in range(9)]


def test_few_labels_are_few_pieces_of_every_class(dataset):
    few = rows(dataset, shots=4)
    assert np.bincount(few.targets[few.pieces]).tolist() == [2, 2]
    assert few.rows_per_epoch == len(slices_of(dataset, few.pieces))
    assert set(few.pieces) != set(rows(dataset, seed=3, shots=4).pieces)


def test_validation_says_of_which_file_a_slice_is(dataset):
    found = ValidationSlices(dataset, "val", MOOD, LENGTH, NOTES)
    assert found.pieces.tolist() == [18, 19, 21, 22]
    whole = [found[row] for row in range(len(found))]
    assert sorted(held(row) for row in whole) == slices_of(dataset, found.pieces)
    files = np.stack([row["files"] for row in whole])
    assert (files.sum(1) == 1).all() and (np.diff(files.argmax(1)) >= 0).all()
    counts = [len(slices_of(dataset, [piece])) for piece in found.pieces]
    assert files.sum(0).tolist() == counts
    past = found[len(found)]
    assert past["weights"] == 0 and not past["files"].any() and past["ends"] == 0
    batch = next(iter(batches(found, 4)))
    assert batch["tokens"].shape == (4, LENGTH) and batch["files"].shape == (4, 4)


def test_notes_that_a_vocabulary_does_not_know_weigh_nothing(dataset):
    counted = Dataset(dataset.path)
    counted.notes = counted.notes + 2 * NOTES
    found = rows(counted)
    whole = [found[row] for row in range(found.rows_per_epoch)]
    known = [held(row) for row in whole if row["weights"]]
    assert sorted(known) == slices_of(dataset, found.pieces) and len(known) < len(whole)


def test_bad_input_is_one_line(dataset, tmp_path):
    def refused(culprit: str, split: str, task: Task, of: Dataset = dataset, shots: int = 0) -> None:
        with pytest.raises(BadInput, match=culprit) as error:
            ClassRows(of, split, task, LENGTH, NOTES, 0, False, shots)
        assert "\n" not in str(error.value)

    refused("labels.csv: no column key; there are path, piece_id, mood", "train", Task("key", ("a", "b")))
    refused("split train has no piece with a mood", "train", Task("mood", ("odd", "even")))
    refused("mood odd has no file to learn from", "train", Task("mood", ("wild", "odd")))
    refused("no split test", "test", MOOD)
    leak = [str(n) for n in range(23)] + ["0"]
    leaky = write(tmp_path / "leaky", leak)
    assert len(rows(leaky)) and leaky  # piece 23 has no mood, and so is in no split
    leak[22] = "0"
    refused(r"composition 0 is in train \(0.mid\) and in val \(22.mid\)", "train", MOOD, write(tmp_path / "leak", leak))
