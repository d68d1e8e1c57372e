"""Cross-entropy of next tokens without the logits: over chunks of positions, with a gradient of its own."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from piano_jax.model import mesh as meshes

Outputs = tuple[Float[Array, ""], Float[Array, "B T"], Float[Array, "B T"]]
Gradients = tuple[Float[Array, "B T D"], Float[Array, "V D"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
    z: float,
) -> Outputs:
    """The summed loss, and at each position its cross-entropy in nats and whether the likeliest token was right.

    The loss is Σ weight · (cross-entropy + z · (log Σ exp logits)²), whose second term keeps logits from drifting
    (PaLM, section 5). Logits are the products of hidden states and table, float32, for `chunk` positions of a device
    at a time. The gradient comes with the loss: one pass over the logits makes both. Only the loss has a gradient.
    """
    return _on_each_device(hidden, table, targets, weights, chunk, z, gradient=False)


def _forward(hidden: Array, table: Array, targets: Array, weights: Array, chunk: int, z: float) -> tuple:
    *outputs, by_hidden, by_table = _on_each_device(hidden, table, targets, weights, chunk, z, gradient=True)
    return tuple(outputs), (by_hidden, by_table)


def _backward(chunk: int, z: float, gradients: Gradients, along: Outputs) -> tuple:
    return *(gradient * along[0].astype(gradient.dtype) for gradient in gradients), None, None


cross_entropy.defvjp(_forward, _backward)


def _on_each_device(
    hidden: Array, table: Array, targets: Array, weights: Array, chunk: int, z: float, gradient: bool
) -> tuple:
    """`_by_chunks` on each device's positions, with the table gathered and its gradient summed and cut up again."""
    mesh = jax.sharding.get_abstract_mesh()
    of_hidden = meshes.placed(hidden.shape, "batch", "time", None).spec
    of_targets, of_table = meshes.placed(targets.shape, "batch", "time").spec, meshes.spec(None, "table")
    used = {axis for axes in of_hidden if axes for axis in ([axes] if isinstance(axes, str) else axes)}
    # Devices that hold the same positions add the same numbers.
    share = 1 / math.prod(size for axis, size in mesh.shape.items() if axis not in used)
    cut = meshes.PLACES["table"]

    def local(hidden: Array, table: Array, targets: Array, weights: Array) -> tuple:
        if not mesh.empty:
            table = jax.lax.all_gather(table, cut, axis=1, tiled=True)
        loss, *others = _by_chunks(hidden, table, targets, weights, chunk, z, gradient)
        if not mesh.empty:
            loss = jax.lax.psum(loss * share, mesh.axis_names)
            if gradient:
                others[-1] = jax.lax.psum_scatter(others[-1] * share, cut, scatter_dimension=1, tiled=True)
                others[-1] = jax.lax.psum(others[-1], [axis for axis in mesh.axis_names if axis not in cut])
        return loss, *others

    takes = of_hidden, of_table, of_targets, of_targets
    gives = meshes.spec(), of_targets, of_targets, *((of_hidden, of_table) if gradient else ())
    return meshes.on_each(local, takes, gives)(hidden, table, targets, weights)


def _by_chunks(
    hidden: Array, table: Array, targets: Array, weights: Array, chunk: int, z: float, gradient: bool
) -> tuple:
    """Loss, cross-entropies and hits, and with `gradient` those of hidden states and table, of the dtypes of each."""
    count, shape = targets.size, targets.shape
    chunk = min(chunk, count)
    short = -count % chunk

    def into_chunks(x: Array) -> Array:
        flat = x.reshape(count, *x.shape[2:])
        return jnp.pad(flat, [(0, short)] + [(0, 0)] * (flat.ndim - 1)).reshape(-1, chunk, *flat.shape[1:])

    def whole(chunks: Array) -> Array:
        return chunks.reshape(count + short, *chunks.shape[2:])[:count].reshape(*shape, *chunks.shape[2:])

    def one(total: tuple, positions: tuple) -> tuple[tuple, tuple]:
        x, target, weight = positions
        logits = jnp.einsum("PD,VD->PV", x, table, preferred_element_type=jnp.float32)
        highest = logits.max(-1, keepdims=True)
        normalizer = highest + jnp.log(jnp.exp(logits - highest).sum(-1, keepdims=True))  # P 1
        is_target = target[:, None] == jnp.arange(len(table))[None]
        found = normalizer[:, 0] - jnp.where(is_target, logits, 0).sum(-1)
        hit = (logits.argmax(-1) == target).astype(jnp.float32)
        loss = total[0] + (weight * (found + z * normalizer[:, 0] ** 2)).sum()
        if not gradient:
            return (loss,), (found, hit)
        by_logits = jnp.exp(logits - normalizer) * (weight[:, None] * (1 + 2 * z * normalizer))
        by_logits = (by_logits - jnp.where(is_target, weight[:, None], 0)).astype(x.dtype)
        by_x = jnp.einsum("PV,VD->PD", by_logits, table)
        by_table = total[1] + jnp.einsum("PV,PD->VD", by_logits, x, preferred_element_type=jnp.float32)
        return (loss, by_table), (found, hit, by_x)

    start = (jnp.zeros(()), jnp.zeros(table.shape)) if gradient else (jnp.zeros(()),)
    (loss, *by_table), out = jax.lax.scan(one, start, tuple(map(into_chunks, (hidden, targets, weights))))
    return loss, *map(whole, out), *(total.astype(table.dtype) for total in by_table)
