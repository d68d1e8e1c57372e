"""Licence-free piano music, composed by rule in six styles.

Beats, not seconds, measure a `Score`. Its notes are thought in steps of a scale above the tonic, so that a motif
moved by a chord's root is the motif transposed; one gather turns steps into pitches.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64
from numpy.random import Generator, default_rng

MELODY, INNER, BASS = range(3)
MAJOR, MINOR, CHROMATIC = np.array([0, 2, 4, 5, 7, 9, 11]), np.array([0, 2, 3, 5, 7, 8, 10]), np.arange(12)
BLUES = np.array([-2, 0, 3, 5, 6, 7, 10, 12, 15])
TONES = np.array([-3, 0, 2, 4, 7])  # a chord's tones in steps above its root
# What may follow each degree of the scale, as often as it is named.
FOLLOWS = "1123334445", "4444444665", "1333355555", "0011444446", "0000005523", "1111333344", "0000000224"

Rows = Float64[np.ndarray, "_ 4"]  # beat, length, step, voice
Roots = Int64[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True)
class Style:
    """How one kind of piece is composed and played; times in beats, legato as a share of a note's length."""

    write: Callable[..., Rows]
    meter: int
    bars: int  # in a phrase
    span: int  # beats to a chord
    bpm: tuple[int, int]
    rubato: float
    pedal: float  # chance that a harmony is pedalled
    legato: tuple[float, float, float]  # melody, inner voices, bass
    velocity: int
    groove: tuple[float, ...] = (0.0, 1.0)  # when the even divisions of the groove's own length are played
    ending: tuple[int, ...] = (-14, -7, -3, 0, 2, 4, 7)


@dataclasses.dataclass(frozen=True)
class Score:
    """A composition, in order of beats; `phrases` are where phrases begin, and `form` says a letter for each."""

    style: str
    bpm: float
    form: str
    beat: Float64[np.ndarray, "N"]
    length: Float64[np.ndarray, "N"]
    pitch: Int64[np.ndarray, "N"]
    voice: Int64[np.ndarray, "N"]
    harmony: Float64[np.ndarray, "H"]  # where chords change
    phrases: Float64[np.ndarray, "P"]


# Composing: harmony, motifs, and what the styles share.


def rows(beat, length, step, voice) -> Rows:
    return np.stack(np.broadcast_arrays(beat, length, step, voice), axis=-1).reshape(-1, 4).astype(float)


def above(low, step, octave: int = 7):
    """The step of the same name in the octave that begins at `low`."""
    return low + (step - low) % octave


def functional(rng: Generator, chords: int, closes: bool) -> Roots:
    """Degrees of a phrase from tonic to a half cadence, or to a full one where the section closes."""
    chain, draws = [0], rng.integers(0, 10, chords)
    for draw in draws[1:]:
        chain.append(int(FOLLOWS[chain[-1]][draw]))
    cadence = ((3, 4, 0), (1, 4, 0), (0, 3, 4), (5, 1, 4))[draws[0] % 2 + 2 * (not closes)]
    return np.array([*chain[:-3], *cadence])


def twelve_bars(rng: Generator, chords: int, closes: bool) -> Roots:
    """Roots of a blues chorus in semitones: sometimes a quick change, a turnaround unless it closes."""
    quick, late = rng.integers(0, 2, 2)
    return np.array([0, 5 * quick, 0, 0, 5, 5, 0, 9 * late, 7 - 5 * late, 5 + 2 * late, 0, 0 if closes else 7])


def motif(rng: Generator, beats: Float64[np.ndarray, "N"]) -> Int64[np.ndarray, "N"]:
    """Steps above a chord's root: a walk over its tones on the beats, passing and neighbour notes between."""
    strong = beats % 1 == 0
    strong[0] = True
    walk = rng.integers(1, 4) + np.cumsum(rng.choice([-2, -1, -1, 1, 1, 2], strong.sum() + 1))
    tones = TONES[4 - np.abs(walk % 8 - 4)]  # reflected at both ends
    steps = np.floor(np.interp(beats, [*beats[strong], beats[strong][-1] + 1], tones)).astype(int)
    stuck = ~strong & (steps == np.roll(steps, 1))
    return steps + stuck * rng.choice([-1, 1], len(beats))


