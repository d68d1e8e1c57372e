"""The journal of an unfinished dataset: what became of each file, kept on disk and not in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from piano_jax.data.shards import JOURNAL, checksum


class Entry(NamedTuple):
    """A file by its source's number and its name; for a piece what it counts, for another file why it is none."""

    source: int
    name: str
    piece: tuple[int, int, float, int] | None  # tokens, notes, seconds, digest
    dropped: tuple[str, str] | None = None  # reason, detail
    sketch: str | None = None  # in hexadecimal


class Journal:
    """Lines of JSON after the first, which says what is being made: one for each file in the order of input, and one
    for each whole shard, which vouches for all before it.

    What no whole and undamaged shard vouches for is cut off when a journal is opened, and done again. `shards` are
    those, and `state` is what was last sealed with them.
    """

    def __init__(self, folder: Path):
        self.shards: list[dict] = []
        self.state: Any = None
        self._path = folder / JOURNAL
        with self._path.open("rb") as file:
            end = len(file.readline())
            for line in iter(file.readline, b""):
                if line.startswith(b"{") and line.endswith(b"\n"):
                    seal = json.loads(line)
                    shard = folder / seal["shard"]["name"]
                    if not shard.exists() or seal["shard"] != seal["shard"] | checksum(shard):
                        break
                    self.shards.append(seal["shard"])
                    self.state, end = seal["state"], file.tell()
        whole = {JOURNAL, *(shard["name"] for shard in self.shards)}
        for other in folder.iterdir():
            if other.name not in whole:
                other.unlink()
        self._file = self._path.open("r+b")
        self._file.truncate(end)
        self._file.seek(end)

    def add(self, entry: Entry) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")

    def seal(self, shard: dict, state: Any) -> None:
        self._file.write(json.dumps({"shard": shard, "state": state}).encode() + b"\n")
        self._file.flush()

    def __iter__(self) -> Iterator[Entry]:
        self._file.flush()
        with self._path.open("rb") as file:
            file.readline()
            for line in file:
                if line.startswith(b"["):
                    yield Entry(*json.loads(line))
