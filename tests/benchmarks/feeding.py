"""Tokens a second from shards to batches, on one core: python -m tests.benchmarks.feeding [--data DIR]

Without --data it writes a dataset of random performances. Each line adds a stage to those above it; the last, batches
through Grain, is the figure that training gets.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from piano_jax.data import Dataset, PretrainingRows
from piano_jax.data.batches import batches
from piano_jax.data.rows import Line
from piano_jax.data.shards import Writer, new_folder
from piano_jax.music import Notes, Vocabulary, augment


def write_random(path: Path, pieces: int, vocabulary: Vocabulary) -> None:
    """Pieces of 1,800 notes on average, five or so a second, as in the shared corpus."""
    random = np.random.default_rng(0)
    with new_folder(path) as folder:
        writer = Writer(folder, vocabulary)
        for _ in range(pieces):
            count = 20 + int(random.exponential(1800))
            notes = Notes(
                onset=np.cumsum(random.exponential(125, count) * (random.random(count) < 0.7)),
                duration=random.lognormal(6, 1, count).clip(20, 6000),
                pitch=random.integers(21, 109, count),
                velocity=random.integers(10, 121, count),
            )
            writer.add(vocabulary.encode(notes), count, notes.seconds)
        names = [(f"{piece}.mid",) for piece in range(pieces)]
        writer.finish(("path",), names, ("train",), np.zeros(pieces, np.int8), {}, [])


def rate(arrays: Iterator[np.ndarray]) -> float:
    """Tokens a second of wall time, the first array aside."""
    next(arrays)
    start = time.perf_counter()
    tokens = sum(array.size for array in arrays)
    return tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a dataset that prepare has written, with a split named train")
    parser.add_argument("--length", type=int, default=8192, help="tokens a row (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="rows a batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="batches to time (default: %(default)s)")
    parser.add_argument("--pieces", type=int, default=3000, help="random pieces to write (default: %(default)s)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            write_random(Path(folder) / "random", options.pieces, Vocabulary("aria"))
        dataset = Dataset(options.data or Path(folder) / "random")
        rows = PretrainingRows(dataset, "train", options.length, seed=0, augmented=True, isolate=True)
        line, order = Line(dataset, rows.pieces), np.random.default_rng(0).permutation(rows.rows_per_epoch)
        random = np.random.default_rng(0)

        def read(row: int) -> np.ndarray:
            return line.cut(int(order[row % len(order)]) * options.length, options.length)

        def read_and_augment(row: int) -> np.ndarray:
            return augment(read(row), dataset.vocabulary, random)

        # Grain starts a thread, which must not run while the first three stages are timed.
        steps = range(options.steps * options.batch)
        measured = {
            "read": rate(map(read, steps)),
            "read, augment": rate(map(read_and_augment, steps)),
            "read, augment, shift: rows": rate(rows[step]["tokens"] for step in steps),
            "all through Grain: batches": rate(
                batch["tokens"] for batch in itertools.islice(batches(rows, options.batch), options.steps)
            ),
        }
        for name, tokens in measured.items():
            milliseconds = 1000 * options.length / tokens
            print(f"{name:28} {tokens / 1e6:7.2f} M tokens/s  {milliseconds:6.3f} ms a row of {options.length}")


if __name__ == "__main__":
    main()
