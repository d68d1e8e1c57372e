import numpy as np
import pytest

from piano_jax.evaluation.statistics import note_statistics, statistics_vector
from piano_jax.music import Notes

SCALE = Notes(
    onset=[0, 500, 1000, 1000, 2500], duration=[100] * 5, pitch=[60, 62, 64, 72, 90], velocity=[5, 15, 15, 90, 127]
)


def test_counts_what_is_played():
    found = note_statistics(SCALE)
    assert all(histogram.sum() == pytest.approx(1) for histogram in found.values())
    assert {pitch: found["pitch"][pitch] for pitch in np.flatnonzero(found["pitch"])} == pytest.approx(
        dict.fromkeys((60, 62, 64, 72, 90), 0.2)
    )
    assert found["pitch_class"].tolist() == pytest.approx([0.4, 0, 0.2, 0, 0.2, 0, 0.2, 0, 0, 0, 0, 0])
    assert np.flatnonzero(found["interval"]).tolist() == [26, 32, 42] and found["interval"][26] == 0.5
    assert found["velocity"].tolist() == pytest.approx([0.2, 0.4] + [0] * 7 + [0.2, 0, 0, 0.2])
    assert found["density"][:4].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert np.flatnonzero(found["duration"]).tolist() == [10] and found["inter_onset"].sum() == pytest.approx(1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_tempo_moves_times_alone(factor):
    slower = Notes(SCALE.onset * factor, SCALE.duration * factor, SCALE.pitch, SCALE.velocity)
    one, other = note_statistics(SCALE), note_statistics(slower)
    same = {name for name in one if np.array_equal(one[name], other[name])}
    assert same == {"pitch", "pitch_class", "interval", "velocity"}


def test_the_order_of_a_chord_and_the_time_of_the_start_are_nothing():
    order = [0, 1, 3, 2, 4]
    columns = (SCALE.onset + 7000, SCALE.duration, SCALE.pitch, SCALE.velocity)
    moved = Notes(*(column[order] for column in columns))
    assert np.array_equal(statistics_vector(moved), statistics_vector(SCALE))


def test_few_notes_and_none():
    one = note_statistics(SCALE[:1])
    assert one["pitch"].sum() == one["density"].sum() == 1 and not one["interval"].any()
    assert not statistics_vector(SCALE[:0]).any()
    assert statistics_vector(SCALE) @ statistics_vector(SCALE) == pytest.approx(7)
