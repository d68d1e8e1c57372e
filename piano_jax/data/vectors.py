"""Files of vectors: an `.npz` of `paths`, `embeddings` float32 (files, size), `chunks` and what was `skipped`.

A file is made in parts, which lie hidden beside it until it is whole, and from which a run that was killed goes on.
"""

import io
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from piano_jax import BadInput, write_whole
from piano_jax.command import progress
from piano_jax.data.shards import unfinished
from piano_jax.data.sources import Archive, Content, Folder
from piano_jax.data.workers import Workers

READERS = 4  # processes that read MIDI, or as many as there are cores: one reads several hundred files a second


class Embedded(NamedTuple):
    """A piece's vector, the mean over its chunks, and their number; or why there is none."""

    key: Hashable
    vector: Float32[np.ndarray, "E"] | None
    chunks: int
    reason: str = ""


def check_absent(out: Path) -> None:
    """Raises BadInput where something is there."""
    if out.exists():
        raise BadInput(f"{out}: exists already")


def write_vectors(
    out: Path,
    sources: Sequence[Folder | Archive],
    reader: Callable[[Content], Any],
    embed: Callable[[Iterable], Iterator[list[Embedded]]],
    arguments: dict,
) -> tuple[int, list[str]]:
    """Makes a file of vectors; returns how many there are, and the files without one, with the reason.

    `reader` is called in worker processes with a file's content; `embed` takes keys and what the reader made of each,
    and gives the same keys with vectors, some at a time, in that order. `arguments` are what the vectors depend on
    besides the files: an unfinished run goes on with the same alone.

    Raises:
        BadInput: the file exists, was begun with other arguments, or no file has notes.
    """
    out = out.absolute()
    with unfinished(out, check_absent, arguments | {"input files": [source.extent for source in sources]}) as folder:
        _write_parts(folder, sources, reader, embed)
        parts = [np.load(part) for part in sorted(folder.glob("*.npz"))]
        columns = {
            name: np.concatenate([part[name] for part in parts]) for name in ("source", "name", "chunks", "reason")
        }
        files = zip(columns["source"].tolist(), columns["name"].tolist(), strict=True)
        paths = np.array([sources[number].relative(name) for number, name in files])
        whole = columns["chunks"] > 0
        skipped = [f"{path}: {why}" for path, why in zip(paths[~whole], columns["reason"][~whole], strict=True)]
        if not whole.any():
            raise BadInput(f"none of {len(paths):,} files has notes, the first for: {skipped[0]}")
        vectors = np.concatenate([part["vectors"] for part in parts if len(part["vectors"])])
        found = {"paths": paths[whole], "embeddings": vectors, "chunks": columns["chunks"][whole]}
        write_whole(folder / "whole", _packed(found | {"skipped": np.array(skipped, str)}))
        (folder / "whole").replace(out)
        shutil.rmtree(folder)
    return len(vectors), skipped


def _write_parts(folder: Path, sources: Sequence[Folder | Archive], reader: Callable, embed: Callable) -> None:
    """Embeds the files that no part holds, and writes a part for some at a time."""
    parts = sorted(folder.glob("*.npz"))
    before = Counter(number for part in parts for number in np.load(part)["source"].tolist())
    totals = [source.total for source in sources]
    total = None if None in totals else sum(totals)  # type: ignore[arg-type]

    def files() -> Iterator[tuple[tuple[int, str], Content]]:
        for number, source in enumerate(sources):
            for name, content in source.read(before[number]):
                yield (number, name), content

    def embedded(pool: Workers) -> Iterator[Embedded]:
        for part, window in enumerate(embed(pool.map(files())), len(parts)):
            columns = {
                "source": np.array([entry.key[0] for entry in window]),
                "name": np.array([entry.key[1] for entry in window]),
                "chunks": np.array([entry.chunks for entry in window], np.int32),
                "reason": np.array([entry.reason for entry in window]),
                "vectors": np.array([entry.vector for entry in window if entry.chunks], np.float32),
            }
            write_whole(folder / f"{part:06d}.npz", _packed(columns))
            yield from window

    with Workers(reader, min(READERS, os.cpu_count() or 1)) as pool:
        for _ in progress(embedded(pool), total, "files", before.total()):
            pass


def _packed(columns: dict[str, np.ndarray]) -> bytes:
    data = io.BytesIO()
    np.savez(data, **columns)
    return data.getvalue()


def read_vectors(path: str | Path) -> tuple[list[str], Float32[np.ndarray, "N E"]]:
    """Paths and vectors of a file. Raises BadInput where it is none."""
    try:
        with np.load(path) as columns:
            return columns["paths"].astype(str).tolist(), columns["embeddings"].astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not a file of embeddings ({error})") from error
