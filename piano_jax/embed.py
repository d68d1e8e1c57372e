"""`python -m piano_jax.embed`: from MIDI files to vectors, and to the files most like another."""

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from piano_jax import BadInput
from piano_jax.command import Parser, run
from piano_jax.data.chunks import NOTES
from piano_jax.data.sources import open_source
from piano_jax.data.vectors import Embedded, check_absent, read_vectors, write_vectors
from piano_jax.evaluation.statistics import read_statistics

EPILOG = """\
examples:
  python -m piano_jax.embed --checkpoint runs/embedding --midi recordings/ --out vectors.npz
  python -m piano_jax.embed --checkpoint runs/embedding --out vectors.npz --query mine.mid --nearest 5
  python -m piano_jax.embed --statistics --midi recordings/ --out statistics.npz

--midi is what prepare takes; without it, the vectors that --out holds already are searched.

what is written to --out, which appears only when whole:
  paths        of the files, relative to the folder or to the archive's top folder
  embeddings   float32 (files, size): the mean over each file's chunks
  chunks       how many there were
  skipped      the files without a vector, and why

a run that was killed or interrupted goes on when it is started again with the same arguments; until it is whole, what
is done is hidden beside --out, in .NAME.partial.
"""
NAMED = 10  # how many skipped files are named


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="piano_jax.embed",
        description="Turns MIDI files into vectors, by a model with an embedding head.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made_by = parser.add_mutually_exclusive_group(required=True)
    made_by.add_argument("--checkpoint", metavar="DIR", help="a work directory (its newest step) or one step's folder")
    made_by.add_argument(
        "--statistics", action="store_true", help="not by a model: histograms of notes, what an embedding has to beat"
    )
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="by the checkpoint's model with fresh weights, which training must beat",
    )
    parser.add_argument(
        "--midi",
        action="append",
        default=[],
        metavar="PATH",
        help="a MIDI file, a folder searched recursively, a .tar or .tar.gz read as a stream; may be given again",
    )
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="the vectors")
    parser.add_argument(
        "--notes",
        type=int,
        metavar="N",
        help=f"of a chunk; default: {NOTES}, or as many as training's slices had at most, where they had fewer",
    )
    parser.add_argument("--query", metavar="FILE.mid", help="print the files most like this one")
    parser.add_argument("--nearest", type=int, default=10, metavar="K", help="how many; default: %(default)s")
    options = parser.parse_args(arguments)
    for name in ("notes", "nearest"):
        if (count := getattr(options, name)) is not None and count < 1:
            raise BadInput(f"--{name} {count}: at least one is needed")
    if options.untrained and options.statistics:
        parser.error("--untrained goes with --checkpoint")
    if not options.midi and not options.query:
        parser.error("--midi, --query or both are needed")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    out = Path(options.out)
    if options.midi:
        check_absent(out)
    elif not out.exists():
        raise BadInput(f"{out}: no such file; --midi says what to make it from")
    sources = [open_source(path) for path in options.midi]
    query = open_source(options.query) if options.query else None
    with embedder(options) as (reader, embed, made_by):
        if sources:
            count, skipped = write_vectors(out, sources, reader, embed, {"midi": options.midi} | made_by)
            for line in skipped[:NAMED]:
                print(f"skipped  {line}")
            if len(skipped) > NAMED:
                print(f"skipped  {len(skipped):,} files in all, listed in {out}")
            print(f"{out}: {count:,} files")
        if query:
            [(name, content)] = query.read()
            [[found]] = embed([(name, reader(content))])
            if found.vector is None:
                raise BadInput(f"{options.query}: {found.reason}")
            from piano_jax.evaluation.retrieval import nearest

            paths, vectors = read_vectors(out)
            if vectors.shape[1:] != found.vector.shape:
                raise BadInput(
                    f"{out}: its vectors are {vectors.shape[1]} long, and {options.query}'s {len(found.vector)}"
                )
            for place, alike in nearest(found.vector, vectors, options.nearest):
                print(f"{alike:.4f}  {paths[place]}")


@contextlib.contextmanager
def embedder(options: argparse.Namespace) -> Iterator[tuple[Callable, Callable[[Iterable], Iterator[list]], dict]]:
    """How files are read, how what was read is embedded (see write_vectors), and what that depends on."""
    if options.statistics:
        yield read_statistics, statistics, {"statistics": True}
        return

    import jax

    from piano_jax.inference.embedding import read_embedder
    from piano_jax.learning.checkpoints import find
    from piano_jax.model.mesh import make_mesh

    mesh = make_mesh()
    with jax.set_mesh(mesh):
        reader, embedder = read_embedder(options.checkpoint, mesh, options.notes, fresh=options.untrained)
        made_by = {"checkpoint": str(find(options.checkpoint)), "untrained": options.untrained, "notes": reader.size}
        yield reader, embedder.pieces, made_by


def statistics(read: Iterable) -> Iterator[list[Embedded]]:
    for key, found in read:
        yield [Embedded(key, None, 0, found) if isinstance(found, str) else Embedded(key, found, 1)]


if __name__ == "__main__":
    run(main)
