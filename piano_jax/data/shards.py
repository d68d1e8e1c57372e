"""A dataset on disk: ArrayRecord shards with one record a piece, an index and labels beside them, `dataset.json` last.

A record is a piece's token ids as little-endian uint16, pieces in the order of input. `pieces.npz` holds `offsets`
(where pieces begin, laid end to end, and one past the last), `notes`, `seconds` and `split` (an index into the names in
`dataset.json`, -1 for none): a split is a label of a piece, and no shard knows it.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Int8, Int64, UInt16

from piano_jax import BadInput
from piano_jax.music import Vocabulary

FORMAT = 1
MANIFEST, INDEX, LABELS = "dataset.json", "pieces.npz", "labels.csv"
SHARD_TOKENS = 1 << 26
# Measured on the shared corpus, one core: 1.41 bytes a token at 135 M tokens/s read at random; uncompressed 2.01 and
# 268, zstd:1 1.52 and 155, brotli:3 1.45 and 58.
WRITER = "group_size:1,zstd:3"
READER = "readahead_buffer_size:0,max_parallelism:0"


def _checksum(file: Path) -> dict:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, beside `path`; it takes that name when the block ends well, and vanishes when it does not.

    Raises:
        BadInput: something is there already, or stands where its parent folder should.
        OSError: the disk is full.
    """
    path = path.absolute()
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{path.parent}: not a folder") from error
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as unfinished:
        folder = Path(unfinished) / path.name
        folder.mkdir()
        try:
            yield folder
        except (OSError, RuntimeError) as error:  # ArrayRecord says it in the words of a RuntimeError
            for code in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(path)) from error
            raise
        check_free(path)
        folder.rename(path)


def check_free(path: Path) -> None:
    if (path / MANIFEST).exists():
        raise BadInput(f"{path}: holds a dataset already")
    if path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None):
        raise BadInput(f"{path}: exists, and is not an empty folder")


