"""Weights of a checkpoint start another phase: by name, and by token where vocabularies differ."""

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.learning import optimizer
from piano_jax.learning.checkpoints import Checkpoints, read_config, read_weights, start_from
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import abstract_state, initializer
from piano_jax.model import mesh as meshes
from piano_jax.music import Vocabulary

SHAPE = {"d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 64, "dtype": "float32"}


def config(vocabulary: str = "piano", **model) -> ConfigDict:
    return ConfigDict({"vocabulary": vocabulary, "model": {"size": "smoke"} | SHAPE | model})


def state(of: ConfigDict, seed: int):
    tx = optimizer.adamw(optimizer.schedule("constant", 1.0, 0, 10, 1.0), 0.9, 0.95, 1e-5, 0.1)
    init = initializer(model_config(of), tx)
    places = jax.tree.map(lambda x: x.sharding, abstract_state(init, jax.sharding.get_mesh()))
    return jax.jit(init, out_shardings=places)(jax.random.key(seed))


def flat(weights: nnx.State) -> dict[str, np.ndarray]:
    return {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(weights)}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of the vocabulary "piano", its config and its weights."""
    with jax.set_mesh(meshes.make_mesh(1, 4, 2)):
        of = config()
        held = state(of, 1)
        checkpoints = Checkpoints(str(tmp_path / "run"), 1, 0)
        checkpoints.save(3, held, of.to_dict())
        checkpoints.close()
        yield str(tmp_path / "run"), of, flat(held.weights)


def test_config_and_weights_come_back(saved):
    path, of, weights = saved
    assert read_config(path) == of
    again = flat(read_weights(path, state(of, 2).weights))
    assert weights.keys() == again.keys()
    for name in weights:
        np.testing.assert_array_equal(weights[name], again[name])


@pytest.mark.parametrize(
    ("head", "size", "fresh"),
    [("embedding", 8, {"head_table"}), ("conditioned", 8, {"adapter"}), ("language", 0, set())],
)
def test_another_head_starts_fresh_and_is_named(saved, capsys, head, size, fresh):
    path, _, theirs = saved
    of = config(head=head, head_size=size)
    start = state(of, 2).weights
    begun = start_from(path, start, of)
    said = capsys.readouterr().out
    for name, value in flat(begun).items():
        np.testing.assert_array_equal(value, flat(start)[name] if name in fresh else theirs[name])
        assert (f"has no {name}" in said) == (name in fresh)
    assert ("leaves out head_table (head language)" in said) == (head == "embedding")
    places = [jax.tree.map(lambda x: x.sharding, weights) for weights in (begun, start)]
    assert places[0] == places[1]


@pytest.mark.parametrize("head", ["language", "embedding"])
def test_another_vocabulary_takes_rows_by_token(saved, capsys, head):
    path, _, theirs = saved
    of = config("aria", head=head, head_size=0 if head == "language" else 8)
    start = flat(state(of, 2).weights)
    begun = flat(start_from(path, state(of, 2).weights, of))
    mine, other = Vocabulary("aria").tokens, {token: id for id, token in enumerate(Vocabulary("piano").tokens)}
    for table in ["token_table"] + ["head_table"] * (head == "language"):
        for id in [*range(40), *range(1700, 1720), *range(16_700, 17_727)]:
            source = theirs[table][other[mine[id]]] if mine[id] in other else start[table][id]
            np.testing.assert_array_equal(begun[table][id], source)
    np.testing.assert_array_equal(begun["layers.gate"], theirs["layers.gate"])
    assert "2,672 of 17,727 tokens of aria" in capsys.readouterr().out


def test_a_layer_of_another_shape_is_refused(saved):
    path, _, _ = saved
    of = config(ff_width=64)
    with pytest.raises(BadInput, match=r"layers\.down has shape \(2, 16, 32\), not shape \(2, 16, 64\)"):
        start_from(path, state(of, 2).weights, of)
