import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from piano_jax import BadInput
from piano_jax.model import Model, TransformerConfig


def parameters(config):
    return sum(x.size for x in jax.tree.leaves(nnx.eval_shape(lambda: Model(config, nnx.Rngs(0)))))


def loss_and_gradients(model, tokens):
    definition, weights = nnx.split(model)

    def loss(weights):
        logits = nnx.merge(definition, weights)(tokens)
        return (jax.nn.logsumexp(logits, axis=-1) - logits[..., 3]).sum()

    return jax.jit(jax.value_and_grad(loss))(weights)


def close(path, a, b):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max(), err_msg=jax.tree_util.keystr(path))


def test_medium_has_the_parameters_of_the_authors():
    assert parameters(TransformerConfig.medium()) == 658_538_496
    assert parameters(TransformerConfig.medium_tpu()) == 658_538_496


def test_sizes():
    assert 28e6 < parameters(TransformerConfig.small()) < 32e6
    assert TransformerConfig.medium_tpu().d_model // TransformerConfig.medium_tpu().heads == 128
    assert TransformerConfig.smoke(layers=7).layers == 7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_hidden_states_are_float32(tiny, tokens, dtype):
    model = tiny(dtype=dtype)
    hidden = model.encode(tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    assert hidden.shape == (4, 16, 32) and hidden.dtype == model(tokens).dtype == jnp.float32
    np.testing.assert_allclose(model.head(hidden), model(tokens))
    if dtype == "bfloat16":
        np.testing.assert_allclose(hidden, tiny().encode(tokens), atol=0.1)


def test_matrix_products_take_the_dtype_of_the_config(tiny, tokens):
    definition, weights = nnx.split(tiny(dtype="bfloat16"))
    program = jax.jit(lambda weights: nnx.merge(definition, weights)(tokens)).lower(weights).as_text()
    products = [line.split(" : ")[-1] for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 10 and all(types.split(" -> ")[0].count("xbf16>") == 2 for types in products), products


def test_heads(tiny, tokens):
    assert tiny()(tokens).shape == (4, 16, 37)
    assert tiny(head="embedding", head_size=5)(tokens).shape == (4, 16, 5)
    assert tiny(head="classifier", head_size=6)(tokens).shape == (4, 16, 6)
    conditioned, embedding = tiny(head="conditioned", head_size=8), np.ones((4, 8), np.float32)
    assert conditioned(tokens).shape == (4, 16, 37)
    assert conditioned(tokens, embedding).shape == (4, 15, 37)
    assert conditioned.encode(tokens, embedding=embedding).shape == (4, 16, 32)


def test_embedding_conditions_every_position_and_the_last_token_drops_out(tiny, tokens):
    model, embedding = tiny(head="conditioned", head_size=8), np.ones((4, 8), np.float32)
    out = model(tokens, embedding)
    assert (np.abs(out - model(tokens, 2 * embedding)).max(axis=(0, 2)) > 0).all()
    other = tokens.copy()
    other[:, -1] = 0
    np.testing.assert_array_equal(out, model(other, embedding))


def test_causality_by_gradient(tiny):
    """Through the token table: with ids 0..15 in a row, row s of the table stands at position s alone."""
    model, probe = tiny(), np.random.default_rng(0).normal(size=32).astype(np.float32)
    definition, weights = nnx.split(model)
    tokens = np.arange(16, dtype=np.int32)[None]

    @jax.jit
    def influences(t):
        grads = jax.grad(lambda weights: nnx.merge(definition, weights).encode(tokens)[0, t] @ probe)(weights)
        return grads["token_table"][...][:16]

    seen = np.stack([np.abs(influences(t)).sum(axis=1) > 0 for t in range(16)])
    np.testing.assert_array_equal(seen, np.tri(16, dtype=bool))


def test_packing_isolates_pieces(tiny, tokens):
    model = tiny()
    segment_ids = np.repeat(np.array([[1] * 7 + [2] * 9], np.int32), 4, axis=0)
    packed = model.encode(tokens, segment_ids)
    changed = tokens.copy()
    changed[:, :7] = (changed[:, :7] + 1) % 37
    np.testing.assert_array_equal(packed[:, 7:], model.encode(changed, segment_ids)[:, 7:])
    np.testing.assert_allclose(packed[:, :7], model.encode(tokens[:, :7]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 7:], model.encode(tokens[:, 7:]), atol=1e-5)
    assert np.abs(packed - model.encode(tokens))[:, 7:].max() > 1e-3


def test_scan_equals_unrolled_and_remat_equals_none(tiny, tokens):
    loss, gradients = loss_and_gradients(tiny(), tokens)
    for how in [{"unroll": 3}, {"remat": "dots"}, {"remat": "full"}, {"remat": "full", "unroll": 3}]:
        other_loss, other_gradients = loss_and_gradients(tiny(**how), tokens)
        np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
        jax.tree_util.tree_map_with_path(close, gradients, other_gradients)


def test_residual_dropout_rises_from_none_at_the_first_layer(tiny, tokens):
    model, key = tiny(residual_dropout=0.5), jax.random.key(0)
    out = model(tokens, dropout_key=key)
    np.testing.assert_array_equal(out, model(tokens, dropout_key=key))
    assert np.abs(out - model(tokens, dropout_key=jax.random.key(1))).max() > 1e-3
    np.testing.assert_array_equal(model(tokens), tiny()(tokens))
    one_layer = tiny(residual_dropout=0.5, layers=1)
    np.testing.assert_allclose(one_layer(tokens), one_layer(tokens, dropout_key=key), atol=1e-6)


def test_bad_configs_and_inputs(tiny, tokens):
    config = TransformerConfig.smoke()
    for change, culprit in [
        ({"heads": 3}, "heads"),
        ({"head": "value"}, "'value'"),
        ({"head": "embedding"}, "head_size"),
        ({"dtype": "float8"}, "'float8'"),
        ({"remat": "some"}, "'some'"),
    ]:
        with pytest.raises(BadInput, match=culprit):
            dataclasses.replace(config, **change)
    with pytest.raises(BadInput, match="context, 8"):
        tiny(context=8).encode(tokens)
    with pytest.raises(BadInput, match="no embedding"):
        tiny()(tokens, np.ones((4, 8), np.float32))
