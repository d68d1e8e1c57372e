"""Objectives: from a model and a batch to sums, which add up over micro-batches and devices before they are divided."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from piano_jax.learning.cross_entropy import cross_entropy
from piano_jax.model.mesh import reshard
from piano_jax.model.transformer import Model

Sums = dict[str, Float[Array, "K"]]


def next_token(
    model: Model,
    batch: dict[str, Array],
    key: Key[Array, ""] | None,
    kind: Int[np.ndarray, "V"],
    kinds: int,
    chunk: int,
    z: float,
) -> tuple[Float[Array, ""], Sums]:
    """The summed loss of next tokens (see `cross_entropy`); `kind` sorts the targets into `kinds` classes of tokens.

    The sums are of "loss" (cross-entropy in nats), "correct" (the likeliest token was the right one) and "weight", by
    class. A key turns residual dropout on. Where rows have an embedding, they are conditioned on it.
    """
    hidden = model.encode(batch["tokens"], batch["segment_ids"], batch.get("embedding"), key)
    if "embedding" in batch:  # each position's state is read one further on; the last predicts nothing
        hidden = jnp.roll(hidden, -1, axis=1)
    hidden = reshard(hidden.astype(model.config.dtype), "batch", "time", None)
    table = model.head_table[...].astype(model.config.dtype)
    targets, weights = (reshard(batch[name], "batch", "time") for name in ("targets", "weights"))
    total, loss, correct = cross_entropy(hidden, table, targets, weights, chunk, z)
    kind_of_target = jnp.asarray(kind).at[targets].get(out_sharding=jax.typeof(targets).sharding)
    is_kind = (kind_of_target[..., None] == jnp.arange(kinds)[None, None]) * weights[..., None]  # B T K
    by_position = {"loss": loss, "correct": correct, "weight": jnp.ones_like(weights)}
    return total, {name: (value[..., None] * is_kind).sum((0, 1)) for name, value in by_position.items()}
