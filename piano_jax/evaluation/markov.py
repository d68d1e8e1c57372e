"""A Markov model over tokens, the weak opponent: what comes next is what followed the last few tokens in training.

The context is seen coarsely, so that it recurs: a note by its pitch, times in steps. Where a context is too rare, or
nothing that followed it may stand here, its oldest token drops out (back-off), in the end all of it.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8, UInt64

from piano_jax import BadInput
from piano_jax.command import progress
from piano_jax.data.rows import Pieces, permutation
from piano_jax.inference.grammar import Place, grammar_of
from piano_jax.music.vocabulary import SEGMENT, STEP, VELOCITIES, Vocabulary

ORDER, MOST = 6, 6  # tokens of context: by default, and as many as fit into a key
TOKENS = 1 << 25  # of training at most, of pieces drawn at random; a key of 8 bytes each
LEAST = 8  # times that a context was there; those of rarer ones would be copied
DRAWS = 32  # of what followed a context, until one is allowed
BLOCK = 256  # pieces read at a time
ONSETS, DURATIONS = 100, 24  # steps that the context knows, of a segment and, each a factor longer, of a duration


def coarse(vocabulary: Vocabulary) -> UInt8[np.ndarray, "V"]:
    """What a context knows of each token: 0 of most, else the time, the pedal, a pitch, an onset or a duration."""
    known = np.zeros(vocabulary.size, np.uint8)
    known[vocabulary.time] = 1
    known[vocabulary.pedal[:2]] = (2, 3) if vocabulary.has_pedal else ()
    known[vocabulary.note] = 4 + np.arange(len(vocabulary.note)) // VELOCITIES % 128
    known[vocabulary.onset] = 132 + np.arange(len(vocabulary.onset)) * ONSETS * STEP // SEGMENT
    longer = np.geomspace(1, len(vocabulary.duration) - 1, DURATIONS)
    known[vocabulary.duration] = 232 + np.searchsorted(longer[1:], np.arange(len(vocabulary.duration)), side="left")
    return known


class Markov:
    """A model of the last `order` tokens, of the pieces `which`.

    All that it knows is one sorted array of keys: the context coarsely, 8 bits each, the newest token's the highest,
    and in the lowest 16 bits the token that followed. So contexts of every length up to `order` are ranges of it.

    Raises:
        BadInput: the order is not between 0 and MOST.
    """

    def __init__(self, pieces: Pieces, which: Int64[np.ndarray, "N"], order: int = ORDER):
        if not 0 <= order <= MOST:
            raise BadInput(f"a Markov model of order {order}: orders are 0 to {MOST}")
        self.vocabulary, self.order = pieces.vocabulary, order
        self._coarse = coarse(self.vocabulary).astype(np.uint64)
        drawn = which[permutation(len(which), 0)]
        drawn = drawn[: 1 + np.searchsorted(np.cumsum(pieces.offsets[drawn + 1] - pieces.offsets[drawn]), TOKENS)]
        blocks = range(0, len(drawn), BLOCK)
        read = (pieces.read(drawn[first : first + BLOCK]) for first in blocks)
        self._keys = np.concatenate([self._of(ids) for ids in progress(read, len(blocks), f"blocks of {BLOCK} pieces")])
        self._keys.sort()

    def _of(self, records: Sequence[Integer[np.ndarray, "_"]]) -> UInt64[np.ndarray, "_"]:
        """The keys of all tokens of these pieces that have `order` tokens before them."""
        ids = np.concatenate(records)
        starts = np.cumsum([0, *map(len, records)])[:-1]
        known, keys = self._coarse[ids], ids.astype(np.uint64)
        for back in range(1, self.order + 1):
            keys[back:] |= known[:-back] << np.uint64(64 - 8 * back)
        inside = np.arange(len(ids)) - np.repeat(starts, list(map(len, records))) >= self.order
        return keys[inside]

    def continued(
        self, prompts: Sequence[Integer[np.ndarray, "_"]], segments: int, tokens: int, seed: int
    ) -> Int32[np.ndarray, "R N"]:
        """What follows prompts (ids without `<E>`): up to `tokens` tokens, until all rows have that many `<T>`, prompt
        and all.

        The grammar lets follow what is drawn, and `<E>` and `<D>` are never drawn. Rows draw in turn from one stream.
        """
        random, grammar = np.random.default_rng(seed), grammar_of(self.vocabulary.name, True)
        follow, allow = jax.jit(grammar.follow), jax.jit(grammar.allowed)
        place = Place(*map(np.concatenate, zip(*map(grammar.after, prompts), strict=True)))
        column = np.full(self.vocabulary.size, -1)
        column[grammar.candidates] = np.arange(len(grammar.candidates))
        column[[self.vocabulary.end, self.vocabulary.diminish]] = -1
        barred = column[grammar.candidates] < 0
        reached = np.array([np.count_nonzero(prompt == self.vocabulary.time) for prompt in prompts])
        context = np.stack([self._context(prompt) for prompt in prompts])
        drawn: list[np.ndarray] = []
        for _ in progress(range(tokens), tokens, "tokens of each continuation"):
            mask = np.asarray(allow(place)) & ~barred
            token = self._draw(context, mask, column, random)
            drawn.append(token)
            place = follow(place, token)
            context = np.concatenate([self._coarse[token][:, None], context[:, :-1]], 1)[:, : self.order]
            reached += token == self.vocabulary.time
            if (reached >= segments).all():
                break
        return np.stack(drawn, 1)

    def _context(self, ids: Integer[np.ndarray, "_"]) -> UInt64[np.ndarray, "K"]:
        """What is known of the last `order` tokens, the newest first; zeros before the first."""
        known = self._coarse[ids[max(0, len(ids) - self.order) :]][::-1]
        return np.pad(known, (0, self.order - len(known)))

    def _draw(
        self,
        context: UInt64[np.ndarray, "R K"],
        mask: np.ndarray,
        column: Integer[np.ndarray, "V"],
        random: np.random.Generator,
    ) -> Int32[np.ndarray, "R"]:
        """A token for each row, one that its mask allows."""
        token = np.full(len(context), -1, np.int32)
        shifts = np.uint64(56) - np.uint64(8) * np.arange(self.order, dtype=np.uint64)
        for order in range(self.order, -1, -1):
            rows = np.flatnonzero(token < 0)
            low = (context[rows, :order] << shifts[:order]).sum(1, dtype=np.uint64)
            high = low | np.uint64((1 << (64 - 8 * order)) - 1)
            first, last = np.searchsorted(self._keys, low), np.searchsorted(self._keys, high, side="right")
            enough = last - first >= LEAST
            rows, first, count = rows[enough], first[enough], (last - first)[enough]
            if not len(rows):
                continue
            at = first[:, None] + (random.random((len(rows), DRAWS)) * count[:, None]).astype(np.int64)
            found = (self._keys[at] & np.uint64(0xFFFF)).astype(np.int32)
            fits = (column[found] >= 0) & mask[rows[:, None], column[found]]
            token[rows] = np.where(fits.any(1), found[np.arange(len(rows)), fits.argmax(1)], -1)
        for row in np.flatnonzero(token < 0):  # rare: nothing that was drawn may stand here
            token[row] = random.choice(np.flatnonzero(np.isin(column, np.flatnonzero(mask[row]))))
        return token
