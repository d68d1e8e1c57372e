"""Notes to sound without a SoundFont: a plain additive tone, struck like a piano's, for machines that have none."""

import functools

import numpy as np
from jaxtyping import Float32
from scipy.sparse import coo_array

from piano_jax.music import Notes

RATE = 22_050  # samples a second
HOP = 32  # samples in which a note's loudness stays: 1.5 ms, to which notes are moved as well
LONGEST = 6.0  # seconds until a string that is held is silent
DAMPED, SILENT = 0.05, 0.3  # seconds in which a damper lowers a note by a factor of e, and until it is off
PARTIALS = 12


def play_tone(notes: Notes) -> Float32[np.ndarray, "S"]:
    """A performance of piano as samples, RATE a second from its zero: sums of partials, their amplitude the square of
    velocity. What sounds under the pedal does so because a note's duration says it."""
    pitches, tone = np.unique(notes.pitch, return_inverse=True)
    tones = np.concatenate([_struck(pitch) for pitch in pitches.tolist()]) if len(notes) else np.zeros((1, HOP))
    frames = len(tones) // max(1, len(pitches))
    scale = RATE / HOP / 1000
    start, held = (np.rint(time * scale).astype(np.int64) for time in (notes.onset, notes.duration))
    length = np.minimum(held + int(1000 * SILENT * scale), frames)
    # Each frame of each note is one entry: in which frame of the sound, of which tone's frame, how loud.
    note = np.repeat(np.arange(len(notes)), length)
    frame = np.arange(len(note)) - (np.cumsum(length) - length)[note]
    released = np.maximum(frame - held[note], 0) / (1000 * scale)
    gain = (notes.velocity / 127.0)[note] ** 2 * np.exp(-released / DAMPED)
    shape = (int((start + length).max(initial=0)), len(tones))
    mix = coo_array((gain.astype(np.float32), (start[note] + frame, tone[note] * frames + frame)), shape)
    return (mix.tocsr() @ tones.astype(np.float32)).reshape(-1)


@functools.cache
def _struck(pitch: int) -> Float32[np.ndarray, "F HOP"]:
    """A string struck and held for LONGEST: stretched partials, the higher the sooner gone, in two stages of decay."""
    time = np.arange(int(LONGEST * RATE / HOP) * HOP, dtype=np.float32) / RATE
    number = np.arange(1, PARTIALS + 1, dtype=np.float32)[:, None]
    octaves = (pitch - 60) / 12
    frequency = number * 440 * 2 ** ((pitch - 69) / 12) * np.sqrt(1 + 4e-4 * 2**octaves * number**2)
    # The hammer strikes at an eighth of the string, where the eighth partial has a node.
    loud = np.abs(np.sin(np.pi * number / 8)) * number ** -(1.1 + 0.2 * octaves) * (frequency < 0.45 * RATE)
    decay = 0.8 * 2 ** (0.75 * octaves) * (1 + 0.35 * (number - 1))
    fading = 0.75 * np.exp(-2.5 * decay * time) + 0.25 * np.exp(-0.4 * decay * time)
    phase = np.pi * number**2 / PARTIALS  # by Schroeder's rule, for low peaks
    sound = (loud * fading * np.sin(2 * np.pi * frequency * time + phase)).sum(0) / max(
        float(np.linalg.norm(loud)), 1e-6
    )
    sound *= np.minimum(1, time / 0.003) * np.minimum(1, 2 * (LONGEST - time))
    return sound.astype(np.float32).reshape(-1, HOP)
