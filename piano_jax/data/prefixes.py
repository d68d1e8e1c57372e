"""Labels as prefix tokens, put before pieces as they are read: a matter of the training config, not of the dataset."""

import csv

import numpy as np
from jaxtyping import Int64, UInt16

from piano_jax.data.shards import LABELS, Dataset


class Labelled:
    """A dataset whose pieces begin with their composer, form and genre, where its vocabulary knows them.

    It stands in for its dataset wherever rows are cut: `offsets`, `read` and `split` are those of the longer pieces.
    """

    def __init__(self, dataset: Dataset):
        self.path, self.vocabulary, self.split, self._dataset = dataset.path, dataset.vocabulary, dataset.split, dataset
        with (dataset.path / LABELS).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            columns = [column for column in ("composer", "form", "genre") if column in (rows.fieldnames or ())]
            found = [[dataset.vocabulary.labels.get((column, row[column]), -1) for column in columns] for row in rows]
        ids = np.array(found, np.int64).reshape(len(dataset), len(columns))
        self._ends = np.cumsum((ids >= 0).sum(1))
        self._ids = ids[ids >= 0].astype(np.uint16)
        self.offsets = dataset.offsets + np.concatenate([[0], self._ends])

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, pieces: Int64[np.ndarray, "n"]) -> list[UInt16[np.ndarray, "_"]]:
        """The ids of several pieces, labels first."""
        records = self._dataset.read(pieces)
        starts = np.concatenate([[0], self._ends])[pieces]
        bounds = zip(records, starts, self._ends[pieces], strict=True)
        return [np.concatenate([self._ids[start:end], record]) for record, start, end in bounds]
