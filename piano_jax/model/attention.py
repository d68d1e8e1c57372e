"""Causal self-attention, by the kernel that the devices have; `plain` is the twin that all the others equal."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash_kernels
from jaxtyping import Array, Float, Int

from piano_jax import BadInput
from piano_jax.model import mesh as meshes

KERNELS = ("auto", "plain", "blocked", "splash", "cudnn")
LANES = 128  # of a TPU: splash takes lengths and blocks that are multiples of it
BLOCK, BLOCKS = 128, 16  # of queries on a CPU: at least so many, in at most so many blocks


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_ids: Int[Array, "B T"] | None = None,
    kernel: str = "plain",
    blocks: tuple[int, int] = (512, 512),
) -> Float[Array, "B T H K"]:
    """Mixes the values of the present and the past, within a segment where segments are given; softmax in float32.

    `kernel` "auto" is splash on a TPU, cuDNN on a GPU, where they can do these sizes, or else plain; blocked on a CPU.
    `blocks` are the longest of queries and of keys that splash takes at a time. Raises BadInput for sizes that a kernel
    asked for by name cannot do.
    """
    if kernel == "auto":
        kernel = {"tpu": "splash", "gpu": "cudnn", "cpu": "blocked"}.get(meshes.platform(), "plain")
        kernel = "plain" if refusal(kernel, q.shape[1], q.shape[3], q.dtype.name) else kernel
    if reason := refusal(kernel, q.shape[1], q.shape[3], q.dtype.name):
        raise BadInput(f"attention {kernel}: {reason}")
    match kernel:
        case "splash":
            return splash(q, k, v, segment_ids, blocks)
        case "cudnn":
            return cudnn(q, k, v, segment_ids)
        case "blocked":
            return blocked(q, k, v, segment_ids)
        case _:
            return plain(q, k, v, segment_ids)


def refusal(kernel: str, length: int, head_size: int, dtype: str) -> str:
    """Why a kernel cannot do these sizes; empty where it can."""
    match kernel:
        case "splash" if length % LANES:
            return f"takes lengths that are multiples of {LANES}, not {length}"
        case "splash" if head_size % 64:
            return f"takes heads of 64, 128, …, not of {head_size}"
        case "cudnn" if head_size % 8 or head_size > 128:
            return f"takes heads of at most 128, in eights, not of {head_size}"
        case "cudnn" if dtype != "bfloat16":
            return f"computes in bfloat16, not {dtype}"
    return ""


def plain(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T H K"]:
    """Attention by its definition, with all T × T scores."""
    scores = jnp.einsum("BTHK,BSHK->BHTS", q * q.shape[3] ** -0.5, k, preferred_element_type=jnp.float32)
    scores = jnp.where(_visible(q.shape[1], segment_ids), scores, np.finfo(np.float32).min)
    # The softmax's division comes after the mixing: over head_size numbers a row instead of T, in both directions.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("BHTS,BSHK->BTHK", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (mixed / jnp.einsum("BHTS->BTH", weights)[..., None]).astype(v.dtype)


def blocked(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T H K"]:
    """Some queries at a time, over the keys up to theirs: half the work, on scores that a CPU's cache holds."""
    length = q.shape[1]
    size = max(BLOCK, -(-length // BLOCKS))
    visible = _visible(length, segment_ids)
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[3] ** -0.5, k, v))
    mixed = []
    for start in range(0, length, size):
        end = min(start + size, length)
        scores = jnp.einsum("BHTK,BHSK->BHTS", q[:, :, start:end], k[:, :, :end], preferred_element_type=jnp.float32)
        scores = jnp.where(visible[:, :, start:end, :end], scores, np.finfo(np.float32).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        part = jnp.einsum("BHTS,BHSK->BHTK", weights.astype(v.dtype), v[:, :, :end], preferred_element_type=jnp.float32)
        mixed.append((part / weights.sum(-1, keepdims=True)).astype(v.dtype))
    return jnp.concatenate(mixed, axis=2).swapaxes(1, 2)


def splash(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_ids: Int[Array, "B T"] | None,
    blocks: tuple[int, int],
) -> Float[Array, "B T H K"]:
    """JAX's Pallas kernel for TPUs, on each device's rows and heads; interpreted, slowly, on any other device."""
    length = q.shape[1]
    by_query, by_key = (max(n for n in range(LANES, length + 1, LANES) if length % n == 0 and n <= b) for b in blocks)
    sizes = splash_kernels.BlockSizes(
        block_q=by_query,
        block_kv=by_key,
        block_q_dkv=by_query,
        block_kv_dkv=by_key,
        block_q_dq=by_query,
        block_kv_dq=by_key,
    )

    interpret = meshes.platform() != "tpu"

    def local(q: Array, k: Array, v: Array, *ids: Array) -> Array:
        mask = splash_kernels.MultiHeadMask([splash_kernels.CausalMask((length, length))] * q.shape[2])
        kernel = splash_kernels.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
        segments = [splash_kernels.SegmentIds(x, x) for x in ids]
        heads_first = (x.swapaxes(1, 2) for x in (q * q.shape[3] ** -0.5, k, v))
        return jax.vmap(kernel)(*heads_first, *segments).swapaxes(1, 2)

    return _by_rows_and_heads(local, q, k, v, segment_ids)


def cudnn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T H K"]:
    """cuDNN's flash attention. It knows no segments: they become a mask of T × T for each row, shared by its heads."""

    def local(q: Array, k: Array, v: Array, *ids: Array) -> Array:
        mask = _visible(q.shape[1], *ids) if ids else None
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")

    return _by_rows_and_heads(local, q, k, v, segment_ids)


def _by_rows_and_heads(local: Callable[..., Array], q: Array, k: Array, v: Array, segment_ids: Array | None) -> Array:
    """Calls a kernel, which XLA cannot cut, on each device with the rows and heads that lie there."""
    heads = meshes.placed(q.shape, "batch", None, "heads", None).spec
    if segment_ids is None:
        return meshes.on_each(local, (heads,) * 3, heads)(q, k, v)
    rows = meshes.placed(segment_ids.shape, "batch", None).spec
    return meshes.on_each(local, (heads, heads, heads, rows), heads)(q, k, v, segment_ids)


def _visible(length: int, segment_ids: Array | None) -> Array:
    """Which positions (…, T, S) see which, as (B, 1, T, T)."""
    visible = jnp.tri(length, dtype=bool)[None, None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    return visible
