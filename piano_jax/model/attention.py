"""Causal self-attention."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """Mixes the values of the present and the past, within a segment where segments are given; softmax in float32."""
    length, head_size = q.shape[1], q.shape[3]
    scores = jnp.einsum("BTHK,BSHK->BHTS", q * head_size**-0.5, k, preferred_element_type=jnp.float32)
    visible = jnp.tri(length, dtype=bool)[None, None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    scores = jnp.where(visible, scores, np.finfo(np.float32).min)
    # The softmax's division comes after the mixing: over head_size numbers a row instead of T, in both directions.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("BHTS,BSHK->BTHK", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (mixed / jnp.einsum("BHTS->BTH", weights)[..., None]).astype(v.dtype)
