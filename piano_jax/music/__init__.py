"""What a performance is: notes, MIDI files, tokens and augmentation, as arithmetic on arrays."""

from piano_jax.music.augmentation import augment
from piano_jax.music.filters import Thresholds, failures, fingerprint
from piano_jax.music.midi import read_midi, write_midi
from piano_jax.music.notes import Notes
from piano_jax.music.vocabulary import Vocabulary

__all__ = ["Notes", "Thresholds", "Vocabulary", "augment", "failures", "fingerprint", "read_midi", "write_midi"]
