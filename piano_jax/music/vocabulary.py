"""The vocabulary: notes to token ids and back.

A note is three tokens: what is played (instrument, pitch, velocity), its onset inside a segment of five seconds, and
its duration. `<T>` opens each new segment. A drum hit is two tokens, a drum and an onset; so is a pedal event.
"""

import dataclasses
import functools
import hashlib
import unicodedata

import numpy as np
from jaxtyping import Int, Integer, UInt16

from piano_jax import BadInput
from piano_jax.music.notes import DRUM, INSTRUMENTS, Notes, presses

SEGMENT, STEP, LONGEST = 5000, 10, 5000  # milliseconds: a segment, the grid of time, the longest duration
VELOCITY_STEP, VELOCITIES = 10, 13  # 0, 10, … 120
DRUM_PITCHES = range(35, 82)
DRUM_VELOCITY = 60
SPECIALS = ("<S>", "<E>", "<P>", "<U>", "<D>", "<T>")
COMPOSERS = (
    *("bach", "beethoven", "mozart", "chopin", "rachmaninoff", "liszt"),
    *("debussy", "schubert", "brahms", "ravel", "satie", "scarlatti"),
)
FORMS = ("sonata", "prelude", "nocturne", "étude", "waltz", "mazurka", "impromptu", "fugue")
GENRES = ("jazz", "classical")
CLASSES = ("note", "onset", "duration", "time", "pedal", "other")
NOTE, PAIR, ONSET, DURATION = 1, 2, 3, 4  # a token's role in an event: head of three, head of two, second, third


def nearest(steps: int, size: int) -> Int[np.ndarray, "size"]:
    """Index of the grid value 0, 10, … 10·(steps-1) nearest to each of 0, 1, … size-1.

    A tie goes to the neighbour that the authors' binary search meets first: a candidate replaces the best found so far
    only when strictly closer.
    """
    value = np.arange(size)
    low, high, best = np.zeros(size, int), np.full(size, steps - 1), np.zeros(size, int)
    while (searching := low <= high).any():
        middle = (low + high) // 2
        closer = searching & (abs(middle * STEP - value) < abs(best * STEP - value))
        best = np.where(closer, middle, best)
        right = middle * STEP < value
        low, high = np.where(right, middle + 1, low), np.where(right, high, middle - 1)
    return best


