"""What a few counts say of a performance: the baseline of every embedding, and the features of continuations."""

import numpy as np
from jaxtyping import Float32, Num

from piano_jax import BadInput
from piano_jax.music import Notes, read_midi

LARGEST_INTERVAL, DENSEST = 24, 32  # semitones; notes in a second
LENGTHS = np.geomspace(10, 10_000, 31)  # milliseconds: ten bins a factor of ten


def note_statistics(notes: Notes) -> dict[str, Float32[np.ndarray, "_"]]:
    """Histograms of a performance by name, each summing to 1 (or to 0, where there is nothing to count).

    `pitch` by semitone, `pitch_class`, `interval` between notes that follow each other (semitones, in order of onset,
    then of pitch), `duration` and `inter_onset` (between different onsets; by LENGTHS), `velocity` in tens, and
    `density`, the notes that begin in each second from the first onset to the last. What lies outside is in the last
    bin on its side.
    """
    order = np.lexsort((notes.pitch, notes.onset))
    pitch, onset = notes.pitch[order].astype(np.int64), notes.onset[order].astype(np.int64)
    gaps = np.diff(onset)
    seconds = np.bincount((onset - onset[0]) // 1000) if len(onset) else onset
    interval = np.clip(np.diff(pitch), -LARGEST_INTERVAL, LARGEST_INTERVAL) + LARGEST_INTERVAL
    counts = {
        "pitch": np.bincount(pitch, minlength=128),
        "pitch_class": np.bincount(pitch % 12, minlength=12),
        "interval": np.bincount(interval, minlength=2 * LARGEST_INTERVAL + 1),
        "duration": _by_length(notes.duration),
        "inter_onset": _by_length(gaps[gaps > 0]),
        "velocity": np.bincount(notes.velocity.astype(np.int64) // 10, minlength=13),
        "density": np.bincount(np.minimum(seconds, DENSEST), minlength=DENSEST + 1),
    }
    return {name: (count / max(count.sum(), 1)).astype(np.float32) for name, count in counts.items()}


def _by_length(milliseconds: Num[np.ndarray, "_"]) -> Num[np.ndarray, "30"]:
    return np.histogram(np.clip(milliseconds, LENGTHS[0], LENGTHS[-1]), LENGTHS)[0]


def statistics_vector(notes: Notes) -> Float32[np.ndarray, "S"]:
    """The roots of all statistics: the cosine of two such vectors is their histograms' mean Bhattacharyya overlap."""
    return np.sqrt(np.concatenate(list(note_statistics(notes).values())))


def read_statistics(content: bytes | str) -> Float32[np.ndarray, "S"] | str:
    """The vector of a file's bytes; or why there is none, as a line that stands for the bytes does."""
    if isinstance(content, str):
        return content
    try:
        notes = read_midi(content)
    except BadInput as error:
        return str(error).removeprefix("MIDI data: ")
    return statistics_vector(notes) if len(notes) else "no notes"
