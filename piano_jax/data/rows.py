"""Pretraining rows: cuts of T tokens from a split's pieces laid end to end, each a pure function of its number."""

import functools

import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer, UInt16

from piano_jax import BadInput
from piano_jax.data.prefixes import Labelled
from piano_jax.data.shards import Dataset
from piano_jax.music import Vocabulary, augment

# What a stream of random numbers is for; with the seed, the epoch and the row it makes the stream's key.
PIECE_ORDER, ROW_ORDER, AUGMENTATION, SLICES = range(4)

Pieces = Dataset | Labelled
Row = dict[str, Int32[np.ndarray, "_"] | Float32[np.ndarray, "_"]]


def bits(seed: int, *place: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=place))


def permutation(size: int, seed: int, *place: int) -> Int64[np.ndarray, "size"]:
    """Sorts raw random bits, which NumPy promises not to change between versions, as it does not for shuffles."""
    return bits(seed, *place).random_raw(size).argsort(kind="stable")


order = functools.lru_cache(2)(permutation)  # an epoch's, and that of the one before for threads still in it


class Line:
    """Pieces laid end to end, from which rows are cut."""

    def __init__(self, dataset: Pieces, pieces: Int64[np.ndarray, "N"]):
        self.dataset, self.pieces = dataset, pieces
        self.ends = np.cumsum(dataset.offsets[pieces + 1] - dataset.offsets[pieces])

    def cut(self, start: int, length: int) -> UInt16[np.ndarray, "_"]:
        """Tokens from `start` on: `length` of them, or those that there are."""
        first, last = np.searchsorted(self.ends, (start, start + length - 1), side="right")
        records = self.dataset.read(self.pieces[first : last + 1])
        if not records:
            return np.empty(0, np.uint16)
        records[0] = records[0][start - self.ends[first] :]  # the end is counted from the piece's own
        return np.concatenate(records)[:length]


def row_of(ids: Integer[np.ndarray, "_"], length: int, vocabulary: Vocabulary, isolate: bool) -> Row:
    """A row's tokens, padded to `length`, the token that follows each, where pieces lie, and what counts in the loss.

    `segment_ids` are 0 on padding and else number the pieces from 1, a new one beginning after each `<E>`, where
    pieces are isolated from each other, or are all 1 where they are not. The last position has nothing to predict, nor
    has, in isolation, a piece's `<E>`.
    """
    tokens = np.full(length, vocabulary.pad, np.int32)
    tokens[: len(ids)] = ids
    targets = np.append(tokens[1:], np.int32(vocabulary.pad))
    segment_ids = (tokens != vocabulary.pad).astype(np.int32)
    weights = (targets != vocabulary.pad).astype(np.float32)
    if isolate:
        ended = tokens == vocabulary.end
        segment_ids[1:] *= 1 + np.cumsum(ended[:-1], dtype=np.int32)
        weights[ended] = 0
    return {"tokens": tokens, "targets": targets, "segment_ids": segment_ids, "weights": weights}


class PretrainingRows:
    """Rows without end: row g is cut number (row order of the epoch)[g % rows_per_epoch] of epoch g // rows_per_epoch.

    An epoch lays the split's pieces end to end in its own order, cuts them into whole rows (what is left over, less
    than a row, differs from epoch to epoch), and gives the rows in its own order.

    Raises:
        BadInput: the split is empty, or holds less than a row.
    """

    def __init__(self, dataset: Pieces, split: str, length: int, seed: int, augmented: bool, isolate: bool):
        self.dataset, self.length, self.seed, self.augmented, self.isolate = dataset, length, seed, augmented, isolate
        self.pieces = dataset.split(split)
        total = int((dataset.offsets[self.pieces + 1] - dataset.offsets[self.pieces]).sum())
        self.rows_per_epoch = total // length
        if not self.rows_per_epoch:
            raise BadInput(f"{dataset.path}: split {split} holds {total:,} tokens, less than a row of {length:,}")
        self._epochs: dict[int, tuple[Line, np.ndarray]] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_epochs": {}}

    def __len__(self) -> int:
        return 1 << 62  # epochs do not end; Grain wants a number

    def __getitem__(self, row: int) -> Row:
        epoch, place = divmod(row, self.rows_per_epoch)
        line, order = self._epoch(epoch)
        cut = int(order[place])
        ids = line.cut(cut * self.length, self.length)
        if self.augmented:
            random = np.random.Generator(bits(self.seed, AUGMENTATION, epoch, cut))
            ids = augment(ids, self.dataset.vocabulary, random)
        return row_of(ids, self.length, self.dataset.vocabulary, self.isolate)

    def _epoch(self, epoch: int) -> tuple[Line, Int64[np.ndarray, "R"]]:
        """An epoch's pieces and order of rows; the one before is kept too, for threads that are still in it."""
        laid = self._epochs.get(epoch)
        if laid is None:
            line = Line(self.dataset, self.pieces[permutation(len(self.pieces), self.seed, PIECE_ORDER, epoch)])
            laid = line, permutation(self.rows_per_epoch, self.seed, ROW_ORDER, epoch)
            self._epochs = {number: kept for number, kept in self._epochs.items() if number == epoch - 1}
            self._epochs[epoch] = laid
        return laid


class EvaluationRows:
    """Rows that never change: the split's pieces in the dataset's order, every token once, the last row padded.

    Rows past the last are all padding, so that every host finds as many batches.

    Raises:
        BadInput: the split is empty.
    """

    def __init__(self, dataset: Pieces, split: str, length: int, isolate: bool):
        self.length, self.isolate = length, isolate
        self._line = Line(dataset, dataset.split(split))
        if not len(self._line.pieces):
            raise BadInput(f"{dataset.path}: split {split} is empty")

    def __len__(self) -> int:
        return -(-int(self._line.ends[-1]) // self.length)

    def __getitem__(self, row: int) -> Row:
        ids = self._line.cut(row * self.length, self.length)
        return row_of(ids, self.length, self._line.dataset.vocabulary, self.isolate)
