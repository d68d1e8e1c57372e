"""The train step: sharded state in, one batch, sharded state out."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Key, Shaped

from piano_jax.learning.objectives import Sums
from piano_jax.model import mesh as meshes
from piano_jax.model.lora import split
from piano_jax.model.transformer import Model, TransformerConfig

Objective = Callable[[Model, dict[str, Array], Key[Array, ""] | None], tuple[Float[Array, ""], Sums]]
Gradient = Callable[[nnx.State, dict[str, Array], Key[Array, ""]], tuple[nnx.State, Sums]]


class TrainState(NamedTuple):
    """All that a run needs to go on: `step` batches were learnt from, and so `step` is the position in the data."""

    step: Int32[Array, ""]
    weights: nnx.State
    optimizer: optax.OptState


Initializer = Callable[[Key[Array, ""]], TrainState]
Step = Callable[[TrainState, dict[str, Array]], tuple[TrainState, Sums]]


def definition(config: TransformerConfig) -> nnx.GraphDef:
    """A model's structure, which with weights makes the model."""
    return nnx.split(nnx.eval_shape(lambda: Model(config, nnx.Rngs(0))))[0]


def initializer(config: TransformerConfig, tx: optax.GradientTransformation) -> Initializer:
    """A function from a random key to the state before the first step."""

    def init(key: Array) -> TrainState:
        weights = nnx.split(Model(config, nnx.Rngs(key)))[1]
        return TrainState(jnp.zeros((), jnp.int32), weights, tx.init(split(weights)[0]))

    return init


def abstract_state(init: Initializer, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state: what a checkpoint restores into, and what `init` is compiled for."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        meshes.shardings(shapes, mesh),
    )


def summed_gradient(graph: nnx.GraphDef, objective: Objective, accumulate: int) -> Gradient:
    """The gradient of a batch's summed loss by what learns, and its sums. The batch is taken in `accumulate` parts.

    Gradients of sums add up; whoever divides them by the summed weights divides once, so that parts which hold less
    (padding) count less, and the outcome is the same as over the whole batch.
    """

    def gradient(weights: nnx.State, batch: dict[str, Array], key: Key[Array, ""]) -> tuple[nnx.State, Sums]:
        learning, frozen = split(weights)
        return jax.grad(lambda w: objective(nnx.merge(graph, w, frozen), batch, key), has_aux=True)(learning)

    if accumulate == 1:
        return gradient

    def take_apart(x: Shaped[Array, "B ..."]) -> Shaped[Array, "A b ..."]:
        parts = x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)  # each with rows of every device
        return meshes.reshard(parts, None, "batch", *(None,) * (x.ndim - 1))

    def accumulated(weights: nnx.State, batch: dict[str, Array], key: Key[Array, ""]) -> tuple[nnx.State, Sums]:
        parts = jax.tree.map(take_apart, batch), jax.random.split(key, accumulate)
        first = jax.eval_shape(gradient, weights, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), first)

        def add(total: tuple[nnx.State, Sums], part: tuple) -> tuple[tuple[nnx.State, Sums], None]:
            return jax.tree.map(jnp.add, total, gradient(weights, *part)), None

        return jax.lax.scan(add, zeros, parts)[0]

    return accumulated


def train_step(gradient: Gradient, tx: optax.GradientTransformation, rate: optax.Schedule, seed: int) -> Step:
    """A jitted step, which consumes the state; its sums have the gradient's norm and the learning rate beside them.

    What is random in a step (dropout) is drawn from (seed, step).
    """

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        learning, frozen = split(state.weights)
        gradients, sums = gradient(state.weights, batch, key)
        weight = jnp.maximum(sums["weight"].sum(), 1)
        gradients = jax.tree.map(lambda g: g / weight, split(gradients)[0])
        updates, optimizer = tx.update(gradients, state.optimizer, learning)
        sums |= {"gradient_norm": optax.tree.norm(gradients), "learning_rate": rate(state.step)}
        weights = nnx.merge_state(optax.apply_updates(learning, updates), frozen)
        return TrainState(state.step + 1, weights, optimizer), sums

    return jax.jit(step, donate_argnums=0)


def evaluation_step(graph: nnx.GraphDef, objective: Objective) -> Callable[[nnx.State, dict[str, Array]], Sums]:
    """A jitted sum over one batch, without learning."""
    return jax.jit(lambda weights, batch: objective(nnx.merge(graph, weights), batch, None)[1])
