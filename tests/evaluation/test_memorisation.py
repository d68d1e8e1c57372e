"""Memorisation: planted copies are found, however moved, and are as long as what was left of them."""

import dataclasses

import numpy as np
import pytest

from piano_jax.evaluation import memorisation
from piano_jax.evaluation.memorisation import Run, longest_runs
from piano_jax.music import Notes
from piano_jax.music.performances import performance

SHARED = 40  # notes: more than pieces share, by figures that they repeat, which have nothing to do with each other


@pytest.fixture(scope="module")
def training() -> list[Notes]:
    return [performance(seed) for seed in range(8)]


def melody(pitches: list[int] | np.ndarray, apart: int = 200) -> Notes:
    onset = apart * np.arange(len(pitches))
    return Notes(onset, np.full(len(pitches), 100), pitches, np.full(len(pitches), 60))


def moved(notes: Notes, semitones: int = 0, stretch: float = 1.0, later: int = 0) -> Notes:
    """On the grid of tokens, as what a model plays is."""
    onset = later + np.rint((notes.onset - notes.onset[0]) * stretch / 10) * 10
    return Notes(onset, notes.duration, notes.pitch.astype(int) + semitones, notes.velocity)


def joined(*parts: Notes) -> Notes:
    """Parts one after the other, a second between them."""
    columns, later = [], 0
    for part in parts:
        part = moved(part, later=later)
        columns.append((part.onset, part.duration, part.pitch, part.velocity))
        later = int(part.onset[-1]) + 1000
    return Notes(*map(np.concatenate, zip(*columns, strict=True)))


def test_what_is_new_shares_little(training):
    runs = longest_runs([performance(seed)[:300] for seed in range(100, 106)], training)
    assert all(2 < run.notes <= SHARED for run in runs)


@pytest.mark.parametrize("semitones, stretch", [(0, 1.0), (5, 1.0), (-4, 1.0), (0, 0.8), (0, 1.2), (3, 1.5), (-2, 0.6)])
def test_finds_a_planted_copy(training, semitones: int, stretch: float):
    new = performance(200)[:80]
    copies = [piece[40:160] for piece in training]
    runs = longest_runs([joined(new, moved(copy, semitones, stretch), new) for copy in copies], training)
    assert [run.piece for run in runs] == list(range(8))
    for run, copy in zip(runs, copies, strict=True):
        assert 114 <= run.notes <= 124  # its ends may go on in what stands beside it, or be a chord that lost a note
        assert run.transposed == semitones and run.stretched == pytest.approx(stretch, rel=0.05)
        assert run.there == pytest.approx(copy.onset[0] / 1000, abs=0.5)
        assert run.start == pytest.approx((moved(new).onset[-1] + 1000) / 1000, abs=0.5)
        assert run.end - run.start == pytest.approx(stretch * (copy.onset[-1] - copy.onset[0]) / 1000, rel=0.05)


def test_ends_where_a_note_is_another():
    rng = np.random.default_rng(0)
    piece = melody(rng.integers(40, 90, 200))
    for changed in ([100], [60, 130], [60, 61, 150]):
        pitch = piece.pitch.astype(int) + 2
        pitch[changed] += 1
        whole = max(np.diff([-1, *changed, 200])) - 1
        (run,) = longest_runs([melody(pitch, apart=260)], [piece])
        assert run.notes == whole and run.transposed == 2 and run.stretched == pytest.approx(1.3)
    lacking = melody(np.delete(piece.pitch, 90))
    assert longest_runs([lacking], [piece])[0].notes == 109
    added = melody(np.insert(piece.pitch, 90, 30))
    assert longest_runs([added], [piece])[0].notes == 110


def test_a_chord_may_be_spread_otherwise(training):
    rng = np.random.default_rng(0)
    piece = next(notes for notes in training if (np.diff(notes.onset) < 10).sum() > 50)
    onset = np.maximum(piece.onset + rng.integers(-15, 16, len(piece)), 0)
    order = np.argsort(onset, kind="stable")
    assert (np.diff(order) < 0).sum() > 20
    again = Notes(onset[order], piece.duration[order], piece.pitch[order], piece.velocity[order])
    (run,) = longest_runs([again], [piece])
    assert run.notes > 0.95 * len(piece)
    far = dataclasses.replace(piece, onset=piece.onset * 20)  # so far apart that order counts, and no chord is left
    swapped = far.pitch.copy()
    swapped[[100, 101]] = swapped[[101, 100]] if swapped[100] != swapped[101] else (1, 2)
    (run,) = longest_runs([dataclasses.replace(far, pitch=swapped)], [far])
    assert run.notes < len(piece) - 90


def plain(one: np.ndarray, other: np.ndarray) -> int:
    """Notes of the longest run of intervals that both have, by trying all."""
    best, a, b = 0, np.diff(one).tolist(), np.diff(other).tolist()
    for i in range(len(a)):
        for j in range(len(b)):
            length = 0
            while i + length < len(a) and j + length < len(b) and a[i + length] == b[j + length]:
                length += 1
            best = max(best, length)
    return best + 1 if best else 0


def test_is_what_a_plain_search_finds(monkeypatch):
    rng = np.random.default_rng(1)
    steps = [np.cumsum(rng.integers(-1, 2, size)) + 60 for size in rng.integers(1, 90, 24)]
    asked, pieces = steps[:8], steps[8:]
    expected = [max(plain(one, other) for other in pieces) for one in asked]
    runs = longest_runs(list(map(melody, asked)), map(melody, pieces))
    assert [run.notes for run in runs] == expected and max(expected) > 8
    for run, one in zip(runs, asked, strict=True):
        if run.piece is not None:
            first, there = round(run.start * 5), round(run.there * 5)
            same = pieces[run.piece][there : there + run.notes] + run.transposed
            assert one[first : first + run.notes].tolist() == same.tolist()
    monkeypatch.setattr(memorisation, "BLOCK", 100)  # pieces of several blocks
    assert [run.notes for run in longest_runs(list(map(melody, asked)), map(melody, pieces))] == expected


def test_few_notes_and_none(training):
    none, one = melody([]), melody([60])
    assert longest_runs([none, one, training[0]], [none, one]) == [Run()] * 3
    assert longest_runs([none, one], []) == [Run()] * 2 and longest_runs([], training) == []
    (two,) = longest_runs([melody([60, 67])], [none, melody([1, 8, 1])])
    assert (two.notes, two.piece, two.transposed) == (2, 1, 59)
    same = melody([60] * 500)  # more alike than the longest substring that is sorted
    assert longest_runs([same], [melody([72] * 2000)])[0].notes == 500
