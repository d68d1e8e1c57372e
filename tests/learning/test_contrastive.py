"""The contrastive loss: the same on every mesh and in any number of parts, and what the literature says it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from piano_jax import BadInput
from piano_jax.learning import contrastive
from piano_jax.learning.step import definition, summed_gradient
from piano_jax.model import Model, TransformerConfig
from piano_jax.model import mesh as meshes

CONFIG = TransformerConfig(
    vocabulary_size=37,
    d_model=32,
    layers=2,
    heads=8,
    ff_width=64,
    context=16,
    dtype="float32",
    head="embedding",
    head_size=16,
    learn_temperature=True,
)


def batch(pairs: int = 16, length: int = 16) -> dict[str, np.ndarray]:
    """Pairs, of which three are padding."""
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, CONFIG.vocabulary_size, (pairs, 2, length), dtype=np.int32),
        "ends": rng.integers(0, length, (pairs, 2), dtype=np.int32),
        "weights": (np.arange(pairs) < pairs - 3).astype(np.float32),
    }


def learnt(sizes: tuple[int, int, int], parts: int, negatives: str) -> tuple:
    """Gradients of the mean loss of a batch, and its sums, on a mesh."""
    mesh = meshes.make_mesh(*sizes) if np.prod(sizes) > 1 else one_device()
    objective = functools.partial(contrastive.objective, parts=parts, temperature=0.1, negatives=negatives, groups=1)
    with jax.set_mesh(mesh):
        init = lambda: nnx.split(Model(CONFIG, nnx.Rngs(0)))[1]  # noqa: E731
        weights = jax.jit(init, out_shardings=meshes.shardings(jax.eval_shape(init), mesh))()
        gradient = jax.jit(summed_gradient(definition(CONFIG), objective, 1))
        found = gradient(weights, meshes.shard_batch(batch(), mesh), jax.random.key(0))
        gradients, sums = jax.device_get(found)
        return jax.tree.map(lambda x: x / sums["weight"], gradients), sums


def one_device() -> jax.sharding.Mesh:
    axes = (jax.sharding.AxisType.Explicit,) * 3
    return jax.make_mesh((1, 1, 1), meshes.AXES, axis_types=axes, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def alone():
    """Gradients and sums on one device, the whole batch at once."""
    return functools.cache(lambda negatives: learnt((1, 1, 1), 1, negatives))


@pytest.mark.parametrize("negatives", contrastive.NEGATIVES)
@pytest.mark.parametrize(
    ("sizes", "parts"), [((1, 8, 1), 1), ((8, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 4), ((1, 1, 1), 8)]
)
def test_meshes_and_parts_change_nothing(alone, sizes, parts, negatives):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        learnt(sizes, parts, negatives),
        alone(negatives),
    )


def test_gradients_flow_through_every_weight(alone):
    gradients, _ = alone("all")
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("negatives", contrastive.NEGATIVES)
def test_pairs_without_weight_are_not_there(negatives):
    views = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2, 5)), jnp.float32)
    loss, sums = contrastive.contrast(views, jnp.repeat(jnp.array([1.0, 0.0]), jnp.array([5, 3])), 0.1, negatives)
    fewer, of_fewer = contrastive.contrast(views[:5], jnp.ones(5), 0.1, negatives)
    np.testing.assert_allclose(loss, fewer, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), sums, of_fewer)


@pytest.mark.parametrize("negatives", contrastive.NEGATIVES)
def test_groups_are_batches_of_their_own(negatives):
    views = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2, 5)), jnp.float32)
    loss, sums = contrastive.contrast(views, jnp.ones(8), 0.1, negatives, groups=2)
    halves = [contrastive.contrast(half, jnp.ones(4), 0.1, negatives) for half in (views[:4], views[4:])]
    np.testing.assert_allclose(loss, sum(half for half, _ in halves), rtol=1e-5)
    np.testing.assert_allclose(sums["correct"], sum(of["correct"] for _, of in halves), rtol=1e-5)
    assert loss < 0.9 * contrastive.contrast(views, jnp.ones(8), 0.1, negatives)[0]


def unit(views: jax.Array) -> np.ndarray:
    views = np.moveaxis(np.asarray(views, np.float64), 1, 0)
    return views / np.linalg.norm(views, axis=-1, keepdims=True)


def test_losses_are_those_of_others():
    views = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2, 5)), jnp.float32)
    ones = jnp.ones(8)
    ntxent = optax.losses.ntxent(views.reshape(16, 5), np.repeat(np.arange(8), 2), 0.2)
    np.testing.assert_allclose(contrastive.contrast(views, ones, 0.2)[0] / 8, ntxent, rtol=1e-5)

    a, b = unit(views)
    logits = a @ b.T / 0.2
    infonce = sum(np.log(np.exp(x).sum(1)) - np.diag(x) for x in (logits, logits.T)).mean() / 2
    np.testing.assert_allclose(contrastive.contrast(views, ones, 0.2, "across")[0] / 8, infonce, rtol=1e-5)


def test_figures_are_those_of_plain_numpy():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(12, 1, 3))
    views = jnp.asarray(centres + 0.3 * rng.normal(size=(12, 2, 3)), jnp.float32)
    _, sums = contrastive.contrast(views, jnp.ones(12), 0.1)
    found = contrastive.figures(sums | {"temperature": sums["weight"] * 0.1})
    a, b = unit(views)
    apart = np.square(a[:, None] - b).sum(-1)
    assert found["alignment"] == pytest.approx(np.diag(apart).mean(), rel=1e-5)
    assert found["uniformity"] == pytest.approx(np.log(np.exp(-2 * apart)[~np.eye(12, dtype=bool)].mean()), rel=1e-5)
    flat = np.concatenate([a, b])
    alike = flat @ flat.T - 9 * np.eye(24)
    assert found["retrieval"] == pytest.approx((alike.argmax(1) == (np.arange(24) + 12) % 24).mean())
    assert 0 < found["retrieval"] < 1 and found["temperature"] == pytest.approx(0.1)


def temporary_bytes(pairs: int, parts: int) -> int:
    """What a gradient needs beside its inputs and outputs."""
    config = TransformerConfig.smoke(vocabulary_size=64, head="embedding", head_size=32, context=128, layers=2)
    objective = functools.partial(contrastive.objective, parts=parts, temperature=0.1, negatives="all", groups=1)
    weights = jax.eval_shape(lambda: nnx.split(Model(config, nnx.Rngs(0)))[1])
    of_batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(pairs, 128))
    lowered = jax.jit(summed_gradient(definition(config), objective, 1)).lower(
        weights, of_batch, jax.eval_shape(lambda: jax.random.key(0))
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_part():
    small, large = temporary_bytes(pairs=16, parts=4), temporary_bytes(pairs=32, parts=8)
    assert large <= 1.1 * small
    assert temporary_bytes(pairs=32, parts=1) > 3 * large


def test_what_is_no_loss_is_refused():
    with pytest.raises(BadInput, match=r"temperature 0\.0: a temperature is above 0"):
        contrastive.check(32, "all", 1, 0.0)
    with pytest.raises(BadInput, match="some: no such negatives"):
        contrastive.check(32, "some", 1, 0.1)
    with pytest.raises(BadInput, match="groups 5: the batch of 32 pairs"):
        contrastive.check(32, "all", 5, 0.1)
