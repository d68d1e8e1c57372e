"""Classification: the class of a slice, and of a file from its slices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from piano_jax.learning.objectives import Sums
from piano_jax.model.mesh import reshard
from piano_jax.model.transformer import Model


def objective(model: Model, batch: dict[str, Array], key: Key[Array, ""] | None) -> tuple[Float[Array, ""], Sums]:
    """The cross-entropy of the slices' classes, summed, and the sums of "loss", "correct" and "weight".

    Where the batch says of which of all files a slice is, there are also, by file and class, "votes", the slices'
    probabilities times their numbers of tokens (METHOD, section 4), and "truth". A key turns residual dropout on.
    """
    logits = model.output_at(batch["tokens"], batch["ends"], key)
    targets, weights, ends = (reshard(batch[name], "batch") for name in ("targets", "weights", "ends"))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights
    correct = (logits.argmax(-1) == targets) * weights
    sums = {name: x.sum()[None] for name, x in (("loss", loss), ("correct", correct), ("weight", weights))}
    if "files" in batch:
        files = (reshard(batch["files"], "batch", None) * weights[:, None])[:, :, None]
        votes = jax.nn.softmax(logits) * (ends + 1)[:, None]
        truth = targets[:, None] == jnp.arange(logits.shape[1])[None]
        sums |= {name: (files * x[:, None]).sum(0).ravel() for name, x in (("votes", votes), ("truth", truth))}
    return sums["loss"][0], sums


def figures(sums: dict[str, Array | np.ndarray], classes: int) -> dict[str, float]:
    """Loss (nats) and accuracy of slices, and `files`, the accuracy of whole files, where there are votes."""
    loss, correct, weight = (float(np.asarray(sums[name], np.float64)[0]) for name in ("loss", "correct", "weight"))
    found = {"loss": loss / max(weight, 1), "accuracy": correct / max(weight, 1)}
    if "votes" in sums:
        votes, truth = (np.asarray(sums[name]).reshape(-1, classes) for name in ("votes", "truth"))
        known = truth.any(1)
        found["files"] = float((votes.argmax(1) == truth.argmax(1))[known].mean()) if known.any() else 0.0
    return found
