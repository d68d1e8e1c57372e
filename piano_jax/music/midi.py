"""Standard MIDI files to and from `Notes`, parsed by symusic, with the authors' rules for notes, pedal and time.

symusic pairs note-ons with note-offs first in, first out, drops notes that are never released, and forgets channels;
the authors' rules need all three. So each track gets a coda before it is parsed: much later than any event, every
pitch of every channel is released (what was left open shows by its enormous duration, and no note is lost), and then
each channel that occurs plays one note that names it.
"""

import functools
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import symusic
from jaxtyping import Int64, Shaped

from piano_jax import BadInput, write_whole
from piano_jax.music.notes import DRUM, INSTRUMENTS, PIANO, Notes, presses

ON, PROGRAM = 0x90, 0xC0  # a note on, a change of program
SUSTAIN, DRUM_CHANNEL, CHANNELS, PITCHES = 64, 9, 16, 128
FOREVER = (1 << 28) - 1  # the longest delta time that a MIDI file can say, in ticks
LONGEST = 24 * 3600 * 1000  # milliseconds of a piece; longer ones are damaged
MOST_CODAS = 1 << 28  # bytes of codas that a file may need
END_OF_TRACK = b"\xff\x2f\x00"
DEFAULT_TEMPO = {"time": 0, "mspq": 500_000}
DROPPED = 255
# General MIDI's sixteen families of eight programs each, as indices into INSTRUMENTS.
FAMILIES = np.array([0, DROPPED, 1, 2, 3, 4, 5, 6, 7, 8, 9, *[DROPPED] * 5], np.uint8)


class TempoMap(NamedTuple):
    """Tempo changes: from tick `tick[i]` on, a beat of `ticks_per_beat` lasts `microseconds[i]`."""

    tick: Int64[np.ndarray, "M"]
    microseconds: Int64[np.ndarray, "M"]
    ticks_per_beat: int

    def elapsed(self, tick: Int64[np.ndarray, "*N"]) -> Int64[np.ndarray, "*N"]:
        """Exact time of a tick since the first tempo change, in microseconds times `ticks_per_beat`."""
        reached = np.concatenate([[0], np.cumsum(np.diff(self.tick) * self.microseconds[:-1])])
        change = np.maximum(np.searchsorted(self.tick, tick, side="right") - 1, 0)
        return reached[change] + (tick - self.tick[change]) * self.microseconds[change]

    def milliseconds(self, elapsed: Int64[np.ndarray, "*N"]) -> Shaped[np.ndarray, "*N"]:
        """A difference of elapsed times, rounded half to even."""
        return np.rint(elapsed / (1000 * self.ticks_per_beat))


def read_midi(source: str | Path | bytes) -> Notes:
    """Reads a MIDI file, or its bytes; time counts from the first note's start.

    Raises:
        BadInput: the file cannot be read, is not MIDI, or holds no note of the eleven instruments.
    """
    name = "MIDI data" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return _notes(data)
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}") from error
    except (RuntimeError, ValueError, struct.error) as error:
        raise BadInput(f"{name}: {str(error).splitlines()[0][:200]}") from error


def write_midi(notes: Notes, path: str | Path) -> None:
    """Writes a MIDI file of one tick a millisecond, whole or not at all."""
    score = symusic.Score(500)
    score.tempos.append(symusic.Tempo(0, mspq=500_000))
    for index in np.union1d(notes.ensemble, PIANO):
        own = notes.instrument == index
        program = 0 if index == DRUM else 8 * int(np.flatnonzero(index == FAMILIES)[0])
        track = symusic.Track(INSTRUMENTS[index], program, bool(index == DRUM))
        # A note-on of velocity 0 would be a note-off.
        pitch, velocity = notes.pitch[own].astype(np.int8), np.maximum(notes.velocity[own], 1).astype(np.int8)
        track.notes = symusic.Note.from_numpy(notes.onset[own], notes.duration[own], pitch, velocity)
        if index == PIANO:
            edges, value = notes.pedal.reshape(-1), np.tile(np.array([127, 0], np.uint8), len(notes.pedal))
            track.controls = symusic.ControlChange.from_numpy(edges, np.full(len(edges), SUSTAIN, np.uint8), value)
        score.tracks.append(track)
    write_whole(Path(path), score.dumps_midi())


