"""Classes of whole pieces, from the slices that a finetuned classifier tells."""

from collections.abc import Iterable, Iterator
from itertools import islice

import jax
import numpy as np
from jaxtyping import Float32

from piano_jax.data.chunks import Chunks
from piano_jax.inference.embedding import Embedder

WINDOW = 64  # pieces at a time


def class_shares(classify: Embedder, pieces: Iterable[Chunks]) -> Iterator[Float32[np.ndarray, "C"]]:
    """For each piece the probabilities of its slices' classes, weighted by their numbers of tokens (METHOD, section 4).

    `classify` gives each slice the output of the model's head, the logits of its classes.
    """
    pieces = iter(pieces)
    while window := list(islice(pieces, WINDOW)):
        logits = classify([slice for chunks in window for slice in chunks])
        tokens = np.array([len(slice) for chunks in window for slice in chunks], np.float32)
        votes = np.asarray(jax.nn.softmax(logits)) * tokens[:, None]
        ends = np.cumsum([len(chunks) for chunks in window])
        for start, end in zip([0, *ends], ends, strict=False):
            yield votes[start:end].sum(0) / tokens[start:end].sum()
