"""Where MIDI comes from: single files, folders, and tar archives read once as streams."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from etils import epath

from piano_jax import BadInput

METADATA = "metadata.json"
# The columns that Aria-MIDI's metadata gives a piece, and what it calls those it names otherwise.
COLUMNS = ("id", "composer", "form", "genre", "period", "performer", "audio_score")
ARIA_NAMES = {"period": "music_period"}


def is_midi(name: str) -> bool:
    return name.lower().endswith((".mid", ".midi"))


def is_metadata(name: str) -> bool:
    return PurePosixPath(name).name == METADATA and name.count("/") < 2


def open_source(path: str) -> "Folder | Archive":
    """The source at `path`: a MIDI file, a folder searched recursively, or a `.tar`, `.tar.gz` or `.tgz`.

    Raises:
        BadInput: nothing is there, it is none of these, or a folder holds no MIDI.
    """
    try:
        place = epath.Path(path)
        if place.is_dir():
            found = (folder / name for folder, _, names in place.walk() for name in names if is_midi(name))
            return Folder(path, place, sorted(str(file.relative_to(place)) for file in found))
        if not place.exists():
            raise BadInput(f"{path}: no such file or folder")
    except ImportError as error:
        raise BadInput(f"{path}: {error}") from error
    if is_midi(place.name):
        return Folder(path, place.parent, [place.name])
    if place.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
        return Archive(path, place)
    raise BadInput(f"{path}: not a MIDI file, a folder, a .tar or a .tar.gz")


class Metadata:
    """The labels in an Aria-MIDI `metadata.json`: a piece's id is what its file name says before the underscore."""

    def __init__(self, text: bytes, name: str):
        try:
            entries = json.loads(text)
            self._entries = {str(key): (entry["metadata"], entry["audio_scores"]) for key, entry in entries.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadInput(f"{name}: not the metadata of an Aria-MIDI archive") from error

    def __call__(self, path: str) -> tuple[str, ...] | None:
        """A piece's labels in the order of COLUMNS, or None where the metadata does not know it."""
        number, _, segment = PurePosixPath(path).stem.partition("_")
        number = number.lstrip("0") or "0"
        if number not in self._entries:
            return None
        labels, scores = self._entries[number]
        values = (labels.get(ARIA_NAMES.get(column, column)) for column in COLUMNS[1:-1])
        return (number, *("" if value is None else str(value) for value in values), str(scores.get(segment, "")))


class Folder:
    """MIDI files under one root. Iterating gives (path relative to the root, bytes) in the order of the paths."""

    def __init__(self, name: str, root: epath.Path, paths: list[str]):
        if not paths:
            raise BadInput(f"{name}: no .mid or .midi file in this folder")
        self.name, self.root, self.paths = name, root, paths
        self.total: int | None = len(paths)
        described = root / METADATA
        self.metadata = Metadata(described.read_bytes(), str(described)) if described.exists() else None

    def __iter__(self) -> Iterator[tuple[str, bytes | OSError]]:
        for path in self.paths:
            try:
                yield path, (self.root / path).read_bytes()
            except OSError as error:
                yield path, error

    def relative(self, path: str) -> str:
        return path


class Archive:
    """A tar archive, compressed or not. Iterating gives (member's name, bytes) in order, unpacking nothing to disk.

    A single top folder that holds all files is the archive's root; `relative` strips it, once all has been read.
    """

    total: int | None = None

    def __init__(self, name: str, path: epath.Path):
        self.name, self.path = name, path
        self.metadata: Metadata | None = None
        self._tops: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        found = False
        try:
            with self.path.open("rb") as raw:
                zipped = not self.name.lower().endswith(".tar")
                stream: io.IOBase = gzip.GzipFile(fileobj=raw) if zipped else raw
                for name, data in _members(stream):
                    top, _, rest = name.partition("/")
                    self._tops.add(top if rest else "")
                    if is_metadata(name):
                        self.metadata = Metadata(data, f"{self.name}: {name}")
                    else:
                        found = True
                        yield name, data
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{self.name}: a damaged archive ({error})") from error
        if not found:
            raise BadInput(f"{self.name}: no .mid or .midi file in this archive")

    def relative(self, path: str) -> str:
        return path.partition("/")[2] if len(self._tops) == 1 and "" not in self._tops else path


def _members(stream: io.IOBase) -> Iterator[tuple[str, bytes]]:
    """The names and contents of a tar stream's MIDI files and of its metadata."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
        while (member := archive.next()) is not None:
            name = str(PurePosixPath(member.name))
            if member.isfile() and (is_midi(name) or is_metadata(name)):
                yield name, archive.extractfile(member).read()  # type: ignore[union-attr]
            archive.members.clear()  # or tarfile remembers every member it has passed
        # To the very end: gzip keeps its checksum there, and tarfile takes a broken header for the end.
        while rest := archive.fileobj.read(1 << 20):  # type: ignore[union-attr]
            if rest.strip(b"\0"):
                raise tarfile.ReadError("a broken header")