class Writer:
    """Fills a new folder with a dataset: `add` a piece at a time, then `finish`."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, shard_tokens: int = SHARD_TOKENS):
        self._folder, self._vocabulary, self._shard_tokens = folder, vocabulary, shard_tokens
        self._shards: list[dict] = []
        self._records: ArrayRecordWriter | None = None
        self._room = 0
        self._lengths: list[int] = []
        self._notes: list[int] = []
        self._seconds: list[float] = []

    def add(self, ids: UInt16[np.ndarray, "T"], notes: int, seconds: float) -> None:
        if self._room <= 0:
            self._close_shard()
            self._shards.append({"name": f"pieces-{len(self._shards):05d}.arrayrecord", "pieces": 0})
            self._records = ArrayRecordWriter(str(self._folder / self._shards[-1]["name"]), WRITER)
            self._room = self._shard_tokens
        self._records.write(ids.astype("<u2").tobytes())  # type: ignore[union-attr]
        self._room -= len(ids)
        self._shards[-1]["pieces"] += 1
        self._lengths.append(len(ids))
        self._notes.append(notes)
        self._seconds.append(seconds)

    def finish(
        self,
        columns: Sequence[str],
        labels: Sequence[tuple[str, ...]],
        splits: Sequence[str],
        split: Int8[np.ndarray, "N"],
        arguments: dict,
        skipped: Sequence[dict[str, str]],
    ) -> dict:
        """Writes all that stands beside the shards; `labels` are rows of `columns`, whose first is path."""
        self._close_shard()
        notes, seconds = np.array(self._notes, np.int32), np.array(self._seconds, np.float32)
        offsets = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
        np.savez(self._folder / INDEX, offsets=offsets, notes=notes, seconds=seconds, split=split)
        with (self._folder / LABELS).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *labels])

        def counts(of: np.ndarray) -> dict:
            return {
                "pieces": int(of.sum()),
                "tokens": int(np.diff(offsets)[of].sum()),
                "notes": int(notes[of].sum()),
                "hours": round(float(seconds[of].sum(dtype=float)) / 3600, 3),
            }

        manifest = {
            "format": FORMAT,
            "vocabulary": {"name": self._vocabulary.name, "sha256": self._vocabulary.fingerprint},
            "counts": counts(np.ones(len(notes), bool)),
            "splits": {name: counts(split == index) for index, name in enumerate(splits)},
            "shards": [shard | _checksum(self._folder / shard["name"]) for shard in self._shards],
            "files": {name: _checksum(self._folder / name) for name in (INDEX, LABELS)},
            "arguments": arguments,
            "skipped": {"counts": Counter(file["reason"] for file in skipped), "files": skipped},
        }
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return manifest

    def _close_shard(self) -> None:
        if self._records is not None:
            self._records.close()
            self._records = None


class Dataset:
    """Random access to a dataset's pieces. Pickles as its path, and opens its shards when it first reads from them.

    `offsets` are int64 (N+1), `notes` int32 (N) and `seconds` float32 (N), as the module's docstring says.

    Opening checks that everything is there in full size and that the index is intact; `verify` reads it all.

    Raises:
        BadInput: not a dataset, a shard missing or shortened, an index that is not the one written, another format, or
            a vocabulary other than the one asked for.
    """

    def __init__(self, path: str | Path, vocabulary: str | None = None):
        if str(path).startswith("gs://"):
            raise BadInput(f"{path}: shards are read from local disks: gcloud storage cp -r brings them there")
        self.path = Path(path)
        try:
            self.manifest = json.loads((self.path / MANIFEST).read_text("utf-8"))
            written = self.manifest["format"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BadInput(f"{path}: not a dataset, for it holds no readable {MANIFEST}") from error
        if written != FORMAT:
            raise BadInput(f"{path}: a dataset of format {written}, and this version reads format {FORMAT}")
        name = self.manifest["vocabulary"]["name"]
        if vocabulary is not None and name != vocabulary:
            raise BadInput(f"{path}: the dataset's vocabulary is {name}, the model's {vocabulary}")
        self.vocabulary = Vocabulary(name)
        if self.vocabulary.fingerprint != self.manifest["vocabulary"]["sha256"]:
            raise BadInput(f"{path}: its vocabulary {name} has other ids than today's; prepare it anew")
        self._files: dict[str, dict] = {s["name"]: s for s in self.manifest["shards"]} | self.manifest["files"]
        for file, expected in self._files.items():
            place = self.path / file
            size = place.stat().st_size if place.exists() else None
            if size != expected["bytes"]:
                is_wrong = "is missing" if size is None else f"has {size:,} bytes instead of {expected['bytes']:,}"
                raise BadInput(f"{place}: {is_wrong}")
        data = (self.path / INDEX).read_bytes()
        if hashlib.sha256(data).hexdigest() != self._files[INDEX]["sha256"]:
            raise BadInput(f"{self.path / INDEX}: damaged (its checksum is another)")
        index = np.load(io.BytesIO(data))
        self.offsets, self.notes, self.seconds = index["offsets"], index["notes"], index["seconds"]
        self._split = index["split"]
        self._ends = np.cumsum([shard["pieces"] for shard in self.manifest["shards"]])
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._ends)

    def __reduce__(self):
        return Dataset, (self.path,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def fingerprint(self) -> str:
        """Hash of all that the dataset holds, from its files' checksums."""
        return hashlib.sha256("".join(file["sha256"] for file in self._files.values()).encode()).hexdigest()

    def __getitem__(self, piece: SupportsIndex) -> UInt16[np.ndarray, "T"]:
        return self.read(np.array([range(len(self))[piece]]))[0]

    def read(self, pieces: Int64[np.ndarray, "n"]) -> list[UInt16[np.ndarray, "_"]]:
        """The ids of several pieces, each shard asked once."""
        found: list[np.ndarray] = [np.empty(0, np.uint16)] * len(pieces)
        shards = np.searchsorted(self._ends, pieces, side="right")
        for shard in set(shards.tolist()):
            places = np.flatnonzero(shards == shard)
            first = self._ends[shard] - self.manifest["shards"][shard]["pieces"]
            for place, record in zip(places, self._records(shard, pieces[places] - first), strict=True):
                found[place] = np.frombuffer(record, "<u2")
        return found

    def _records(self, shard: int, positions: np.ndarray) -> list[bytes]:
        file = self.path / self.manifest["shards"][shard]["name"]
        try:
            if self._readers[shard] is None:
                self._readers[shard] = ArrayRecordReader(str(file), READER, file_reader_buffer_size=1 << 15)
            return self._readers[shard].read(positions.tolist())  # type: ignore[union-attr]
        except RuntimeError as error:
            raise BadInput(f"{file}: damaged ({str(error).splitlines()[0]})") from error

    def split(self, name: str) -> Int64[np.ndarray, "n"]:
        """The pieces of a split, in order."""
        names = list(self.manifest["splits"])
        if name not in names:
            raise BadInput(f"{self.path}: no split {name}; there are {', '.join(names)}")
        return np.flatnonzero(self._split == names.index(name))

    def verify(self) -> None:
        """Reads every file of the dataset and compares its SHA-256.

        Raises:
            BadInput: naming the first file that is not as it was written.
        """
        for file, expected in self._files.items():
            if _checksum(self.path / file)["sha256"] != expected["sha256"]:
                raise BadInput(f"{self.path / file}: damaged (its checksum is another)")
