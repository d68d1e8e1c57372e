"""The decoder-only transformer of METHOD section 3, its sizes and its heads."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from piano_jax import BadInput
from piano_jax.model.attention import KERNELS, attention
from piano_jax.model.lora import LowRank
from piano_jax.model.mesh import placed, reshard

CHOICES = {
    "head": ("language", "embedding", "classifier", "conditioned"),
    "dtype": ("float32", "bfloat16"),
    "attention": KERNELS,
    "remat": ("none", "dots", "full"),
}
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a model and how it is computed; the weights depend on the shape alone. Raises BadInput."""

    vocabulary_size: int = 17_727
    d_model: int
    layers: int
    heads: int
    ff_width: int
    context: int  # the longest row of tokens
    head: str = "language"
    head_size: int = 0  # of the embedding, or the number of classes, or of the embedding that conditions
    learn_temperature: bool = False  # of the contrastive loss: a factor, whose logarithm is a weight
    residual_dropout: float = 0.0  # of the last layer; rises linearly from 0 at the first
    dtype: str = "bfloat16"  # of the matrix products; weights, normalisation, rotation and softmax are float32
    remat: str = "none"  # what the backward pass computes again: nothing, all but the products with weights, a layer
    attention: str = "auto"  # the kernel: see attention.py
    block_q: int = 512  # splash attention's, in positions: at most so many queries,
    block_kv: int = 512  # and keys, at a time
    lora_rank: int = 0  # of the trained changes to the layers' weights; then all but these and a new head is frozen
    unroll: int = 1  # layers in a step of the scan; `layers` leaves no loop

    def __post_init__(self):
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise BadInput(f"model {field} {getattr(self, field)!r} is none of {', '.join(choices)}")
        if self.d_model % (2 * self.heads):
            raise BadInput(f"model d_model {self.d_model} is not an even number for each of {self.heads} heads")
        if self.head != "language" and self.head_size < 1:
            raise BadInput(f"model head {self.head!r} needs a head_size")

    @property
    def gives_logits(self) -> bool:
        """Whether the head's output is logits of the next token."""
        return self.head in ("language", "conditioned")

    @classmethod
    def smoke(cls, **changes: Any) -> "TransformerConfig":
        """Trains on two CPU cores, hundreds of steps in a minute or two."""
        shape = {"d_model": 128, "layers": 3, "heads": 4, "ff_width": 512, "context": 256}
        return cls(**shape | {"dtype": "float32"} | changes)

    @classmethod
    def laptop(cls, **changes: Any) -> "TransformerConfig":
        """1.2 M parameters: learns some music on a CPU core, thousands of steps in twenty minutes."""
        return cls(**proportions(128, 2) | {"context": 256, "dtype": "float32"} | changes)

    @classmethod
    def small(cls, **changes: Any) -> "TransformerConfig":
        """30 M parameters."""
        return cls(**{"d_model": 384, "layers": 8, "heads": 6, "ff_width": 1280, "context": 2048} | changes)

    @classmethod
    def medium(cls, **changes: Any) -> "TransformerConfig":
        """The authors' 658,538,496 parameters, heads of 64: the shape that loads the released weights."""
        return cls(**proportions(1536, 16) | {"context": 8192} | changes)

    @classmethod
    def medium_tpu(cls, **changes: Any) -> "TransformerConfig":
        """As many parameters in heads of 128, as wide as a TPU's lanes: the shape for a run from scratch."""
        return cls.medium(**{"heads": 12} | changes)


def proportions(d_model: int, layers: int) -> dict[str, int]:
    """Medium's at any width and depth: heads of 64, a feed-forward part four times as wide."""
    return {"d_model": d_model, "layers": layers, "heads": d_model // 64, "ff_width": 4 * d_model}


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float = 1.0) -> nnx.Param:
    """A float32 weight, normal with a deviation of 0.02 × scale [ours]; `axes` are names of mesh.PLACES."""
    return nnx.Param(0.02 * scale * jax.random.normal(rngs.params(), shape), axes=axes)


@jax.custom_vjp
def computed_once(x: Array) -> Array:
    """x itself, whose gradient is a finished array before anything reads it.

    A weight's gradient reads the gradient of its product transposed. XLA's CPU compiler would fuse all that led to the
    latter into that strided copy, at twice the time of the whole feed-forward part (jax 0.12; 0.10 drops the barrier).
    """
    return x


computed_once.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


class LayerNorm(nnx.Module):
    """Normalises the last axis in float32, whatever comes in."""

    def __init__(self, *shape: int):
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * self.scale[None, None] + self.bias[None, None]


