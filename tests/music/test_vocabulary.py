"""The vocabulary's ids, its quantisation and its round trip."""

import json

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.music import Notes, Vocabulary, read_midi
from piano_jax.music.notes import DRUM, INSTRUMENTS
from piano_jax.music.vocabulary import nearest

ARIA, PIANO = Vocabulary("aria"), Vocabulary("piano")


def random_notes(rng: np.random.Generator, size: int = 200, instruments: tuple[int, ...] = (0,)) -> Notes:
    onset = np.sort(rng.integers(0, 60_000, size))
    return Notes(
        onset=onset - onset[0],
        duration=rng.integers(1, 6000, size),
        pitch=rng.integers(35, 82, size),
        velocity=rng.integers(1, 128, size),
        instrument=rng.choice(instruments, size),
        pedal=np.sort(rng.integers(0, 60_000, 20)).reshape(-1, 2),
    )


def test_sizes_and_ids():
    assert (ARIA.size, PIANO.size) == (17_727, 2_675)
    at = {
        token: ARIA.tokens.index(token) for token in ("instrument:piano", "composer:bach", "form:sonata", "genre:jazz")
    }
    assert list(at.values()) == [6, 17, 29, 37]
    assert [r.start for r in (ARIA.note, ARIA.drum, ARIA.duration, ARIA.onset)] == [39, 16679, 16726, 17227]
    assert ARIA.tokens[39:42] == ("piano:0:0", "piano:0:10", "piano:0:20")
    assert PIANO.tokens[-3:] == ("<PED_ON>", "<PED_OFF>", "<X>")
    assert len(set(ARIA.tokens)) == ARIA.size and ARIA.fingerprint != PIANO.fingerprint


def test_nearest_is_a_binary_search():
    def search(value: int, grid: list[int]) -> int:
        low, high, best = 0, len(grid) - 1, grid[0]
        while low <= high:
            middle = (low + high) // 2
            if abs(grid[middle] - value) < abs(best - value):
                best = grid[middle]
            low, high = (middle + 1, high) if grid[middle] < value else (low, middle - 1)
        return best

    for steps, size in ((13, 128), (500, 5000), (501, 5001)):
        grid = list(range(0, 10 * steps, 10))
        assert (10 * nearest(steps, size)).tolist() == [search(value, grid) for value in range(size)]


def test_golden_ids(shared):
    golden = json.loads((shared / "fixtures/tokenizer/golden_ids.json").read_text())
    del golden["reference_differs"]
    for name, ids in golden.items():
        assert ARIA.encode(read_midi(shared / "fixtures/tokenizer" / name)).tolist() == ids, name
    assert len(golden) == 45


def test_a_piece_by_hand():
    notes = Notes(onset=[0, 4999, 12_003], duration=[4, 20_000, 16], pitch=[60, 61, 62], velocity=[1, 64, 127])
    tokens = [ARIA.tokens[i] for i in ARIA.encode(notes)]
    assert tokens == [
        *("instrument:piano", "<S>", "piano:60:10", "onset:0", "duration:10", "piano:61:60", "onset:4990"),
        *("duration:5000", "<T>", "<T>", "piano:62:120", "onset:2000", "duration:20", "<E>"),
    ]


@pytest.mark.parametrize(("vocabulary", "instruments"), [(ARIA, (0, 3, 9)), (ARIA, (0, DRUM)), (PIANO, (0,))])
def test_decoding_gives_notes_back_to_within_the_grid(vocabulary, instruments):
    for seed in range(20):
        notes = random_notes(np.random.default_rng(seed), instruments=instruments)
        found = vocabulary.decode(vocabulary.encode(notes))
        assert (found.pitch == notes.pitch).all() and (found.instrument == notes.instrument).all()
        # Onsets of 4,996 to 4,999 ms in a segment keep to its last grid value.
        assert abs(found.onset - notes.onset).max() <= 9
        sounds = notes.instrument != DRUM
        assert abs(found.duration - np.minimum(notes.duration, 5000))[sounds].max() <= 9
        assert abs(found.velocity.astype(int) - np.minimum(notes.velocity, 120))[sounds].max() <= 9
        if vocabulary is PIANO:
            assert abs(found.pedal - notes.pedal).max() <= 9


def test_encoding_what_was_decoded_gives_the_same_ids():
    for seed in range(20):
        ids = ARIA.encode(random_notes(np.random.default_rng(seed), instruments=(0, 5, DRUM)))
        assert (ARIA.encode(ARIA.decode(ids)) == ids).all()


def test_decode_passes_over_what_is_no_whole_note():
    rng = np.random.default_rng(0)
    for vocabulary in (ARIA, PIANO):
        for _ in range(50):
            ids = rng.integers(0, vocabulary.size, 300)
            notes = vocabulary.decode(ids)
            assert (np.diff(notes.onset) >= 0).all() and len(notes) <= 100
    assert len(ARIA.decode(np.array([], np.int64))) == 0


def test_unknown_drums_and_other_instruments():
    drums = Notes(onset=[0, 10], duration=[5, 5], pitch=[34, 35], velocity=[9, 9], instrument=[DRUM, DRUM])
    assert [ARIA.tokens[i] for i in ARIA.encode(drums)[2:6]] == ["<U>", "onset:0", "drum:35", "onset:10"]
    with pytest.raises(BadInput, match="no notes"):
        PIANO.encode(drums)
    with pytest.raises(BadInput, match="nonsense"):
        Vocabulary("nonsense")
    both = Notes([0, 5], [9, 9], [60, 61], [9, 9], instrument=[0, INSTRUMENTS.index("bass")])
    assert [ARIA.tokens[i] for i in ARIA.encode(both)[:3]] == ["instrument:piano", "instrument:bass", "<S>"]
    assert len(PIANO.decode(PIANO.encode(both))) == 1
