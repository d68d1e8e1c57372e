"""What a performance is: notes, MIDI files, tokens and augmentation, as arithmetic on arrays."""

from piano_jax.music.augmentation import augment
from piano_jax.music.midi import read_midi, write_midi
from piano_jax.music.notes import Notes
from piano_jax.music.vocabulary import Vocabulary

__all__ = ["Notes", "Vocabulary", "augment", "read_midi", "write_midi"]
