"""`python -m piano_jax.prepare`: from MIDI files to a dataset of token shards."""

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from piano_jax import BadInput
from piano_jax.command import Parser, progress, run
from piano_jax.data.labels import SPLITS, Manifest, drawn_split, given_split
from piano_jax.data.shards import MANIFEST, Writer, check_free, new_folder
from piano_jax.data.sources import COLUMNS, Archive, Folder, open_source
from piano_jax.music import Vocabulary, read_midi

EPILOG = """\
example:
  python -m piano_jax.prepare --midi recordings/ --midi aria-midi.tar.gz --out data/mine
  python -m piano_jax.prepare --midi pieces.tar.gz --labels manifest.csv --split piece_id:0.9,0.05,0.05 --out data/mine

splits, when --split is not given:
  the labels' own `split` column; without one, 0.9 of the pieces train and 0.1 are val, and pieces stay together that
  share a `piece_id`, or, where that column is missing too, an `id`, or else each goes by its path.

what is written to --out, a new folder that appears only when whole:
  pieces-*.arrayrecord  token ids, a record a piece, in the order of input
  pieces.npz            where each piece begins, its notes, seconds and split
  labels.csv            its path and labels
  dataset.json          counts, checksums, and the files that were skipped, with reasons
"""
GROUPS, SHARES = ("piece_id", "id", "path"), (0.9, 0.1, 0.0)
NO_NOTES, NAMED = "no notes", 10  # a reason to skip a file; how many skipped files the summary names


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
    out, vocabulary = Path(options.out), Vocabulary(options.vocabulary)
    check_free(out)
    sources = [open_source(path) for path in options.midi]
    manifest = Manifest(options.labels) if options.labels else None
    if options.split and options.split[0] not in ("path", *(manifest.columns if manifest else COLUMNS)):
        raise BadInput(f"--split {options.split[0]}: the labels have no such column")

    started = time.monotonic()
    with new_folder(out) as folder:
        writer = Writer(folder, vocabulary)
        rows, skipped = tokenize(sources, vocabulary, manifest, writer)
        if manifest and all(row is None for _, row in rows):
            raise BadInput(f"{options.labels}: none of its paths is that of a piece, such as {rows[0][0]}")
        columns = manifest.columns if manifest else COLUMNS if any(source.metadata for source in sources) else ()
        labels = [(path, *(row or ("",) * len(columns))) for path, row in rows]
        splits, split = split_pieces(("path", *columns), labels, options.split)
        dataset = writer.finish(("path", *columns), labels, splits, split, vars(options), skipped)
    labelled = sum(row is not None for _, row in rows)
    summarise(dataset, time.monotonic() - started)
    if manifest:
        absent = len(manifest) - labelled - sum(manifest(file["path"]) is not None for file in skipped)
        print(
            f"labels   {labelled:,} pieces have them, {len(rows) - labelled:,} have none; "
            f"{absent:,} rows of {options.labels} are of absent files"
        )
    print(out / MANIFEST)


def tokenize(
    sources: Sequence[Folder | Archive], vocabulary: Vocabulary, manifest: Manifest | None, writer: Writer
) -> tuple[list[tuple[str, tuple[str, ...] | None]], list[dict[str, str]]]:
    """Writes every piece that can be read; returns their paths and labels, and what was skipped and why.

    Raises:
        BadInput: no file could be read, or two of them have one path.
    """
    totals = [source.total for source in sources]
    total = None if None in totals else sum(totals)  # type: ignore[arg-type]
    files = ((source, name, data) for source in sources for name, data in source)
    read, failed = [], []
    for source, name, data in progress(files, total, "files"):
        try:
            if isinstance(data, OSError):
                raise BadInput(data.strerror)
            notes = read_midi(data)
            writer.add(vocabulary.encode(notes), len(notes), notes.seconds)
            read.append((source, name))
        except BadInput as error:
            failed.append((source, name, str(error).removeprefix("MIDI data: ")))

    # Only now do archives know their root; a manifest may also name their members as they stand.
    as_it_stands = {source for source, name in read if manifest and manifest(name)}

    def path_of(source: Folder | Archive, name: str) -> str:
        return name if source in as_it_stands else source.relative(name)

    skipped = [
        {"path": path_of(source, name), "reason": NO_NOTES if NO_NOTES in detail else "unreadable", "detail": detail}
        for source, name, detail in failed
    ]
    if not read:
        first = "{path}: {detail}".format(**skipped[0])
        raise BadInput(f"none of {len(skipped):,} files could be read, the first for: {first}")
    paths = [path_of(source, name) for source, name in read]
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise BadInput(f"{path}: {count} pieces have this path; put their folders under one")
    known = [manifest or source.metadata for source, _ in read]
    return [(path, labels(path) if labels else None) for path, labels in zip(paths, known, strict=True)], skipped


def split_pieces(
    columns: Sequence[str], labels: Sequence[tuple[str, ...]], asked: tuple[str, tuple[float, ...]] | None
) -> tuple[Sequence[str], Int8[np.ndarray, "N"]]:
    """Names of the splits and each piece's, as asked, or given by the labels, or by GROUPS; see EPILOG."""
    if asked is None and "split" in columns:
        return given_split([row[columns.index("split")] for row in labels])
    column, fractions = asked or (next(column for column in GROUPS if column in columns), SHARES)
    at = columns.index(column) if column in columns else None
    if at is None or not any(row[at] for row in labels):
        raise BadInput(f"--split {column}: no piece has this label")
    return SPLITS, drawn_split([row[at] or row[0] for row in labels], fractions)


def summarise(dataset: dict, seconds: float) -> None:
    def line(name: str, counts: dict) -> str:
        return "{:8} {pieces:,} pieces, {hours:,.1f} h, {notes:,} notes, {tokens:,} tokens".format(name, **counts)

    skipped = dataset["skipped"]
    files = dataset["counts"]["pieces"] + len(skipped["files"])
    print(line("all", dataset["counts"]) + f" in {seconds:.1f} s, {files / seconds:,.1f} files/s")
    for name, counts in dataset["splits"].items():
        print(line(name, counts))
    for name in ("train", "val"):
        if not dataset["splits"].get(name, {}).get("pieces"):
            print(f"warning  split {name} is empty, and training needs it: see --split")
    for file in skipped["files"][:NAMED]:
        print(f"skipped  {file['path']}: {file['detail']}")
    if len(skipped["files"]) > NAMED:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in skipped["counts"].items())
        print(f"skipped  {len(skipped['files']):,} files in all ({counts}), listed in {MANIFEST}")


if __name__ == "__main__":
    run(main)
