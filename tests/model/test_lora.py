import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from piano_jax.model import Model, TransformerConfig
from piano_jax.model import mesh as meshes
from piano_jax.model.lora import merged, split

NAMES = ("qkv", "out", "gate", "up", "down")


def adapted(tiny, **changes) -> Model:
    """A model whose changes are not zero any more."""
    model = tiny(lora_rank=3, **changes)
    for seed, name in enumerate(NAMES):
        pair = model.layers.lora[name]
        pair.b.set_value(0.1 * jax.random.normal(jax.random.key(seed), pair.b.shape))
    return model


def plain(model: Model) -> Model:
    """The model without its changes: they are in its weights."""
    other = Model(dataclasses.replace(model.config, lora_rank=0), nnx.Rngs(0))
    weights = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model)) if "lora" not in path}
    for name in NAMES:
        pair, path = model.layers.lora[name], ("layers", name)
        weights[path] = merged(*(np.asarray(x) for x in (weights[path], pair.a[...], pair.b[...])))
    nnx.update(other, nnx.from_flat_state([(path, nnx.Param(jnp.asarray(x))) for path, x in weights.items()]))
    return other


def test_a_model_starts_as_it_was(tiny, tokens):
    model = tiny(lora_rank=3)
    np.testing.assert_array_equal(model(tokens), plain(model)(tokens))


@pytest.mark.parametrize("head", ["language", "classifier"])
def test_merged_weights_are_the_adapted_model(tiny, tokens, head):
    model = adapted(tiny, head=head, head_size=5)
    out = model(tokens)
    np.testing.assert_allclose(out, plain(model)(tokens), atol=1e-5)
    assert np.abs(out - tiny(head=head, head_size=5)(tokens)).max() > 1e-2


def test_the_gradient_is_that_of_the_merged_weights(tiny, tokens):
    """By the chain rule: of b it is the whole gradient times a, transposed, and of a it is b, transposed, times it."""

    def gradients(model: Model) -> nnx.State:
        graph, weights = nnx.split(model)
        learning, frozen = split(weights)
        return jax.grad(lambda w: jnp.sin(nnx.merge(graph, w, frozen).encode(tokens)).sum())(learning)

    model = adapted(tiny)
    pairs, whole = gradients(model)["layers"]["lora"], gradients(plain(model))["layers"]
    for name in NAMES:
        a, b = (np.asarray(x[...]) for x in (model.layers.lora[name].a, model.layers.lora[name].b))
        (layers, rank), full = a.shape[:2], np.asarray(whole[name][...])
        flat_a, flat_b = a.reshape(layers, rank, -1), b.reshape(layers, -1, rank)
        full = full.reshape(layers, flat_b.shape[1], flat_a.shape[2])
        for found, wanted in [
            (pairs[name]["b"], full @ flat_a.swapaxes(1, 2)),
            (pairs[name]["a"], flat_b.swapaxes(1, 2) @ full),
        ]:
            wanted = wanted.reshape(found.shape)
            np.testing.assert_allclose(found[...], wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize(
    ("head", "fresh"),
    [("language", set()), ("embedding", {"head_table"}), ("classifier", {"head_table"}), ("conditioned", {"adapter"})],
)
def test_the_changes_and_a_new_head_learn_and_nothing_else(tiny, head, fresh):
    learning, frozen = split(nnx.state(tiny(lora_rank=2, head=head, head_size=5)))
    pairs = {("layers", "lora", name, part) for name in NAMES for part in ("a", "b")}
    assert {path for path, _ in nnx.to_flat_state(learning)} == pairs | {(name,) for name in fresh}
    whole = {path for path, _ in nnx.to_flat_state(nnx.state(tiny(head=head, head_size=5)))}
    assert {path for path, _ in nnx.to_flat_state(frozen)} == whole - {(name,) for name in fresh}
    everything, nothing = split(nnx.state(tiny(head=head, head_size=5)))
    assert {path for path, _ in nnx.to_flat_state(everything)} == whole and not nothing


def test_rank_8_of_small_is_under_3_percent():
    for head in ({}, {"head": "embedding", "head_size": 512}, {"head": "classifier", "head_size": 10}):
        config = TransformerConfig.small(lora_rank=8, **head)
        weights = nnx.state(nnx.eval_shape(lambda config=config: Model(config, nnx.Rngs(0))))
        learning, whole = (sum(x.size for x in jax.tree.leaves(part)) for part in (split(weights)[0], weights))
        assert learning < 0.03 * whole


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_meshes_change_nothing(tiny, sizes):
    tokens = np.random.default_rng(0).integers(0, 40, (8, 16), dtype=np.int32)
    shape = {"vocabulary_size": 40, "d_model": 64, "heads": 4}
    alone = adapted(tiny, **shape)(tokens)
    mesh = meshes.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        graph, weights = nnx.split(adapted(tiny, **shape))
        weights = jax.device_put(weights, meshes.shardings(weights, mesh))
        out = jax.jit(lambda weights, tokens: nnx.merge(graph, weights)(tokens))(
            weights, meshes.shard_batch(tokens, mesh)
        )
    np.testing.assert_allclose(out, alone, atol=1e-5)
