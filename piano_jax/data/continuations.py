"""Rows to learn continuing from: each begins where a piece does, or where the row before it in the piece stopped."""

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Integer

from piano_jax import BadInput
from piano_jax.data.rows import AUGMENTATION, ROW_ORDER, Pieces, Row, bits, order, row_of
from piano_jax.data.shards import LABELS
from piano_jax.data.vectors import read_vectors
from piano_jax.music import Vocabulary, augment

SHORT, BEFORE = 150, 100  # pieces of more tokens get a `<D>`, about so many before their end (METHOD, section 1)


def with_diminish(ids: Integer[np.ndarray, "T"], vocabulary: Vocabulary) -> Int32[np.ndarray, "_"]:
    """A piece's ids with `<D>` before the last event that begins 100 tokens or more before the end, if it is long."""
    ids = np.asarray(ids, np.int32)
    if len(ids) <= SHORT:
        return ids
    at, _ = vocabulary.events(ids)
    place = at[max(0, np.searchsorted(at, len(ids) - BEFORE, side="right") - 1)]
    return np.insert(ids, place, vocabulary.diminish)


class Embeddings:
    """Embeddings of a dataset's pieces, from the file that `embed` writes, by path; zeros for a piece that it lacks.

    Raises:
        BadInput: not such a file, of another size, or of none of these pieces.
    """

    def __init__(self, file: str | Path, pieces: Pieces, size: int):
        paths, found = read_vectors(file)
        if found.shape[1:] != (size,):
            raise BadInput(f"{file}: its embeddings are of size {found.shape[-1]}, and the model takes {size}")
        place = {path: number for number, path in enumerate(paths)}
        with (pieces.path / LABELS).open(encoding="utf-8", errors="surrogateescape", newline="") as table:
            self._place = np.array([place.get(row["path"], -1) for row in csv.DictReader(table)])
        if (self._place < 0).all():
            raise BadInput(f"{file}: has none of the pieces of {pieces.path}")
        self._found = np.concatenate([found, np.zeros((1, size), np.float32)])  # the last is of those it lacks

    def __getitem__(self, piece: int) -> Float32[np.ndarray, "E"]:
        return self._found[self._place[piece]]


class PieceRows:
    """A split's pieces, `<D>` in those that are long, each cut into rows of `length`, the last one padded.

    Raises:
        BadInput: the split is empty.
    """

    def __init__(self, dataset: Pieces, split: str, length: int, embeddings: Embeddings | None):
        self.dataset, self.length, self.embeddings = dataset, length, embeddings
        self.pieces = dataset.split(split)
        if not len(self.pieces):
            raise BadInput(f"{dataset.path}: split {split} is empty")
        tokens = dataset.offsets[self.pieces + 1] - dataset.offsets[self.pieces]
        self._ends = np.cumsum(-(-(tokens + (tokens > SHORT)) // length))  # rows up to the end of each piece

    @property
    def count(self) -> int:
        return int(self._ends[-1])

    def row(self, number: int, random: np.random.Generator | None, augmented: bool) -> Row:
        """A row by its number in the split; `random` takes its embedding away half of the time, and augments it."""
        vocabulary = self.dataset.vocabulary
        ids, embedding = np.empty(0, np.int32), None
        if number < self.count:
            index = int(np.searchsorted(self._ends, number, side="right"))
            piece, first = int(self.pieces[index]), int(self._ends[index - 1]) if index else 0
            whole = with_diminish(self.dataset.read(np.array([piece]))[0], vocabulary)
            ids = whole[(number - first) * self.length :][: self.length]
            embedding = None if self.embeddings is None else self.embeddings[piece]
        is_bare = random is not None and random.random() < 0.5
        row = row_of(augment(ids, vocabulary, random) if augmented else ids, self.length, vocabulary, isolate=False)
        if self.embeddings is None:
            return row
        return row | {"embedding": np.zeros_like(self.embeddings[0]) if embedding is None or is_bare else embedding}


class ContinuationRows(PieceRows):
    """Rows without end: each epoch gives those of a split in its own order, a row augmented by (seed, epoch, row)."""

    def __init__(
        self,
        dataset: Pieces,
        split: str,
        length: int,
        seed: int,
        augmented: bool,
        embeddings: Embeddings | None = None,
    ):
        super().__init__(dataset, split, length, embeddings)
        self.seed, self.augmented, self.rows_per_epoch = seed, augmented, self.count

    def __len__(self) -> int:
        return 1 << 62  # epochs do not end; Grain wants a number

    def __getitem__(self, number: int) -> Row:
        epoch, place = divmod(number, self.rows_per_epoch)
        cut = int(order(self.rows_per_epoch, self.seed, ROW_ORDER, epoch)[place])
        random = np.random.Generator(bits(self.seed, AUGMENTATION, epoch, cut))
        return self.row(cut, random, self.augmented)


class ContinuationEvaluation(PieceRows):
    """Rows that never change, in order. Those past the last are all padding: every host finds as many batches."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Row:
        return self.row(number, None, augmented=False)
