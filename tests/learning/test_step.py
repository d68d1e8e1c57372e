"""The train step: the same whatever the mesh and however the batch is taken, and its sums are what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from piano_jax import BadInput
from piano_jax.learning import metrics, objectives, optimizer
from piano_jax.learning.step import abstract_state, definition, initializer, summed_gradient, train_step
from piano_jax.model import Model, TransformerConfig
from piano_jax.model import mesh as meshes

VOCABULARY, KINDS = 37, 3
CONFIG = TransformerConfig(
    vocabulary_size=VOCABULARY, d_model=32, layers=2, heads=8, ff_width=64, context=16, dtype="float32"
)
KIND = np.arange(VOCABULARY, dtype=np.int32) % KINDS
OBJECTIVE = functools.partial(objectives.next_token, kind=KIND, kinds=KINDS, chunk=24, z=0.0)
RATE = optimizer.schedule("linear", 1e-2, 2, 10, 0.1)
TX = optimizer.adamw(RATE, 0.9, 0.95, 1e-5, 0.1)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Sixteen rows, of which most hold padding, and different amounts of it."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, VOCABULARY, (2, 16, 16), dtype=np.int32)
    weights = (np.arange(16) < rng.integers(1, 17, (16, 1))).astype(np.float32)
    return {"tokens": tokens, "targets": targets, "segment_ids": weights.astype(np.int32), "weights": weights}


def steps(sizes: tuple[int, int, int], accumulate: int, count: int = 3):
    """The state and the sums after some steps on a mesh."""
    mesh = meshes.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        init = initializer(CONFIG, TX)
        places = jax.tree.map(lambda x: x.sharding, abstract_state(init, mesh))
        state = jax.jit(init, out_shardings=places)(jax.random.key(0))
        step = train_step(summed_gradient(definition(CONFIG), OBJECTIVE, accumulate), TX, RATE, seed=0)
        for seed in range(count):
            state, sums = step(state, meshes.shard_batch(batch(seed), mesh))
        assert jax.tree.map(lambda x: x.sharding, state) == places
        return jax.device_get((state, sums))


@pytest.fixture(scope="module")
def whole():
    return steps((8, 1, 1), accumulate=1)


@pytest.mark.parametrize(
    ("sizes", "accumulate"), [((1, 8, 1), 1), ((2, 2, 2), 1), ((1, 2, 4), 4), ((1, 1, 8), 16), ((1, 4, 2), 2)]
)
def test_meshes_and_accumulation_change_nothing(whole, sizes, accumulate):
    state, sums = steps(sizes, accumulate)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), (state, sums), whole)


def test_sums_are_those_of_plain_numpy():
    model, rows = Model(CONFIG, nnx.Rngs(0)), batch()
    logits = np.asarray(model(rows["tokens"], segment_ids=rows["segment_ids"]), np.float64)
    loss = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, rows["targets"][..., None], -1)[..., 0]
    total, sums = OBJECTIVE(model, jax.tree.map(jnp.asarray, rows), None)
    np.testing.assert_allclose(total, (loss * rows["weights"]).sum(), rtol=1e-5)
    for kind in range(KINDS):
        of_kind = rows["weights"] * (KIND[rows["targets"]] == kind)
        np.testing.assert_allclose(sums["loss"][kind], (loss * of_kind).sum(), rtol=1e-5)
        np.testing.assert_allclose(sums["weight"][kind], of_kind.sum())
        hits = (logits.argmax(-1) == rows["targets"]) * of_kind
        np.testing.assert_allclose(sums["correct"][kind], hits.sum())
    found = metrics.figures(jax.device_get(sums), ["a", "b", "c"])
    assert found["loss"] == pytest.approx(float(total) / rows["weights"].sum(), rel=1e-5)
    assert found["loss/b"] == pytest.approx(float(sums["loss"][1] / sums["weight"][1]))


def test_rows_of_padding_count_nothing():
    rows = batch()
    padded = {name: np.concatenate([part, np.zeros_like(part)]) for name, part in rows.items()}
    model = Model(CONFIG, nnx.Rngs(0))
    (one, ones), (two, twos) = (OBJECTIVE(model, jax.tree.map(jnp.asarray, x), None) for x in (rows, padded))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), ones, twos)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("length", [32, 64])
def test_flops_are_those_that_the_compiler_counts(layers, length):
    """XLA multiplies whole squares of scores where the formula counts the causal half, and counts elementwise work."""
    config = TransformerConfig(
        vocabulary_size=512,
        d_model=128,
        layers=layers,
        heads=4,
        ff_width=512,
        context=64,
        dtype="float32",
        unroll=layers,
    )
    model = jax.eval_shape(lambda: Model(config, nnx.Rngs(0)))
    graph, weights = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((4, length), jnp.int32)
    forward = jax.jit(lambda weights, tokens: nnx.merge(graph, weights)(tokens)).lower(weights, tokens).compile()
    counted = forward.cost_analysis()["flops"] / (4 * length)
    formula = metrics.flops_per_token(config, length) / 3 + layers * 2 * config.d_model * (length - 1)
    assert formula <= counted <= 1.1 * formula


def test_schedules():
    linear = optimizer.schedule("linear", 1.0, 10, 110, 0.1)
    assert [round(float(linear(step)), 4) for step in (0, 5, 10, 60, 110, 200)] == [0, 0.5, 1, 0.55, 0.1, 0.1]
    cosine = optimizer.schedule("cosine", 1.0, 10, 110, 0.1)
    assert [round(float(cosine(step)), 4) for step in (5, 10, 60, 110)] == [0.5, 1, 0.55, 0.1]
    constant = optimizer.schedule("constant", 1.0, 0, 100, 0.0)
    assert [round(float(constant(step)), 4) for step in (0, 50, 80, 90, 100)] == [1, 1, 1, 0.5, 0]
    with pytest.raises(BadInput, match="no such schedule"):
        optimizer.schedule("square", 1.0, 0, 100, 0.0)
    with pytest.raises(BadInput, match="warm-up of 100"):
        optimizer.schedule("linear", 1.0, 100, 100, 0.0)


def test_lines_from_the_resumed_step_on_are_written_anew(tmp_path):
    first = metrics.Writer(str(tmp_path), 0)
    for step in range(5):
        first.write(step, "train", {"loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "gro')  # cut by a kill
    second = metrics.Writer(str(tmp_path), 3)
    second.write(3, "train", {"loss": 30.0})
    second.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line.split('"loss": ')[1] for line in lines] == ["0.0}", "1.0}", "2.0}", "30.0}"]
