"""Labelled slices of pieces, to learn classes from: each a pure function of (seed, epoch, slice)."""

import csv

import numpy as np
from jaxtyping import Float32, Int32, Int64

from piano_jax import BadInput
from piano_jax.data.chunks import augmented, closed
from piano_jax.data.rows import AUGMENTATION, ROW_ORDER, bits, order
from piano_jax.data.shards import LABELS, Dataset
from piano_jax.data.tasks import Task, check_apart, check_classes, draw
from piano_jax.music import Vocabulary

Slice = dict[str, Int32[np.ndarray, "..."] | Float32[np.ndarray, "..."]]


def no_slice(length: int, vocabulary: Vocabulary) -> Slice:
    """A row of padding, which weighs nothing."""
    number = np.zeros((), np.int32)
    tokens = np.full(length, vocabulary.pad, np.int32)
    return {"tokens": tokens, "ends": number, "targets": number, "weights": np.zeros((), np.float32)}


def read_columns(dataset: Dataset) -> dict[str, list[str]]:
    """The columns of a dataset's labels, a value a piece."""
    with (dataset.path / LABELS).open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def targets_of(dataset: Dataset, task: Task) -> Int64[np.ndarray, "N"]:
    """The class of every piece of a dataset, or -1. Raises BadInput: no such column, or a composition in two splits."""
    columns = read_columns(dataset)
    if task.column not in columns:
        raise BadInput(f"{dataset.path / LABELS}: no column {task.column}; there are {', '.join(columns)}")
    targets, splits = task.targets(columns[task.column]), np.full(len(dataset), "", object)
    for split in dataset.manifest["splits"]:
        splits[dataset.split(split)] = split
    splits = np.where(targets >= 0, splits, "").tolist()
    check_apart(columns["path"], splits, columns.get("piece_id", [""] * len(dataset)), str(dataset.path))
    return targets


class Slices:
    """Slices of the pieces of a split that have a class: every `notes` of a piece, cut at `length` tokens, `<E>` last.

    Raises BadInput where there is none.
    """

    def __init__(self, dataset: Dataset, split: str, task: Task, length: int, notes: int):
        self.dataset, self.length, self.notes = dataset, length, notes
        self.targets = targets_of(dataset, task)
        pieces = dataset.split(split)
        self._lay(pieces[self.targets[pieces] >= 0])
        if not len(self.pieces):
            raise BadInput(f"{dataset.path}: split {split} has no piece with a {task.column}")

    def _lay(self, pieces: Int64[np.ndarray, "N"]) -> None:
        self.pieces = pieces
        self._ends = np.cumsum(-(-self.dataset.notes[pieces] // self.notes))

    def slice(self, number: int, random: np.random.Generator | None) -> Slice:
        """A slice, augmented where there are random numbers; `ends` is where its `<E>` stands."""
        vocabulary = self.dataset.vocabulary
        row, place = no_slice(self.length, vocabulary), int(np.searchsorted(self._ends, number, side="right"))
        notes = vocabulary.decode(self.dataset[self.pieces[place]])
        first = (number - (self._ends[place - 1] if place else 0)) * self.notes
        if first >= len(notes):  # a vocabulary may know fewer notes than the file had
            return row
        ids = vocabulary.encode(notes[first : first + self.notes])
        ids = closed(ids if random is None else augmented(ids, vocabulary, random), self.length, vocabulary)
        row["tokens"][: len(ids)] = ids
        target = self.targets[self.pieces[place]]
        numbers = {"ends": np.int32(len(ids) - 1), "targets": np.int32(target), "weights": np.float32(1)}
        return row | {name: np.asarray(value) for name, value in numbers.items()}


class ClassRows(Slices):
    """Slices without end: row g is slice (order of the epoch)[g % rows_per_epoch] of epoch g // rows_per_epoch.

    With `shots`, of so many pieces only, as many of each class as there are, which the seed draws.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        task: Task,
        length: int,
        notes: int,
        seed: int,
        augmented: bool,
        shots: int,
    ):
        super().__init__(dataset, split, task, length, notes)
        check_classes(task, self.targets[self.pieces], str(dataset.path))
        if shots:
            self._lay(self.pieces[draw(self.targets[self.pieces], shots, seed)])
        self.seed, self.augmented, self.rows_per_epoch = seed, augmented, int(self._ends[-1])

    def __len__(self) -> int:
        return 1 << 62  # epochs do not end; Grain wants a number

    def __getitem__(self, row: int) -> Slice:
        epoch, place = divmod(row, self.rows_per_epoch)
        number = int(order(self.rows_per_epoch, self.seed, ROW_ORDER, epoch)[place])
        random = np.random.Generator(bits(self.seed, AUGMENTATION, epoch, number)) if self.augmented else None
        return self.slice(number, random)


class ValidationSlices(Slices):
    """Every slice once, in order, not augmented; `files` is 1 at the place of its piece among all, and else 0.

    Rows past the last weigh nothing, so that every host finds as many batches.
    """

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Slice:
        files = np.zeros(len(self.pieces), np.float32)
        if row >= len(self):
            return no_slice(self.length, self.dataset.vocabulary) | {"files": files}
        files[np.searchsorted(self._ends, row, side="right")] = 1
        return self.slice(row, None) | {"files": files}
