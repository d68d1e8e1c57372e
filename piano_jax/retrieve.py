"""`python -m piano_jax.retrieve`: whether embeddings know what a performance is, as figures and as a map."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from piano_jax import BadInput
from piano_jax.command import Parser, run
from piano_jax.data.labels import Manifest
from piano_jax.data.vectors import read_vectors

EPILOG = """\
examples:
  python -m piano_jax.retrieve --embeddings a.npz --embeddings b.npz --labels manifest.csv --match piece_id
  python -m piano_jax.retrieve --embeddings a.npz --labels manifest.csv --map composer
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="piano_jax.retrieve",
        description="Files of vectors, as embed makes them, side by side: do performances with the same label find "
        "each other? And a map of them, each a point near those like it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--embeddings", action="append", required=True, metavar="FILE.npz", help="what embed wrote; may be given again"
    )
    parser.add_argument(
        "--labels", required=True, metavar="manifest.csv", help="a CSV with a `path` column and label columns"
    )
    parser.add_argument(
        "--match", metavar="COLUMN", help="print how often the nearest other file has the same label, as piece_id"
    )
    parser.add_argument(
        "--map", metavar="COLUMN", help="draw the files, coloured by a label: FILE.png, and FILE.html with their names"
    )
    options = parser.parse_args(arguments)
    if not options.match and not options.map:
        parser.error("--match, --map or both are needed")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    manifest = Manifest(options.labels)
    for column in (options.match, options.map):
        if column and column not in manifest.columns:
            raise BadInput(f"{options.labels}: no column {column}; there are {', '.join(manifest.columns)}")
    for number, file in enumerate(options.embeddings):
        paths, vectors = read_vectors(file)
        known = [manifest(path) for path in paths]
        if not any(known):
            raise BadInput(f"{options.labels}: none of its paths is that of a vector of {file}, such as {paths[0]}")

        def labels(column: str, known: list = known) -> list[str]:
            at = manifest.columns.index(column)
            return [row[at] if row else "" for row in known]

        if options.match:
            from piano_jax.evaluation.retrieval import retrieval

            found = retrieval(vectors, labels(options.match))
            if not found["queries"]:
                raise BadInput(f"{file}: no two of its files share a {options.match}")
            if not number:
                print(f"same {options.match:27} recall@1    MRR  queries   files")
            print(f"{file:32.32} {found['recall@1']:8.4f} {found['mrr']:6.4f} {found['queries']:8,.0f} {len(paths):7,}")
        if options.map:
            from piano_jax.evaluation.maps import draw, project

            if len(paths) < 4:
                raise BadInput(f"{file}: a map needs four files, and here are {len(paths)}")
            picture, page = draw(
                project(vectors), paths, labels(options.map), f"{Path(file).stem}: {options.map}", Path(file)
            )
            print(f"{picture}, and {page} with names")


if __name__ == "__main__":
    run(main)
