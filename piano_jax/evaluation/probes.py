"""Linear probes: how much a linear layer tells of a label from frozen vectors; accuracy, F1, and how sure they are."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Int64
from sklearn.linear_model import LogisticRegression

from piano_jax.data.rows import permutation
from piano_jax.learning import optimizer

EPOCHS, BATCH = 50, 8  # of the authors' probe (METHOD, section 4)
ADAMW = {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1}
PENALTIES = tuple(10.0**power for power in range(-4, 2))  # inverse strengths, as scikit-learn counts them
RESAMPLES = 1000


class Score(NamedTuple):
    """Accuracy and macro-F1 with their 95 % intervals, and the confusion matrix: rows are true classes."""

    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    confusion: Int64[np.ndarray, "C C"]


def standardised(vectors: Float[np.ndarray, "N E"], known: Int64[np.ndarray, "_"]) -> Float32[np.ndarray, "N E"]:
    """Vectors whose every number has mean 0 and deviation 1 over those that are known: one rate for all encoders."""
    mean, deviation = vectors[known].mean(0), vectors[known].std(0)
    return ((vectors - mean) / np.where(deviation > 1e-8, deviation, 1)).astype(np.float32)


def logistic(
    vectors: Float32[np.ndarray, "N E"],
    targets: Int64[np.ndarray, "N"],
    learn: Int64[np.ndarray, "_"],
    choose: Int64[np.ndarray, "_"],
    finish: Int64[np.ndarray, "_"],
) -> Int64[np.ndarray, "N"]:
    """The classes that logistic regression gives: learnt on `learn`, the penalty with the most right on `choose`, the
    stronger of equals, and learnt anew with that one on `finish`."""

    def fit(penalty: float, on: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=penalty, max_iter=1000, tol=1e-3).fit(vectors[on], targets[on])

    right = [fit(penalty, learn).score(vectors[choose], targets[choose]) for penalty in PENALTIES]
    return fit(PENALTIES[int(np.argmax(right))], finish).predict(vectors)


def authors_probe(
    vectors: Float32[np.ndarray, "N E"],
    targets: Int64[np.ndarray, "N"],
    learn: Int64[np.ndarray, "L"],
    classes: int,
    seed: int = 0,
) -> Int64[np.ndarray, "N"]:
    """The classes that METHOD's probe gives: one linear layer learnt by AdamW in 50 epochs of batches of 8."""
    size = -(-len(learn) // BATCH) * BATCH
    epochs = [learn[permutation(len(learn), seed, epoch)] for epoch in range(EPOCHS)]
    rows = np.stack([np.pad(order, (0, size - len(learn)), constant_values=-1) for order in epochs])
    logits = _learn(vectors, targets, rows.reshape(-1, BATCH), classes)
    return np.asarray(logits).argmax(1)


@functools.partial(jax.jit, static_argnames="classes")
def _learn(
    vectors: Float[Array, "N E"], targets: Int[Array, "N"], batches: Int[Array, "S B"], classes: int
) -> Float[Array, "N C"]:
    """The logits of all vectors, by a layer learnt on these batches; -1 is no row."""
    steps = len(batches)
    rate = optimizer.schedule("linear", peak=3e-4, warmup=min(100, steps // 10), steps=steps, final=0.1)
    tx = optimizer.adamw(rate, **ADAMW)
    layer = {"weight": jnp.zeros((vectors.shape[1], classes)), "bias": jnp.zeros(classes)}

    def loss(layer: dict[str, Array], rows: Int[Array, "B"]) -> Float[Array, ""]:
        logits = vectors[rows] @ layer["weight"] + layer["bias"]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, targets[rows])
        return jnp.where(rows >= 0, each, 0).sum() / (rows >= 0).sum()

    def step(state: tuple, rows: Int[Array, "B"]) -> tuple[tuple, None]:
        layer, moments = state
        updates, moments = tx.update(jax.grad(loss)(layer, rows), moments, layer)
        return (optax.apply_updates(layer, updates), moments), None

    (layer, _), _ = jax.lax.scan(step, (layer, tx.init(layer)), batches)
    return vectors @ layer["weight"] + layer["bias"]


def score(
    targets: Int64[np.ndarray, "N"],
    found: Int64[np.ndarray, "N"],
    groups: Int64[np.ndarray, "N"],
    classes: int,
    seed: int = 0,
) -> Score:
    """How many are right. Intervals are percentiles of a bootstrap over groups: compositions, which are drawn whole."""
    count = groups.max() + 1
    cells = np.bincount((groups * classes + targets) * classes + found, minlength=count * classes**2)
    by_group = cells.reshape(count, -1)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES) @ by_group
    drawn = drawn[drawn.sum(1) > 0].reshape(-1, classes, classes)
    confusion = by_group.sum(0).reshape(classes, classes)
    values, resampled = _figures(confusion[None]), _figures(drawn)
    (low, high), (accuracy, macro_f1) = np.percentile(resampled, (2.5, 97.5), axis=0), values[0]
    intervals = [(float(low[place]), float(high[place])) for place in range(2)]
    return Score(float(accuracy), intervals[0], float(macro_f1), intervals[1], confusion)


def _figures(confusion: Int64[np.ndarray, "S C C"]) -> Float[np.ndarray, "S 2"]:
    """Accuracy, and the mean F1 of the classes that occur, true or given, for each confusion matrix."""
    right = np.einsum("SCC->SC", confusion)
    both = confusion.sum(1) + confusion.sum(2)
    f1 = 2 * right / np.maximum(both, 1)
    return np.stack([right.sum(1) / confusion.sum((1, 2)), f1.sum(1) / (both > 0).sum(1)], axis=1)
