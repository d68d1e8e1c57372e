"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): a frozen weight, and a trained change b · a of low rank."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from piano_jax.model.mesh import placed, reshard


class LowRank(nnx.Module):
    """The change of a weight of all layers: (layers, outputs…, inputs…), of which the last `inputs` axes are summed.

    `b` starts at zero, so that the model starts as it was; `a` makes numbers of the input's own size [ours].
    """

    def __init__(self, frozen: nnx.Param, inputs: int, rank: int, rngs: nnx.Rngs):
        (layers, *shape), (_, *axes) = frozen.shape, frozen.get_metadata("axes")
        split, scale = len(shape) - inputs, math.prod(shape[-inputs:]) ** -0.5
        a = scale * jax.random.normal(rngs.params(), (layers, rank, *shape[split:]))
        self.a = nnx.Param(a, axes=(None, None, *axes[split:]))
        self.b = nnx.Param(jnp.zeros((layers, *shape[:split], rank)), axes=(None, *axes[:split], None))

    def __call__(self, h: Float[Array, "B T *inputs"], which: int | None = None) -> Float[Array, "B T *outputs"]:
        """What the change adds to the product of h with one layer's weight, or with part `which` of its first axis."""

        def use(param: nnx.Param) -> Array:
            names = (None if name == "model" else name for name in param.get_metadata("axes")[1:])
            return reshard(param[...].astype(h.dtype), *names)

        a, b = use(self.a), use(self.b)
        b = b if which is None else b[which]
        inputs, outputs = "IJK"[: a.ndim - 1], "XYZ"[: b.ndim - 1]
        place = placed((*h.shape[:2], 1), "batch", None, None)
        low = jnp.einsum(f"BT{inputs},R{inputs}->BTR", h, a, out_sharding=None if place.mesh.empty else place)
        return jnp.einsum(f"BTR,{outputs}R->BT{outputs}", low, b)


def split(weights: nnx.State) -> tuple[nnx.State, nnx.State]:
    """The weights of a model, or their gradients, that learn, and those that are frozen."""
    return nnx.split_state(weights, lambda _, leaf: not leaf.get_metadata().get("frozen"), ...)


def merged(
    weight: Float[np.ndarray, "L *shape"], a: Float[np.ndarray, "L R *inputs"], b: Float[np.ndarray, "L *outputs R"]
) -> Float[np.ndarray, "L *shape"]:
    """The weight and its change in one."""
    layers, rank = a.shape[:2]
    return weight + (b.reshape(layers, -1, rank) @ a.reshape(layers, rank, -1)).reshape(weight.shape)
