"""The Markov model: what it writes is valid and follows what it saw, and rare contexts are not copied."""

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.evaluation import markov
from piano_jax.evaluation.markov import MOST, Markov, coarse
from piano_jax.evaluation.systems import validity
from piano_jax.inference.prompts import prompt_of
from piano_jax.music import Notes, Vocabulary
from piano_jax.music.performances import STYLES, performance
from tests.evaluation.made import make_dataset


def scale(count: int) -> Notes:
    """Three pitches in turn, two notes a second: ten in a segment, so that the time does not tell the pitch."""
    place = np.arange(count)
    return Notes(500 * place, [200] * count, 60 + 2 * (place % 3), [60] * count)


def pitches_after(prompt: Notes, ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    start = prompt_of(prompt, vocabulary, 1000.0)
    return vocabulary.decode(np.concatenate([start, ids])).pitch[len(prompt) :]


@pytest.mark.parametrize("name", ["aria", "piano"])
def test_what_it_writes_is_valid(name, tmp_path):
    pieces = [performance(seed, style) for seed, style in enumerate(STYLES)]
    dataset = make_dataset(tmp_path / "data", pieces, [0] * 6, list("abcdef"), name)
    vocabulary = dataset.vocabulary
    bare = np.array([vocabulary.prefix[0], vocabulary.begin], np.int32)
    prompts = [bare, *(prompt_of(pieces[seed], vocabulary, 5.0) for seed in range(4)), *[bare] * 20]
    new = Markov(dataset, np.arange(6)).continued(prompts, 3, 250, seed=0)
    assert (validity(vocabulary, prompts, list(new)) == 1).all()
    assert not np.isin(new, [vocabulary.end, vocabulary.diminish, vocabulary.pad]).any()
    counts = [np.count_nonzero(np.concatenate(both) == vocabulary.time) for both in zip(prompts, new, strict=True)]
    assert min(counts) >= 3 or new.shape[1] == 250
    broken = [np.array([vocabulary.onset.start, vocabulary.note.start + 800, vocabulary.duration.start])]
    assert validity(vocabulary, [bare], broken).tolist() == [pytest.approx(1 / 3)]  # the note may come, no more


def test_the_order_is_how_far_it_sees(tmp_path):
    """A pitch follows from the one before it, three tokens back, or four over a `<T>`; from two tokens it does not."""
    dataset = make_dataset(tmp_path / "data", [scale(200)] * 2, [0, 0], ["a", "b"])
    prompt = scale(20)
    given = [prompt_of(prompt, dataset.vocabulary, 1000.0)] * 5
    found = {order: Markov(dataset, np.arange(2), order).continued(given, 6, 400, 0) for order in (0, 2, 4, 6)}
    for order, rows in found.items():
        pitches = [pitches_after(prompt, row, dataset.vocabulary) for row in rows]
        goes_on = [np.array_equal(row[:30], scale(50).pitch[20:]) for row in pitches]
        assert all(goes_on) if order >= 4 else not any(goes_on)
        assert all(np.isin(row, [60, 62, 64]).all() for row in pitches)


def test_it_copies_nothing_that_was_there_once(tmp_path, monkeypatch):
    """From the beginning of its one training piece it leaves that piece; but not if rare contexts counted."""
    random, count = np.random.default_rng(0), 400
    piece = Notes(
        100 * np.arange(count), random.integers(1, 500, count) * 10, random.integers(21, 109, count), [60] * count
    )
    dataset = make_dataset(tmp_path / "data", [piece], [0], ["a"])
    start = prompt_of(piece, dataset.vocabulary, 5.0)
    rest = dataset[0][len(start) :]

    def copied() -> list[int]:
        rows = Markov(dataset, np.arange(1)).continued([start] * 4, 100, 90, seed=0)
        return [int(np.argmin(np.append(row == rest[:90], False))) for row in rows]

    assert max(copied()) < 12
    monkeypatch.setattr(markov, "LEAST", 1)
    assert min(copied()) > 30


def test_no_context_reaches_into_another_piece(tmp_path):
    dataset = make_dataset(tmp_path / "data", [scale(40), performance(1)[:40]], [0, 0], ["a", "b"])
    both, one, other = (Markov(dataset, np.array(of))._keys for of in ([0, 1], [0], [1]))
    np.testing.assert_array_equal(both, np.sort(np.concatenate([one, other])))


def test_the_same_seed_writes_the_same(tmp_path):
    dataset = make_dataset(tmp_path / "data", [performance(seed) for seed in range(3)], [0] * 3, list("abc"))
    start = [prompt_of(performance(seed), dataset.vocabulary, 3.0) for seed in range(3)]
    one, same, another = (Markov(dataset, np.arange(3)).continued(start, 9, 60, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != another).any(1).all()


def test_contexts_are_coarse():
    """What a context tells apart: pitches but not velocities, onsets of 50 ms, durations by size."""
    vocabulary = Vocabulary("aria")
    known = coarse(vocabulary)
    groups = [vocabulary.note, vocabulary.onset, vocabulary.duration, [vocabulary.time], vocabulary.prefix]
    apart = [set(known[group].tolist()) for group in groups]
    assert [len(group) for group in apart] == [128, 100, pytest.approx(22, abs=2), 1, 1]
    assert sum(map(len, apart)) == len(set.union(*apart))
    assert (np.diff(known[vocabulary.duration].astype(int)) >= 0).all()


def test_bad_input(tmp_path):
    dataset = make_dataset(tmp_path / "data", [scale(20)], [0], ["a"])
    with pytest.raises(BadInput, match=f"order 7: orders are 0 to {MOST}"):
        Markov(dataset, np.arange(1), 7)
