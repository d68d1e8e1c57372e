"""Augmentation of token rows: pitch, tempo, velocity and the order of simultaneous notes, drawn for each piece."""

import numpy as np
from jaxtyping import Int, Integer

from piano_jax.music.vocabulary import LONGEST, SEGMENT, STEP, VELOCITIES, Vocabulary

FAR = 1 << 20  # more segments than a row holds


def augment(
    ids: Integer[np.ndarray, "T"],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    pitch: int = 5,
    tempo: float = 0.2,
    velocity: int = 1,
) -> Int[np.ndarray, "T"]:
    """Augments every piece of a row (pieces end in `<E>`; the first and last may be cut), keeping the row's length.

    A piece moves by up to `pitch` semitones (notes that leave the keyboard become `<U>`), its times stretch by a factor
    of 1 ± `tempo`, its velocities move by up to `velocity` steps, and notes of one onset are shuffled. What no longer
    fits is cut off the end of the row, and what is missing is padded. Events that the row's ends cut are dropped.
    """
    ids = np.asarray(ids, np.int32)
    ended = np.cumsum(ids == vocabulary.end)
    piece_of = ended - (ids == vocabulary.end)
    pieces = int(ended[-1]) + 1
    shift = rng.integers(-pitch, pitch, pieces, endpoint=True)
    stretch = rng.uniform(1 - tempo, 1 + tempo, pieces)
    louder = rng.integers(-velocity, velocity, pieces, endpoint=True)

    # Items: whole events, and the tokens that stay as they are. <T> is counted here, and laid out anew below.
    events, sizes = vocabulary.events(ids)
    size = vocabulary.is_label[ids].astype(np.int32)
    size[events] = sizes
    items = np.flatnonzero(size)
    size, piece = size[items], piece_of[items]
    is_event = size > 1
    segment = np.cumsum(ids == vocabulary.time)
    segment = (segment - np.append(0, segment[ids == vocabulary.end])[piece_of])[items]
    head, middle, last = (ids[np.minimum(items + i, len(ids) - 1)] for i in range(3))
    onset = np.where(is_event, segment * SEGMENT + (middle - vocabulary.onset.start) * STEP, -1)

    group = np.cumsum(~is_event | (np.diff(onset, prepend=-1) != 0) | (np.diff(piece, prepend=0) != 0))
    order = np.argsort(group + rng.random(len(items)))
    head, last, size, is_event = head[order], last[order], size[order], is_event[order]

    steps = np.rint(onset / STEP * stretch[piece]).astype(np.int32)  # alike within a group, so in order as they are
    duration = np.rint((last - vocabulary.duration.start) * stretch[piece]).astype(np.int32)
    last = vocabulary.duration.start + np.clip(duration, 1, LONGEST // STEP)
    head = np.where(size == 3, _played(head, shift[piece], louder[piece], vocabulary), head)

    segment, step = np.divmod(steps, SEGMENT // STEP)
    segment = np.where(is_event, segment, 0)
    reached = np.maximum.accumulate(segment + piece * FAR) - piece * FAR  # the last event's segment, by piece
    before = np.diff(reached, prepend=0)
    before = np.where(np.diff(piece, prepend=0) != 0, reached, before)  # the number of <T> in front of an item

    ends = np.cumsum(before + size)
    out = np.full(max(len(ids), ends[-1] if len(ends) else 0) + 2, vocabulary.pad, np.int32)
    out[: ends[-1] if len(ends) else 0] = vocabulary.time
    at = ends - size
    out[at] = head
    out[at[is_event] + 1] = vocabulary.onset.start + step[is_event]
    out[at[size == 3] + 2] = last[size == 3]
    return out[: len(ids)]


def _played(head, shift, louder, vocabulary: Vocabulary) -> Int[np.ndarray, "N"]:
    """Note tokens, transposed by `shift` semitones and `louder` by steps of velocity."""
    note, velocity = np.divmod(head - vocabulary.note.start, VELOCITIES)
    pitch = note % 128 + shift
    note = (note + shift) * VELOCITIES + np.clip(velocity + louder, 1, VELOCITIES - 1)
    return np.where((pitch >= 0) & (pitch < 128), vocabulary.note.start + note, vocabulary.unknown)