class Vocabulary:
    """Token ids of "aria" (17,727: the authors' instruments and labels) or "piano" (2,675: a piano with its pedal).

    Attributes:
        tokens: a name for each id, in order; the two vocabularies share names, not ids.
        size: the number of ids.
        begin, end, pad, unknown, diminish, time: ids of `<S>`, `<E>`, `<P>`, `<U>`, `<D>`, `<T>`.
        note, drum, duration, onset, pedal: ranges of ids.
        kind: the index into CLASSES of each id.
        role: what each id is in an event: NOTE, PAIR, ONSET or DURATION, or 0.
        is_label: whether an id stands alone, neither part of an event nor of the time.

    Raises:
        BadInput: there is no vocabulary of that name.
    """

    begin, end, pad, unknown, diminish, time = range(len(SPECIALS))

    def __init__(self, name: str = "aria"):
        if name not in ("aria", "piano"):
            raise BadInput(f"{name}: no such vocabulary (there are aria and piano)")
        self.name, self.has_pedal = name, name == "piano"
        self.instruments = INSTRUMENTS[:1] if self.has_pedal else INSTRUMENTS[:DRUM]
        if self.has_pedal:
            labels, drums, last = {"instrument": self.instruments}, (), ("<PED_ON>", "<PED_OFF>", "<X>")
        else:
            labels = {"instrument": INSTRUMENTS, "composer": COMPOSERS, "form": FORMS, "genre": GENRES}
            drums, last = DRUM_PITCHES, ()
        velocities = range(0, VELOCITIES * VELOCITY_STEP, VELOCITY_STEP)
        groups = {
            "special": SPECIALS,
            "prefix": [f"{label}:{value}" for label, values in labels.items() for value in values],
            "note": [f"{i}:{pitch}:{v}" for i in self.instruments for pitch in range(128) for v in velocities],
            "drum": [f"drum:{pitch}" for pitch in drums],
            "duration": [f"duration:{ms}" for ms in range(0, LONGEST + STEP, STEP)],
            "onset": [f"onset:{ms}" for ms in range(0, SEGMENT, STEP)],
            "pedal": last,
        }
        self.tokens = tuple(token for group in groups.values() for token in group)
        self.size = len(self.tokens)
        starts = np.cumsum([0, *map(len, groups.values())])
        ranges = {name: range(starts[i], starts[i + 1]) for i, name in enumerate(groups)}
        self.prefix, self.note, self.drum = ranges["prefix"], ranges["note"], ranges["drum"]
        self.duration, self.onset, self.pedal = ranges["duration"], ranges["onset"], ranges["pedal"]

        self.role = np.zeros(self.size, np.int8)
        for role, ids in ((NOTE, self.note), (PAIR, self.drum), (PAIR, self.pedal[:2]), (ONSET, self.onset)):
            self.role[ids] = role
        self.role[self.duration] = DURATION
        self.is_label = np.zeros(self.size, bool)
        self.is_label[[self.begin, self.end, self.diminish, *self.prefix, *self.pedal[2:]]] = True
        self.kind = np.full(self.size, CLASSES.index("other"), np.int32)
        for ids in ("note", "drum", "duration", "onset"):
            self.kind[ranges[ids]] = CLASSES.index("note" if ids == "drum" else ids)
        self.kind[self.time] = CLASSES.index("time")
        self.kind[self.pedal[:2]] = CLASSES.index("pedal")

    @functools.cached_property
    def labels(self) -> dict[tuple[str, str], int]:
        """Ids of the prefixes of (label, value), as ("composer", "bach"), with accents and without."""
        labels = {tuple(self.tokens[id].split(":")): id for id in self.prefix}
        plain = {pair: unicodedata.normalize("NFD", pair[1]).encode("ascii", "ignore").decode() for pair in labels}
        return labels | {(pair[0], word): labels[pair] for pair, word in plain.items()}

    def __repr__(self) -> str:
        return f'Vocabulary("{self.name}")'

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the tokens in order; equal only where ids mean the same."""
        return hashlib.sha256("\n".join(self.tokens).encode()).hexdigest()

    def places_in(self, other: "Vocabulary") -> Int[np.ndarray, "V"]:
        """The id that each of this vocabulary's tokens has in another, -1 where that one lacks it."""
        ids = {token: id for id, token in enumerate(other.tokens)}
        return np.array([ids.get(token, -1) for token in self.tokens], np.int32)

    def known(self, notes: Notes) -> Notes:
        """The notes that have tokens: all, but for "piano", which leaves other instruments out.

        Raises:
            BadInput: there are none.
        """
        if self.has_pedal and notes.instrument.any():
            notes = notes.piano
        if not len(notes):
            raise BadInput(f"no notes for the vocabulary {self.name}")
        return notes

    def encode(self, notes: Notes) -> UInt16[np.ndarray, "T"]:
        """Token ids of a piece: instruments, `<S>`, the notes, `<E>`; silence before the first note is dropped.

        Times of the grid are the nearest (see METHOD, section 1).

        Raises:
            BadInput: there is no note to encode.
        """
        notes = self.known(notes)
        grids, onset, instrument = _grids(), notes.onset, notes.instrument

        # One row an event: its first id, its time, and its duration's id (0: it has none).
        head = self.note.start + (instrument.astype(np.int32) * 128 + notes.pitch) * VELOCITIES
        head += grids["velocity"][notes.velocity]
        last = self.duration.start + grids["duration"][np.minimum(notes.duration, LONGEST)]
        drums = instrument == DRUM
        if drums.any():
            drum = notes.pitch[drums].astype(np.int32) - DRUM_PITCHES.start
            known = (drum >= 0) & (drum < len(DRUM_PITCHES))
            head[drums], last[drums] = np.where(known, self.drum.start + drum, self.unknown), 0
        if self.has_pedal and len(notes.pedal):
            edges = notes.pedal.reshape(-1)
            head = np.concatenate([head, self.pedal.start + np.arange(len(edges)) % 2])
            onset, last = np.concatenate([onset, edges]), np.concatenate([last, np.zeros(len(edges), last.dtype)])
            order = np.argsort(onset, kind="stable")
            head, onset, last = head[order], onset[order], last[order]

        segment, time = np.divmod(onset - onset[0], SEGMENT)
        before = np.diff(segment, prepend=0)  # the number of <T> in front of an event
        length = before + np.where(last > 0, 3, 2)
        prefix = [*(self.prefix.start + notes.ensemble), self.begin]
        ends = np.cumsum(length) + len(prefix)
        ids = np.full(ends[-1] + 1, self.time, np.uint16)
        ids[: len(prefix)] = prefix
        at = ends - length + before
        ids[at] = head
        ids[at + 1] = self.onset.start + grids["onset"][time]
        ids[(at + 2)[last > 0]] = last[last > 0]
        ids[-1] = self.end
        return ids

    def decode(self, ids: Integer[np.ndarray, "T"]) -> Notes:
        """Notes of one piece's token ids, up to its first `<E>`; tokens that are no part of a whole event are skipped.

        The pedal's presses are those of "piano"; one left down ends with the last note.
        """
        ids = np.asarray(ids, np.int32)
        ids = ids[: np.flatnonzero(np.append(ids, self.end) == self.end)[0]]
        at, sizes = self.events(ids)
        onset = np.cumsum(ids == self.time)[at] * SEGMENT + (ids[at + 1] - self.onset.start) * STEP
        order = np.argsort(onset, kind="stable")
        at, sizes, onset, head = at[order], sizes[order], onset[order], ids[at[order]]

        drums = np.isin(head, self.drum)
        sounds = (sizes == 3) | drums
        note, velocity = np.divmod(head - self.note.start, VELOCITIES)
        instrument, pitch = np.divmod(note, 128)
        duration = ids[np.minimum(at + 2, len(ids) - 1)] - self.duration.start
        columns = (
            onset,
            np.where(drums, STEP, duration * STEP),
            np.where(drums, head - self.drum.start + DRUM_PITCHES.start, pitch),
            np.where(drums, DRUM_VELOCITY, velocity * VELOCITY_STEP),
            np.where(drums, DRUM, instrument),
        )
        notes = Notes(*(column[sounds] for column in columns))
        last_end = int(notes.onset[-1] + notes.duration[-1]) if len(notes) else 0
        pedal = presses(onset[~sounds], head[~sounds] == self.pedal.start, last_end)
        return dataclasses.replace(notes, pedal=pedal)

    def events(self, ids: Integer[np.ndarray, "T"]) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
        """Where whole events begin, and of how many tokens each is: 3 for a note, 2 for a drum or a pedal event."""
        role = np.append(self.role[ids], [0, 0])
        pairs = role[1:-1] == ONSET
        whole = ((role[:-2] == NOTE) & pairs & (role[2:] == DURATION)) | ((role[:-2] == PAIR) & pairs)
        at = np.flatnonzero(whole)
        return at, np.where(role[at] == NOTE, 3, 2)


@functools.cache
def _grids() -> dict[str, Int[np.ndarray, "_"]]:
    """Steps of the grid nearest to each velocity, each millisecond of a segment and each duration; 0 becomes 1."""
    velocity, onset, duration = nearest(VELOCITIES, 128), nearest(SEGMENT // STEP, SEGMENT), nearest(501, LONGEST + 1)
    return {"velocity": np.maximum(velocity, 1), "onset": onset, "duration": np.maximum(duration, 1)}
