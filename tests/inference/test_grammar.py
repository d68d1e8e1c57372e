import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piano_jax.inference.grammar import KEYS, Grammar, Place
from piano_jax.music import Vocabulary
from piano_jax.music.performances import STYLES, performance


def place_of(rows: list[Place]) -> Place:
    return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)), *rows)


@pytest.mark.parametrize("name", ["aria", "piano"])
def test_all_that_is_played_is_allowed(name):
    """Every token of performances, given those before it; and `follow` arrives where `after` begins."""
    vocabulary = Vocabulary(name)
    grammar = Grammar(vocabulary)
    follow, allowed = jax.jit(grammar.follow), jax.jit(grammar.allowed)
    for seed, style in enumerate(STYLES[:3]):
        ids = vocabulary.encode(performance(seed, style))[:400].astype(np.int32)
        opening = int(np.flatnonzero(ids == vocabulary.begin)[0]) + 1
        place = place_of([grammar.after(ids[:opening])])
        for count in range(opening, len(ids)):
            assert allowed(place)[0, np.searchsorted(grammar.candidates, ids[count])], (count, ids[count])
            place = follow(place, jnp.asarray(ids[count : count + 1]))
            if count % 20 == 0:
                jax.tree.map(np.testing.assert_array_equal, place, grammar.after(ids[: count + 1]))


@pytest.mark.parametrize("name", ["aria", "piano"])
def test_whatever_is_allowed_decodes(name):
    """Walks at random: all events are whole, in order, on the piano's keys, and the pedal goes down and up in turn."""
    vocabulary, random = Vocabulary(name), np.random.default_rng(0)
    grammar = Grammar(vocabulary)
    follow, allowed = jax.jit(grammar.follow), jax.jit(grammar.allowed)
    opening = np.array([vocabulary.prefix[0], vocabulary.begin], np.int32)
    place, rows = place_of([grammar.after(opening)] * 32), np.tile(opening, (32, 1))
    for _ in range(300):
        mask = np.array(allowed(place))
        assert mask.any(1).all()
        mask[:, grammar.candidates == vocabulary.end] = False
        ids = np.array([grammar.candidates[random.choice(np.flatnonzero(row))] for row in mask], np.int32)
        place, rows = follow(place, jnp.asarray(ids)), np.concatenate([rows, ids[:, None]], 1)
    for ids in rows:
        at, sizes = vocabulary.events(ids)
        onset = np.cumsum(ids == vocabulary.time)[at] * 5000 + (ids[at + 1] - vocabulary.onset.start) * 10
        assert (np.diff(onset) >= 0).all()
        others = np.isin(ids, [vocabulary.time, vocabulary.diminish]).sum()
        assert len(ids) - 2 - sizes.sum() - others <= 2  # all else is of whole events, but for the last
        assert (ids == vocabulary.diminish).sum() <= 1
        notes = vocabulary.decode(ids)
        assert len(notes) and np.isin(notes.pitch, KEYS).all()
        assert not notes.instrument.any() and (notes.velocity > 0).all() and (notes.duration > 0).all()
        pedals = ids[np.isin(ids, vocabulary.pedal[:2])]
        assert (np.diff(pedals) != 0).all() and (not len(pedals) or pedals[0] == vocabulary.pedal[0])


def test_without_rules_nothing_is_barred():
    vocabulary = Vocabulary("piano")
    free = Grammar(vocabulary, rules=False)
    place = place_of([free.after(np.array([6, 0, 100]))])
    assert free.allowed(place).all() and len(free.candidates) == vocabulary.size
