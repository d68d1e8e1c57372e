"""What may come next in a piece of solo piano, as arrays: masks over the tokens and a small state for each row.

An event is a note with its onset and its duration, or a pedal with its onset; onsets of a segment never step back, and
`<T>` opens the next. Of notes there are those of a piano's 88 keys, with velocities and durations above 0.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer

from piano_jax.music.vocabulary import DURATION, NOTE, ONSET, PAIR, VELOCITIES, Vocabulary

KEYS = range(21, 109)  # MIDI pitches of a piano
EVENT, NOTE_ONSET, LENGTH, PAIR_ONSET = range(4)  # what a row expects: a new event, or a part of the one begun
AFTER = np.zeros((4, 5), np.int32)  # what a row expects after a token, by what it expected and the token's role
AFTER[:, NOTE], AFTER[:, PAIR] = NOTE_ONSET, PAIR_ONSET
AFTER[NOTE_ONSET, ONSET] = LENGTH


class Place(NamedTuple):
    """Where rows stand: what they expect, the segment's last onset, whether the pedal is down, and `<D>` was there."""

    expects: Int[Array | np.ndarray, "B"]
    floor: Int[Array | np.ndarray, "B"]
    is_down: Bool[Array | np.ndarray, "B"]
    is_ending: Bool[Array | np.ndarray, "B"]


class Grammar:
    """The grammar of a vocabulary; `candidates` are the ids that it ever lets follow.

    Without rules every id is a candidate, and none is ever barred.
    """

    def __init__(self, vocabulary: Vocabulary, rules: bool = True):
        self.vocabulary, self.rules = vocabulary, rules
        v, ids = vocabulary, np.arange(vocabulary.size)
        note, velocity = np.divmod(ids - v.note.start, VELOCITIES)
        played = np.isin(ids, v.note) & np.isin(note, KEYS) & (velocity > 0)  # pianos are the first 128 notes
        events = played | np.isin(ids, [*v.pedal[:2], v.time, v.end, v.diminish])
        parts = np.isin(ids, v.onset) | np.isin(ids, v.duration[1:])
        self.candidates = np.flatnonzero(events | parts) if rules else ids
        self._stage = np.where(v.role == ONSET, NOTE_ONSET, np.where(v.role == DURATION, LENGTH, EVENT))
        self._step = np.where(v.role == ONSET, ids - v.onset.start, v.size)

    def follow(self, place: Place, ids: Integer[Array, "B"]) -> Place:
        """Where rows stand after another token each, be it one that the grammar lets follow or not."""
        v = self.vocabulary
        role, step = jnp.asarray(v.role.astype(np.int32))[ids], ids - v.onset.start
        floor = jnp.where(role == ONSET, step, jnp.where(ids == v.time, 0, place.floor))
        is_down = place.is_down
        if v.has_pedal:
            is_down = jnp.where(role == PAIR, ids == v.pedal[0], is_down)
        expects = jnp.asarray(AFTER)[place.expects, role]
        return Place(expects, floor, is_down, place.is_ending | (ids == v.diminish))

    def after(self, ids: Integer[np.ndarray, "T"]) -> Place:
        """Where a row stands after these tokens, as arrays of one row."""
        v = self.vocabulary
        ids = np.asarray(ids, np.int32)
        role = v.role[ids]
        expects = EVENT
        for token in role[-2:]:
            expects = AFTER[expects, token]
        onsets = np.where(role == ONSET, ids - v.onset.start, 0)
        last = np.flatnonzero((role == ONSET) | (ids == v.time))
        pedal = ids[np.isin(ids, v.pedal[:2])]
        return Place(
            np.array([expects], np.int32),
            np.array([onsets[last[-1]] if len(last) else 0], np.int32),
            np.array([len(pedal) > 0 and pedal[-1] == v.pedal[0]]),
            np.array([(ids == v.diminish).any()]),
        )

    def allowed(self, place: Place) -> Bool[Array, "B C"]:
        """Which of the candidates may follow."""
        v, ids = self.vocabulary, self.candidates
        if not self.rules:
            return jnp.ones((len(place.expects), len(ids)), bool)
        stage, step = jnp.asarray(self._stage[ids])[None], jnp.asarray(self._step[ids])[None]
        expects = jnp.where(place.expects == PAIR_ONSET, NOTE_ONSET, place.expects)
        fits = (stage == expects[:, None]) & (step >= place.floor[:, None])
        fits &= ~(jnp.asarray(ids == v.diminish)[None] & place.is_ending[:, None])
        if v.has_pedal:
            down, up = (jnp.asarray(ids == pedal)[None] for pedal in v.pedal[:2])
            fits &= ~(down & place.is_down[:, None]) & ~(up & ~place.is_down[:, None])
        return fits


@functools.cache
def grammar_of(vocabulary: str, rules: bool) -> Grammar:
    """The grammar of the vocabulary of that name, made once."""
    return Grammar(Vocabulary(vocabulary), rules)
