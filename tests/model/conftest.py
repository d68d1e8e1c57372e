"""What the tests of the model share: a tiny model, and no silent rank promotion anywhere in it."""

import jax
import numpy as np
import pytest
from flax import nnx

from piano_jax.model import Model, TransformerConfig


@pytest.fixture(autouse=True)
def no_silent_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def tiny():
    """Makes a tiny float32 model, whose weights depend on the seed 0 and the shape alone."""

    def make(**changes) -> Model:
        shape = {"vocabulary_size": 37, "d_model": 32, "layers": 3, "heads": 4, "ff_width": 48, "context": 32}
        return Model(TransformerConfig(**shape | {"dtype": "float32"} | changes), nnx.Rngs(0))

    return make


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 37, (4, 16), dtype=np.int32)