def melody(rng: Generator, roots: Roots, rhythms, meter: int, low: int, plan: str) -> Rows:
    """A melody of one motif a bar, each letter of the plan one motif, moved with the harmony; a long last note."""
    beats = {letter: np.array(rhythms[rng.integers(len(rhythms))], float) for letter in sorted(set(plan))}
    cells = {letter: (beats[letter], motif(rng, beats[letter])) for letter in beats}
    cells["."] = np.array([0.0, 1.0]), np.array([rng.choice([-1, 1]), 0])  # a suspension resolves
    lines, last = [], low + 4
    for bar, (root, letter) in enumerate(zip(roots, plan[:-1] + ".", strict=True)):
        beat, steps = cells[letter]
        line = steps + above(last - 3, root + steps[0]) - steps[0]
        line = line + 7 * (line.mean() < low) - 7 * (line.mean() > low + 9)
        lines.append(rows(bar * meter + beat, np.diff(beat, append=meter), line, MELODY))
        last = int(np.clip(line[-1], low, low + 9))
    return np.concatenate(lines)


def ornament(rng: Generator, line: Rows, chance: float, unit: float = 1 / 8) -> Rows:
    """Turns, mordents or trills on some of the long notes, in notes of `unit` beats."""
    shape = np.array(((0, 1, 0, -1, 0), (0, 1, 0), (1, 0, 1, 0, 1, 0, -1, 0))[rng.integers(3)])
    chosen = (line[:, 1] >= max(1, len(shape) * unit)) & (rng.random(len(line)) < chance)
    beat, length, step, _ = np.split(line[chosen], 4, axis=1)
    start = np.where(len(shape) == 5, length - 4 * unit, unit)  # a turn comes late in its note
    starts = np.concatenate([0 * start, start + unit * np.arange(len(shape) - 1)], axis=1)
    fancy = rows(beat + starts, np.diff(starts, axis=1, append=length), step + shape, MELODY)
    return np.concatenate([line[~chosen], fancy])


def doubled(line: Rows, interval: int) -> Rows:
    return np.concatenate([line, line + np.array([0, 0, interval, 0])])


# The styles. Each writes one phrase: `rng` is the same whenever a section returns, `twist` is new every time.


def nocturne(rng: Generator, twist: Generator, roots: Roots, again: int) -> Rows:
    """A singing line over broken chords in triplets, ornamented when it returns, then in octaves."""
    shapes = [(0, 4, 7, 9, 7, 4) * 2, (0, 4, 7, 9, 11, 9, 7, 9, 11, 9, 7, 4), (0, 7, 9, 11, 9, 7) * 2]
    rhythms = [(0, 2, 3), (0, 1.5, 2, 3), (0, 1, 2, 2.5, 3, 3.5), (0, 3), (0, 0.5, 1, 2), (0, 2, 2.5, 3)]
    bars, shape = 4 * np.arange(len(roots))[:, None], np.array(shapes[rng.integers(3)])
    voice = np.where(np.arange(12) % 6 == 0, BASS, INNER)
    left = rows(bars + np.arange(12) / 3, 1 / 3, above(-15, roots)[:, None] + shape, voice)
    right = melody(rng, roots, rhythms, 4, 2, ("aabcaabd", "abacabad")[rng.integers(2)])
    return np.concatenate([left, (right, ornament(twist, right, 0.6), doubled(right, 7))[again % 3]])


@functools.cache
def voicings(root: int) -> Int64[np.ndarray, "V 4"]:
    """Every complete spacing of a triad for bass, tenor, alto and soprano, its root doubled and in the bass."""
    ranges = [range(-14, -4), range(-8, 3), range(-3, 6), range(1, 11)]
    tones = [[s for s in part if (s - root) % 7 in (0, 2, 4)] for part in ranges]
    every = np.array(list(itertools.product(*tones)))
    member, gap = (every - root) % 7, np.diff(every, axis=1)
    complete = (np.sort(member, axis=1) == [0, 0, 2, 4]).all(axis=1) & (member[:, 0] <= 2)
    return every[complete & (gap > 0).all(axis=1) & (gap[:, 1:] <= 7).all(axis=1)]


