"""Whole pieces in chunks of notes, as they are embedded and classified."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int32, Integer

from piano_jax import BadInput
from piano_jax.music import Notes, Vocabulary, augment, read_midi

NOTES = 300  # of a chunk (METHOD, section 4)

Chunks = list[Int32[np.ndarray, "_"]]


def closed(ids: Integer[np.ndarray, "_"], length: int, vocabulary: Vocabulary) -> Int32[np.ndarray, "_"]:
    """Ids of at most `length`: where more are cut off, `<E>` takes the last place."""
    ids = ids[:length].astype(np.int32)
    ids[-1] = vocabulary.end
    return ids


def augmented(
    ids: Integer[np.ndarray, "_"], vocabulary: Vocabulary, random: np.random.Generator, semitones: int = 5
) -> Int32[np.ndarray, "_"]:
    """A slice's ids, augmented, by up to so many semitones, however many they become."""
    room = np.full(2 + np.count_nonzero(ids == vocabulary.time) // 4, vocabulary.pad)  # slower has more <T>
    ids = augment(np.append(ids, room), vocabulary, random, semitones)
    return ids[ids != vocabulary.pad].astype(np.int32)


def chunks(notes: Notes, vocabulary: Vocabulary, size: int, length: int) -> Chunks:
    """Ids of every `size` notes, from their own start on, each cut at `length` tokens with `<E>` last.

    Raises:
        BadInput: there are no notes that the vocabulary knows.
    """
    notes = vocabulary.known(notes)
    parts = (notes[first : first + size] for first in range(0, len(notes), size))
    return [closed(vocabulary.encode(part), length, vocabulary) for part in parts]


@dataclasses.dataclass(frozen=True)
class ChunkReader:
    """Called with a file's bytes, or a line that says why there are none, gives its chunks or why there are none."""

    vocabulary: str
    size: int
    length: int

    def chunks(self, notes: Notes) -> Chunks:
        """The chunks of a performance. Raises BadInput where there are none."""
        return chunks(notes, _vocabulary(self.vocabulary), self.size, self.length)

    def __call__(self, content: bytes | str) -> Chunks | str:
        if isinstance(content, str):
            return content
        try:
            return self.chunks(read_midi(content))
        except BadInput as error:
            return str(error).removeprefix("MIDI data: ")


_vocabulary = functools.cache(Vocabulary)  # making one takes longer than using it
