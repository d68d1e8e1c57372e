"""Objectives: from a model and a batch to sums, which add up over micro-batches and devices before they are divided."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from piano_jax.model.mesh import reshard
from piano_jax.model.transformer import Model

Sums = dict[str, Float[Array, "K"]]


def next_token(
    model: Model, batch: dict[str, Array], key: Key[Array, ""] | None, kind: Int[np.ndarray, "V"], kinds: int
) -> tuple[Float[Array, ""], Sums]:
    """Cross-entropy of each next token, in nats, summed; `kind` sorts the targets into `kinds` classes of tokens.

    The sums are of "loss", "correct" (the likeliest token was the right one) and "weight", by class. A key turns
    residual dropout on.
    """
    logits = model(batch["tokens"], segment_ids=batch["segment_ids"], dropout_key=key)  # B T V
    targets, weights = (reshard(batch[name], "batch", "time") for name in ("targets", "weights"))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights
    correct = (logits.argmax(-1) == targets) * weights
    kind_of_target = jnp.asarray(kind).at[targets].get(out_sharding=jax.typeof(targets).sharding)
    is_kind = (kind_of_target[..., None] == jnp.arange(kinds)[None, None]).astype(jnp.float32)  # B T K
    by_position = {"loss": loss, "correct": correct, "weight": weights}
    sums = {name: (value[..., None] * is_kind).sum((0, 1)) for name, value in by_position.items()}
    return loss.sum(), sums
