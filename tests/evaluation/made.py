"""A dataset of generated performances, as prepare would have left it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from piano_jax.data import Dataset
from piano_jax.data.shards import Writer, new_folder
from piano_jax.music import Notes, Vocabulary


def make_dataset(
    path: Path, pieces: Sequence[Notes], split: Sequence[int], piece_ids: Sequence[str], name: str = "piano"
) -> Dataset:
    """Pieces of which 0 are to train on and 1 for validation, with labels: path, piece_id and composer."""
    vocabulary = Vocabulary(name)
    with new_folder(path) as folder:
        writer = Writer(folder, vocabulary)
        for notes in pieces:
            writer.add(vocabulary.encode(notes), len(notes), notes.seconds)
        labels = [(f"{place}.mid", of, ("bach", "satie", "")[place % 3]) for place, of in enumerate(piece_ids)]
        columns = ["path", "piece_id", "composer"]
        writer.finish(columns, labels, ["train", "val"], np.array(split, np.int8), {}, [])
    return Dataset(path)
