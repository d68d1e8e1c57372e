"""Filters and fingerprints: both sides of every threshold, plain twins of the arrays, and planted duplicates."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.music import Notes
from piano_jax.music.filters import (
    LIGHT,
    NONE,
    Thresholds,
    failures,
    fingerprint,
    measure,
    near_duplicates,
    parse_thresholds,
    similarity,
    sketch,
)
from piano_jax.music.notes import DRUM
from piano_jax.music.performances import STYLES, performance

METHOD = Thresholds()
BOUNDS = [(name, limit) for preset in (METHOD, LIGHT) for name, limit in vars(preset).items()]


def notes(onset, duration=100, pitch=60, velocity=64, **rest) -> Notes:
    columns = (np.broadcast_to(column, len(onset)) for column in (duration, pitch, velocity))
    return Notes(onset, *columns, **rest)


def entropy(values) -> float:
    counts = Counter(values)
    return -sum(count / counts.total() * math.log2(count / counts.total()) for count in counts.values())


def divergence(first: list[int], second: list[int]) -> float:
    share = [{p: x.count(p) / len(x) for p in set(x)} for x in (first, second)]
    total = 0.0
    for pitch in range(128):
        p, q = (of.get(pitch, 1e-5) for of in share)
        total += p * math.log2(p / q)
    return total


def measured(piece: Notes) -> dict[str, float]:
    """Every measurement, note by note."""
    columns = (piece.onset, piece.duration, piece.pitch, piece.velocity, piece.instrument)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    ends = [onset + duration for onset, duration, *_ in rows]
    silence, sounding = 0, ends[0]
    for row, end in zip(rows, ends, strict=True):
        silence, sounding = max(silence, row[0] - sounding), max(sounding, end)
    seconds = (max(ends) - rows[0][0]) / 1000
    found = {"silence": silence / 1000, "seconds": seconds, "density": len(rows) / seconds}

    rows = [row for row in rows if row[4] != DRUM]
    zero, last = rows[0][0], rows[-1][0]
    for window in (3, 5, 10, 45, 30, 60, 120):
        held = []
        for start in range(max((last - zero) // 1000 + 1 - window, 0) + 1):
            held.append([p for onset, _, p, *_ in rows if start * 1000 <= onset - zero < (start + window) * 1000])
        if window in (3, 5, 10, 45):
            found[f"density_{window}s"] = max(map(len, held)) / window
            found[f"pitch_density_{window}s"] = max(max(Counter(p).values(), default=0) for p in held) / window
        else:
            found[f"pitches_{window}s"] = min(len(set(p)) for p in held)
    found["duration_entropy"] = entropy(min(round(duration, -1), 5000) for _, duration, *_ in rows)
    found["pitch_entropy"] = entropy(pitch for _, _, pitch, *_ in rows)
    found["pitches"] = len({pitch for _, _, pitch, *_ in rows})
    found["velocity"] = sum(row[3] for row in rows) / len(rows)
    if max(onset + duration for onset, duration, *_ in rows) - zero <= 1_200_000:
        found["divergence"] = math.inf
    else:
        fifths = [[] for _ in range(5)]
        for onset, _, pitch, *_ in rows:
            fifths[min((onset - zero) * 5 // (last - zero), 4)].append(pitch)
        fifths = [fifth for fifth in fifths if fifth]
        found["divergence"] = max(divergence(one, other) for one in fifths for other in fifths)
    return found


def test_measurements_equal_a_plain_loop():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        size, length = int(rng.integers(2, 300)), int(rng.choice([1500, 60_000, 200_000, 1_250_000]))
        piece = Notes(
            np.sort(rng.integers(0, length, size)) + 77,
            rng.choice([1, 15, 25, 300, 5004, 9000], size),
            rng.integers(40, rng.integers(42, 128), size),
            rng.integers(1, 128, size),
            instrument=np.append(0, rng.choice([0, DRUM], size - 1, p=[0.9, 0.1])),
        )
        expected, found = measured(piece), measure(piece)
        assert found.keys() == expected.keys() == {name[4:] for name in vars(METHOD)}
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (seed, name)


def beside(name: str, limit: float, outside: bool) -> Notes:
    """A piece that keeps a threshold by as little as can be, or does not."""
    bound, kind = name.split("_", 1)
    window = int(kind[:-1].split("_")[-1]) if kind.endswith("s") and kind[-2].isdigit() else 0
    more = outside if bound == "max" else -outside
    if kind.startswith(("density_", "pitch_density_")):
        size = int(limit * window) + more
        burst = 7000 + np.arange(size) * (1000 * window) // size
        return notes(np.append(0, burst), pitch=60 if "pitch" in kind else np.append(0, np.arange(size) % 128))
    if kind == "density":
        size = int(limit * 100) + more
        return notes(np.arange(size) * 99_900 // (size - 1))
    if kind == "duration_entropy" or kind == "pitch_entropy":
        common, others = (5000, range(10, 5000, 10)) if kind[0] == "d" else (0, range(1, 128))
        values = [[*others[:k], *[common] * (1000 - k)] for k in range(len(others))]
        if kind[0] == "p":
            values = [[*np.resize(others, k).tolist(), *[common] * (1000 - k)] for k in range(500)]
        first = next(k for k, drawn in enumerate(values) if entropy(drawn) >= limit)
        return notes(np.arange(1000) * 100, **{kind.split("_")[0]: np.array(values[first - outside])})
    if kind == "pitches":
        return notes(np.arange(100) * 100, pitch=np.arange(100) % (int(limit) + more))
    if kind.startswith("pitches_"):  # the poor window is neither the first nor the last
        onset, few = np.arange(3 * window * 10) * 100, int(limit) + more
        poor = (onset // 1000 >= window) & (onset // 1000 < 2 * window)
        return notes(onset, pitch=np.arange(len(onset)) % np.where(poor, few, 50))
    if kind == "silence":  # the first note outlasts the second
        return notes([0, 100, 5000 + int(1000 * limit) + more], [5000, 100, 100])
    if kind == "velocity":
        return notes(np.arange(100) * 100, velocity=np.append(np.full(99, limit), limit + more))
    if kind == "seconds":
        return notes([0, 50, int(1000 * limit) - 30], [100, 200, 30 + more])
    pitches = [[60] * 500 + [61] * 500, *([60] * k + [61] * (1000 - k) for k in range(500, 1000))]
    first = next(k for k, p in enumerate(pitches) if max(divergence(pitches[0], p), divergence(p, pitches[0])) >= limit)
    onset = np.concatenate([fifth * 250_000 + np.arange(1000) * 249 for fifth in range(5)])
    onset[-1] = 1_250_000
    return notes(onset, pitch=np.array(pitches[0] * 3 + pitches[first - outside] + pitches[0]))


@pytest.mark.parametrize(("name", "limit"), BOUNDS)
def test_a_piece_just_inside_and_one_just_outside(name, limit):
    only = dataclasses.replace(NONE, **{name: limit})
    assert failures(beside(name, limit, False), only) == ()
    assert failures(beside(name, limit, True), only) == (name,)


def test_a_loop_of_twenty_minutes_is_repetitive_and_a_short_one_is_not_asked():
    onset = np.arange(6000) * 220
    loop, turn = notes(onset, pitch=60 + np.arange(6000) % 30), notes(onset, pitch=60 + np.arange(6000) // 1200)
    assert "min_divergence" in failures(loop, METHOD) and "min_divergence" not in failures(turn, METHOD)
    assert "min_divergence" not in failures(notes(onset // 2, pitch=60 + np.arange(6000) % 30), METHOD)


def test_presets():
    scraps = [
        notes([0]),
        notes([], [], [], []),
        notes([0, 2**31 - 9000]),
        notes([0, 9], pitch=36, instrument=[DRUM, DRUM]),
    ]
    for scrap in scraps:
        assert failures(scrap, NONE) == () and len(failures(scrap, LIGHT)) >= 5
    for style in STYLES:
        assert failures(performance(1, style), LIGHT) == ()
    for name, limit in vars(LIGHT).items():  # light is nowhere stricter
        assert limit <= vars(METHOD)[name] if name.startswith("min") else limit >= vars(METHOD)[name]


def test_thresholds_are_set_one_by_one():
    assert parse_thresholds("none") == NONE and parse_thresholds("light") == LIGHT
    changed = parse_thresholds("light,max_silence=30,min_seconds=off")
    assert changed == dataclasses.replace(LIGHT, max_silence=30, min_seconds=None)
    for text in (
        "heavy",
        "",
        "light,silence=3",
        "light,max_silence",
        "light,max_silence=long",
        "light,max_silence=nan",
    ):
        with pytest.raises(BadInput):
            parse_thresholds(text)


def test_fingerprints_are_equal_for_equal_notes_only():
    piece = performance(3)
    names = ("onset", "duration", "pitch", "velocity")
    columns = [getattr(piece, name).astype(int) for name in names]
    assert fingerprint(Notes(columns[0] + 500, *columns[1:])) == fingerprint(piece)
    chord = notes([0, 0, 0, 9], [5, 6, 7, 5], [60, 64, 64, 60])
    assert fingerprint(notes([0, 0, 0, 9], [7, 5, 6, 5], [64, 60, 64, 60])) == fingerprint(chord)
    found = {fingerprint(piece), fingerprint(Notes(*columns, instrument=np.full(len(piece), 3)))}
    for changed in range(4):
        other = [column.copy() for column in columns]
        other[changed][-1] += 1
        found.add(fingerprint(Notes(*other)))
    assert len(found) == 6
    assert fingerprint(Notes(*(column[:-1] for column in columns))) not in found


def heard_again(piece: Notes, rng: np.random.Generator, part: float = 1.0) -> Notes:
    """Another transcription: onsets off by up to 20 ms, other durations and velocities, every thirtieth note missed."""
    kept = (rng.random(len(piece)) > 1 / 30) & (piece.onset <= part * piece.onset[-1])
    size = np.count_nonzero(kept)
    onset = piece.onset[kept] + rng.integers(-20, 21, size) + 1000
    duration = np.maximum(piece.duration[kept] + rng.integers(-50, 51, size), 1)
    velocity = np.clip(piece.velocity[kept] + rng.integers(-10, 11, size), 1, 127)
    order = np.argsort(onset, kind="stable")
    return Notes(*(column[order] for column in (onset, duration, piece.pitch[kept], velocity)))


def test_planted_duplicates_are_found_and_nothing_else():
    rng = np.random.default_rng(0)
    pieces = [performance(seed, style) for seed in range(8) for style in STYLES]
    copies = [
        heard_again(pieces[0], rng),
        heard_again(pieces[9], rng, 0.6),
        pieces[20],
        heard_again(pieces[33], rng, 0.6),
    ]
    sketches = np.stack([sketch(piece) for piece in pieces + copies])
    found = near_duplicates(sketches)
    assert [pair[:2] for pair in found] == [(original, 48 + i) for i, original in enumerate((0, 9, 20, 33))]
    assert found[2][2] == 1.0 and all(alike >= 0.25 for _, _, alike in found)
    assert found == near_duplicates(sketches, 0.25) and near_duplicates(sketches, 1.1) == []


def test_two_takes_of_a_composition_are_no_copies():
    pairs = [[sketch(performance(seed, style, take)) for take in (0, 1)] for seed in range(3) for style in STYLES]
    assert sum(similarity(*pair) >= 0.25 for pair in pairs) == 0


def test_sketches_of_scraps():
    short, empty = sketch(notes([0, 300, 600], pitch=[60, 64, 67])), sketch(notes([], [], [], []))
    assert short.shape == empty.shape == (64,) and short.dtype == np.uint64
    assert similarity(short, short) == 1 / 16 and similarity(short, empty) == similarity(empty, empty) == 0.0
    assert near_duplicates(np.stack([empty, empty])) == [] and near_duplicates(empty[None][:0]) == []