def _notes(data: bytes) -> Notes:
    found = [c for c in range(CHANNELS) if bytes([ON | c]) in data or bytes([PROGRAM | c]) in data]
    channels = np.array(found or [0], np.int64)
    for rounds in (2, 32, 512):
        score = symusic.Score.from_midi(_with_codas(data, rounds, tuple(channels.tolist())))
        tracks, labels, programs = _labelled(score, channels)
        columns = _columns([track.notes for track in tracks], labels, "time", "duration", "pitch", "velocity")
        never = columns[1] >= FOREVER
        if min(column.min(initial=0) for column in columns[:2]) < 0 or columns[0].max(initial=0) > 2 * FOREVER:
            raise ValueError("longer than 2^28 ticks")  # so that its end is no longer told from the codas
        left_open = columns[4][never] * PITCHES + columns[2][never]
        # Where the releases only just sufficed, there may have been more to release.
        if len(programs) and (not len(left_open) or np.unique(left_open, return_counts=True)[1].max() < rounds):
            break
    else:
        raise ValueError("events follow the end of a track, or hundreds of notes are left open")
    start, end, pitch, velocity, channel = _released(*columns)

    # A channel's program is the last one set; only what differs from the default, piano, shows as set.
    instruments = FAMILIES[programs // 8]  # of MIDI tracks and channels
    set_last = np.where(programs > 0, np.arange(len(programs))[:, None], 0).argmax(axis=0)
    of_channel = instruments[set_last, np.arange(CHANNELS)]
    of_channel[(instruments == DROPPED).any(axis=0)] = DROPPED
    of_channel[DRUM_CHANNEL] = DRUM
    kept = of_channel[channel] != DROPPED
    if not kept.any():
        raise ValueError("no notes")
    start, end, pitch, velocity, channel = (x[kept] for x in (start, end, pitch, velocity, channel))
    played = np.bincount(channel, minlength=CHANNELS) > 0
    announced = played | (programs.any(axis=0) & (np.arange(CHANNELS) != DRUM_CHANNEL))
    announced[0] |= not programs.any()  # where no program is set, a piano is announced, played or not

    tick, number, value, pedal_channel = _columns([t.controls for t in tracks], labels, "time", "number", "value")
    pedal_channel = np.where(number == SUSTAIN, pedal_channel % CHANNELS, CHANNELS)
    in_time, last_end = np.argsort(tick, kind="stable"), int(end[-1])
    pedal = np.empty((0, 2), np.int64)
    for index in np.flatnonzero(played):
        own = in_time[pedal_channel[in_time] == index]
        of_index = presses(tick[own], value[own] >= 64, last_end)
        end = np.where(channel == index, _sustained(end, of_index), end)
        if of_channel[index] == PIANO:
            pedal = np.concatenate([pedal, of_index])

    tempos = score.tempos.numpy() if len(score.tempos) else dict.fromkeys(DEFAULT_TEMPO, np.empty(0, np.int64))
    if (tempos["mspq"] <= 0).any():
        raise ValueError("a tempo of 0")
    if min(ticks.min(initial=0) for ticks in (tick, tempos["time"])) < 0:
        raise ValueError("longer than 2^28 ticks")  # in a track without notes, where no coda tells
    changes = [np.concatenate([[first], tempos[name]], dtype=np.int64) for name, first in DEFAULT_TEMPO.items()]
    tempo = TempoMap(*changes, score.tpq)
    start, end = tempo.elapsed(start), tempo.elapsed(end)
    if (end < start).any():
        raise ValueError("notes end before they begin")  # found by fuzzing, where times run past those of the codas
    if (end.max() - start[0]) // (1000 * tempo.ticks_per_beat) > LONGEST:
        raise ValueError("longer than a day")
    return Notes(
        onset=tempo.milliseconds(start - start[0]),
        duration=tempo.milliseconds(end - start),
        pitch=pitch,
        velocity=velocity,
        instrument=of_channel[channel],
        ensemble=of_channel[announced & (of_channel != DROPPED)],
        pedal=tempo.milliseconds(tempo.elapsed(pedal[np.argsort(pedal[:, 0], kind="stable")]) - start[0]),
    )


def _labelled(
    score: symusic.core.ScoreTick, channels: Int64[np.ndarray, "C"]
) -> tuple[list, Int64[np.ndarray, "S"], Int64[np.ndarray, "M 16"]]:
    """Names symusic's tracks, of which there is one for each program of each channel of each MIDI track, in that order.

    Returns the tracks, for each 16 · MIDI track + channel, and the last program of each channel in each MIDI track, of
    which there is none where the codas were not heard.
    """
    tracks = [track for track in score.tracks if track.note_num()]
    index, program = np.arange(len(tracks)), np.array([track.program for track in tracks], np.int64)
    # Only a channel's last program plays the coda's note; its earlier ones, sorted, stand on either side.
    named = np.flatnonzero([track.notes[-1].time >= FOREVER for track in tracks])
    if not len(named) or len(named) % len(channels):
        return tracks, index, np.empty((0, CHANNELS), np.int64)
    owner = np.minimum(np.searchsorted(named, index), len(named) - 1)
    owner -= (index < named[owner]) & (program > program[named[owner]])
    midi_track, place = np.divmod(owner, len(channels))
    programs = np.zeros((len(named) // len(channels), CHANNELS), np.int64)
    programs[:, channels] = program[named].reshape(-1, len(channels))
    return tracks, CHANNELS * midi_track + channels[place], programs


def _columns(parts: list, labels: Int64[np.ndarray, "S"], *fields: str) -> list[Int64[np.ndarray, "N"]]:
    """Concatenates fields of symusic's lists, in 64 bits so that several fit into one key, and each list's label."""
    full = [(part.numpy(), label, len(part)) for part, label in zip(parts, labels, strict=True) if len(part)]
    empty = np.empty(0, np.int64)
    columns = [np.concatenate([empty, *(arrays[field] for arrays, _, _ in full)], dtype=np.int64) for field in fields]
    return [*columns, np.repeat([label for _, label, _ in full] or empty, [size for _, _, size in full] or empty)]


def _released(start, duration, pitch, velocity, label):
    """Ends notes as the authors do, and puts them in their order: by start, MIDI track and end.

    A release ends every open note of its pitch and channel, so a note ends at the first release after its start,
    whichever note that release was paired with. Zero-length notes and those never released vanish, and so do codas.
    Returns start, end, pitch, velocity and channel.
    """
    key = label * PITCHES + pitch
    # Of one key, starts ascend as they are, and so do the ends that were paired with them, first in, first out.
    order = np.argsort(key.astype(np.min_scalar_type(key.max(initial=0))), kind="stable")
    releases = (key << 32 | start + duration)[order]
    first = np.searchsorted(releases, (key << 32 | start)[order], side="right")
    end = np.empty_like(start)
    end[order] = np.append(releases, -1)[first] & 0xFFFFFFFF  # its own at the latest, unless it has no length
    kept = np.flatnonzero((duration > 0) & (end < FOREVER))
    midi_track, channel = np.divmod(label[kept], CHANNELS)
    ranks = start[kept] << 35 | np.minimum(midi_track, 127) << 28 | (end - start)[kept]
    by_rank = np.argsort(ranks, kind="stable")
    kept = kept[by_rank]
    return start[kept], end[kept], pitch[kept], velocity[kept], channel[by_rank]


def _sustained(end: Int64[np.ndarray, "N"], pedal: Int64[np.ndarray, "P 2"]) -> Int64[np.ndarray, "N"]:
    """Ends of notes, where those strictly inside a press wait for its release."""
    if not len(pedal):
        return end
    down, up = pedal[np.maximum(np.searchsorted(pedal[:, 0], end, side="left") - 1, 0)].T
    return np.where((down < end) & (end < up), up, end)


def _with_codas(data: bytes, rounds: int, channels: tuple[int, ...]) -> bytes:
    """Appends a coda to each track of a MIDI file. Raises ValueError."""
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("not a MIDI file")
    ticks_per_beat = struct.unpack(">h", data[12:14])[0]
    if ticks_per_beat <= 0:
        raise ValueError("time in frames of SMPTE, not in beats" if ticks_per_beat else "0 ticks a beat")
    coda = _coda(rounds, channels)
    position, tracks = 8 + struct.unpack(">I", data[4:8])[0], []
    while position + 8 <= len(data):
        kind, length = struct.unpack(">4sI", data[position : position + 8])
        position += 8
        if position + length > len(data):
            raise ValueError(f"cut short, {position + length - len(data)} bytes are missing")
        if kind == b"MTrk":
            events = data[position : position + length]
            # What stays before the coda is a delta time, which the coda's first event takes up.
            events = events.removesuffix(END_OF_TRACK) if events.endswith(END_OF_TRACK) else events + b"\x00"
            if len(coda) * (len(tracks) + 1) > MOST_CODAS:
                raise ValueError("too many tracks, of too many open notes")
            events += coda
            tracks.append(struct.pack(">4sI", kind, len(events)) + events)
        position += length
    if len(tracks) < struct.unpack(">H", data[10:12])[0]:
        raise ValueError("cut short, tracks are missing")
    return b"".join([struct.pack(">4sI2sH2s", b"MThd", 6, data[8:10], len(tracks), data[12:14]), *tracks])


@functools.lru_cache(maxsize=64)
def _coda(rounds: int, channels: tuple[int, ...]) -> bytes:
    """Much later than all before, `rounds` releases of every pitch of the channels, and the notes that name them.

    An event without effect comes first and takes up the delta time that stood before the end of the track.
    """
    releases = bytes(byte for pitch in range(PITCHES) for byte in (pitch, 0, 0)) * rounds
    played = [bytes([ON | c]) + releases + bytes([c, 1, 1, c, 0, 0]) for c in channels]
    return b"\xd0\x00\xff\xff\xff\x7f" + b"".join(played) + END_OF_TRACK
