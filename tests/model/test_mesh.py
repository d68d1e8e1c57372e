import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from piano_jax import BadInput
from piano_jax.model import Model, mesh

INPUTS = {"language": {}, "conditioned": {"embedding": np.ones((4, 8), np.float32)}}


def step(definition):
    def loss(weights, tokens, segment_ids, inputs):
        logits = nnx.merge(definition, weights)(tokens, segment_ids=segment_ids, **inputs)
        return jax.nn.logsumexp(logits, axis=-1).sum() - logits[..., 3].sum()

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(("head", "sizes"), [("language", (1, 2, 4)), ("conditioned", (2, 2, 2))])
def test_sharded_equals_single_device(tiny, tokens, head, sizes):
    definition, weights = nnx.split(tiny(head=head, head_size=8))
    segment_ids = np.repeat(np.array([[1] * 7 + [2] * 9], np.int32), 4, axis=0)
    batch = tokens, segment_ids, INPUTS[head]
    loss, gradients = step(definition)(weights, *batch)
    pod = mesh.make_mesh(*sizes)
    with jax.set_mesh(pod):
        placed = jax.device_put(weights, mesh.shardings(weights, pod))
        sharded_loss, sharded_gradients = step(definition)(placed, *mesh.shard_batch(batch, pod))
    np.testing.assert_allclose(loss, sharded_loss, rtol=1e-6)

    def close(path, a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max(), err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, gradients, sharded_gradients)
    where = jax.tree.map(lambda x: x.sharding.spec, (placed, sharded_gradients))
    assert where[0] == where[1]


def test_outputs_lie_where_they_are_meant_to(tiny, tokens):
    model = tiny()
    with jax.set_mesh(mesh.make_mesh(2, 2, 2)):
        assert jax.typeof(model.encode(tokens)).sharding.spec == PartitionSpec(("replica", "fsdp"), None, None)
        assert jax.typeof(model(tokens)).sharding.spec == PartitionSpec(("replica", "fsdp"), "tensor", None)
        assert model(tokens[:3, :5]).sharding.is_fully_replicated  # neither 3 rows nor 5 positions divide


def test_state_is_created_sharded(tiny):
    config = tiny().config
    pod, optimizer = mesh.make_mesh(fsdp=4, tensor=2), optax.adamw(1e-3)

    def init(key):
        return nnx.split(Model(config, nnx.Rngs(key)))[1]

    with jax.set_mesh(pod):
        key = jax.random.key(0)
        weights = jax.jit(init, out_shardings=mesh.shardings(jax.eval_shape(init, key), pod))(key)
        meant = mesh.shardings(jax.eval_shape(optimizer.init, weights), pod)
        moments = jax.jit(optimizer.init, out_shardings=meant)(weights)[0].mu
    jax.tree.map(np.testing.assert_array_equal, weights, init(key))  # whatever the mesh, the same weights
    for state in weights, moments:
        assert state["layers"]["qkv"][...].sharding.spec == PartitionSpec(None, None, "tensor", None, "fsdp")
        assert state["layers"]["down"][...].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
        assert state["token_table"][...].sharding.spec == PartitionSpec(None, ("fsdp", "tensor"))
        assert state["head_table"][...].addressable_shards[0].data.shape == (37, 32 // 8)


def test_make_mesh():
    assert dict(mesh.make_mesh().shape) == {"replica": 1, "fsdp": 8, "tensor": 1}
    assert dict(mesh.make_mesh(2, -1, 2).shape) == {"replica": 2, "fsdp": 2, "tensor": 2}
    assert dict(mesh.make_mesh(-1, 2, 4).shape) == {"replica": 1, "fsdp": 2, "tensor": 4}
    assert set(mesh.make_mesh().axis_types) == {AxisType.Explicit}
    for sizes in [(3, -1, 1), (1, 4, 1), (16, -1, 1), (0, -1, 1), (-1, -1, 1)]:
        with pytest.raises(BadInput, match="mesh replica"):
            mesh.make_mesh(*sizes)


def test_what_does_not_divide(tiny, tokens):
    with pytest.raises(BadInput, match="batch of 4 does not divide over 8"):
        mesh.shard_batch({"tokens": tokens}, mesh.make_mesh())
    with pytest.raises(BadInput, match="heads axis of 4 does not divide over 8"):
        mesh.shardings(nnx.state(tiny()), mesh.make_mesh(fsdp=1, tensor=8))
