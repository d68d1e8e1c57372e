"""From rows to batches: Grain's threads and worker processes, and the one integer that says where a run stands."""

import os
import threading
import time
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags
from jaxtyping import Float32, Int, Int32

from piano_jax.data.continuations import ContinuationEvaluation, ContinuationRows
from piano_jax.data.pairs import Pair, PairRows, ValidationPairs
from piano_jax.data.rows import EvaluationRows, PretrainingRows, Row
from piano_jax.data.slices import ClassRows, Slice, ValidationSlices

Rows = (
    PretrainingRows
    | EvaluationRows
    | ContinuationRows
    | ContinuationEvaluation
    | PairRows
    | ValidationPairs
    | ClassRows
    | ValidationSlices
)
Batch = dict[str, Int32[np.ndarray, "b ..."] | Float32[np.ndarray, "b ..."]]


class HostRows:
    """The rows of one host, step after step: of global batch n, rows n B to (n + 1) B - 1, those at `places`."""

    def __init__(self, rows: Rows, batch_size: int, first_step: int, places: Int[np.ndarray, "b"]):
        self.rows, self.batch_size, self.first_step, self.places = rows, batch_size, first_step, places

    def __len__(self) -> int:
        steps = -(-len(self.rows) // self.batch_size)
        return max(0, steps - self.first_step) * len(self.places)

    def __getitem__(self, index: int) -> Row | Pair | Slice:
        step, place = divmod(index, len(self.places))
        return self.rows[(self.first_step + step) * self.batch_size + int(self.places[place])]


def end_with_parent(worker: int, workers: int) -> None:
    """Makes a worker process end when the process that started it is gone, killed or not."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def batches(
    rows: Rows, batch_size: int, first_step: int = 0, places: Int[np.ndarray, "b"] | None = None, workers: int = 0
) -> Iterator[Batch]:
    """This host's part of every global batch from `first_step` on: the rows at `places` of each, or else all.

    What batches hold depends on `rows`, `batch_size` and the step alone. With `workers`, that many processes make
    whole batches in turn; without, one thread makes the next while this one is used.
    """
    source = HostRows(rows, batch_size, first_step, np.arange(batch_size) if places is None else places)
    prefetch = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    dataset = grain.MapDataset.source(source).batch(len(source.places)).to_iter_dataset(prefetch)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's own flags, which it reads where it starts processes
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, end_with_parent)
    return iter(dataset)
