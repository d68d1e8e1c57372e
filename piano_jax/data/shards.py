"""A dataset on disk: ArrayRecord shards with one record a piece, an index and labels beside them, `dataset.json` last.

A record is a piece's token ids as little-endian uint16, pieces in the order of input. `pieces.npz` holds `offsets`
(where pieces begin, laid end to end, and one past the last), `notes`, `seconds` and `split` (an index into the names in
`dataset.json`, -1 for none): a split is a label of a piece, and no shard knows it. `skipped.csv` lists the files that
are no pieces, and why.
"""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float32, Int8, Int32, Int64, UInt16

from piano_jax import BadInput
from piano_jax.music import Vocabulary

FORMAT = 1
MANIFEST, INDEX, LABELS, SKIPPED = "dataset.json", "pieces.npz", "labels.csv", "skipped.csv"
JOURNAL = "journal.jsonl"  # only in an unfinished dataset; its first line says what is being made
EXAMPLES = 5  # of the files that were skipped, how many the manifest names for each reason
SHARD_TOKENS = 1 << 26
# Measured on the shared corpus, one core: 1.41 bytes a token at 135 M tokens/s read at random; uncompressed 2.01 and
# 268, zstd:1 1.52 and 155, brotli:3 1.45 and 58.
WRITER = "group_size:1,zstd:3"
READER = "readahead_buffer_size:0,max_parallelism:0"


def checksum(file: Path) -> dict:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


@contextlib.contextmanager
def new_folder(path: Path, arguments: dict | None = None) -> Iterator[Path]:
    """An unfinished folder to fill, which becomes `path` when the block ends well.

    Raises:
        BadInput: something is there already, or as `unfinished` does.
        OSError: the disk is full.
    """
    path = path.absolute()
    with unfinished(path, check_free, arguments) as folder:
        yield folder
        check_free(path)
        (folder / JOURNAL).unlink(missing_ok=True)
        folder.rename(path)


@contextlib.contextmanager
def unfinished(path: Path, check: Callable[[Path], None], arguments: dict | None = None) -> Iterator[Path]:
    """A hidden folder beside `path` for what is to become it, where `check` raises BadInput if that cannot be.

    When the block does not end well, the folder vanishes; but with `arguments`, and unless bad input is why, it stays
    for the next block with the same ones to go on from, which finds them in the JOURNAL's first line.

    Raises:
        BadInput: something stands where its parent folder should, another process is at it, or it was begun with other
            arguments.
        OSError: the disk is full.
    """
    check(path)
    folder = path.with_name(f".{path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{path.parent}: not a folder") from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{path}: another process is making it") from error
        check(path)
        _begin(folder, arguments)
        try:
            yield folder
        except BaseException as error:
            if arguments is None or isinstance(error, BadInput):
                shutil.rmtree(folder)
            for code in (errno.ENOSPC, errno.EDQUOT):  # ArrayRecord says it in the words of a RuntimeError
                if isinstance(error, OSError | RuntimeError) and os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(path)) from error
            raise
    finally:
        os.close(handle)


def _begin(folder: Path, arguments: dict | None) -> None:
    """Leaves in the folder what was begun with the same arguments, or nothing but a new journal."""
    journal, begun = folder / JOURNAL, json.dumps(arguments).encode() + b"\n"
    if journal.exists():
        with journal.open("rb") as file:
            first = file.readline()
        if first == begun:
            return
        if arguments and first.endswith(b"\n"):
            found = json.loads(first)
            changed = ", ".join(key for key in arguments if found.get(key) != arguments[key])
            raise BadInput(f"{folder}: begun with other {changed}: go on with the same, or remove this folder")
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    if arguments:
        journal.write_bytes(begun)


def check_free(path: Path) -> None:
    if (path / MANIFEST).exists():
        raise BadInput(f"{path}: holds a dataset already")
    if path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None):
        raise BadInput(f"{path}: exists, and is not an empty folder")


