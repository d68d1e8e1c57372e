import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.inference.decoding import Decoder
from piano_jax.inference.prompts import prompt_of
from piano_jax.inference.sampling import Sampling
from piano_jax.inference.streaming import Stream
from piano_jax.music import Notes, Vocabulary
from piano_jax.music.performances import performance

PIANO = Vocabulary("piano")
GREEDY = Sampling(temperature=0.0)


def part(notes: Notes, first: float, last: float) -> Notes:
    """The notes that begin in some seconds, without pedal."""
    kept = (notes.onset >= 1000 * first) & (notes.onset < 1000 * last)
    return Notes(*(x[kept] for x in (notes.onset, notes.duration, notes.pitch, notes.velocity)))


def test_heard_in_parts_is_heard_as_one(decoder):
    """The likeliest continuation of a prompt, note by note, is that of the whole prompt decoded at once."""
    notes = part(performance(4), 0, 12)
    stream = Stream(decoder, GREEDY)
    for second in range(0, 12, 2):
        stream.hear(part(notes, second, second + 2))
    played = list(stream.play(60)) + list(stream.play(60))
    ids = prompt_of(notes, PIANO, 12.0)
    drawn = np.concatenate([drawn for drawn, _ in decoder.decode([ids], 120, sampling=GREEDY)], 1)[0]
    whole = PIANO.decode(np.concatenate([ids, drawn]))
    columns = np.stack([whole.onset, whole.duration, whole.pitch, whole.velocity], 1)
    expected = [tuple(note) for note in columns[len(notes) :].tolist()]
    assert len(played) >= 30 and played == expected[: len(played)]


def test_notes_come_as_they_are_decided_and_in_order(make_model):
    """Over several contexts, in turn with what is heard."""
    stream = Stream(Decoder(make_model(context=64), PIANO), seed=1)
    stream.hear(part(performance(5), 0, 5))
    onsets = []
    for _ in range(3):
        playing = stream.play(80)
        onsets.append(next(playing)[0])
        onsets += [note[0] for note in playing]
        last = onsets[-1] + 7000
        stream.hear(Notes([last, last + 200], [300, 300], [60, 64], [70, 70]))
        onsets.append(last)
    assert onsets == sorted(onsets)


def test_a_note_from_before(decoder):
    stream = Stream(decoder)
    stream.hear(Notes([0, 6000], [100, 100], [60, 61], [50, 50]))
    with pytest.raises(BadInput, match="a note at 5900 ms, after one at 6000 ms"):
        stream.hear(Notes([5900], [100], [60], [50]))
