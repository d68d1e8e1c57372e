"""MIDI that means harm: a file is refused with a reason, or read, soon and in little memory; none ends the reader."""

import base64
import csv
import re
import struct
import tarfile
import time
import zlib

import numpy as np
import pytest

from piano_jax import BadInput, prepare
from piano_jax.data import Dataset
from piano_jax.data.pieces import Dropped, Piece, Reader
from piano_jax.data.workers import Lost, Workers
from piano_jax.music import Notes, read_midi, write_midi
from piano_jax.music.filters import NONE

NOTE, END, LONGEST_DELTA = b"\0\x90\x3c\x40\x60\x3c\0", b"\0\xff\x2f\0", b"\xff\xff\xff\x7f"
LATE = LONGEST_DELTA + NOTE[1:]
ALL_CHANNELS = b"".join(bytes([0, 0x90 | channel]) + NOTE[2:] for channel in range(16))
MIB = 1 << 20


def midi(*tracks: bytes, division: int = 480, promised: int | None = None) -> bytes:
    header = struct.pack(">4sIHHH", b"MThd", 6, 1, len(tracks) if promised is None else promised, division)
    return header + b"".join(struct.pack(">4sI", b"MTrk", len(track)) + track for track in tracks)


FUZZED = (  # by three of 180,000 mutated files; this is the smallest
    b"c-r#~$w*;fU|?flWMF1|;2Tnu4dh8O{10SiU#P(FU!TF3VS=4Qb3%h11DFR<AjohqDrI7nL!(Dy6j*#zVpL*Og02z*=n?>Xzz_%"
)
REFUSED = {
    "times past the codas": (zlib.decompress(base64.b85decode(FUZZED)), "end before they begin"),
    "65,535 tracks that are not there": (midi(NOTE + END, promised=65535), "tracks are missing"),
    "time in frames": (midi(NOTE + END, division=0xE728), "SMPTE"),
    "no ticks a beat": (midi(NOTE + END, division=0), "0 ticks a beat"),
    "a tempo of 0": (midi(b"\0\xff\x51\3\0\0\0" + NOTE + END), "a tempo of 0"),
    "a note after 2^28 ticks": (midi(NOTE + LATE + END), "longer than 2^28 ticks"),
    "ticks that overflow once": (midi(NOTE + LATE * 8 + END), "longer than 2^28 ticks"),
    "ticks that overflow and come round": (midi(NOTE + LATE * 16 + NOTE + END), "longer than 2^28 ticks"),
    "38 hours": (midi(NOTE + b"\xbf\xff\xff\x7f" + NOTE[1:] + END), "longer than a day"),
    "a delta of five bytes": (midi(b"\xff" + LATE + END), "MIDI data"),
    "a track of a length past the end": (midi(NOTE + END)[:-5], "5 bytes are missing"),
    "a header without an end": (b"MThd\xff\xff\xff\xff\0\1\0\1\1\xe0", "tracks are missing"),
    "tracks that want gigabytes": (midi(ALL_CHANNELS + END, *[END] * 65534), "too many tracks"),
    "notes that are never released": (midi(b"\0\x90\x3c\x40" + b"\1\x3c\x40" * MIB + END), "left open"),
    "metadata only": (midi(b"\0\xff\1\0" * MIB + END), "no notes"),
}
READ = {
    "65,535 tracks": midi(NOTE + END, *[END] * 65534),
    "a million notes": midi(NOTE + b"\0\x3c\x40\1\x3c\0" * MIB + END),
    "a million pedals": midi(NOTE + b"\0\xb0\x40\x7f" + b"\1\x40\0\1\x40\x7f" * MIB + END),
    "a million tempos": midi(NOTE + b"\1\xff\x51\3\1\1\1" * MIB + END),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_a_reason(what):
    data, reason = REFUSED[what]
    with pytest.raises(BadInput, match=re.escape(reason)):
        read_midi(data)


@pytest.fixture(scope="module")
def workers():
    with Workers(Reader("aria", NONE), 1) as pool:
        yield pool


def test_large_ones_in_seconds_and_a_gibibyte(workers):
    open_notes = b"".join(bytes([0, pitch, 0x40]) for pitch in range(128))
    too_much = {
        "open notes everywhere": midi(*[bytes([0, 0x90 | c, 0, 0x40]) + open_notes * 2700 + END for c in range(16)]),
        "thousands of full tracks": midi(*[ALL_CHANNELS + END] * 5000),
    }
    started = time.monotonic()
    results = dict(workers.map((READ | too_much).items()))
    assert all(isinstance(results[what], Piece) for what in READ)
    assert all(isinstance(results[what], Lost | Dropped) for what in too_much)
    assert time.monotonic() - started < 10 * len(results)


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, cut out, repeated or put in, some of them words of MIDI; most track lengths put right."""
    words = (
        LONGEST_DELTA,
        END,
        b"\xff\x51\3\0\0\0",
        b"\xf0\x05",
        b"\xf7",
        b"MTrk",
        b"\x90\x3c\x40",
        b"\xc0\x50",
        b"\x80",
    )
    harmed = bytearray(data)
    for _ in range(random.integers(1, 8)):
        at, size = int(random.integers(len(harmed) + 1)), int(random.integers(1, 40))
        word = words[random.integers(len(words))]
        match random.integers(5):
            case 0:
                harmed[at : at + 1] = random.bytes(1)
            case 1:
                harmed[at : at + size] = random.bytes(size)
            case 2:
                del harmed[at : at + size]
            case 3:
                harmed[at:at] = harmed[at : at + size] * size
            case 4:
                harmed[at : at + int(random.integers(2)) * len(word)] = word
    if random.random() < 0.8:
        first, *tracks = bytes(harmed).split(b"MTrk")
        body = b"".join(struct.pack(">4sI", b"MTrk", max(0, len(track) - 4)) + track[4:] for track in tracks)
        return first + body
    return bytes(harmed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[bytes]:
    """Small valid files: of one track, of several, with pedal, programs and tempos."""
    path = tmp_path_factory.mktemp("whole") / "a.mid"
    tempo, pedal = b"\0\xff\x51\3\x07\xa1\x20", b"\0\xb0\x40\x7f"
    found = [
        midi(tempo + pedal + NOTE * 5 + b"\0\xb0\x40\0" + END),
        midi(tempo + END, b"\0\xc0\x20" + NOTE + END, ALL_CHANNELS + END),
    ]
    for seed in range(6):
        random = np.random.default_rng(seed)
        onset = np.cumsum(random.integers(0, 200, 30))
        notes = Notes(onset, random.integers(20, 900, 30), 30 + np.arange(30), random.integers(1, 128, 30))
        write_midi(notes, path)
        found.append(path.read_bytes())
    return found


def test_any_bytes_are_read_or_refused(workers, whole):
    """By hypothesis: bytes as they come, alone or after a valid header, and valid files with changes."""
    hypothesis = pytest.importorskip("hypothesis")
    some = hypothesis.strategies

    def track(body: bytes) -> bytes:
        return midi(NOTE + body + END)

    events = some.lists(
        some.tuples(
            some.sampled_from([b"\0", b"\1", b"\x81\0", b"\xff\xff\x7f", LONGEST_DELTA]),
            some.one_of(
                some.sampled_from(
                    [b"\xff\x51\3\0\0\1", b"\xff\x51\1\0", b"\xff\x58\4\0\0\0\0", b"\xff\x59\2\x7f\1", END[1:]]
                ),
                some.tuples(some.integers(0x80, 0xEF), some.integers(0, 127), some.integers(0, 127)).map(bytes),
                some.binary(max_size=4),
            ),
        ).map(b"".join),
        max_size=20,
    ).map(b"".join)
    contents = some.one_of(
        some.binary(max_size=200),
        some.binary(max_size=200).map(track),
        events.map(track),
        some.tuples(some.sampled_from(whole), some.integers(0, 2**32)).map(
            lambda pair: mutated(pair[0], np.random.default_rng(pair[1]))
        ),
    )

    @hypothesis.settings(max_examples=500, deadline=None, database=None, derandomize=True)
    @hypothesis.given(contents)
    def check(data: bytes) -> None:
        ((_, result),) = workers.map([(0, data)])
        assert isinstance(result, Piece | Dropped), result
        if isinstance(result, Piece):
            assert result.notes == result.tally[0].sum() == result.tally[1].sum() and 0 <= result.seconds <= 86_400

    check()


def test_2000_fuzzed_files_are_all_accounted_for(whole, tmp_path):
    random, root = np.random.default_rng(0), tmp_path / "fuzzed"
    root.mkdir()
    for number in range(1990):
        data = whole[number % len(whole)]
        harmed = random.bytes(int(random.integers(300))) if number % 20 == 0 else mutated(data, random)
        (root / f"{number:04d}.mid").write_bytes(harmed)
    for number, (data, _) in enumerate(list(REFUSED.values())[:9], 1990):
        (root / f"{number}.mid").write_bytes(data)
    (root / "1999.mid").write_bytes(bytes(17 * MIB))
    with tarfile.open(tmp_path / "fuzzed.tar", "w") as tar:
        tar.add(root, "fuzzed")
    started = time.monotonic()
    for source in (root, tmp_path / "fuzzed.tar"):
        prepare.main(["--midi", str(source), "--out", f"{source}.out", "--workers", "2"])
        dataset = Dataset(f"{source}.out")
        dataset.verify()
        with (dataset.path / "labels.csv").open(newline="") as file:
            pieces = {row["path"] for row in csv.DictReader(file)}
        with (dataset.path / "skipped.csv").open(newline="") as file:
            skipped = {row["path"]: row["detail"] for row in csv.DictReader(file)}
        assert len(pieces) == len(dataset) > 50 and not pieces & skipped.keys()
        assert pieces | skipped.keys() == {f"{number:04d}.mid" for number in range(2000)} and all(skipped.values())
        assert not any("the reader died" in detail for detail in skipped.values())
    assert time.monotonic() - started < 120
