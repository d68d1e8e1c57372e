"""From rows to batches: Grain's threads and worker processes, and the one integer that says where a run stands."""

import os
import threading
import time
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags
from jaxtyping import Float32, Int32

from piano_jax import BadInput
from piano_jax.data.rows import EvaluationRows, PretrainingRows, Row

Rows = PretrainingRows | EvaluationRows
Batch = dict[str, Int32[np.ndarray, "b T"] | Float32[np.ndarray, "b T"]]


class HostRows:
    """The rows of one host, step after step. Global batch n is rows n B to (n + 1) B - 1; host h has its h-th block."""

    def __init__(self, rows: Rows, batch_size: int, first_step: int, host: int, hosts: int):
        self.rows, self.batch_size, self.first_step, self.host = rows, batch_size, first_step, host
        self.share = batch_size // hosts

    def __len__(self) -> int:
        steps = -(-len(self.rows) // self.batch_size)
        return max(0, steps - self.first_step) * self.share

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(index, self.share)
        return self.rows[(self.first_step + step) * self.batch_size + self.host * self.share + place]


def end_with_parent(worker: int, workers: int) -> None:
    """Makes a worker process end when the process that started it is gone, killed or not."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def batches(
    rows: Rows, batch_size: int, first_step: int = 0, host: int = 0, hosts: int = 1, workers: int = 0
) -> Iterator[Batch]:
    """This host's part, `batch_size // hosts` rows, of every global batch from `first_step` on.

    What batches hold depends on `rows`, `batch_size` and the step alone. With `workers`, that many processes make
    whole batches in turn; without, one thread makes the next while this one is used.

    Raises:
        BadInput: the hosts cannot share a batch equally.
    """
    if batch_size < hosts or batch_size % hosts:
        raise BadInput(f"a batch of {batch_size} rows cannot be shared equally by {hosts} hosts")
    source = HostRows(rows, batch_size, first_step, host, hosts)
    prefetch = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    dataset = grain.MapDataset.source(source).batch(source.share).to_iter_dataset(prefetch)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's own flags, which it reads where it starts processes
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, end_with_parent)
    return iter(dataset)
