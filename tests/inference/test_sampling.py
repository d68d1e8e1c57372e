import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.inference.sampling import Sampling, draw

LOGITS = np.append(np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], np.float32)), np.float32(-np.inf))


def shares(**changes) -> np.ndarray:
    """How often each of seven tokens is drawn, of 20,000."""
    sampling = Sampling(**{"temperature": 1.0, "min_p": 0.0} | changes)
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn, nats = draw(jnp.tile(LOGITS, (20_000, 1)), keys, sampling.cuts, sampling.sorts)
    np.testing.assert_allclose(nats, LOGITS[drawn], rtol=1e-5)  # before temperature and cuts
    return np.bincount(drawn, minlength=7) / 20_000


def kept(shown: list[float]) -> np.ndarray:
    return np.array(shown + [0.0] * (7 - len(shown))) / sum(shown)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, kept([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])),
        ({"min_p": 0.2}, kept([0.4, 0.3, 0.15, 0.1])),
        ({"min_p": 1.0}, kept([1.0])),
        ({"top_k": 2}, kept([0.4, 0.3])),
        ({"top_k": 100}, kept([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])),
        ({"top_p": 0.71}, kept([0.4, 0.3, 0.15])),
        ({"top_p": 0.0}, kept([1.0])),
        ({"top_p": 0.9, "top_k": 3, "min_p": 0.5}, kept([0.4, 0.3])),
        ({"temperature": 0.5}, kept([0.16, 0.09, 0.0225, 0.01, 0.0016, 0.0001])),
        ({"temperature": 0.5, "min_p": 0.2}, kept([0.16, 0.09])),
        ({"temperature": 0.0}, kept([1.0])),
        ({"temperature": 0.0, "top_p": 0.5, "min_p": 0.3}, kept([1.0])),
    ],
)
def test_what_is_drawn_and_how_often(changes, expected):
    found = shares(**changes)
    assert (found[expected == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_numbers_out_of_range():
    for name, value in (("temperature", -1.0), ("min_p", 1.5), ("top_p", -0.1), ("top_k", -1)):
        with pytest.raises(BadInput, match=f"{name} .* is not between"):
            Sampling(**{name: value})
    with pytest.raises(BadInput, match="temperature nan"):
        Sampling(temperature=float("nan"))
