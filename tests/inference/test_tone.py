import numpy as np

from piano_jax.inference.audio import loudness
from piano_jax.inference.tone import RATE, play_tone
from piano_jax.music import Notes


def test_a_note_has_its_pitch_and_its_time():
    for pitch in (33, 60, 96):
        sound = play_tone(Notes([500], [1000], [pitch], [80]))
        assert not sound[: int(0.498 * RATE)].any() and np.abs(sound[int(0.5 * RATE) :][:1000]).max() > 0.1
        held, after = (sound[int(start * RATE) :][: RATE // 10] for start in (1.3, 1.7))
        assert np.abs(after).max() < 0.02 * np.abs(held).max()
        spectrum = np.abs(np.fft.rfft(sound[RATE // 2 :][:RATE] * np.hanning(RATE)))
        low = int(20 * 2 ** ((pitch - 21) / 12))  # below which no partial is
        found = low + np.flatnonzero(spectrum[low:] > 0.1 * spectrum.max())[0]
        assert abs(12 * np.log2(found / 440) + 69 - pitch) < 0.5


def test_notes_add_up_and_louder_ones_sound_louder():
    one, other = Notes([0], [700], [50], [90]), Notes([300], [400], [67], [40])
    both = play_tone(Notes([0, 300], [700, 400], [50, 67], [90, 40]))
    apart = [np.pad(sound, (0, len(both) - len(sound))) for sound in (play_tone(one), play_tone(other))]
    assert np.allclose(both, sum(apart), atol=1e-6)
    levels = [np.abs(play_tone(Notes([0], [300], [60], [velocity]))).max() for velocity in (1, 40, 80, 127)]
    assert (np.diff(levels) > 0).all()


def test_any_notes_are_finite():
    assert len(play_tone(Notes([], [], [], []))) == 0
    extreme = play_tone(Notes([0, 0, 5, 9000], [60_000, 0, 100, 1], [0, 127, 60, 108], [127, 127, 0, 1]))
    assert np.isfinite(extreme).all() and np.abs(extreme).max() < 5


def test_loudness_leaves_silence_out():
    sound = play_tone(Notes([0, 400, 800, 1200], [400] * 4, [60, 64, 67, 72], [80] * 4))
    quiet = np.concatenate([sound, np.zeros(3 * len(sound), np.float32), sound])
    assert abs(loudness(quiet, RATE) / loudness(sound, RATE) - 1) < 0.1
    assert np.isclose(loudness(sound * 3, RATE), 3 * loudness(sound, RATE))
    assert np.isclose(loudness(np.full(RATE, 0.5), RATE), 0.5, rtol=0.2)
    assert loudness(np.zeros(10), RATE) == loudness(np.zeros(0), RATE) == 0