class Writer:
    """Fills a new folder with a dataset: `add` a piece at a time, then `finish`.

    One that goes on starts from the whole `shards` and the (tokens, notes, seconds) of the `pieces` in them.
    """

    def __init__(
        self,
        folder: Path,
        vocabulary: Vocabulary,
        shard_tokens: int = SHARD_TOKENS,
        shards: Sequence[dict] = (),
        pieces: Iterable[tuple[int, int, float]] = (),
    ):
        self._folder, self._vocabulary, self._shard_tokens = folder, vocabulary, shard_tokens
        self._shards = list(shards)
        self._records: ArrayRecordWriter | None = None
        self._room = self._pieces = 0
        self._lengths, self._notes, self._seconds = array("q"), array("i"), array("f")
        for piece in pieces:
            self._append(*piece)

    def _append(self, length: int, notes: int, seconds: float) -> None:
        self._lengths.append(length)
        self._notes.append(notes)
        self._seconds.append(seconds)

    @property
    def notes(self) -> Int32[np.ndarray, "N"]:
        return np.array(self._notes, np.int32)

    @property
    def seconds(self) -> Float32[np.ndarray, "N"]:
        return np.array(self._seconds, np.float32)

    def add(self, ids: UInt16[np.ndarray, "T"], notes: int, seconds: float) -> dict | None:
        """Writes a piece; returns the shard's entry in the manifest if that made it whole."""
        if self._records is None:
            self._records = ArrayRecordWriter(str(self._folder / self._name), WRITER)
            self._room = self._shard_tokens
        self._records.write(ids.astype("<u2").tobytes())
        self._append(len(ids), notes, seconds)
        self._room -= len(ids)
        self._pieces += 1
        return self._close_shard() if self._room <= 0 else None

    def finish(
        self,
        columns: Sequence[str],
        labels: Iterable[tuple[str, ...]],
        splits: Sequence[str],
        split: Int8[np.ndarray, "N"],
        arguments: dict,
        skipped: Iterable[tuple[str, str, str]],
    ) -> dict:
        """Writes all that stands beside the shards; `labels` are rows of `columns`, `skipped` of path, reason,
        detail."""
        self._close_shard()
        notes, seconds = self.notes, self.seconds
        offsets = np.concatenate([[0], np.cumsum(np.array(self._lengths, np.int64))])
        np.savez(self._folder / INDEX, offsets=offsets, notes=notes, seconds=seconds, split=split)
        with (self._folder / LABELS).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(columns)
            table.writerows(labels)

        reasons: Counter[str] = Counter()
        examples = []
        with (self._folder / SKIPPED).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.DictWriter(file, ("path", "reason", "detail"), lineterminator="\n")
            table.writeheader()
            for row in skipped:
                entry = dict(zip(table.fieldnames, row, strict=True))
                table.writerow(entry)
                reasons[entry["reason"]] += 1
                if reasons[entry["reason"]] <= EXAMPLES:
                    examples.append(entry)

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
            "shards": self._shards,
            "files": {name: checksum(self._folder / name) for name in (INDEX, LABELS, SKIPPED)},
            "arguments": arguments,
            "skipped": {"counts": reasons, "files": examples},
        }
        (self._folder / MANIFEST).write_text(
            json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8", "surrogateescape"
        )
        return manifest

    @property
    def _name(self) -> str:
        return f"pieces-{len(self._shards):05d}.arrayrecord"

    def _close_shard(self) -> dict | None:
        if self._records is None:
            return None
        self._records.close()
        name, pieces, self._records, self._pieces = self._name, self._pieces, None, 0
        self._shards.append({"name": name, "pieces": pieces} | checksum(self._folder / name))
        return self._shards[-1]


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
            if checksum(self.path / file)["sha256"] != expected["sha256"]:
                raise BadInput(f"{self.path / file}: damaged (its checksum is another)")
