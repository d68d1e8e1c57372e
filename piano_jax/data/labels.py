"""What is known of pieces besides their notes: the manifest's columns, and the split that a piece belongs to."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int8

from piano_jax import BadInput

SPLITS = ("train", "val", "test")


class Manifest:
    """A CSV with a `path` column and label columns. Called with a path, gives its labels in the order of `columns`.

    Raises:
        BadInput: the file is not there, is not such a CSV, or names a path twice.
    """

    def __init__(self, name: str):
        try:
            with epath.Path(name).open("rb") as file:
                rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
                header = next(rows, [])
                if "path" not in header:
                    raise BadInput(f"{name}: a manifest needs a `path` column")
                at = header.index("path")
                self.columns = (*header[:at], *header[at + 1 :])
                self._rows: dict[str, tuple[str, ...]] = {}
                for row in rows:
                    if len(row) != len(header):
                        raise BadInput(f"{name}, line {rows.line_num}: {len(row)} values under {len(header)} columns")
                    if row[at] in self._rows:
                        raise BadInput(f"{name}, line {rows.line_num}: {row[at]} for the second time")
                    self._rows[row[at]] = (*row[:at], *row[at + 1 :])
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"{name}: not a CSV file ({error})") from error
        except (OSError, ImportError) as error:
            raise BadInput(f"{name}: {getattr(error, 'strerror', None) or error}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, path: str) -> tuple[str, ...] | None:
        return self._rows.get(path)


def given_split(values: Sequence[str]) -> tuple[tuple[str, ...], Int8[np.ndarray, "N"]]:
    """The names of the splits in a `split` column, and the index of every piece's; -1 where the column is empty.

    Raises:
        BadInput: the column holds more names than splits can have.
    """
    found = set(values) - {""}
    names = (*(name for name in SPLITS if name in found), *sorted(found.difference(SPLITS)))
    if len(names) > 127:
        raise BadInput(f"the labels' split column holds {len(names):,} different names")
    index = {name: place for place, name in enumerate(names)}
    return names, np.array([index.get(value, -1) for value in values], np.int8)


def drawn_split(values: Sequence[str], fractions: Sequence[float]) -> Int8[np.ndarray, "N"]:
    """Deals pieces to splits, in the given fractions of the pieces, so that pieces of one value stay together.

    The distinct values stand in the order of their SHA-256 and are cut where the cumulative count of pieces comes
    nearest to each fraction; a split with a fraction gets at least one value where there are enough of them.
    """
    counts = Counter(values)
    order = sorted(counts, key=lambda value: hashlib.sha256(value.encode()).digest())
    ends = np.cumsum([counts[value] for value in order])
    middles = ends - np.diff(ends, prepend=0) / 2
    cuts = np.searchsorted(middles, np.cumsum(fractions)[:-1] * len(values))
    cuts = np.array([0, *cuts, len(order)])
    wanted = (np.asarray(fractions) > 0).astype(int)
    if wanted.sum() <= len(order):
        for split in range(len(fractions) - 1):
            cuts[split + 1] = max(cuts[split + 1], cuts[split] + wanted[split])
        for split in reversed(range(1, len(fractions))):
            cuts[split] = min(cuts[split], cuts[split + 1] - wanted[split])
    split_of = dict(zip(order, np.repeat(np.arange(len(fractions)), np.diff(cuts)).tolist(), strict=True))
    return np.array([split_of[value] for value in values], np.int8)