def chorale(rng: Generator, twist: Generator, roots: Roots, again: int) -> Rows:
    """Four voices, a chord a beat, each led to the nearest without parallel fifths or octaves; passing notes."""
    chords, (lower, upper) = [np.array([-7, -3, 2, 4 + 3 * rng.integers(2)])], np.triu_indices(4, 1)
    for root in roots:
        options, last = voicings(int(root)), chords[-1]
        moves, before = options - last, (last[upper] - last[lower]) % 7
        gap = (options[:, upper] - options[:, lower]) % 7
        parallel = (gap == before) & ((gap == 0) | (gap == 4)) & (moves[:, upper] != 0)
        unresolved = (last % 7 == 6) & (root == 0) & (moves != 1)
        faults = 12 * parallel.sum(axis=1) + 4 * unresolved.sum(axis=1) + 2 * (moves[:, 3] == 0)
        inverted = 3 * ((options[:, 0] - root) % 7 != 0)
        cost = np.abs(moves) @ [0.6, 1.5, 1.5, 1] + faults + inverted + 3 * rng.random(len(options))
        chords.append(options[cost.argmin()])
    steps, beat = np.array(chords[1:]), np.arange(len(roots))[:, None]
    leap = np.diff(steps, axis=0, append=steps[-1:])
    passing = (np.abs(leap) == 2) & (twist.random(leap.shape) < 0.4 + 0.3 * (again > 0))
    voices = np.array([BASS, INNER, INNER, MELODY])
    between = rows(beat + 0.5, 0.5, steps + leap // 2, voices)[passing.ravel()]
    return np.concatenate([rows(beat, 1 - passing / 2, steps, voices), between])


def waltz(rng: Generator, twist: Generator, roots: Roots, again: int) -> Rows:
    """A bass note and two chords to the bar under a dancing melody, which returns with grace or in octaves."""
    rhythms = [(0, 2), (0, 1, 2), (0, 0.5, 1, 2), (0, 1.5, 2), (0, 0.5, 1, 1.5, 2, 2.5), (0, 2, 2.5)]
    bars = 3 * np.arange(len(roots))[:, None]
    fifth = np.r_[0, np.diff(roots) == 0] * 4  # the bass moves to the fifth while a chord stays
    bass = rows(bars, 1, above(-17, roots + fifth)[:, None], BASS)
    chords = above(-6, roots[:, None] + [0, 2, 4])[:, None]
    after = rows(bars[..., None] + [[1], [2]], 0.8, chords, INNER)
    right = melody(rng, roots, rhythms, 3, 4, ("aabcaabd", "abacabad", "ababccbd")[rng.integers(3)])
    right = (right, ornament(twist, right, 0.35, 1 / 4), doubled(right, 7))[again % 3]
    return np.concatenate([bass, after, right])


def invention(rng: Generator, twist: Generator, roots: Roots, again: int) -> Rows:
    """Two voices: a subject in semiquavers wanders between the hands, answered in quavers; upside down at times."""
    starts = [np.arange(0, 4, 0.25), np.r_[0, np.arange(0.5, 2, 0.25), 2:4:0.5], np.r_[0:2:0.5, np.arange(2, 4, 0.25)]]
    beats = starts[rng.integers(3)]
    subject, answer = motif(rng, beats), motif(rng, np.arange(0, 4, 0.5))
    subject, first = (4 - subject if again % 3 == 2 else subject), int(twist.integers(2))
    parts = []
    for bar, root in enumerate(roots[:-1]):
        high, low = above(4, root), above(-13, root)
        lead, other, hand = (high, low, MELODY) if bar % 2 == first else (low, high, BASS)
        parts.append(rows(4 * bar + beats, np.diff(beats, append=4), lead + subject, hand))
        parts.append(rows(4 * bar + np.arange(0, 4, 0.5), 0.5, other + answer, MELODY + BASS - hand))
    end, last = 4 * (len(roots) - 1) + np.arange(4), roots[-1]
    parts.append(rows(end[:3], np.array([1, 1, 2]), above(4, last) + np.array([2, 1, 0]), MELODY))
    parts.append(rows(end, 1, above(-13, last) + np.array([0, 4, 2, 0]), BASS))
    return np.concatenate(parts)


def stride(rng: Generator, twist: Generator, roots: Roots, again: int) -> Rows:
    """A swung blues chorus in semitones: walking bass or stride under riffs, call, call and answer."""
    bars, low = 4 * np.arange(12)[:, None], above(-25, roots, 12)[:, None]
    shell = above(-9, roots[:, None] + [4, 10, 14], 12)[:, None]
    if again % 2:
        left = [rows(bars[..., None] + [[0], [2]], 0.9, low[..., None] + [[0, 12], [7, 19]], BASS)]
        left.append(rows(bars[..., None] + [[1], [3]], 0.6, shell, INNER))
    else:
        walks = np.array([(0, 4, 7), (0, 7, 10), (0, 4, 9), (12, 10, 7)])[twist.integers(4, size=12)]
        approach = np.append(low[1:], low[:1], axis=0) + twist.choice([-1, 1], (12, 1))
        left = [rows(bars + np.arange(4), 1, np.concatenate([low + walks, approach], axis=1), BASS)]
        left.append(rows(bars[..., None] + [[0.5], [2.5]], 0.4, shell, INNER)[twist.random(72) < 0.8])
    rhythms = (0.5, 1, 1.5, 2, 3), (0, 0.5, 1, 1.5, 2), (0, 1, 1.5, 2.5, 3), (1, 1.5, 2, 2.5, 3, 3.5)
    riffs = {}
    for letter in "abcd":
        beat = np.array(rhythms[rng.integers(len(rhythms))], float)
        walk = rng.integers(3, 8) + np.cumsum(rng.choice([-2, -1, -1, 1, 1, 2], len(beat)))
        riffs[letter] = rows(beat, np.minimum(np.diff(beat, append=4), 1), 12 + BLUES[np.clip(walk, 0, 8)], MELODY)
    plan = "abc abc dad "
    line = np.concatenate([riffs[x] + [4 * bar, 0, 0, 0] for bar, x in enumerate(plan) if x != " "])
    blue = (line[:, 2] % 12 == 3) & (line[:, 1] >= 0.5)  # a minor third slides into the major one
    slides = line[blue] * [1, 0, 1, 1] + [0, 0.2, 0, 0]
    line[blue] += [0.2, -0.2, 1, 0]
    fills = rows(np.array([12, 13.5, 28, 29.5, 44])[:, None], 0.5, 12 + above(-2, np.array([0, 4, 10, 14]), 12), MELODY)
    return np.concatenate([*left, line, slides, fills, doubled(line, 12)[len(line) :] if again % 3 == 2 else line[:0]])


def toccata(rng: Generator, twist: Generator, roots: Roots, again: int) -> Rows:
    """One figure in semiquavers through all the harmonies, over octaves, or with both hands in contrary motion."""
    tones, sixteenths = np.array([-3, 0, 2, 4, 7, 9]), np.arange(8) / 4
    walk = rng.integers(2, 5) + np.cumsum(rng.choice([-2, -1, 1, 1, 2, -1], 8))
    figure = tones[5 - np.abs(walk % 10 - 5)]
    figure = figure - (np.diff(figure, prepend=99) == 0)
    start = 2 * np.arange(len(roots))[:, None]
    arch = np.array([0, 0, 3, 3, 7, 7, 3, 0]) if rng.random() < 0.6 else np.array([7, 7, 3, 3, 0, 0, 3, 3])
    right = rows(start + sixteenths, 0.25, above(arch, roots)[:, None] + figure, MELODY)
    low = above(-16, roots)[:, None]
    if again % 2:
        left = rows(start + sixteenths, 0.25, low + 13 - figure, INNER)
        return np.concatenate([right, left, rows(start, 2, low, BASS)])
    bass = rows(start, 1.5, low + np.array([0, 7]), BASS)
    chords = above(-9, roots[:, None] + [0, 2, 4])[:, None]
    return np.concatenate([right, bass, rows(start[..., None] + [[1], [1.5]], 0.4, chords, INNER)])


MANNERS = {
    "nocturne": Style(nocturne, 4, 8, 4, (70, 88), 0.16, 1.0, (1.02, 0.95, 1.1), 54),
    "chorale": Style(chorale, 4, 4, 1, (62, 80), 0.12, 0.4, (0.97, 0.95, 0.97), 60, ending=(-14, -3, 2, 7)),
    "waltz": Style(waltz, 3, 8, 3, (138, 172), 0.11, 0.8, (0.92, 0.6, 0.8), 66, groove=(0.0, 0.92, 2.0, 3.0)),
    "invention": Style(invention, 4, 8, 4, (80, 104), 0.04, 0.0, (0.8, 0.8, 0.72), 64, ending=(-14, -7, 2, 7)),
    "stride": Style(
        stride, 4, 12, 4, (116, 156), 0.02, 0.0, (0.85, 0.6, 0.8), 74, (0.0, 0.64, 1.0), (-24, -2, 4, 9, 14)
    ),
    "toccata": Style(toccata, 4, 4, 2, (96, 116), 0.06, 0.6, (0.7, 0.7, 0.95), 78),
}
STYLES = tuple(MANNERS)


def sound(step, scale: np.ndarray, tonic: int):
    """MIDI pitches of steps above a tonic."""
    octave, degree = np.divmod(np.asarray(step, int), len(scale))
    return tonic + 12 * octave + scale[degree]


def compose(seed: int, style: str) -> Score:
    """A composition of about 30 to 90 seconds: sections of one phrase that return varied, and a final chord."""
    manner, index = MANNERS[style], STYLES.index(style)
    rng = default_rng([seed, index])
    home, minor, bpm = 60 + int(rng.integers(-3, 9)), rng.random() < 0.45, rng.uniform(*manner.bpm)
    size, blues = manner.bars * manner.meter, manner.write is stride
    count = max(2, round(rng.uniform(32, 85) * bpm / 60 / size))
    form = ("AABACABA" * 3)[: count - 1] + "A" if count != 3 else "ABA"
    away = {"A": 0, "B": 3 if minor else -3, "C": -5}  # B is in the relative key, C in the dominant one
    parts, changes = [], []
    for number, letter in enumerate(form):
        own, twist = (default_rng([seed, index, n]) for n in (ord(letter), 1000 + number))
        closes = form[number + 1 : number + 2] != letter
        roots = (twelve_bars if blues else functional)(own, size // manner.span, closes)
        phrase = manner.write(own, twist, roots, form[:number].count(letter))
        tonic, dark = (home, minor) if blues else (home + away[letter], minor ^ (letter == "B"))
        scale = CHROMATIC if blues else MINOR if dark else MAJOR
        chord = roots[np.minimum(phrase[:, 0] // manner.span, len(roots) - 1).astype(int)]
        leading = (not blues and dark) & (phrase[:, 2] % 7 == 6) & ((chord == 4) | (chord == 6))
        beat, length, step, voice = phrase.T
        parts.append(np.c_[beat + number * size, length, sound(step, scale, tonic) + leading, voice])
        changes.append(number * size + manner.span * np.flatnonzero(np.diff(roots, prepend=-1)))
    final = sound(manner.ending, CHROMATIC if blues else MINOR if minor else MAJOR, home)
    parts.append(rows(count * size, 4, final, np.array([BASS] + [INNER] * (len(final) - 2) + [MELODY])))

    notes = np.concatenate(parts)
    notes[:, 2] += 12 * (notes[:, 2] < 21) - 12 * (notes[:, 2] > 108)
    notes = notes[np.lexsort(notes[:, [3, 0, 2]].T)]
    again = (np.diff(notes[:, 2], prepend=0) == 0) & (np.diff(notes[:, 0], prepend=-9) < 0.2)  # unisons of two voices
    notes = notes[~again][np.lexsort(notes[~again][:, [2, 0]].T)]
    beat, length, (pitch, voice) = notes[:, 0], notes[:, 1], notes[:, 2:].T.astype(int)
    harmony, phrases = np.append(np.concatenate(changes), float(count * size)), np.arange(count + 1.0) * size
    return Score(style, bpm, form, beat, length, pitch, voice, harmony, phrases)
