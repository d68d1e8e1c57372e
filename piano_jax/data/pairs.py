"""Pairs of slices of one piece, for contrastive learning: each pair a pure function of (seed, epoch, piece)."""

import numpy as np
from jaxtyping import Float32, Int32

from piano_jax import BadInput
from piano_jax.data.chunks import augmented, closed
from piano_jax.data.rows import PIECE_ORDER, SLICES, bits, order, permutation
from piano_jax.data.shards import Dataset
from piano_jax.music import Notes, Vocabulary

Pair = dict[str, Int32[np.ndarray, "2 T"] | Int32[np.ndarray, "2"] | Float32[np.ndarray, ""]]


def no_pair(length: int, vocabulary: Vocabulary) -> Pair:
    """A row of padding, which weighs nothing."""
    nothing = np.full((2, length), vocabulary.pad, np.int32)
    return {"tokens": nothing, "ends": np.zeros(2, np.int32), "weights": np.zeros((), np.float32)}


class PairRows:
    """Pairs without end: row g is of piece (order of the epoch)[g % rows_per_epoch] in epoch g // rows_per_epoch.

    A pair is two slices of a piece, each of `shortest` to `longest` notes wherever it may lie, from its own start on,
    augmented or not, with pitches moved by up to `semitones`, cut at `length` tokens. Its `tokens` are (2, length),
    `ends` where the `<E>` of each stands. An epoch is whole batches, so that a piece stands once in a batch; the pieces
    left over differ from epoch to epoch.

    Pieces too short for two slices that share nothing, `left_out` of them, give no pairs.

    Raises:
        BadInput: the slices' bounds are none, or there are fewer pieces than a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        length: int,
        batch: int,
        seed: int,
        shortest: int,
        longest: int,
        augmented: bool,
        semitones: int = 5,
    ):
        if not 1 <= shortest <= longest:
            raise BadInput(
                f"slices of {shortest} to {longest} notes: the first is at least 1, and not above the second"
            )
        if semitones < 0:
            raise BadInput(f"data.semitones {semitones}: pitches move by none or more")
        self.dataset, self.length, self.seed = dataset, length, seed
        self.augmented, self.semitones = augmented, semitones
        self.shortest, self.longest = shortest, longest
        pieces = dataset.split(split)
        self.pieces = pieces[dataset.notes[pieces] >= 2 * shortest]
        self.left_out = len(pieces) - len(self.pieces)
        self.rows_per_epoch = len(self.pieces) // batch * batch
        if not self.rows_per_epoch:
            held = f"{len(self.pieces):,} pieces of {2 * shortest} notes or more"
            raise BadInput(f"{dataset.path}: split {split} holds {held}, fewer than a batch of {batch:,}")

    def __len__(self) -> int:
        return 1 << 62  # epochs do not end; Grain wants a number

    def __getitem__(self, row: int) -> Pair:
        epoch, place = divmod(row, self.rows_per_epoch)
        return self.pair(epoch, int(self.pieces[order(len(self.pieces), self.seed, PIECE_ORDER, epoch)[place]]))

    def pair(self, epoch: int, piece: int) -> Pair:
        """Two slices of a piece, drawn for an epoch."""
        random = np.random.Generator(bits(self.seed, SLICES, epoch, piece))
        notes = self.dataset.vocabulary.decode(self.dataset[piece])
        slices = [self._slice(notes, random) for _ in range(2)]
        row = no_pair(self.length, self.dataset.vocabulary)
        for view, ids in enumerate(slices):
            row["tokens"][view, : len(ids)], row["ends"][view] = ids, len(ids) - 1
        return row | {"weights": np.ones((), np.float32)}

    def _slice(self, notes: Notes, random: np.random.Generator) -> Int32[np.ndarray, "_"]:
        vocabulary = self.dataset.vocabulary
        count = random.integers(min(self.shortest, len(notes)), min(self.longest, len(notes)), endpoint=True)
        first = random.integers(0, len(notes) - count, endpoint=True)
        ids = vocabulary.encode(notes[first : first + count])
        if self.augmented:
            ids = augmented(ids, vocabulary, random, self.semitones)
        return closed(ids, self.length, vocabulary)


class ValidationPairs:
    """Pairs that never change: one of each piece of a split, in one order, not augmented.

    The order is shuffled, for neighbours in a dataset are alike, and a batch of them would be harder than any other.

    Rows past the last weigh nothing, so that every host finds as many batches. Raises BadInput where there is no piece.
    """

    def __init__(self, dataset: Dataset, split: str, length: int, shortest: int, longest: int):
        self._rows = PairRows(dataset, split, length, 1, 0, shortest, longest, augmented=False)
        self.left_out = self._rows.left_out
        self._pieces = self._rows.pieces[permutation(len(self._rows.pieces), 0, PIECE_ORDER, 0)]

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, row: int) -> Pair:
        if row < len(self):
            return self._rows.pair(0, int(self._pieces[row]))
        return no_pair(self._rows.length, self._rows.dataset.vocabulary)