Attend = Callable[[Float[Array, "B T H K"], Float[Array, "B T H K"], Float[Array, "B T H K"]], Float[Array, "B T H K"]]
Rotation = tuple[Float[Array, "#B T 1 _"], Float[Array, "#B T 1 _"]]


def rotation(positions: Int[Array, "#B T"], head_size: int) -> Rotation:
    """Cosines and sines of the rotary position embedding, base 500,000."""
    frequencies = 500_000.0 ** -(np.arange(0, head_size, 2, dtype=np.float32) / head_size)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T H K"], by: Rotation) -> Float[Array, "B T H K"]:
    """Turns the pairs made of the first half of a head and the second, in float32."""
    (a, b), (cos, sin) = jnp.split(x.astype(jnp.float32), 2, axis=-1), by
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def dropout(x: Float[Array, "B T D"], key: Key[Array, ""], rate: Float[Array, ""]) -> Float[Array, "B T D"]:
    """Zeroes a share `rate` of x and scales the rest up."""
    keep = reshard(jax.random.bernoulli(key, 1 - rate, x.shape), "batch", None, None)
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)


class Layers(nnx.Module):
    """All layers at once: each leaf has a leading axis of layers, and the call is one layer's, made on a slice.

    `attend` mixes the positions: plain attention, or one that reads the past from a cache.

    Matrices stand (out, in), the three of `qkv` in that order, so that the authors' tensors are these by a reshape.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        L, D, H, F = config.layers, config.d_model, config.heads, config.ff_width
        K, residual = D // H, (2 * L) ** -0.5  # 2 L projections add to the stream, whose variance stays bounded
        self.norm1 = LayerNorm(L, D)
        self.qkv = weight(rngs, (L, 3, H, K, D), (None, None, "heads", None, "model"))
        self.out = weight(rngs, (L, D, H, K), (None, "model", "heads", None), residual)
        self.norm2 = LayerNorm(L, D)
        self.gate = weight(rngs, (L, F, D), (None, "ff", "model"))
        self.up = weight(rngs, (L, F, D), (None, "ff", "model"))
        self.down = weight(rngs, (L, D, F), (None, "model", "ff"), residual)
        inputs = {"qkv": 1, "out": 2, "gate": 1, "up": 1, "down": 1} if config.lora_rank else {}
        changes = {name: LowRank(getattr(self, name), axes, config.lora_rank, rngs) for name, axes in inputs.items()}
        self.lora = nnx.Dict(changes)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        by: Rotation,
        attend: Attend,
        noise: tuple[Key[Array, "2"], Float[Array, ""]] | None,
    ) -> Float[Array, "B T D"]:
        def use(param: nnx.Param, *axes: str | None) -> Array:  # cast first: half as many bytes to gather
            return reshard(param[...].astype(x.dtype), *axes)

        def changed(product: Array, name: str, h: Array, which: int | None = None) -> Array:  # by LoRA, if at all
            return product + self.lora[name](h, which) if name in self.lora else product

        def add(change: Float[Array, "B T D"], which: int) -> Float[Array, "B T D"]:
            return x + (change if noise is None else dropout(change, noise[0][which], noise[1]))

        place = jax.typeof(x).sharding
        h = self.norm1(x).astype(x.dtype)
        weights = use(self.qkv, None, "heads", None, None)
        products = (computed_once(jnp.einsum("BTD,HKD->BTHK", h, w)) for w in weights)
        q, k, v = (changed(product, "qkv", h, which) for which, product in enumerate(products))
        h = attend(rotate(q, by), rotate(k, by), v)
        product = jnp.einsum("BTHK,DHK->BTD", h, use(self.out, None, "heads", None), out_sharding=place)
        x = add(changed(product, "out", h), 0)

        h = self.norm2(x).astype(x.dtype)
        products = (computed_once(jnp.einsum("BTD,FD->BTF", h, use(w, "ff", None))) for w in (self.gate, self.up))
        gate, up = (changed(product, name, h) for name, product in zip(("gate", "up"), products, strict=True))
        h = (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(x.dtype)
        product = jnp.einsum("BTF,DF->BTD", h, use(self.down, None, "ff"), out_sharding=place)
        return add(changed(product, "down", h), 1)


class Model(nnx.Module):
    """The transformer with one head. All its state is parameters: `nnx.split(model)` gives a definition and weights."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config, D = config, config.d_model
        self.token_table = weight(rngs, (config.vocabulary_size, D), (None, "table"))
        self.layers = Layers(config, rngs)
        self.norm = LayerNorm(D)
        outputs = config.vocabulary_size if config.gives_logits else config.head_size
        self.head_table = weight(rngs, (outputs, D), (None, "table"))
        if config.head == "conditioned":
            self.adapter = weight(rngs, (D, config.head_size), ("table", None))
        if config.learn_temperature:
            self.log_temperature = nnx.Param(jnp.zeros(()))
        if config.lora_rank:
            old = "token_table", "layers", "norm", "head_table" if config.gives_logits else ""
            nnx.set_metadata(self, only=lambda path, _: path[0] in old and "lora" not in path, frozen=True)

    @jax.jit
    def encode(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        embedding: Float[Array, "B E"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """The state at every position after the last normalisation, float32: the one encoder of every phase.

        Positions of other segments are invisible. An embedding, projected, takes position 0, the tokens move one
        position on and the last one drops out; where there are segments, zeros are no embedding, and invisible. A
        dropout key turns residual dropout on. Raises BadInput.
        """
        config = self.config
        if tokens.shape[1] > config.context:
            raise BadInput(f"rows of {tokens.shape[1]} tokens are longer than the model's context, {config.context}")
        if embedding is not None and config.head != "conditioned":
            raise BadInput(f"a model with head {config.head!r} takes no embedding")

        def put(table: nnx.Param) -> Array:
            return reshard(table[...].astype(config.dtype), None, None)

        tokens = reshard(tokens, "batch", None)
        x = put(self.token_table).at[tokens].get(out_sharding=placed((*tokens.shape, 1), "batch", None, None))
        if embedding is not None:
            embedding = reshard(embedding.astype(config.dtype), "batch", None)
            prefix = jnp.einsum("BE,DE->BD", embedding, put(self.adapter))
            x = jnp.concatenate([prefix[:, None], x[:, :-1]], axis=1)
        if segment_ids is not None:
            segment_ids = reshard(segment_ids, "batch", None)
            if embedding is not None:
                first = jnp.where((embedding != 0).any(1, keepdims=True), segment_ids[:, :1], -1)
                segment_ids = jnp.concatenate([first, segment_ids[:, :-1]], axis=1)
        noise = None
        if dropout_key is not None and config.residual_dropout:
            keys = jax.random.split(dropout_key, (config.layers, 2))
            noise = keys, jnp.linspace(0.0, config.residual_dropout, config.layers)

        by = rotation(jnp.arange(x.shape[1])[None], config.d_model // config.heads)
        blocks = config.block_q, config.block_kv
        attend = functools.partial(attention, segment_ids=segment_ids, kernel=config.attention, blocks=blocks)
        definition, weights = nnx.split(self.layers)

        def layer(x, slices):
            weights, noise = slices
            return nnx.merge(definition, weights)(x, by, attend, noise), None

        if config.remat != "none":  # inside a loop nothing can be merged with the forward pass, so no fence is needed
            layer = jax.checkpoint(layer, policy=POLICIES[config.remat], prevent_cse=config.unroll > 1)
        x, _ = jax.lax.scan(layer, x, (weights, noise), unroll=config.unroll)
        return self.norm(x)

    @jax.jit
    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T _"]:
        """The head's float32 output for encoded positions: logits, embeddings (not normalised) or class logits."""
        hidden = reshard(hidden.astype(self.config.dtype), "batch", "time", None)
        w = reshard(self.head_table[...].astype(self.config.dtype), None, None)
        return jnp.einsum("BTD,VD->BTV", hidden, w, preferred_element_type=jnp.float32)

    def output_at(
        self, tokens: Int[Array, "B T"], at: Int[Array, "B"], dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B _"]:
        """The head's float32 output at one position of each row: at `<E>`, an embedding or the logits of classes."""
        hidden = self.encode(tokens, dropout_key=dropout_key)
        row = reshard(jnp.arange(len(at)), "batch")
        state = hidden.at[row, reshard(at, "batch")].get(out_sharding=placed(hidden.shape[::2], "batch", None))
        return self.head(state[:, None])[:, 0]

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "B T"],
        embedding: Float[Array | np.ndarray, "B E"] | None = None,
        segment_ids: Int[Array | np.ndarray, "B T"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B _ _"]:
        """The head's float32 output at every position; with an embedding, at every source position but the last."""
        hidden = self.encode(tokens, segment_ids, embedding, dropout_key)
        return self.head(hidden if embedding is None else hidden[:, 1:])
