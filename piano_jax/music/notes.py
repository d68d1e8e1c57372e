"""What a performance is: parallel arrays of notes, in milliseconds."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8
from numpy.typing import ArrayLike

INSTRUMENTS = ("piano", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe", "synth_lead", "drum")
PIANO, DRUM = 0, 10


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Notes:
    """Notes in order of onset, and the sustain pedal, both in milliseconds from the same zero.

    `duration` is how long a note sounds: one that is released under the pedal, when read from a file, sounds until the
    pedal is up. `instrument` indexes INSTRUMENTS (all piano if left out), and `ensemble` lists the instruments that
    were announced, with notes or without (those with notes if left out). `pedal` rows are presses: down, up.

    Raises:
        ValueError: the arrays differ in length, or the onsets descend.
    """

    onset: Int32[np.ndarray, "N"]
    duration: Int32[np.ndarray, "N"]
    pitch: UInt8[np.ndarray, "N"]
    velocity: UInt8[np.ndarray, "N"]
    instrument: UInt8[np.ndarray, "N"]
    ensemble: UInt8[np.ndarray, "I"]
    pedal: Int32[np.ndarray, "P 2"]

    def __init__(
        self,
        onset: ArrayLike,
        duration: ArrayLike,
        pitch: ArrayLike,
        velocity: ArrayLike,
        instrument: ArrayLike | None = None,
        ensemble: ArrayLike | None = None,
        pedal: ArrayLike = (),
    ):
        instrument = np.full(len(onset), PIANO) if instrument is None else instrument
        fields = {
            "onset": np.asarray(onset, np.int32),
            "duration": np.asarray(duration, np.int32),
            "pitch": np.asarray(pitch, np.uint8),
            "velocity": np.asarray(velocity, np.uint8),
            "instrument": np.asarray(instrument, np.uint8),
            "ensemble": np.unique(instrument if ensemble is None else ensemble).astype(np.uint8),
            "pedal": np.asarray(pedal, np.int32).reshape(-1, 2),
        }
        for name, array in fields.items():
            object.__setattr__(self, name, array)
        if any(len(fields[name]) != len(self) for name in ("duration", "pitch", "velocity", "instrument")):
            raise ValueError("the arrays of notes differ in length")
        if (np.diff(self.onset) < 0).any():
            raise ValueError("the onsets of notes descend")

    def __len__(self) -> int:
        return len(self.onset)

    def __getitem__(self, part: slice) -> "Notes":
        """Some of the notes, when they were; the pedal from the first onset to the last end, and the same ensemble."""
        columns = (x[part] for x in (self.onset, self.duration, self.pitch, self.velocity, self.instrument))
        notes = Notes(*columns, ensemble=self.ensemble)
        if not len(notes):
            return notes
        pedal = np.clip(self.pedal, notes.onset[0], (notes.onset + notes.duration).max())
        return dataclasses.replace(notes, pedal=pedal[pedal[:, 0] < pedal[:, 1]])

    @property
    def piano(self) -> "Notes":
        """The piano's notes alone, and the pedal."""
        own = self.instrument == PIANO
        return Notes(self.onset[own], self.duration[own], self.pitch[own], self.velocity[own], pedal=self.pedal)

    @property
    def seconds(self) -> float:
        """Time from the first onset to the last end."""
        return float((self.onset + self.duration).max() - self.onset[0]) / 1000 if len(self) else 0.0


def presses(time: Int[np.ndarray, "M"], down: Bool[np.ndarray, "M"], last_end: int) -> Int[np.ndarray, "P 2"]:
    """Sustain messages in order of time as presses (down, up); repeats are ignored, the last may end at `last_end`."""
    edges = time[down != np.append(False, down[:-1])]
    return (np.append(edges, last_end) if len(edges) % 2 else edges).reshape(-1, 2)
