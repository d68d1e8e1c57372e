"""Where MIDI comes from: single files, folders, and tar archives read once as streams, in memory that stays small."""

import codecs
import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from etils import epath

from piano_jax import BadInput
from piano_jax.data.labels import Table

METADATA = "metadata.json"
# The columns that Aria-MIDI's metadata gives a piece, and what it calls those it names otherwise.
COLUMNS = ("id", "composer", "form", "genre", "period", "performer", "audio_score")
ARIA_NAMES = {"period": "music_period"}
LARGEST = 1 << 24  # bytes of a MIDI file; two hours of the densest music have a tenth of it
TOO_LARGE = f"larger than {LARGEST >> 20} MiB"
# What stands before an entry of a JSON object, the first or another, inside one, and after the last.
ENTRY, COLON = {sign: re.compile(rf'\s*{sign}\s*(?=")') for sign in "{,"}, re.compile(r"\s*:\s*(?={)")
ENTRIES_END = {"{": re.compile(r"\s*{\s*}\s*$"), ",": re.compile(r"\s*}\s*$")}
BLOCK = 1 << 16  # bytes read at a time; tarfile copies what is left of its block at every read

# A file as it was read, or a line that says why it was not.
Content = bytes | str


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

    def __init__(self, stream: io.IOBase, name: str):
        self._entries = Table()
        try:
            for number, entry in _entries(stream):
                labels, scores = entry["metadata"], entry["audio_scores"]
                values = (labels.get(ARIA_NAMES.get(column, column)) for column in COLUMNS[1:-1])
                row = [*("" if value is None else str(value) for value in values), *map(str, sum(scores.items(), ()))]
                self._entries.add(number, row)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadInput(f"{name}: not the metadata of an Aria-MIDI archive") from error

    def __call__(self, path: str) -> tuple[str, ...] | None:
        """A piece's labels in the order of COLUMNS, or None where the metadata does not know it."""
        number, _, segment = PurePosixPath(path).stem.partition("_")
        number = number.lstrip("0") or "0"
        if (row := self._entries.get(number)) is None:
            return None
        labels, scores = row[: len(COLUMNS) - 2], row[len(COLUMNS) - 2 :]
        return (number, *labels, dict(zip(scores[::2], scores[1::2], strict=True)).get(segment, ""))


def _entries(stream: io.IOBase) -> Iterator[tuple[str, dict]]:
    """The entries of a JSON object one by one, for whole it takes ten times its size. Raises ValueError."""
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, block, sign, at = "", b"-", "{", 0
    while True:
        try:
            if not block and ENTRIES_END[sign].match(text, at):
                return
            key, end = decoder.raw_decode(text, _after(ENTRY[sign], text, at))
            value, end = decoder.raw_decode(text, _after(COLON, text, end))
        except ValueError:
            if not block:
                raise
            # Not whole yet, perhaps; as much again is read, so that a long entry is not tried often.
            block = stream.read(max(BLOCK, len(text) - at))
            text, at = text[at:] + decode.decode(block, final=not block), 0
            continue
        yield key, value
        sign, at = ",", end


def _after(pattern: re.Pattern, text: str, at: int) -> int:
    if not (found := pattern.match(text, at)):
        raise ValueError("not an object of objects")
    return found.end()


class Folder:
    """MIDI files under one root, in the order of their paths. `extent` is their number, `total`, too."""

    def __init__(self, name: str, root: epath.Path, paths: list[str]):
        if not paths:
            raise BadInput(f"{name}: no .mid or .midi file in this folder")
        self.name, self.root, self.paths = name, root, paths
        self.total: int | None = len(paths)
        self.extent = len(paths)
        self.metadata: Metadata | None = None
        if (described := root / METADATA).exists():
            with described.open("rb") as file:
                self.metadata = Metadata(file, str(described))

    def read(self, first: int = 0) -> Iterator[tuple[str, Content]]:
        """Names, relative to the root, and contents of all files but the `first`."""
        for path in self.paths[first:]:
            try:
                with (self.root / path).open("rb") as file:
                    data = file.read(LARGEST + 1)
                yield path, data if len(data) <= LARGEST else TOO_LARGE
            except OSError as error:
                yield path, error.strerror or str(error)

    def relative(self, path: str) -> str:
        return path


class Archive:
    """A tar archive, zipped or not. Once it is read to its end, `metadata` and its root are known.

    The root is the archive's top folder if all MIDI files and the metadata lie in one. `extent` is its size in bytes.
    """

    total: int | None = None

    def __init__(self, name: str, path: epath.Path):
        self.name, self.path = name, path
        self.extent = path.stat().length
        self.metadata: Metadata | None = None
        self._tops: set[str] = set()

    def read(self, first: int = 0) -> Iterator[tuple[str, Content]]:
        """Names and contents of all MIDI files but the `first`, in the archive's order.

        Raises:
            BadInput: the archive is damaged, or holds no MIDI file.
        """
        count = 0
        try:
            with self.path.open("rb") as raw:
                zipped = not self.name.lower().endswith(".tar")
                stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK) if zipped else raw  # type: ignore[type-var]
                with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # or tarfile remembers every member it has passed
                        name = str(PurePosixPath(member.name))
                        if not member.isfile() or not (is_midi(name) or is_metadata(name)):
                            continue
                        top, _, rest = name.partition("/")
                        self._tops.add(top if rest else "")
                        if is_metadata(name):
                            self.metadata = Metadata(archive.extractfile(member), f"{self.name}: {name}")  # type: ignore[arg-type]
                            continue
                        count += 1
                        if count > first:
                            yield name, TOO_LARGE if member.size > LARGEST else _content(archive, member)
                    _check_end(archive)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{self.name}: a damaged archive ({error})") from error
        if not count:
            raise BadInput(f"{self.name}: no .mid or .midi file in this archive")

    def relative(self, path: str) -> str:
        return path.partition("/")[2] if len(self._tops) == 1 and "" not in self._tops else path


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return archive.extractfile(member).read()  # type: ignore[union-attr]


def _check_end(archive: tarfile.TarFile) -> None:
    """Reads to the very end: gzip keeps its checksum there, and tarfile takes a broken header for the end."""
    while rest := archive.fileobj.read(1 << 20):  # type: ignore[union-attr]
        if rest.strip(b"\0"):
            raise tarfile.ReadError("a broken header")
