"""Reading MIDI files: against the rules played message by message, by hand, and on files that are broken."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.music import Notes, read_midi, write_midi
from piano_jax.music.notes import DRUM, INSTRUMENTS

ON, OFF, CONTROL, PROGRAM, TEMPO = 0x90, 0x80, 0xB0, 0xC0, 0x51
Message = tuple[int, int, int, int, int]  # tick, kind, channel, two numbers


def midi_bytes(tracks: list[list[Message]], ticks_per_beat: int = 480, end: bool = True) -> bytes:
    """A format 1 file; messages are in order of tick."""

    def delta(ticks: int) -> bytes:
        digits = [ticks & 127]
        while ticks := ticks >> 7:
            digits.append(ticks & 127 | 128)
        return bytes(reversed(digits))

    chunks = [struct.pack(">4sIHHH", b"MThd", 6, 1, len(tracks), ticks_per_beat)]
    for messages in tracks:
        body, now = b"", 0
        for tick, kind, channel, first, second in messages:
            body += delta(tick - now)
            if kind == TEMPO:
                body += b"\xff\x51\x03" + first.to_bytes(3, "big")
            else:
                body += bytes([kind | channel, first] + ([second] if kind != PROGRAM else []))
            now = tick
        body += b"\x00\xff\x2f\x00" if end else b""
        chunks.append(struct.pack(">4sI", b"MTrk", len(body)) + body)
    return b"".join(chunks)


def played(tracks: list[list[Message]], ticks_per_beat: int) -> list[tuple]:
    """METHOD's rules, one message after another: (onset, duration, pitch, velocity, instrument) of each note."""
    notes, sustain, tempos, programs = [], [], [(0, 500_000)], {}
    for messages in tracks:
        sounding: dict[tuple[int, int], list] = {}
        for tick, kind, channel, first, second in messages:
            key = channel, first
            if kind == ON and second:
                sounding.setdefault(key, []).append((tick, second))
            elif kind in (ON, OFF):
                open_notes = sounding.pop(key, [])
                closed = [note for note in open_notes if note[0] != tick]
                notes += [(start, tick, first, velocity, channel) for start, velocity in closed]
                if closed and len(closed) < len(open_notes):
                    sounding[key] = [note for note in open_notes if note[0] == tick]
            elif kind == CONTROL and first == 64:
                sustain.append((tick, channel, second >= 64))
            elif kind == TEMPO:
                tempos.append((tick, first))
            elif kind == PROGRAM:
                programs[channel] = first
    families = ["piano", None, "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe", "synth_lead"]
    of_channel = {channel: (families + [None] * 5)[programs.get(channel, 0) // 8] for channel in range(16)} | {
        9: "drum"
    }
    notes = sorted((note for note in notes if of_channel[note[4]]), key=lambda note: note[0])
    tempos.sort(key=lambda tempo: tempo[0])

    def time(tick: int) -> int:
        total = 0
        for (start, tempo), (stop, _) in zip(tempos, [*tempos[1:], (tick, 0)], strict=True):
            total += max(0, min(stop, tick) - start) * tempo
        return total

    def milliseconds(start: int, end: int) -> int:
        return round(Fraction(time(end) - time(start), 1000 * ticks_per_beat))

    found = []
    for start, end, pitch, velocity, channel in notes:
        down = None
        for tick, _, is_down in [x for x in sorted(sustain, key=lambda x: x[0]) if x[1] == channel] + [
            (notes[-1][1], 0, False)
        ]:
            if is_down and down is None:
                down = tick
            elif not is_down and down is not None:
                if down < end < tick:
                    end = tick
                    break
                down = None
        instrument = INSTRUMENTS.index(of_channel[channel])
        found.append((milliseconds(notes[0][0], start), milliseconds(start, end), pitch, velocity, instrument))
    return found


def random_tracks(rng: np.random.Generator) -> list[list[Message]]:
    """Messages that no one plays: a few pitches struck and released at random, over channels that tracks share."""
    tracks, channels = [], rng.choice(16, rng.integers(1, 4), replace=False).tolist()
    for index in range(rng.integers(1, 4)):
        messages, size = [], int(rng.integers(20, 200))
        ticks = np.sort(rng.choice(100_000, size, replace=False))
        for tick in ticks.tolist():
            kind = rng.choice([ON, OFF, CONTROL, TEMPO], p=[0.45, 0.4, 0.1, 0.05])
            channel = int(rng.choice(channels))
            if kind == TEMPO:
                messages.append((tick, TEMPO, 0, int(rng.integers(100_000, 2_000_000)), 0))
            elif kind == CONTROL:
                messages.append((tick, CONTROL, channel, int(rng.choice([64, 67])), int(rng.integers(0, 128))))
            else:
                messages.append((tick, int(kind), channel, int(rng.integers(50, 56)), int(rng.integers(0, 128))))
        if index == 0:
            start = [(0, PROGRAM, channel, int(rng.integers(0, 128)), 0) for channel in channels if rng.random() < 0.4]
            messages = start + messages
        tracks.append(messages)
    return tracks


def columns(notes: Notes) -> list[tuple]:
    return list(
        zip(
            *(getattr(notes, x).tolist() for x in ("onset", "duration", "pitch", "velocity", "instrument")), strict=True
        )
    )


def test_random_messages_are_read_by_the_rules():
    agreed = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        tracks, ticks_per_beat = random_tracks(rng), int(rng.choice([96, 384, 480, 960]))
        expected = played(tracks, ticks_per_beat)
        if not expected:
            with pytest.raises(BadInput, match="no notes"):
                read_midi(midi_bytes(tracks, ticks_per_beat))
            continue
        assert sorted(columns(read_midi(midi_bytes(tracks, ticks_per_beat)))) == sorted(expected), seed
        agreed += 1
    assert agreed > 200


def test_simultaneous_notes_stand_in_the_order_of_their_ends():
    tracks = [
        [(0, ON, 0, pitch, 64) for pitch in (60, 64, 67)]
        + [(100, OFF, 0, 67, 0), (200, OFF, 0, 60, 0), (300, OFF, 0, 64, 0)]
    ]
    assert read_midi(midi_bytes(tracks)).pitch.tolist() == [67, 60, 64]


def test_a_pedal_reaches_the_tracks_of_its_channel_and_no_other():
    pedal = [(0, CONTROL, 2, 64, 127), (960, CONTROL, 2, 64, 0)]
    tracks = [pedal, [(10, ON, 2, 60, 64), (20, OFF, 2, 60, 0)], [(10, ON, 3, 62, 64), (20, OFF, 3, 62, 0)]]
    notes = read_midi(midi_bytes(tracks))
    assert dict(zip(notes.pitch.tolist(), notes.duration.tolist(), strict=True)) == {60: 990, 62: 10}
    assert notes.pedal.tolist() == [[-10, 990]]
    strings = read_midi(midi_bytes([[(0, PROGRAM, 2, 40, 0)], *tracks]))
    assert strings.duration.max() == 990 and not len(strings.pedal)  # no piano's


def test_notes_left_open_are_dropped_and_hide_no_others():
    many = [(tick, ON, 0, 60, 64) for tick in range(40)]
    assert len(read_midi(midi_bytes([[*many, (100, OFF, 0, 60, 0), (200, ON, 0, 61, 64), (300, OFF, 0, 61, 0)]]))) == 41
    assert (
        len(
            read_midi(
                midi_bytes([[(0, ON, 0, 60, 64), (9, OFF, 0, 60, 0), *[(t + 50, ON, 0, 60, 64) for t in range(60)]]])
            )
        )
        == 1
    )


def test_a_track_without_its_end_is_read():
    tracks = [[(0, ON, 0, 60, 64), (480, OFF, 0, 60, 0)]]
    assert columns(read_midi(midi_bytes(tracks, end=False))) == columns(read_midi(midi_bytes(tracks)))


def test_instruments_are_those_of_the_channel():
    tracks = [
        [(0, PROGRAM, 1, 40, 0), (0, PROGRAM, 4, 120, 0), (0, PROGRAM, 5, 33, 0)],  # strings, an effect, a silent bass
        [(tick, kind, channel, 60, 64) for tick, kind in ((0, ON), (480, OFF)) for channel in (0, 1, 4, 9)],
    ]
    notes = read_midi(midi_bytes(tracks))
    names = [INSTRUMENTS[i] for i in notes.instrument]
    assert sorted(names) == ["drum", "piano", "strings"]
    assert [INSTRUMENTS[i] for i in notes.ensemble] == ["piano", "bass", "strings", "drum"]
    drums = read_midi(midi_bytes([[(0, ON, 9, 40, 64), (9, OFF, 9, 40, 0)]]))
    assert [INSTRUMENTS[i] for i in drums.ensemble] == ["piano", "drum"]


def test_written_files_read_back(tmp_path):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        size = 100
        onset = np.cumsum(rng.integers(1, 200, size))
        # Pitches in turn, so that no note begins while its pitch sounds.
        notes = Notes(
            onset - onset[0], rng.integers(1, 900, size), 21 + np.arange(size) % 80, rng.integers(1, 128, size)
        )
        write_midi(notes, tmp_path / "a.mid")
        found = read_midi(tmp_path / "a.mid")
        assert columns(found) == columns(notes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mid"]
    several = Notes(
        [0, 5, 9, 9], [50] * 4, [60, 61, 40, 62], [64] * 4, instrument=[0, 3, 9, DRUM], pedal=[[2, 40], [60, 70]]
    )
    write_midi(several, tmp_path / "b.mid")
    found = read_midi(tmp_path / "b.mid")
    assert columns(found) == columns(several) and found.pedal.tolist() == several.pedal.tolist()


GOOD = midi_bytes([[(0, ON, 0, 60, 64), (480, OFF, 0, 60, 0)]] * 2)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a MIDI file"),
        (b"a text file that is no MIDI file", "not a MIDI file"),
        (GOOD[:20], "cut short"),
        (GOOD[:-3], "cut short, 3 bytes are missing"),
        (GOOD[: len(GOOD) // 2 + 7], "cut short, tracks are missing"),
        (midi_bytes([[(0, CONTROL, 0, 64, 127)]]), "no notes"),
        (midi_bytes([[(0, PROGRAM, 0, 120, 0), (0, ON, 0, 60, 64), (9, OFF, 0, 60, 0)]]), "no notes"),
    ],
)
def test_files_that_cannot_be_read(data, said, tmp_path):
    path = tmp_path / "bad.mid"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=f"bad.mid: .*{said}") as caught:
        read_midi(path)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"absent\.mid: No such file"):
        read_midi(tmp_path / "absent.mid")


def test_notes_must_be_parallel_and_in_order():
    with pytest.raises(ValueError, match="length"):
        Notes([0, 1], [1], [60, 61], [64, 64])
    with pytest.raises(ValueError, match="descend"):
        Notes([1, 0], [1, 1], [60, 61], [64, 64])
