"""Memorisation: the longest run of notes that a continuation shares with a piece that was trained on.

Only pitches count, relative to each other, in the order of their onsets: neither transposition nor tempo hides a copy.
Notes of a chord have no order, and neither have any others that lie within TOGETHER, as rounding of times moves them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

from piano_jax.music import Notes

BLOCK = 1 << 20  # training notes at a time
CHORD, TOGETHER = 35, 150  # milliseconds: between notes of one chord; of notes that may change places
ANCHORS = 4  # places where each continuation is most like a block's pieces
WIDEST = 126  # semitones
END, THEIR_END = 254, 255  # stand between training pieces, and between continuations, and so are never shared
HASHES = np.random.default_rng(0).integers(1 << 63, size=512, dtype=np.uint64)  # of pitches from -192


class Run(NamedTuple):
    """Consecutive notes that a continuation shares with a piece.

    `start` and `end` are seconds in the continuation, `there` is where they start in the piece, counted as its onsets
    are. The piece is the number of that in the training set; None, with no notes, where nothing is shared. The
    continuation lies `transposed` semitones above it, and takes `stretched` of its time.
    """

    notes: int = 0
    piece: int | None = None
    start: float = 0.0
    end: float = 0.0
    there: float = 0.0
    transposed: int = 0
    stretched: float = 1.0


class Line(NamedTuple):
    """Pitches and onsets in order of time; the notes of a chord, which follow each other within CHORD, by pitch."""

    pitch: Int64[np.ndarray, "N"]
    onset: Int64[np.ndarray, "N"]

    @classmethod
    def of(cls, notes: Notes) -> "Line":
        chord = np.cumsum(np.diff(notes.onset, prepend=notes.onset[:1]) > CHORD)
        order = np.lexsort((notes.pitch, chord))
        return cls(notes.pitch[order].astype(np.int64), notes.onset[order].astype(np.int64))


def longest_runs(continuations: Sequence[Notes], training: Iterable[Notes]) -> list[Run]:
    """The longest run that each continuation shares with any training piece.

    Pieces are read once, about a million notes at a time. In each block, sorting all substrings finds where a
    continuation's intervals agree longest with a piece's, and from there a run extends as far as the same notes do.
    A single changed, added or missing note ends it.
    """
    asked = [Line.of(notes) for notes in continuations]
    best = [Run()] * len(asked)
    for first, pieces in _blocks(training):
        for place, at, piece, there in _anchors(asked, pieces):
            run = _extended(asked[place], at, pieces[piece], there)
            if run.notes > best[place].notes:
                best[place] = run._replace(piece=first + piece)
    return best


def _blocks(training: Iterable[Notes]) -> Iterator[tuple[int, list[Line]]]:
    """Pieces, about BLOCK notes at a time, with the number of the first."""
    first, pieces, size = 0, [], 0
    for notes in training:
        pieces.append(Line.of(notes))
        size += len(notes)
        if size >= BLOCK:
            yield first, pieces
            first, pieces, size = first + len(pieces), [], 0
    if pieces:
        yield first, pieces


def _anchors(asked: list[Line], pieces: list[Line]) -> Iterator[tuple[int, int, int, int]]:
    """Where continuations agree longest with pieces: continuation, its note, piece, and the note in that.

    Substrings of 8, 16, 32 … intervals are numbered in their sorted order, each length by pairs of the one before
    (Karp, Miller and Rosenberg, 1972), until no continuation shares one; the training substring that agrees longest
    with another stands next to it in that order.
    """
    lines = [*pieces, *asked]
    starts = np.cumsum([0, *(len(line.pitch) for line in lines)])
    ours = np.arange(starts[-1]) < starts[len(pieces)]  # training
    symbols = np.where(ours, END, THEIR_END).astype(np.uint8)
    pitch = np.concatenate([line.pitch for line in lines])
    inside = np.ones(len(pitch), bool)
    inside[starts[1:][np.diff(starts) > 0] - 1] = False
    steps = np.clip(np.diff(pitch, append=0), -WIDEST, WIDEST) + WIDEST
    symbols[inside] = steps[inside]
    if not (inside & ours).any() or not (inside & ~ours).any():
        return

    levels = _substrings(symbols, ours)
    order = np.argsort(levels[-1], kind="stable")
    place = np.where(ours[order], np.arange(len(order)), -1)
    before = np.maximum.accumulate(place)
    after = np.minimum.accumulate(np.where(place < 0, len(order), place)[::-1])[::-1]
    theirs = ~ours[order]
    here = np.tile(order[theirs], 2)
    near = np.concatenate([before[theirs], after[theirs]])
    known = (near >= 0) & (near < len(order))
    here, there = here[known], order[near[known]]

    alike = np.zeros(len(here), np.int64)
    for power in reversed(range(len(levels))):
        alike += (levels[power][here + alike] == levels[power][there + alike]).astype(np.int64) << power
    here, there, alike = here[alike > 0], there[alike > 0], alike[alike > 0]
    of, piece = (np.searchsorted(starts, x, side="right") - 1 for x in (here, there))
    # One anchor for each way to lay a continuation beside a piece, the longest agreement of it.
    order = np.lexsort((here, -alike, here - there, of))
    order = order[np.flatnonzero(np.diff((here - there)[order], prepend=starts[-1]) | np.diff(of[order], prepend=-1))]
    order = order[np.lexsort((there[order], -alike[order], of[order]))]
    rank = np.arange(len(order)) - np.searchsorted(of[order], of[order])
    for kept in order[rank < ANCHORS].tolist():
        note, other = here[kept] - starts[of[kept]], there[kept] - starts[piece[kept]]
        yield int(of[kept]) - len(pieces), int(note), int(piece[kept]), int(other)


def _substrings(symbols: UInt8[np.ndarray, "T"], ours: Bool[np.ndarray, "T"]) -> list[np.ndarray]:
    """Numbers of the substrings of 1, 2, 4, 8 … symbols at each place, until none is both in training and elsewhere."""
    levels: list[np.ndarray] = [symbols]
    for power, kind in enumerate((np.uint16, np.uint32, np.uint64)):
        last = levels[-1].astype(kind)
        levels.append(last << (8 << power) | _moved(last, 1 << power))
    while True:
        numbers = np.unique(levels[-1], return_inverse=True)[1]
        levels[-1] = numbers
        in_training = np.zeros(numbers.max() + 1, bool)
        in_training[numbers[ours]] = True
        if not in_training[numbers[~ours]].any():
            return levels
        levels.append(numbers * (numbers.max() + 2) + _moved(numbers + 1, 1 << len(levels) - 1))


def _moved(values: np.ndarray, by: int) -> np.ndarray:
    """Each value's neighbour so far on, and 0 past the end."""
    return np.append(values[by:], np.zeros(min(by, len(values)), values.dtype))


