"""Embeddings of performances: chunks of pieces, batched by length into few compiled shapes."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Int32

from piano_jax import BadInput
from piano_jax.data.chunks import NOTES, ChunkReader, Chunks
from piano_jax.data.vectors import Embedded
from piano_jax.learning.checkpoints import read_config, read_model
from piano_jax.model import Model
from piano_jax.model import mesh as meshes
from piano_jax.model.attention import LANES
from piano_jax.music import Vocabulary

ROWS = 32  # chunks at a time on an accelerator
CPU_TOKENS = 1024  # and tokens on a CPU, or one chunk
WINDOW = 32  # batches whose chunks are sorted by length together


class Embedder:
    """Embeds chunks of at most `longest` tokens on the mesh that is set.

    Chunks of a batch are alike in length, and padded to a multiple of a step, so that the shapes are few: `<E>`
    sees nothing of what follows it. A CPU takes as many at a time as its cache holds the arrays of.
    """

    def __init__(self, model: Model, mesh: Mesh, longest: int):
        self._model, self._mesh, self._longest = model, mesh, longest
        on_cpu = meshes.platform() == "cpu"
        self._rows = meshes.parts("batch", mesh) * (max(1, CPU_TOKENS // longest) if on_cpu else ROWS)
        self._step = 16 if on_cpu else LANES

    def __call__(self, chunks: Sequence[Int32[np.ndarray, "_"]]) -> Float32[np.ndarray, "N E"]:
        """The embedding of every chunk, not normalised, in their order."""
        order = np.argsort([-len(chunk) for chunk in chunks], kind="stable")
        found, ahead = [], None
        for first in range(0, len(chunks), self._rows):
            batch = self._batch([chunks[place] for place in order[first : first + self._rows]])
            ahead, done = embed(self._model, **meshes.shard_batch(batch, self._mesh)), ahead
            if done is not None:  # fetched while the next is computed
                found.append(np.asarray(done))
        found.append(np.asarray(ahead))
        return np.concatenate(found)[np.argsort(order)]

    def _batch(self, chunks: Chunks) -> dict[str, Int32[np.ndarray, "B ..."]]:
        step = self._step if len(chunks[0]) > 512 else LANES
        length = min(-(-len(chunks[0]) // step) * step, self._longest)
        tokens, ends = np.full((self._rows, length), Vocabulary.pad, np.int32), np.zeros(self._rows, np.int32)
        for row, chunk in enumerate(chunks):
            tokens[row, : len(chunk)], ends[row] = chunk, len(chunk) - 1
        return {"tokens": tokens, "ends": ends}

    def pieces(self, read: Iterable[tuple[Hashable, Chunks | str]]) -> Iterator[list[Embedded]]:
        """Embeds pieces as they are read, some at a time, in their order; a string says why a piece has no chunks."""
        window: list[tuple[Hashable, Chunks | str]] = []
        waiting = 0
        for key, found in read:
            window.append((key, found))
            waiting += len(found) if isinstance(found, list) else 0
            if waiting >= WINDOW * self._rows:
                yield self._embed(window)
                window, waiting = [], 0
        if window:
            yield self._embed(window)

    def _embed(self, window: list[tuple[Hashable, Chunks | str]]) -> list[Embedded]:
        flat = [chunk for _, found in window if isinstance(found, list) for chunk in found]
        vectors = iter(self(flat)) if flat else iter(())
        return [
            Embedded(key, np.mean(list(islice(vectors, len(found))), axis=0), len(found))
            if isinstance(found, list)
            else Embedded(key, None, 0, found)
            for key, found in window
        ]


@jax.jit
def embed(model: Model, tokens: Int[Array, "B T"], ends: Int[Array, "B"]) -> Float[Array, "B E"]:
    """The embedding of each row, the head's output at `<E>`, by the encoder that training calls."""
    return model.output_at(tokens, ends)


def read_embedder(
    checkpoint: str, mesh: Mesh, notes: int | None = None, fresh: bool = False
) -> tuple[ChunkReader, Embedder]:
    """How a checkpoint reads files and embeds what it read; with fresh weights, as before its training.

    Chunks are of so many notes, or else of METHOD's 300, but not of more than its slices had in training, for what is
    longer than its rows is cut off. Raises BadInput where the checkpoint has no embedding head.
    """
    head = read_config(checkpoint).model.get("head", "language")
    if head != "embedding":
        raise BadInput(f"{checkpoint}: has a {head} head and no embedding head; see configs/contrastive.py")
    model, config = read_model(checkpoint, mesh, fresh)
    longest = config.get("length", model.config.context)
    notes = notes or min(NOTES, config.get("slice", {"longest": NOTES})["longest"])
    return ChunkReader(config.vocabulary, notes, longest), Embedder(model, mesh, longest)
