"""A tiny model of the vocabulary "piano", and prompts for it."""

import numpy as np
import pytest
from flax import nnx

from piano_jax.inference.decoding import Decoder
from piano_jax.inference.prompts import prompt_of
from piano_jax.model import Model, TransformerConfig
from piano_jax.music import Vocabulary
from piano_jax.music.performances import performance

PIANO = Vocabulary("piano")


@pytest.fixture(scope="session")
def make_model():
    """Makes a tiny float32 model whose weights are large enough for its tokens to depend on each other."""

    def make(**changes) -> Model:
        shape = {"vocabulary_size": PIANO.size, "d_model": 32, "layers": 2, "heads": 4, "ff_width": 48, "context": 1024}
        model = Model(TransformerConfig(**shape | {"dtype": "float32"} | changes), nnx.Rngs(0))
        for leaf in (model.layers.qkv, model.layers.out, model.layers.down, model.token_table, model.head_table):
            leaf[...] = leaf[...] * 8
        return model

    return make


@pytest.fixture(scope="session")
def decoder(make_model) -> Decoder:
    return Decoder(make_model(), PIANO)


@pytest.fixture(scope="session")
def prompts() -> list[np.ndarray]:
    """Three openings, of 15, 3 and 8 seconds."""
    return [prompt_of(performance(seed), PIANO, seconds) for seed, seconds in ((1, 15.0), (2, 3.0), (3, 8.0))]