def _extended(one: Line, at: int, piece: Line, there: int) -> Run:
    """The run through note `at` of a continuation, laid on note `there` of a piece.

    It lies between two places up to which both have the same notes, in whatever order: the sums of their pitches'
    hashes agree. Where they disagree between, that is over in TOGETHER.
    """
    before, after = min(at, there), min(len(one.pitch) - at, len(piece.pitch) - there)
    first, other = at - before, there - before
    mine, theirs = slice(first, at + after), slice(other, there + after)
    transposed = int(one.pitch[at] - piece.pitch[there])
    difference = _sums(one.pitch[mine]) - _sums(piece.pitch[theirs] + transposed)
    same = np.flatnonzero(difference == difference[before])
    sides = (one.onset[mine], piece.onset[theirs])
    taken = np.maximum(*(np.abs(onset[same[1:] - 1] - onset[same[:-1]]) for onset in sides))
    broken = np.flatnonzero((np.diff(same) > 1) & (taken > TOGETHER)) + 1
    bounds = np.concatenate([[0], broken, [len(same)]])
    part = np.searchsorted(same[broken], before, side="right")
    low, high = int(same[bounds[part]]), int(same[bounds[part + 1] - 1])
    (start, end), (begin, stop) = ((onset[low:high].min() / 1000, onset[low:high].max() / 1000) for onset in sides)
    stretched = (end - start) / (stop - begin) if stop > begin else 1.0
    return Run(high - low, None, float(start), float(end), float(begin), transposed, float(stretched))


def _sums(pitch: Int64[np.ndarray, "N"]) -> UInt64[np.ndarray, "N+1"]:
    return np.append(np.uint64(0), np.cumsum(HASHES[pitch + 192]))
