"""Whether a piece opens with a prompt, and what comes after it."""

import numpy as np
from jaxtyping import Bool, Int64

from piano_jax import BadInput
from piano_jax.music import Notes
from piano_jax.music.notes import PIANO

NEAR = 50  # milliseconds between the onsets of what counts as the same note, for others quantise otherwise
SAME = 0.9  # of the notes that must be


def after_prompt(notes: Notes, prompt: Notes, seconds: float) -> Notes:
    """The piano's notes that begin after the first seconds of a piece, at their times in the whole.

    Raises:
        BadInput: the piece opens with other notes than the prompt, or has none after it.
    """
    end, piano = 1000 * seconds, notes.instrument == PIANO
    given = prompt.onset < end
    heard = _has(notes, piano, prompt)[given]
    told = _has(prompt, given, notes)
    opening = piano & (notes.onset < end)
    if not given.any() or heard.mean() < SAME or told[opening].mean() < SAME:
        raise BadInput(
            f"opens with another prompt: {heard.sum():,} of the prompt's {given.sum():,} notes in the first "
            f"{seconds:g} s are there, and {(opening & ~told).sum():,} others"
        )
    new = piano & (notes.onset >= end) & ~told
    if not new.any():
        raise BadInput(f"nothing comes after the first {seconds:g} s, which are the prompt")
    return Notes(notes.onset[new], notes.duration[new], notes.pitch[new], notes.velocity[new])


def _has(notes: Notes, part: Bool[np.ndarray, "N"], others: Notes) -> Bool[np.ndarray, "M"]:
    """For each other note, whether a part of the notes has one of the same pitch at about the same time."""
    keys = np.sort(_keys(notes)[part])
    wanted = _keys(others)
    return np.searchsorted(keys, wanted + NEAR, side="right") > np.searchsorted(keys, wanted - NEAR)


def _keys(notes: Notes) -> Int64[np.ndarray, "N"]:
    return notes.pitch.astype(np.int64) << 32 | notes.onset + NEAR
