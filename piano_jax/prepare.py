"""`python -m piano_jax.prepare`: from MIDI files to a dataset of token shards."""

import argparse
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int32, Int64

from piano_jax import BadInput
from piano_jax.command import Parser, progress, run
from piano_jax.data.journal import Entry, Journal
from piano_jax.data.labels import SPLITS, Manifest, drawn_split, given_split, hashes
from piano_jax.data.pieces import DUPLICATE, UNREADABLE, Dropped, Piece, Reader
from piano_jax.data.report import write_report
from piano_jax.data.shards import MANIFEST, SHARD_TOKENS, SKIPPED, Writer, check_free, new_folder
from piano_jax.data.sources import COLUMNS, Archive, Content, Folder, open_source
from piano_jax.data.workers import Workers
from piano_jax.music import Vocabulary
from piano_jax.music.filters import NONE, near_duplicates, parse_thresholds

EPILOG = """\
example:
  python -m piano_jax.prepare --midi recordings/ --midi aria-midi.tar.gz --out data/mine
  python -m piano_jax.prepare --midi pieces.tar.gz --labels manifest.csv --split piece_id:0.9,0.05,0.05 --out data/mine
  python -m piano_jax.prepare --midi aria-midi.tar.gz --filters light,max_silence=30,min_seconds=off --out data/mine

splits, when --split is not given:
  the labels' own `split` column; without one, 0.9 of the pieces train and 0.1 are val, and pieces stay together that
  share a `piece_id`, or, where that column is missing too, an `id`, or else each goes by its path.

a run that was killed or interrupted goes on when it is started again with the same arguments (--workers may differ);
until it is whole, its folder is hidden beside --out, as .NAME.partial.

what is written to --out, a new folder that appears only when whole:
  pieces-*.arrayrecord  token ids, a record a piece, in the order of input
  pieces.npz            where each piece begins, its notes, seconds and split
  labels.csv            its path and labels
  skipped.csv           the files that could not be read or did not pass the filters, with reasons
  report.html           a page to look at
  dataset.json          counts, checksums, and how many files were skipped for each reason, with examples
"""
GROUPS, SHARES = ("piece_id", "id", "path"), (0.9, 0.1, 0.0)
NO_SPLIT, NEAR_DUPLICATE = -1, "near-duplicate"
NAMED = 10  # how many skipped files the summary names
# The arguments that decide what is written.
DECISIVE = ("midi", "labels", "vocabulary", "split", "filters", "near_duplicates")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="piano_jax.prepare",
        description="Turns MIDI files into a dataset: token ids in shards, with labels, splits and checksums.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--midi",
        action="append",
        required=True,
        metavar="PATH",
        help="a MIDI file, a folder searched recursively, a .tar or .tar.gz read as a stream; may be given again",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the dataset's folder, which must not exist yet")
    parser.add_argument(
        "--labels",
        metavar="manifest.csv",
        help="a CSV with a `path` column, relative to the folder given or to the archive's top folder, and label "
        "columns; instead of the metadata.json that a source may hold",
    )
    parser.add_argument("--vocabulary", choices=("aria", "piano"), default="aria", help="default: %(default)s")
    parser.add_argument(
        "--split",
        type=split_argument,
        metavar="COLUMN:TRAIN,VAL,TEST",
        help="fractions of the pieces for each split; pieces that share the label COLUMN stay together, and "
        "one without it goes by its path, as all do where COLUMN is `path`",
    )
    parser.add_argument(
        "--filters",
        default="none",
        metavar="PRESET[,NAME=VALUE...]",
        help="quality filters: none (the default) or light, and thresholds set one by one, or lifted by NAME=off; "
        "where there are any, exact duplicates go too",
    )
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="look for recordings that are there twice, transcribed again or cut short: of each such pair the one with "
        "fewer notes is left out of every split, and listed in skipped.csv",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        metavar="N",
        help="processes that read MIDI; what is written does not depend on it; default: one for each core, %(default)s",
    )
    return parser.parse_args(arguments)


