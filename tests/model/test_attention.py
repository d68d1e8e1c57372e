"""The kernels equal the plain attention, values and gradients, segments included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.model import mesh as meshes
from piano_jax.model.attention import attention


def inputs(batch, length, heads, head_size, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (batch, length, heads, head_size), dtype) for key in keys)
    segment_ids = jnp.cumsum(jnp.arange(length)[None] % jnp.arange(90, 90 + batch)[:, None] == 0, axis=1)
    return q, k, v, segment_ids.astype(jnp.int32)


def values_and_gradients(kernel, arrays, segmented, blocks=(512, 512)):
    *qkv, segment_ids = arrays

    def loss(q, k, v):
        mixed = attention(q, k, v, segment_ids if segmented else None, kernel, blocks)
        return jnp.square(mixed.astype(jnp.float32)).sum() + mixed.astype(jnp.float32).sum(), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return mixed, gradients


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("head_size", [64, 128])
def test_splash_equals_plain(head_size, segmented):
    arrays = inputs(2, 256, 2, head_size, jnp.float32)
    expected = values_and_gradients("plain", arrays, segmented)
    found = values_and_gradients("splash", arrays, segmented, blocks=(128, 200))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_splash_on_a_mesh_equals_plain():
    arrays = inputs(4, 128, 2, 64, jnp.float32)
    expected = values_and_gradients("plain", arrays, True)
    with jax.set_mesh(meshes.make_mesh(2, 2, 2)):
        places = [("batch", None, "heads", None)] * 3 + [("batch", None)]
        arrays = [meshes.reshard(x, *names) for x, names in zip(arrays, places, strict=True)]
        found = values_and_gradients("splash", arrays, True)
        assert found[0].sharding == arrays[0].sharding
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(("length", "sizes"), [(300, (1, 1, 8)), (64, (2, 2, 2)), (300, (1, 8, 1))])
def test_blocked_equals_plain(length, sizes, segmented):
    arrays = inputs(8, length, 8, 4, jnp.float32)
    expected = values_and_gradients("plain", arrays, segmented)
    with jax.set_mesh(meshes.make_mesh(*sizes)):
        places = [("batch", None, "heads", None)] * 3 + [("batch", None)]
        arrays = [meshes.reshard(x, *names) for x, names in zip(arrays, places, strict=True)]
        found = values_and_gradients("blocked", arrays, segmented)
        assert found[0].sharding == arrays[0].sharding
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU: JAX_PLATFORMS=cuda")
@pytest.mark.parametrize("segmented", [False, True])
def test_cudnn_equals_plain(segmented):
    arrays = inputs(2, 256, 2, 64, jnp.bfloat16)
    expected = values_and_gradients("plain", arrays, segmented)
    found = values_and_gradients("cudnn", arrays, segmented)
    as_float = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-2, atol=3e-2), as_float(found), as_float(expected)
    )


@pytest.mark.parametrize(
    ("kernel", "length", "head_size", "said"),
    [
        ("splash", 100, 64, "multiples of 128, not 100"),
        ("splash", 128, 32, "heads of 64, 128, …, not of 32"),
        ("cudnn", 128, 256, "at most 128"),
        ("cudnn", 128, 64, "computes in bfloat16, not float32"),
    ],
)
def test_sizes_that_a_kernel_cannot_do_are_named(kernel, length, head_size, said):
    q, k, v, _ = inputs(1, length, 1, head_size, jnp.float32)
    with pytest.raises(BadInput, match=f"attention {kernel}: takes|attention {kernel}: computes") as caught:
        attention(q, k, v, None, kernel)
    assert said in str(caught.value)


def test_auto_is_what_the_devices_have():
    q, k, v, segment_ids = inputs(1, 128, 1, 64, jnp.float32)
    np.testing.assert_array_equal(attention(q, k, v, segment_ids, "auto"), attention(q, k, v, segment_ids, "blocked"))
