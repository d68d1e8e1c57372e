"""The chunked loss is the whole one, values and gradients, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piano_jax.learning.cross_entropy import cross_entropy
from piano_jax.model import mesh as meshes

B, T, D, V = 8, 12, 16, 35


def arrays():
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    targets, weights = rng.integers(0, V, (B, T)), rng.integers(0, 3, (B, T))
    return (*(x.astype(np.float32) for x in (hidden, table)), targets.astype(np.int32), weights.astype(np.float32))


def whole(hidden, table, targets, weights, z):
    """The loss by its definition, by Optax."""
    logits = jnp.einsum("BTD,VD->BTV", hidden, table)
    found = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    total = (weights * (found + z * jax.nn.logsumexp(logits, -1) ** 2)).sum()
    return total, (found, (logits.argmax(-1) == targets).astype(jnp.float32))


def both(function, inputs):
    """Values, and the gradients of three times the loss."""

    def scaled(*inputs):
        total, *others = function(*inputs)
        return 3 * total, others

    return jax.jit(jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True))(*inputs)


@pytest.mark.parametrize("z", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [1, 7, 24, 10_000])
def test_chunks_equal_the_whole(chunk, z):
    expected = both(lambda *x: (lambda total, rest: (total, *rest))(*whole(*x, z)), arrays())
    found = both(lambda *x: cross_entropy(*x, chunk, z), arrays())
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
    plain = cross_entropy(*map(jnp.asarray, arrays()), chunk, z)
    np.testing.assert_allclose(plain[0] * 3, expected[0][0], rtol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (1, 2, 4)])
def test_meshes_equal_one_device(sizes):
    """T = 12 does not divide over 8: then the devices hold the same positions, and count them once."""
    expected = both(lambda *x: cross_entropy(*x, 5, 1e-2), arrays())
    mesh = meshes.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        hidden, table, targets, weights = map(jnp.asarray, arrays())
        placed = (
            meshes.reshard(hidden, "batch", "time", None),
            jax.device_put(table, jax.sharding.NamedSharding(mesh, meshes.spec(None, "table"))),
            *(meshes.reshard(x, "batch", "time") for x in (targets, weights)),
        )
        found = both(lambda *x: cross_entropy(*x, 5, 1e-2), placed)
        assert found[1][1].sharding == placed[1].sharding
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("gradient", [False, True])
def test_no_array_holds_all_the_logits(gradient):
    def loss(*inputs):
        return cross_entropy(*inputs, 8, 1e-4)[0]

    text = jax.jit(jax.grad(loss, argnums=(0, 1)) if gradient else loss).lower(*arrays()).compile().as_text()
    assert f"f32[8,{V}]" in text
    assert not any(f"[{shape},{V}]" in text for shape in (f"{B},{T}", B * T, f"{B * T // 8},8"))
