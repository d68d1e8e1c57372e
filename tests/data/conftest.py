"""Small datasets of the tests' own making."""

from pathlib import Path

import numpy as np
import pytest

from piano_jax.data import Dataset
from piano_jax.data.shards import Writer, new_folder
from piano_jax.music import Notes, Vocabulary


def random_notes(random: np.random.Generator, count: int) -> Notes:
    return Notes(
        onset=np.cumsum(random.integers(0, 400, count)),
        duration=random.integers(20, 3000, count),
        pitch=random.integers(30, 100, count),
        velocity=random.integers(20, 110, count),
    )


def write(path: Path, pieces: list[np.ndarray], split: list[int], shard_tokens: int, notes: list[int] = ()) -> Dataset:
    """A dataset of these pieces' ids, with splits train (0), val (1) and test (2)."""
    with new_folder(path) as folder:
        writer = Writer(folder, Vocabulary("aria"), shard_tokens)
        for number, ids in enumerate(pieces):
            writer.add(ids, notes=notes[number] if notes else number, seconds=60.0)
        labels = [(f"{number}.mid",) for number in range(len(pieces))]
        writer.finish(("path",), labels, ("train", "val", "test"), np.array(split, np.int8), {}, [])
    return Dataset(path)


@pytest.fixture(scope="module")
def performances(tmp_path_factory) -> Dataset:
    """40 pieces of 20 to 120 notes in several shards, every fourth in val, none in test."""
    random = np.random.default_rng(1)
    pieces = [Vocabulary("aria").encode(random_notes(random, count)) for count in random.integers(20, 120, 40)]
    return write(tmp_path_factory.mktemp("performances") / "data", pieces, [0, 0, 0, 1] * 10, 2000)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Dataset:
    """30 pieces that hold every id from 100 on once, in order: 25 of them in train, 5 in val."""
    random = np.random.default_rng(2)
    ends = 100 + np.cumsum(random.integers(1, 300, 30))
    pieces = np.split(np.arange(100, ends[-1], dtype=np.uint16), ends[:-1] - 100)
    return write(tmp_path_factory.mktemp("numbered") / "data", pieces, [0] * 25 + [1] * 5, 1000)