def split_argument(text: str) -> tuple[str, tuple[float, ...]]:
    column, _, shares = text.rpartition(":")
    try:
        fractions = tuple(float(share) for share in shares.split(","))
    except ValueError:
        fractions = ()
    if not column or len(fractions) != len(SPLITS) or not min(fractions) >= 0 or not math.isclose(sum(fractions), 1):
        raise argparse.ArgumentTypeError(f"{text}: not a column and three fractions that sum to 1, as id:0.9,0.05,0.05")
    return column, fractions


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.out.startswith("gs://"):
        raise BadInput(f"{options.out}: shards are written to local disks: gcloud storage cp -r takes them there")
    if options.workers < 1:
        raise BadInput(f"--workers {options.workers}: at least one is needed")
    out = Path(options.out)
    reader = Reader(options.vocabulary, parse_thresholds(options.filters), options.near_duplicates)
    check_free(out)
    sources = [open_source(path) for path in options.midi]
    manifest = Manifest(options.labels) if options.labels else None
    if options.split and options.split[0] not in ("path", *(manifest.columns if manifest else COLUMNS)):
        raise BadInput(f"--split {options.split[0]}: the labels have no such column")

    started = time.monotonic()
    decisive = {name: getattr(options, name) for name in DECISIVE}
    with new_folder(out, decisive | {"input files": [source.extent for source in sources]}) as folder:
        journal = Journal(folder)
        writer = Writer(folder, Vocabulary(options.vocabulary), SHARD_TOKENS, journal.shards, kept(journal))
        done, tally = fill(sources, reader, options.workers, writer, journal)
        pieces = Pieces(sources, manifest, journal)
        pieces.check()
        splits, split = split_pieces(pieces, options.split)
        copies = nearly_copied(journal, writer.notes) if options.near_duplicates else {}
        split[list(copies)] = NO_SPLIT
        write_report(folder, writer.notes, writer.seconds, tally, pieces.columns, pieces.labels)
        dataset = writer.finish(pieces.columns, pieces.labels(), splits, split, decisive, pieces.skipped(copies))
    summarise(dataset, time.monotonic() - started, done)
    if manifest:
        print(
            f"labels   {pieces.labelled:,} pieces have them, {len(split) - pieces.labelled:,} have none; "
            f"{len(manifest) - pieces.labelled - pieces.named:,} rows of {options.labels} are of absent files"
        )
    print(out / MANIFEST)


def kept(journal: Journal) -> Iterator[tuple[int, int, float]]:
    """Tokens, notes and seconds of every piece."""
    return (entry.piece[:3] for entry in journal if entry.piece)


def fill(
    sources: Sequence[Folder | Archive], reader: Reader, workers: int, writer: Writer, journal: Journal
) -> tuple[int, Int64[np.ndarray, "2 128"]]:
    """Writes pieces from where the journal ends; returns how many files that took, and notes by pitch and velocity."""
    before = Counter(entry.source for entry in journal)
    deduplicated = reader.thresholds != NONE
    digests = {entry.piece[3] for entry in journal if entry.piece} if deduplicated else set()
    tally = np.array(journal.state or np.zeros((2, 128)), np.int64)
    totals = [source.total for source in sources]
    total = None if None in totals else sum(totals)  # type: ignore[arg-type]

    def files() -> Iterator[tuple[tuple[int, str], Content]]:
        for number, source in enumerate(sources):
            for name, content in source.read(before[number]):
                yield (number, name), content

    count = 0
    with Workers(reader, workers) as pool:
        for (source, name), result in progress(pool.map(files()), total, "files", before.total()):
            count += 1
            if isinstance(result, str):
                result = Dropped(UNREADABLE, result)
            elif deduplicated and isinstance(result, Piece):
                if result.digest in digests:
                    result = Dropped(DUPLICATE, "has the notes of an earlier one")
                else:
                    digests.add(result.digest)
            if isinstance(result, Dropped):
                journal.add(Entry(source, name, None, result))
                continue
            counts = len(result.ids), result.notes, result.seconds, result.digest
            drawn = None if result.sketch is None else result.sketch.tobytes().hex()
            journal.add(Entry(source, name, counts, sketch=drawn))
            tally += result.tally
            if shard := writer.add(result.ids, result.notes, result.seconds):
                journal.seal(shard, tally.tolist())
    return count, tally


def nearly_copied(journal: Journal, notes: Int32[np.ndarray, "N"]) -> dict[int, tuple[int, float]]:
    """Of every two pieces that are nearly the same recording the one with fewer notes: the other, their similarity."""
    sketches = [np.frombuffer(bytes.fromhex(entry.sketch), np.uint64) for entry in journal if entry.piece]
    pairs = near_duplicates(np.stack(sketches))
    ordered = (((a, b) if notes[a] < notes[b] else (b, a), alike) for a, b, alike in pairs)
    return {fewer: (more, alike) for (fewer, more), alike in ordered}


