"""From a file's bytes to what the dataset keeps of it: the work that `prepare` gives to its workers."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt16, UInt64

from piano_jax import BadInput
from piano_jax.music import Vocabulary, read_midi
from piano_jax.music.filters import Thresholds, failures, fingerprint, sketch

UNREADABLE, NO_NOTES, DUPLICATE = "unreadable", "no notes", "duplicate"


class Piece(NamedTuple):
    """Token ids, the number of notes, seconds, notes by pitch and by velocity, 64 bits of its fingerprint, and, where
    near-duplicates are looked for, its sketch."""

    ids: UInt16[np.ndarray, "T"]
    notes: int
    seconds: float
    tally: Int64[np.ndarray, "2 128"]
    digest: int
    sketch: UInt64[np.ndarray, "64"] | None


class Dropped(NamedTuple):
    """Why a file is no piece of the dataset: a reason that many share, and a line on this one."""

    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Reader:
    """Called with a file's bytes, or a line that says why there are none, gives its piece or why it is dropped."""

    vocabulary: str
    thresholds: Thresholds
    sketches: bool = False

    def __call__(self, content: bytes | str) -> Piece | Dropped:
        if isinstance(content, str):
            return Dropped(UNREADABLE, content)
        try:
            notes = read_midi(content)
            ids = _vocabulary(self.vocabulary).encode(notes)
        except BadInput as error:
            detail = str(error).removeprefix("MIDI data: ")
            return Dropped(NO_NOTES if NO_NOTES in detail else UNREADABLE, detail)
        if failed := failures(notes, self.thresholds):
            return Dropped(failed[0], ", ".join(failed))
        tally = np.stack([np.bincount(column, minlength=128) for column in (notes.pitch, notes.velocity)])
        drawn = sketch(notes) if self.sketches else None
        return Piece(ids, len(notes), notes.seconds, tally, int(fingerprint(notes)[:16], 16), drawn)


_vocabulary = functools.cache(Vocabulary)  # making one takes longer than using it
