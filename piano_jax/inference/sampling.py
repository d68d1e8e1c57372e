"""How the next token is drawn from its logits."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from piano_jax import BadInput


class Cuts(NamedTuple):
    """The numbers of a `Sampling`, as a compiled program takes them."""

    temperature: Float[Array, ""]
    min_p: Float[Array, ""]
    top_p: Float[Array, ""]
    top_k: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is cut off before a token is drawn; each cut looks at the whole distribution at that temperature.

    `temperature` 0 takes the likeliest; `min_p` cuts what is less likely than that share of the likeliest (METHOD,
    section 4); `top_p` what is not among the likeliest that make up that share of all; `top_k` what is not among that
    many (0: no cut). Raises BadInput.
    """

    temperature: float = 0.98
    min_p: float = 0.035
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        for name, low, high in (("temperature", 0, 10), ("min_p", 0, 1), ("top_p", 0, 1), ("top_k", 0, 1 << 20)):
            if not low <= getattr(self, name) <= high:
                raise BadInput(f"{name} {getattr(self, name):g} is not between {low} and {high:,}")

    @property
    def sorts(self) -> bool:
        """Whether the cuts need the tokens in order, which takes longer."""
        return self.top_p < 1 or self.top_k > 0

    @property
    def cuts(self) -> Cuts:
        return Cuts(
            jnp.float32(self.temperature), jnp.float32(self.min_p), jnp.float32(self.top_p), jnp.int32(self.top_k)
        )


def draw(
    logits: Float[Array, "B C"], keys: Key[Array, "B"], cuts: Cuts, sorts: bool
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token for each row, and gives its log-probability (nats) before temperature and cuts.

    A logit of -inf is never drawn. By the Gumbel-max trick, the largest of the logits with noise of the temperature's
    size is a sample.
    """
    temperature, min_p, top_p, top_k = cuts
    least = logits.max(-1, keepdims=True) + temperature * jnp.log(jnp.maximum(min_p, 1e-30))
    if sorts:
        falling = -jnp.sort(-logits, -1)
        share = jax.nn.softmax(falling / jnp.maximum(temperature, 1e-6), -1)
        is_kept = (jnp.cumsum(share, -1) - share < top_p) | (jnp.arange(logits.shape[1]) == 0)[None]
        is_kept &= ((jnp.arange(logits.shape[1]) < top_k) | (top_k == 0))[None]
        least = jnp.maximum(least, jnp.where(is_kept, falling, jnp.inf).min(-1, keepdims=True))
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    scores = jnp.where(logits >= least, logits + temperature * noise, -jnp.inf)
    chosen = scores.argmax(-1)
    of_chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), chosen[:, None], -1)[:, 0]
    return chosen.astype(jnp.int32), of_chosen
