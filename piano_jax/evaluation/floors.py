"""What a model has to beat: how often each token occurs, at all and after each class of token."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from piano_jax.command import progress
from piano_jax.data.labels import drawn_split
from piano_jax.data.rows import Pieces
from piano_jax.evaluation.likelihood import Tally, is_told
from piano_jax.music.vocabulary import CLASSES

ADDED = tuple(10.0**power for power in range(2, -5, -1))  # to every count; of equals, the first is chosen
BLOCK = 128  # pieces read at a time


class Floor(NamedTuple):
    """Log-probabilities of a token by the class of the one before it, and what was added to each count."""

    log_probability: Float[np.ndarray, "K V"]
    added: float


def fit_floors(pieces: Pieces, train: Int64[np.ndarray, "N"], compositions: Sequence[str]) -> dict[str, Floor]:
    """The "unigram", P(token), and the "class bigram", P(token | class of the token before), of the pieces `train`.

    What is added to counts is that by which four fifths of the compositions find the others likeliest; then all are
    counted. `compositions` are those of the pieces.
    """
    held_out = drawn_split(compositions, (0.8, 0.2)) == 1
    learnt, others = count(pieces, train[~held_out]), count(pieces, train[held_out])
    found = {}
    for name, table in (("unigram", unigram), ("class bigram", class_bigram)):
        added = ADDED[int(np.argmax([(others * table(learnt, added)).sum() for added in ADDED]))]
        found[name] = Floor(table(learnt + others, added), added)
    return found


def class_bigram(counts: Int64[np.ndarray, "K V"], added: float) -> Float[np.ndarray, "K V"]:
    """Log-probabilities from counts, to each of which something is added."""
    more = counts + added
    return np.log(more) - np.log(more.sum(1, keepdims=True))


def unigram(counts: Int64[np.ndarray, "K V"], added: float) -> Float[np.ndarray, "K V"]:
    """The same for every class of the token before."""
    return np.broadcast_to(class_bigram(counts.sum(0, keepdims=True), added), counts.shape)


def count(pieces: Pieces, which: Int64[np.ndarray, "N"]) -> Int64[np.ndarray, "K V"]:
    """How often each token that is told stands after each class of token."""
    kinds, size = pieces.vocabulary.kind.astype(np.int64), pieces.vocabulary.size
    counts = np.zeros((len(CLASSES), size), np.int64)
    for _, before, ids in _read(pieces, which, "pieces counted"):
        counts += np.bincount(kinds[before] * size + ids, minlength=counts.size).reshape(counts.shape)
    return counts


def tally_of_floor(floor: Floor, pieces: Pieces, which: Int64[np.ndarray, "N"]) -> Tally:
    """The tally of a floor, as `tally_of_model` makes a model's."""
    kinds, table = pieces.vocabulary.kind, floor.log_probability
    likeliest, confidence = table.argmax(1), np.exp(table.max(1))
    tally = Tally(len(which))
    for place, before, ids in _read(pieces, which, "pieces"):
        given = kinds[before]
        tally.add(place, kinds[ids], -table[given, ids], likeliest[given] == ids, confidence[given])
    return tally


def _read(
    pieces: Pieces, which: Int64[np.ndarray, "N"], unit: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The tokens that are told, a block of pieces at a time: the place of their piece, the token before, the token."""
    told = is_told(pieces.vocabulary)
    for first in progress(range(0, len(which), BLOCK), -(-len(which) // BLOCK), f"blocks of {BLOCK} {unit}"):
        records = pieces.read(which[first : first + BLOCK])
        ids = np.concatenate(records).astype(np.int64)
        place = first + np.repeat(np.arange(len(records)), [len(record) for record in records])
        counted = np.flatnonzero(told[ids[1:]]) + 1  # what a piece begins with is not told, so none stands after `<E>`
        yield place[counted], ids[counted - 1], ids[counted]
