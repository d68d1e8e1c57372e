"""Quality filters: what is measured on a piece, the thresholds it must keep, and fingerprints of duplicates.

The list is METHOD's, section 2; where that leaves a definition open, the function says what it takes. Each threshold
`min_X` or `max_X` bounds the measurement X, both ends included, so a reason for dropping is a threshold's name.
Measurements leave drums out, but for `density`, `silence` and `seconds`. Notes last as they sound, pedal included.
"""

import dataclasses
import hashlib
import itertools
import math

import numpy as np
from jaxtyping import Int, Int32, UInt64

from piano_jax import BadInput
from piano_jax.music.notes import DRUM, Notes

SKETCH, FOLLOWERS, HEARD = 64, 8, 100_000  # landmarks kept; later notes that one may use; notes looked at
STRIDE, CLOCK, CLOCK_BITS = (
    100,
    20,
    20,
)  # milliseconds of an interval's step and of a tick of the clock; the clock's bits
SLACK, DRIFT = 5, 100  # ticks within which copies agree; ticks by which others drift
CLOCKS, EMPTY = np.uint64((1 << CLOCK_BITS) - 1), np.iinfo(np.uint64).max
ALIKE, FEWEST = 0.25, 16  # least similarity of copies; landmarks that are evidence enough
MEETINGS, NEIGHBOURS = 3, 8  # landmarks in common before comparing; how near they lie among all
SECOND, DAY = 1000, 24 * 3600  # milliseconds, seconds
DENSITY_WINDOWS, PITCH_WINDOWS = (3, 5, 10, 45), (30, 60, 120)  # seconds
LENGTH_BIN, LONGEST = 10, 5000  # milliseconds: bins of note lengths, and what longer notes count as
CHUNKS, REPETITIVE_FROM, RAREST = 5, 20 * 60, 1e-5  # chunks of a piece of so many seconds; the share of an absent pitch
Limit = float | int | None


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What a piece must keep; METHOD's values by default, and None lifts one.

    Densities are notes per second: of the whole piece, of the densest window of so many seconds, and in it of the pitch
    struck most. `pitches` counts distinct ones: of the whole piece, and of the poorest window. Entropies and
    divergence are in bits, silence and seconds in seconds, velocity is the mean.
    """

    max_density_3s: Limit = 60
    max_density_5s: Limit = 45
    max_density_10s: Limit = 40
    max_density_45s: Limit = 30
    max_pitch_density_3s: Limit = 15
    max_pitch_density_5s: Limit = 10
    max_pitch_density_10s: Limit = 8
    max_pitch_density_45s: Limit = 6
    min_density: Limit = 1.5
    max_density: Limit = 30
    min_duration_entropy: Limit = 2.5
    min_pitch_entropy: Limit = 3.0
    min_pitches: Limit = 12
    min_pitches_30s: Limit = 5
    min_pitches_60s: Limit = 8
    min_pitches_120s: Limit = 10
    max_silence: Limit = 20
    min_velocity: Limit = 20
    max_velocity: Limit = 105
    min_seconds: Limit = 30
    max_seconds: Limit = 7200
    min_divergence: Limit = 0.2


NONE = Thresholds(**dict.fromkeys(vars(Thresholds())))
# Where METHOD's values drop good performances, as found on 5,608 [ours]: virtuosi reach 52, 43 and 35 notes a second in
# 5, 10 and 45 s, repeated notes 8.7 a second, quiet pieces stay below 1.5, mean velocities reach 107, excerpts last
# 20 s, and where the pedal is held most notes sound for 5 s or more, and so share one bin.
LIGHT = Thresholds(
    max_density_5s=55,
    max_density_10s=50,
    max_density_45s=40,
    max_pitch_density_10s=10,
    min_density=1.0,
    min_duration_entropy=0.35,
    max_velocity=110,
    min_seconds=15,
)
PRESETS = {"none": NONE, "light": LIGHT}


def parse_thresholds(text: str) -> Thresholds:
    """A preset's name, and what to change in it: `light`, or `light,max_silence=30,min_seconds=off`.

    Raises:
        BadInput: there is no such preset or threshold, or its value is neither a number nor `off`.
    """
    name, *changes = text.split(",")
    if name not in PRESETS:
        raise BadInput(f"{name}: no such filters (there are {' and '.join(PRESETS)})")
    values = {}
    for threshold, _, value in (change.partition("=") for change in changes):
        if threshold not in vars(NONE):
            raise BadInput(f"{threshold}: no such filter (there are {', '.join(vars(NONE))})")
        try:
            limit = None if value == "off" else float(value)
        except ValueError:
            limit = math.nan
        if limit is not None and not math.isfinite(limit):
            raise BadInput(f"{threshold}={value}: neither a number nor off")
        values[threshold] = limit
    return dataclasses.replace(PRESETS[name], **values)


def failures(notes: Notes, thresholds: Thresholds) -> tuple[str, ...]:
    """Names of all thresholds that a piece does not keep."""
    limits = [(name, limit) for name, limit in vars(thresholds).items() if limit is not None]
    measured = measure(notes) if limits else {}
    found = [(name, limit, measured[name[4:]]) for name, limit in limits]
    return tuple(name for name, limit, value in found if (value < limit if name[:3] == "min" else value > limit))


def measure(notes: Notes) -> dict[str, float]:
    """Every measurement that a threshold bounds, by its name without `min_` or `max_`; 0 where there are no notes."""
    pitched = notes
    if (drums := notes.instrument == DRUM).any():
        pitched = Notes(*(x[~drums] for x in (notes.onset, notes.duration, notes.pitch, notes.velocity)))
    counts = counts_by_second(pitched)
    densities = {window: window_density(counts, window) for window in DENSITY_WINDOWS}
    return {
        **{f"density_{window}s": density for window, (density, _) in densities.items()},
        **{f"pitch_density_{window}s": density for window, (_, density) in densities.items()},
        "density": len(notes) / max(notes.seconds, 1 / SECOND),
        "duration_entropy": duration_entropy(pitched),
        "pitch_entropy": pitch_entropy(pitched),
        "pitches": float(np.count_nonzero(np.bincount(pitched.pitch))),
        **{f"pitches_{window}s": window_pitches(counts, window) for window in PITCH_WINDOWS},
        "silence": longest_silence(notes),
        "velocity": float(pitched.velocity.mean()) if len(pitched) else 0.0,
        "seconds": notes.seconds,
        "divergence": divergence(pitched),
    }


def counts_by_second(notes: Notes) -> Int32[np.ndarray, "S P"]:
    """How many notes of each pitch that occurs began before each whole second since the first onset, up to a day.

    The difference of two rows is what a window holds. All windows begin on such seconds, contain their start and not
    their end, and lie within the piece; one longer than the piece is the piece [ours; the authors' contain their end].
    """
    second = (notes.onset - notes.onset[:1]) // SECOND
    pitch = notes.pitch[second < DAY]
    second = second[second < DAY]
    occurs = np.bincount(pitch, minlength=128) > 0
    size, seconds = max(np.count_nonzero(occurs), 1), int(second[-1]) + 1 if len(second) else 1
    cell = second * size + (np.cumsum(occurs) - 1)[pitch]
    counts = np.zeros((seconds + 1, size), np.int32)
    np.cumsum(np.bincount(cell, minlength=seconds * size).reshape(seconds, size), axis=0, out=counts[1:])
    return counts


def _windows(counts: Int32[np.ndarray, "S *P"], seconds: int) -> Int32[np.ndarray, "W *P"]:
    size = min(seconds, len(counts) - 1)
    return counts[size:] - counts[:-size]


def window_density(counts: Int32[np.ndarray, "S P"], seconds: int) -> tuple[float, float]:
    """Most notes per second in a window, of all pitches together and of one; divided by the window's full length."""
    most = _windows(counts.sum(axis=1, dtype=np.int32), seconds).max(), _windows(counts, seconds).max()
    return float(most[0]) / seconds, float(most[1]) / seconds


def window_pitches(counts: Int32[np.ndarray, "S P"], seconds: int) -> float:
    """Fewest distinct pitches that begin in a window."""
    return float(np.count_nonzero(_windows(counts, seconds), axis=1).min())


def entropy(counts: Int[np.ndarray, "C"]) -> float:
    """Shannon entropy of a histogram, in bits."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log2(share)).sum())


def duration_entropy(notes: Notes) -> float:
    """Entropy in bits of note lengths, to the nearest 10 ms (half to even), longer ones counting as 5 s.

    The authors' lengths end before the pedal does, those of `Notes` with it, so a pedal held throughout lowers this.
    """
    steps = np.rint(np.minimum(notes.duration, LONGEST) / LENGTH_BIN)
    return entropy(np.bincount(steps.astype(np.int32)))


def pitch_entropy(notes: Notes) -> float:
    """Entropy in bits of pitches, octaves apart."""
    return entropy(np.bincount(notes.pitch))


def longest_silence(notes: Notes) -> float:
    """Longest time in seconds between notes in which none sounds; before the first and after the last is no silence."""
    ends = np.maximum.accumulate(notes.onset + notes.duration)
    return float((notes.onset[1:] - ends[:-1]).max(initial=0)) / SECOND


def divergence(notes: Notes) -> float:
    """Largest Kullback-Leibler divergence in bits, either way, between the pitches of two fifths of a long piece.

    Fifths are of the time between the first onset and the last; empty ones do not count. A pitch that is absent has a
    share of 1e-5. A loop has nearly none. Infinite, so never too small, for pieces of up to 20 minutes.
    """
    if notes.seconds <= REPETITIVE_FROM:
        return math.inf
    time = (notes.onset - notes.onset[0]).astype(np.int64)
    chunk = np.minimum(time * CHUNKS // max(int(time[-1]), 1), CHUNKS - 1)
    counts = np.bincount(chunk * 128 + notes.pitch, minlength=CHUNKS * 128).reshape(CHUNKS, 128)
    counts = counts[counts.any(axis=1)]
    share = np.maximum(counts / counts.sum(axis=1, keepdims=True), RAREST)
    bits = np.log2(share)
    return float(((share * bits).sum(axis=1, keepdims=True) - share @ bits.T).max())


def fingerprint(notes: Notes) -> str:
    """Hash that only exact duplicates share: of onsets from the first, durations, pitches, velocities and instruments.

    The order of simultaneous notes carries no music and does not count; neither does the pedal beyond the durations.
    """
    onset = (notes.onset - notes.onset[:1]).astype("<i8")
    struck = onset << 21 | notes.instrument.astype("<i8") << 14 | notes.pitch.astype("<i8") << 7 | notes.velocity
    duration = notes.duration.astype("<i8")
    order = np.lexsort((duration, struck))
    return hashlib.blake2b(struck[order].tobytes() + duration[order].tobytes(), digest_size=16).hexdigest()


def sketch(notes: Notes) -> UInt64[np.ndarray, "64"]:
    """Near-duplicate fingerprint: the 64 landmarks of smallest hash, in order, each with the time at which it stands.

    A landmark is three notes of nearby onsets: a pitch, two intervals, and two times between onsets to the nearest
    0.1 s, each from 50 ms to 1.95 s. Its word is 44 bits of hash above 20 of time (in 20 ms); of equal hashes
    the first counts. Copies of a recording share landmarks, and stand at a constant distance in time (as in Wang,
    "An industrial-strength audio search algorithm", 2003); other performances of the work drift apart. A truncated
    copy shares those of its part. Copies at another speed or transposed are not recognised. Notes after the first
    100,000 are not looked at. Short pieces have fewer landmarks, and the rest is the largest uint64.
    """
    onset, pitch = notes.onset[:HEARD].astype(np.int64), notes.pitch[:HEARD].astype(np.uint64)
    words = np.empty(0, np.uint64)
    for near, far in itertools.combinations(range(1, FOLLOWERS + 1), 2):
        first, second, third = (slice(i, max(len(onset) - far + i, 0)) for i in (0, near, far))
        steps = (np.rint((onset[b] - onset[a]) / STRIDE) for a, b in ((first, second), (second, third)))
        one, two = (step.astype(np.uint64) for step in steps)
        kept = (one > 0) & (two > 0) & (one < 20) & (two < 20)
        word = pitch[first] << 40 | pitch[second] << 30 | pitch[third] << 20 | one << 10 | two
        clock = np.minimum((onset[first] - onset[:1]) // CLOCK, (1 << CLOCK_BITS) - 1).astype(np.uint64)
        words = np.sort(np.append(words, _hashed(word[kept]) >> CLOCK_BITS << CLOCK_BITS | clock[kept]))
        words = words[np.diff(words >> CLOCK_BITS, prepend=np.uint64(0)) > 0][:SKETCH]
    return np.append(words, np.full(SKETCH - len(words), EMPTY, np.uint64))


def similarity(first: UInt64[np.ndarray, "64"], second: UInt64[np.ndarray, "64"]) -> float:
    """Share of two pieces' landmarks, of the one with fewer, that stand in both at one distance in time; 0 to 1.

    Agreeing is to within 0.1 s. Those that drift about the distance by up to 2 s count against it, or else pianists who
    keep a moto perpetuo's time would pass for copies; farther off, a landmark belongs to a repeat, and says nothing.
    Two transcriptions of a recording come to some 0.6, an excerpt and its whole likewise, others almost to 0; so do
    pieces of a few notes, as 16 landmarks at least are wanted.
    """
    both = min(first[-1], second[-1])  # up to this hash, either sketch is complete
    first, second = (x[(x <= both) & (x < EMPTY)] for x in (first, second))
    shared = np.intersect1d(first >> CLOCK_BITS, second >> CLOCK_BITS, assume_unique=True, return_indices=True)[1:]
    if not len(shared[0]):
        return 0.0
    times = ((x[i] & CLOCKS).astype(np.int64) for x, i in zip((first, second), shared, strict=True))
    apart = np.sort(np.subtract(*times))
    agree = np.searchsorted(apart, apart + SLACK, side="right") - np.arange(len(apart))
    start, most = apart[agree.argmax()], agree.max()
    around = np.count_nonzero((apart >= start - DRIFT) & (apart <= start + SLACK + DRIFT))
    return max(2 * int(most) - int(around), 0) / max(min(len(first), len(second)), FEWEST)


def near_duplicates(sketches: UInt64[np.ndarray, "P 64"], least: float = ALIKE) -> list[tuple[int, int, float]]:
    """Pairs of pieces whose sketches are `least` alike or more, and how much, in order.

    Only pieces that stand near one another in the sorted list of all landmarks, at several of them, are compared: a
    figure that thousands play costs no more than a rare one, and copies lie side by side. The list is sorted in bands
    of hashes, about 4 million words at a time.
    """
    pieces, pairs = len(sketches), [np.empty(0, np.int64)]
    bands = (pieces >> 16) + 1
    for band in range(bands):
        piece, place = np.nonzero((sketches < EMPTY) & ((sketches >> CLOCK_BITS) % bands == band))
        words = sketches[piece, place]
        order = np.argsort(words, kind="stable")
        hashes, piece = words[order] >> CLOCK_BITS, piece[order]
        for lag in range(1, NEIGHBOURS + 1):
            one, other = (x[hashes[lag:] == hashes[:-lag]] for x in (piece[lag:], piece[:-lag]))
            pairs.append(np.minimum(one, other) * pieces + np.maximum(one, other))
    keys, times = np.unique(np.concatenate(pairs), return_counts=True)
    found = zip(*np.divmod(keys[times >= MEETINGS], max(pieces, 1)), strict=True)
    alike = ((int(i), int(j), similarity(sketches[i], sketches[j])) for i, j in found)
    return [pair for pair in alike if pair[2] >= least]


def _hashed(words: UInt64[np.ndarray, "W"]) -> UInt64[np.ndarray, "W"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): each bit of a word moves half of the others."""
    words = (words ^ words >> 30) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> 27) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> 31
