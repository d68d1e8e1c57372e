"""Augmentation changes what it says, and nothing else."""

import numpy as np
import pytest

from piano_jax.music import Notes, Vocabulary, augment
from piano_jax.music.performances import STYLES, performance

ARIA, PIANO = Vocabulary("aria"), Vocabulary("piano")
STILL = {"pitch": 0, "tempo": 0.0, "velocity": 0}


def pieces(vocabulary: Vocabulary, count: int = 3) -> list[np.ndarray]:
    return [vocabulary.encode(performance(seed, STYLES[seed])) for seed in range(count)]


def events(vocabulary: Vocabulary, ids: np.ndarray) -> list[tuple]:
    """Onset, duration, pitch, velocity and pedal of each piece, in an order that forgets that of simultaneous notes."""
    found = []
    for piece in np.split(ids, np.flatnonzero(ids == vocabulary.end) + 1):
        notes = vocabulary.decode(piece)
        columns = zip(*(getattr(notes, x).tolist() for x in ("onset", "pitch", "duration", "velocity")), strict=True)
        found.append((sorted(columns), notes.pedal.tolist()))
    return found


@pytest.mark.parametrize("vocabulary", [ARIA, PIANO])
def test_without_change_only_simultaneous_notes_move(vocabulary):
    row = np.concatenate(pieces(vocabulary))
    out = augment(row, vocabulary, np.random.default_rng(0), **STILL)
    assert events(vocabulary, out) == events(vocabulary, row)
    assert (out == row)[vocabulary.is_label[row]].all()


@pytest.mark.parametrize("vocabulary", [ARIA, PIANO])
def test_each_change_is_the_one_meant(vocabulary):
    parts = pieces(vocabulary)
    row = np.concatenate([*parts, np.full(4000, vocabulary.pad)])
    before = [vocabulary.decode(part) for part in parts]
    drawn = {"pitch": set(), "velocity": set(), "tempo": set()}
    for seed in range(20):
        out = augment(row, vocabulary, np.random.default_rng(seed))
        after = [vocabulary.decode(part) for part in np.split(out, np.flatnonzero(out == vocabulary.end) + 1)[:3]]
        for old, new in zip(before, after, strict=True):
            assert len(old) == len(new)
            shift = np.sort(new.pitch).astype(int) - np.sort(old.pitch)
            assert (shift == shift[0]).all() and abs(shift[0]) <= 5
            step = np.sort(new.velocity).astype(int) - np.sort(old.velocity)
            inside = (np.sort(old.velocity) > 10) & (np.sort(old.velocity) < 120)
            assert (step[inside] == step[inside][0]).all() and abs(step[inside][0]) <= 10
            stretch = new.onset[-1] / old.onset[-1]
            assert 0.8 - 1e-3 <= stretch <= 1.2 + 1e-3
            assert abs(new.onset - old.onset * stretch).max() <= 15
            for kind, value in (("pitch", shift[0]), ("velocity", step[inside][0]), ("tempo", stretch)):
                drawn[kind].add(value)
    assert len(drawn["pitch"]) > 8 and drawn["velocity"] == {-10, 0, 10} and len(drawn["tempo"]) > 50


def test_notes_of_one_onset_are_shuffled():
    chord = Notes([0] * 6, [500] * 6, range(60, 66), [60] * 6)
    ids = ARIA.encode(chord)
    orders = {tuple(augment(ids, ARIA, np.random.default_rng(seed), **STILL)[2:-1:3]) for seed in range(50)}
    assert len(orders) > 30 and all(sorted(order) == sorted(orders.pop()) for order in list(orders))


def test_notes_that_leave_the_keyboard_are_unknown():
    ids = ARIA.encode(Notes([0, 500], [100, 100], [127, 60], [60, 60]))
    outs = [augment(ids, ARIA, np.random.default_rng(seed), pitch=5, tempo=0.0, velocity=0) for seed in range(30)]
    unknown = [out for out in outs if out[2] == ARIA.unknown]
    assert unknown and all(len(ARIA.decode(out)) == 1 for out in unknown)


def test_rows_keep_their_length_wherever_they_are_cut():
    line = np.concatenate(pieces(ARIA, 6))
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 4, 5, 64, 1000):
        for start in rng.integers(0, len(line) - length, 20):
            row = line[start : start + length]
            out = augment(row, ARIA, rng)
            assert len(out) == length
            assert (out == ARIA.end).sum() <= (row == ARIA.end).sum()
            (padding,) = np.nonzero(out == ARIA.pad)
            assert (padding == np.arange(length - len(padding), length)).all()
    assert augment(np.full(8, ARIA.pad), ARIA, rng).tolist() == [ARIA.pad] * 8


def test_the_same_draw_gives_the_same_row():
    row = np.concatenate(pieces(ARIA))
    first, second = (augment(row, ARIA, np.random.default_rng(5)) for _ in range(2))
    assert (first == second).all()
    assert (augment(row, ARIA, np.random.default_rng(6)) != first).any()
