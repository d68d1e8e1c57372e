"""Prompts: drawn from pieces that are long enough, one a composition, and kept in folders."""

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.evaluation.prompts import (
    check_prompts,
    continuation_of,
    draw_prompts,
    others,
    read_folder,
    write_folder,
)
from piano_jax.music import read_midi, write_midi
from piano_jax.music.performances import performance
from tests.evaluation.made import make_dataset

COMPOSITIONS = np.array(["a", "a", "b", "b", "c", "d", "e"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The performance of d is too short, that of e is of the training split."""
    pieces = [performance(seed) for seed in range(7)]
    pieces[5] = pieces[5][: np.searchsorted(pieces[5].onset, 8000)]
    path = tmp_path_factory.mktemp("prompts") / "data"
    return make_dataset(path, pieces, [1, 1, 1, 1, 1, 1, 0], COMPOSITIONS.tolist())


def test_draws_one_performance_of_each_composition_that_is_long_enough(dataset):
    drawn = draw_prompts(dataset, "val", COMPOSITIONS, 10, 5.0, 10.0, seed=0)
    assert drawn.names == ["001", "002", "003"] and sorted(COMPOSITIONS[drawn.pieces]) == ["a", "b", "c"]
    again, other = (draw_prompts(dataset, "val", COMPOSITIONS, 2, 5.0, 10.0, seed=seed) for seed in (0, 1))
    assert again.pieces.tolist() == drawn.pieces[:2].tolist() != other.pieces.tolist()
    for piece, prompt, whole in zip(*drawn[1:], strict=True):
        played = dataset.vocabulary.decode(dataset[int(piece)])
        onset = played.onset - played.onset[0]
        np.testing.assert_array_equal(whole.onset, onset[onset < 15_000])
        np.testing.assert_array_equal(prompt.pitch, played.pitch[onset < 5000])
        assert len(prompt) and whole.onset[0] == prompt.onset[0] == 0 and (whole.pedal >= 0).all()


def test_too_long_for_all_pieces(dataset):
    with pytest.raises(BadInput, match="no two compositions of 15 s to continue and 3600 s that follow; the longest"):
        draw_prompts(dataset, "val", COMPOSITIONS, 10, 15.0, 3600.0, seed=0)
    with pytest.raises(BadInput, match="split train has no two compositions of 1 s"):
        draw_prompts(dataset, "train", COMPOSITIONS, 10, 1.0, 2.0, seed=0)


def test_a_continuation_counts_from_the_cut(dataset):
    drawn = draw_prompts(dataset, "val", COMPOSITIONS, 10, 5.0, 10.0, seed=0)
    spliced = others(drawn, 5.0)
    for number, (prompt, whole, other) in enumerate(zip(drawn.prompts, drawn.whole, spliced, strict=True)):
        alone = continuation_of(whole, 5.0, 10.0)
        assert len(alone) == len(whole) - len(prompt)
        np.testing.assert_array_equal(alone.onset, whole.onset[len(prompt) :] - 5000)
        assert alone.onset[0] >= 0 and alone.onset[-1] < 10_000 and (alone.pedal >= 0).all()
        theirs, next_one = continuation_of(other, 5.0, 10.0), drawn.whole[(number + 1) % len(spliced)]
        np.testing.assert_array_equal(theirs.pitch, continuation_of(next_one, 5.0, 10.0).pitch)
        np.testing.assert_array_equal(other.onset[: len(prompt)], prompt.onset)
        down, up = other.pedal.T
        assert (down[1:] >= up[:-1]).all()


def test_folders_come_back_as_they_went(dataset, tmp_path):
    drawn = draw_prompts(dataset, "val", COMPOSITIONS, 10, 5.0, 10.0, seed=0)
    write_folder(tmp_path / "one", drawn.names, drawn.whole, 15.0)
    once = read_folder(tmp_path / "one", drawn.names)
    write_folder(tmp_path / "two", drawn.names, once, 15.0, source=tmp_path / "one")
    for name, notes, whole in zip(drawn.names, once, drawn.whole, strict=True):
        assert (tmp_path / "one" / f"{name}.mid").read_bytes() == (tmp_path / "two" / f"{name}.mid").read_bytes()
        np.testing.assert_array_equal(notes.onset, whole.onset)
    write_folder(tmp_path / "cut", drawn.names, once, 9.0, source=tmp_path / "one")
    assert all(read_midi(file).onset[-1] < 9000 for file in (tmp_path / "cut").iterdir())


def test_bad_folders(dataset, tmp_path):
    drawn = draw_prompts(dataset, "val", COMPOSITIONS, 10, 5.0, 10.0, seed=0)

    def refused(message: str) -> None:
        with pytest.raises(BadInput, match=message) as error:
            check_prompts(tmp_path / "made", drawn, read_folder(tmp_path / "made", drawn.names), 5.0)
        assert "\n" not in str(error.value)

    write_folder(tmp_path / "made", drawn.names, drawn.whole, 15.0)
    file = tmp_path / "made" / "002.mid"
    write_midi(drawn.whole[0], file)
    refused("made/002.mid: opens with another prompt: ")
    write_midi(drawn.prompts[1], file)
    refused("made/002.mid: nothing comes after the first 5 s")
    file.write_bytes(b"MThd")
    refused("made/002.mid: not a MIDI file")
    file.unlink()
    refused("made/002.mid: No such file")
