"""Playing along: notes go in as they are heard, and come out as they are decided."""

import dataclasses
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from piano_jax import BadInput
from piano_jax.inference.decoding import (
    Decoder,
    Program,
    Request,
    State,
    Weights,
    advance,
    decode,
    embed_tokens,
    tail,
    write,
)
from piano_jax.inference.grammar import grammar_of
from piano_jax.inference.prompts import continued, prompt_of
from piano_jax.inference.sampling import Sampling
from piano_jax.music import Notes
from piano_jax.music.vocabulary import SEGMENT, STEP

FEED = 32  # tokens that are fed at once
NOTE_TOKENS = 3


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def feed(program: Program, weights: Weights, state: State, tokens: Int[Array, "1 T"], count: Int[Array, ""]) -> State:
    """Puts the newest token and all but the last of these into the cache; those after `count` are padding."""
    row = jnp.concatenate([state.newest[:, None], tokens], 1)
    new = advance(program.model, weights, state.cache, state.start, embed_tokens(weights, row[:, :-1]), state.slot)[1]
    newest = jax.lax.dynamic_slice_in_dim(row, count, 1, 1)[:, 0]
    return state._replace(cache=write(state.cache, new, state.slot), newest=newest, slot=state.slot + count)


class Stream:
    """A duet with a model: `hear` what is played, and `play` what comes next; both as often as one likes.

    Times are milliseconds since the first note of all.
    """

    def __init__(self, decoder: Decoder, sampling: Sampling | None = None, seed: int = 0):
        self._decoder, self._vocabulary, self._sampling = decoder, decoder.vocabulary, sampling or Sampling()
        self._key = jax.random.key(seed)
        program = decoder.program(1, self._sampling, is_guided=False)
        self._program = dataclasses.replace(program, sizes=program.sizes[-1:])  # of one size, it is never copied
        self._ids = prompt_of(Notes([], [], [], []), self._vocabulary, 0.0)
        self._drawn = 0
        self._refill()

    def hear(self, notes: Notes) -> None:
        """Takes whole notes, none of which begins before the last that it knows. Raises BadInput."""
        if not len(notes):
            return
        opened = SEGMENT * int((self._ids == self._vocabulary.time).sum())
        known = opened + STEP * int(grammar_of(self._vocabulary.name, True).after(self._ids).floor[0])
        if notes.onset[0] < known:
            raise BadInput(f"a note at {notes.onset[0]} ms, after one at {known} ms")
        # After a note where the segment begins, the tokens of the others are what they are in the whole.
        columns = ((opened, notes.onset), (100, notes.duration), (60, notes.pitch), (60, notes.velocity))
        ids = self._vocabulary.encode(Notes(*(np.append(*column) for column in columns), pedal=notes.pedal))
        at, sizes = self._vocabulary.events(ids)
        new = ids[at[0] + sizes[0] : -1].astype(np.int32)
        self._ids = np.concatenate([self._ids, new])
        for start in range(0, len(new), FEED):
            part = new[start : start + FEED]
            if self._slot + FEED > self._decoder.config.context:
                self._refill()
                break
            padded = np.append(part, np.zeros(FEED - len(part), np.int32))[None]
            self._state = feed(self._program, self._decoder.weights, self._state, padded, np.int32(len(part)))
            self._slot += len(part)
        self._state = self._state._replace(place=grammar_of(self._vocabulary.name, True).after(self._ids))

    def play(self, tokens: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields each note (onset, duration, pitch, velocity) as soon as it is decided, until so many tokens are."""
        request = Request(self._key[None], self._sampling.cuts, np.float32(1), np.int32(1 << 30), np.bool_(False))
        stop, pending = self._drawn + tokens, len(self._ids)
        has_ended = False
        while self._drawn < stop and not has_ended:
            if self._slot + NOTE_TOKENS > self._decoder.config.context:
                self._refill()
            burst = min(NOTE_TOKENS, stop - self._drawn)
            weights = self._decoder.weights
            self._state, drawn, _ = decode(self._program, weights, self._state, request, np.int32(burst))
            new = np.asarray(drawn)[0, :burst]
            has_ended = self._vocabulary.end in new
            self._ids = np.concatenate([self._ids, new[~np.isin(new, (self._vocabulary.pad, self._vocabulary.end))]])
            self._drawn, self._slot = self._drawn + burst, self._slot + burst
            at, sizes = self._vocabulary.events(self._ids[pending:])
            if len(at):
                whole = pending + int(at[-1] + sizes[-1])
                _, new = continued(self._ids[:pending], self._ids[pending:whole], self._vocabulary)
                pending = whole
                yield from zip(*(x.tolist() for x in (new.onset, new.duration, new.pitch, new.velocity)), strict=True)

        if has_ended:
            self._refill()

    def _refill(self) -> None:
        """A cache of what was heard and played, or of its end where half of the context is not enough."""
        window = tail(self._ids, self._decoder.config.context // 2, self._vocabulary)
        cache, start, self._slot = self._decoder.fill(self._program, [window], 1, None)
        place = grammar_of(self._vocabulary.name, self._decoder.rules).after(self._ids)
        has_ended = np.zeros(1, bool)
        self._state = State(cache, start, np.int32(self._slot), window[-1:], has_ended, place, np.int32(self._drawn))