class Pieces:
    """What the journal and the labels say, piece by piece, in memory that holds little of it.

    Once they were gone through, `labelled` counts the pieces and `named` the skipped files that have labels.
    """

    def __init__(self, sources: Sequence[Folder | Archive], manifest: Manifest | None, journal: Journal):
        self._sources, self._manifest, self._journal = sources, manifest, journal
        has_labels = manifest or any(source.metadata for source in sources)
        self.columns = ("path", *(manifest.columns if manifest else COLUMNS if has_labels else ()))
        # Only now do archives know their root; a manifest may also name their members as they stand.
        read = ((entry.source, entry.name) for entry in journal if entry.piece)
        self._as_it_stands = {source for source, name in read if manifest and manifest(name)}
        self.labelled = self.named = 0

    def _path(self, entry: Entry) -> str:
        return entry.name if entry.source in self._as_it_stands else self._sources[entry.source].relative(entry.name)

    def _known(self, entry: Entry) -> tuple[str, ...] | None:
        labels = self._manifest or self._sources[entry.source].metadata
        return labels(self._path(entry)) if labels else None

    def labels(self) -> Iterator[tuple[str, ...]]:
        """A row of `columns` for every piece."""
        self.labelled = 0
        for entry in self._journal:
            if entry.piece:
                known = self._known(entry)
                self.labelled += known is not None
                yield (self._path(entry), *(known or ("",) * (len(self.columns) - 1)))

    def skipped(self, copies: dict[int, tuple[int, float]] | None = None) -> Iterator[tuple[str, str, str]]:
        """Path, reason and detail of every other file, and of the pieces that are in no split for being copies."""
        self.named = 0
        for entry in self._journal:
            if entry.dropped:
                self.named += self._known(entry) is not None
                yield (self._path(entry), *entry.dropped)
        copies = copies or {}
        wanted = copies.keys() | {other for other, _ in copies.values()}
        entries = enumerate(entry for entry in self._journal if entry.piece) if copies else ()
        path = {piece: self._path(entry) for piece, entry in entries if piece in wanted}
        for piece, (other, alike) in sorted(copies.items()):
            yield path[piece], NEAR_DUPLICATE, f"nearly {path[other]}, similarity {alike:.2f}"

    def check(self) -> None:
        """Raises BadInput where there are no pieces, two have one path, or the manifest names none of them."""
        paths = (self._path(entry) for entry in self._journal if entry.piece)
        found, first, counts = np.unique(hashes(paths), return_index=True, return_counts=True)
        if not len(found):
            path, _, detail = next(self.skipped())
            count = sum(1 for _ in self._journal)
            raise BadInput(f"none of {count:,} files could be read, the first for: {path}: {detail}")
        path = self._piece(int(first[counts.argmax()]))
        if counts.max() > 1:
            raise BadInput(f"{path}: {counts.max()} pieces have this path; put their folders under one")
        if self._manifest and not any(self._known(entry) for entry in self._journal if entry.piece):
            raise BadInput(f"{self._manifest.name}: none of its paths is that of a piece, such as {self._piece(0)}")

    def _piece(self, number: int) -> str:
        entries = (entry for entry in self._journal if entry.piece)
        return self._path(next(itertools.islice(entries, number, None)))


def split_pieces(
    pieces: Pieces, asked: tuple[str, tuple[float, ...]] | None
) -> tuple[Sequence[str], Int8[np.ndarray, "N"]]:
    """Names of the splits and each piece's, as asked, or given by the labels, or by GROUPS; see EPILOG."""
    columns = pieces.columns
    if asked is None and "split" in columns:
        at = columns.index("split")
        return given_split(row[at] for row in pieces.labels())
    column, fractions = asked or (next(column for column in GROUPS if column in columns), SHARES)
    at = columns.index(column) if column in columns else None
    if at is None or not any(row[at] for row in pieces.labels()):
        raise BadInput(f"--split {column}: no piece has this label")
    return SPLITS, drawn_split((row[at] or row[0] for row in pieces.labels()), fractions)


def summarise(dataset: dict, seconds: float, files: int) -> None:
    def line(name: str, counts: dict) -> str:
        return "{:8} {pieces:,} pieces, {hours:,.1f} h, {notes:,} notes, {tokens:,} tokens".format(name, **counts)

    print(line("all", dataset["counts"]) + f" in {seconds:.1f} s, {files / seconds:,.1f} files/s")
    for name, counts in dataset["splits"].items():
        print(line(name, counts))
    for name in ("train", "val"):
        if not dataset["splits"].get(name, {}).get("pieces"):
            print(f"warning  split {name} is empty, and training needs it: see --split")
    skipped = dataset["skipped"]
    for file in skipped["files"][:NAMED]:
        print(f"skipped  {file['path']}: {file['detail']}")
    if (count := sum(skipped["counts"].values())) > min(NAMED, len(skipped["files"])):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in skipped["counts"].items())
        print(f"skipped  {count:,} files in all ({reasons}), listed in {SKIPPED}")


if __name__ == "__main__":
    run(main)
