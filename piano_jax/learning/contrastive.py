"""Contrastive learning: SimCLR's loss on pairs of slices of one piece, over the whole global batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from piano_jax import BadInput
from piano_jax.learning.objectives import Sums
from piano_jax.model.mesh import reshard
from piano_jax.model.transformer import Model

NEGATIVES = ("all", "across")
NEVER = -1e9  # the logit of what is no candidate


def check(batch: int, negatives: str, groups: int, temperature: float) -> None:
    """Raises BadInput where these are none of a contrastive loss."""
    if groups < 1 or batch % groups:
        raise BadInput(f"loss.groups {groups}: the batch of {batch} pairs is not as many equal groups")
    if negatives not in NEGATIVES:
        raise BadInput(f"loss.negatives {negatives}: no such negatives (there are {', '.join(NEGATIVES)})")
    if not temperature > 0:
        raise BadInput(f"loss.temperature {temperature}: a temperature is above 0")


def contrast(
    views: Float[Array, "B 2 E"],
    weights: Float[Array, "B"],
    temperature: Float[Array, ""] | float,
    negatives: str = "all",
    groups: int = 1,
) -> tuple[Float[Array, ""], Sums]:
    """Cross-entropy of each view's finding its partner among candidates by cosine similarity, summed over pairs.

    A pair counts its two views' mean. Candidates are all other views of the batch ("all": NT-Xent, arXiv 2002.05709,
    equation 1), or the other view of every pair ("across": the symmetric InfoNCE of arXiv 2103.00020, figure 3). Pairs
    of no weight are no candidates, nor are those of another of the `groups`, equal parts of the batch in its order.

    The sums are of "loss", "correct" (the partner was the nearest candidate), "weight", "alignment" (squared distance
    between partners), and "potential", exp(-2 squared distance), over the "others", views of different pairs.
    """
    views = views * jax.lax.rsqrt(jnp.square(views).sum(-1, keepdims=True) + 1e-12)
    # Each device compares its own views with those of all devices; the gather's gradient is a sum over devices.
    own, everyone = reshard(views, "batch", None, None), reshard(views, None, None, None)
    counted, present = reshard(weights, "batch"), reshard(weights, None) > 0
    pair, pairs = reshard(jnp.arange(len(views)), "batch"), jnp.arange(len(views))
    other = present[None] & (pair[:, None] != pairs[None])
    candidate = present[None] & (pair[:, None] * groups // len(views) == pairs[None] * groups // len(views))
    loss = correct = jnp.zeros_like(counted)
    for view in range(2):
        across = jnp.einsum("BE,NE->BN", own[:, view], everyone[:, 1 - view])
        logits = jnp.where(candidate, across / temperature, NEVER)
        if negatives == "all":
            within = jnp.einsum("BE,NE->BN", own[:, view], everyone[:, view])
            logits = jnp.concatenate([logits, jnp.where(other & candidate, within / temperature, NEVER)], axis=1)
        loss += optax.softmax_cross_entropy_with_integer_labels(logits, pair) / 2
        correct += (logits.argmax(-1) == pair) / 2
    # Unit vectors are 2 - 2 cosine apart, squared; one direction's similarities are the other's, transposed.
    potential = jnp.where(other, jnp.exp(4 * across - 4), 0).sum(1)
    sums = {
        "loss": loss * counted,
        "correct": correct * counted,
        "weight": counted,
        "alignment": jnp.square(own[:, 0] - own[:, 1]).sum(-1) * counted,
        "potential": potential * counted,
        "others": other.sum(1) * counted,
    }
    sums = {name: value.sum()[None] for name, value in sums.items()}
    return sums["loss"][0], sums


def embed_pairs(model: Model, tokens: Int[Array, "B 2 T"], ends: Int[Array, "B 2"]) -> Float[Array, "B 2 E"]:
    """The embeddings of both views of every pair, not normalised."""
    flat = model.output_at(tokens.reshape(-1, tokens.shape[-1]), ends.reshape(-1))
    return flat.reshape(*ends.shape, -1)


def objective(
    model: Model,
    batch: dict[str, Array],
    key: Key[Array, ""] | None,
    parts: int,
    temperature: float,
    negatives: str,
    groups: int,
) -> tuple[Float[Array, ""], Sums]:
    """The contrastive loss of a batch of pairs, summed, and its sums; see `contrast`.

    Embeds the batch in `parts`, of which the backward pass computes each again for itself with the gradients of its
    embeddings: the loss is over the whole batch, in the memory of one part (GradCache, arXiv 2101.06983).
    """
    tokens, ends = batch["tokens"], batch["ends"]
    if parts == 1:
        views = embed_pairs(model, tokens, ends)
    else:

        def take_apart(x: Array) -> Array:
            x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)  # each with pairs of every device
            return reshard(x, None, "batch", *(None,) * (x.ndim - 2))

        one = jax.checkpoint(functools.partial(embed_pairs, model), prevent_cse=False)
        views = jax.lax.map(lambda part: one(*part), jax.tree.map(take_apart, (tokens, ends)))
        views = views.swapaxes(0, 1).reshape(len(tokens), 2, -1)
    if model.config.learn_temperature:
        temperature = temperature * jnp.exp(model.log_temperature[...])
    loss, sums = contrast(views, batch["weights"], temperature, negatives, groups)
    return loss, sums | {"temperature": sums["weight"] * temperature}


def figures(sums: Sums) -> dict[str, float]:
    """Loss (nats), the share of views whose partner is the nearest candidate, and temperature; alignment and uniformity
    as in arXiv 2005.10242, of which the smaller are the better."""
    total = {name: float(np.asarray(value, np.float64).sum()) for name, value in sums.items()}
    weight = max(total["weight"], 1)
    found = {"loss": total["loss"] / weight, "retrieval": total["correct"] / weight}
    found |= {name: total[name] / weight for name in ("alignment", "temperature")}
    return found | {"uniformity": float(np.log(total["potential"] / total["others"])) if total["others"] else 0.0}
