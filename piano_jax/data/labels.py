"""What is known of pieces besides their notes: the manifest's columns, and the split that a piece belongs to."""

import csv
import hashlib
import io
import json
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int8, UInt64

from piano_jax import BadInput

SPLITS = ("train", "val", "test")


def hashes(values: Iterable[str]) -> UInt64[np.ndarray, "N"]:
    """The first 64 bits of each value's SHA-256: what stands for a million strings in 8 MB."""
    return np.fromiter((_hash(value) for value in values), np.uint64)


def _hash(value: str) -> int:
    return int.from_bytes(hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()[:8])


class Table:
    """Rows of strings by key, in 24 bytes a row beside their text: a tenth of a dict of tuples."""

    def __init__(self) -> None:
        self._text, self._starts, self._hashes = bytearray(), array("Q"), array("Q")
        self._order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, key: str, row: Iterable[str]) -> None:
        self._starts.append(len(self._text))
        self._hashes.append(_hash(key))
        self._text += json.dumps([key, *row], ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._order = None

    def get(self, key: str) -> tuple[str, ...] | None:
        """The row added last under this key."""
        if self._order is None:
            self._order = np.argsort(np.frombuffer(self._hashes, np.uint64), kind="stable")
            self._sorted = np.frombuffer(self._hashes, np.uint64)[self._order]
        wanted = np.uint64(_hash(key))
        for place in range(int(np.searchsorted(self._sorted, wanted, side="right")) - 1, -1, -1):
            if self._sorted[place] != wanted:
                break
            found, *row = self._row(int(self._order[place]))
            if found == key:
                return tuple(row)
        return None

    def repeated(self) -> list[str]:
        """Keys that may have been added more than once: all that share a hash."""
        _, first, counts = np.unique(np.frombuffer(self._hashes, np.uint64), return_index=True, return_counts=True)
        return [self._row(int(row))[0] for row in first[counts > 1]]

    def _row(self, index: int) -> list[str]:
        end = self._starts[index + 1] if index + 1 < len(self) else len(self._text)
        return json.loads(self._text[self._starts[index] : end].decode("utf-8", "surrogatepass"))


class Manifest:
    """A CSV with a `path` column and label columns. Called with a path, gives its labels in the order of `columns`.

    Raises:
        BadInput: the file is not there, is not such a CSV, or names a path twice.
    """

    def __init__(self, name: str):
        self.name = name
        try:
            with epath.Path(name).open("rb") as file:
                rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
                header = next(rows, [])
                if "path" not in header:
                    raise BadInput(f"{name}: a manifest needs a `path` column")
                at = header.index("path")
                self.columns = (*header[:at], *header[at + 1 :])
                self._rows = Table()
                for row in rows:
                    if len(row) != len(header):
                        raise BadInput(f"{name}, line {rows.line_num}: {len(row)} values under {len(header)} columns")
                    self._rows.add(row[at], (*row[:at], *row[at + 1 :]))
                if repeated := self._rows.repeated():
                    raise BadInput(f"{name}: {repeated[0]} is there more than once")
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"{name}: not a CSV file ({error})") from error
        except (OSError, ImportError) as error:
            raise BadInput(f"{name}: {getattr(error, 'strerror', None) or error}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, path: str) -> tuple[str, ...] | None:
        return self._rows.get(path)


def given_split(values: Iterable[str]) -> tuple[tuple[str, ...], Int8[np.ndarray, "N"]]:
    """The names of the splits in a `split` column, and the index of every piece's; -1 where the column is empty.

    Raises:
        BadInput: the column holds more names than splits can have.
    """
    met: dict[str, int] = {"": 0}
    places = np.fromiter((met.setdefault(value, len(met)) for value in values), np.int32)
    found = met.keys() - {""}
    names = (*(name for name in SPLITS if name in found), *sorted(found.difference(SPLITS)))
    if len(names) > 127:
        raise BadInput(f"the labels' split column holds {len(names):,} different names")
    return names, np.array([names.index(name) if name else -1 for name in met], np.int8)[places]


def drawn_split(values: Iterable[str], fractions: Sequence[float]) -> Int8[np.ndarray, "N"]:
    """Deals pieces to splits, in the given fractions of the pieces, so that pieces of one value stay together.

    The distinct values stand in the order of their SHA-256 and are cut where the cumulative count of pieces comes
    nearest to each fraction; a split with a fraction gets at least one value where there are enough of them.
    """
    order, place, counts = np.unique(hashes(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middles = ends - counts / 2
    cuts = np.searchsorted(middles, np.cumsum(fractions)[:-1] * len(place))
    cuts = np.array([0, *cuts, len(order)])
    wanted = (np.asarray(fractions) > 0).astype(int)
    if wanted.sum() <= len(order):
        for split in range(len(fractions) - 1):
            cuts[split + 1] = max(cuts[split + 1], cuts[split] + wanted[split])
        for split in reversed(range(1, len(fractions))):
            cuts[split] = min(cuts[split], cuts[split + 1] - wanted[split])
    return np.repeat(np.arange(len(fractions), dtype=np.int8), np.diff(cuts))[place]
