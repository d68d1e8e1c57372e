import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.evaluation.openings import after_prompt
from piano_jax.music import Notes
from piano_jax.music.performances import performance


def moved(notes: Notes, by: np.ndarray) -> Notes:
    """The notes, each begun later by so many milliseconds, in their new order."""
    onset = np.maximum(notes.onset + by, 0)
    order = np.argsort(onset, kind="stable")
    return Notes(*(column[order] for column in (onset, notes.duration, notes.pitch, notes.velocity)))


@pytest.fixture
def piece() -> Notes:
    return performance(4)


@pytest.fixture
def prompt(piece) -> Notes:
    return piece[: int((piece.onset < 6000).sum())]


def test_what_follows_is_what_begins_later(piece, prompt):
    new = after_prompt(piece, prompt, 6.0)
    assert len(new) == (piece.onset >= 6000).sum() and new.onset[0] >= 6000
    assert np.array_equal(new.pitch, piece.pitch[len(prompt) :])
    # A prompt longer than is asked for is cut.
    assert len(after_prompt(piece, prompt, 3.0)) == (piece.onset >= 3000).sum()


def test_coarser_times_are_the_same_prompt(piece, prompt):
    steps = moved(piece, (-piece.onset) % 50)
    # A note of the prompt that came to lie after it is still the prompt's.
    assert len(after_prompt(steps, prompt, 6.0)) == len(after_prompt(piece, prompt, 6.0))
    few = np.arange(len(piece)) % 20 == 3
    after_prompt(moved(piece, np.where(few, 400, 0)), prompt, 6.0)


def test_another_prompt_is_refused(piece, prompt):
    def refused(other: Notes, message: str = "opens with another prompt", seconds: float = 6.0) -> None:
        with pytest.raises(BadInput, match=message):
            after_prompt(other, prompt, seconds)

    refused(performance(5))
    refused(moved(piece, np.where(np.arange(len(piece)) % 5 == 3, 400, 0)))
    higher = np.where(np.arange(len(piece)) % 5 == 3, piece.pitch + 1, piece.pitch)
    refused(Notes(piece.onset, piece.duration, higher, piece.velocity))
    refused(piece[::2])
    twice = np.repeat(np.arange(len(piece)), 2)  # all the prompt's notes, and as many others
    others = piece.pitch[twice] - 30 * (np.arange(len(twice)) % 2)
    refused(Notes(piece.onset[twice], piece.duration[twice], others, piece.velocity[twice]))
    refused(prompt, "nothing comes after the first 6 s")
    refused(piece, "nothing comes after the first 600 s|another prompt", 600.0)
    refused(Notes([0], [100], [60], [60], [3]))
