"""`python -m piano_jax.evaluate`: how likely held-out pieces are, and how good continuations."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from piano_jax import BadInput, write_whole
from piano_jax.command import Parser, run
from piano_jax.data.rows import permutation
from piano_jax.data.shards import Dataset, new_folder
from piano_jax.data.slices import read_columns

EPILOG = """\
examples:
  python -m piano_jax.evaluate --checkpoint runs/mine --data data/mine --out likelihood
  python -m piano_jax.evaluate --checkpoint runs/a --checkpoint runs/b --data data/mine --out both --by composer

how likely a split's pieces are to checkpoints, beside two models that count: nats per token, in all and by class of
token, per note and per second of music; calibration; by label. Each with its 95 % interval, by bootstrap over
compositions (the labels' column piece_id, or else files). A folder is left with likelihood.json, .csv and .png.
"""
BY = ("composer", "period", "form", "genre")  # columns that figures are split by, where the labels have them


def parser() -> Parser:
    parser = Parser(
        prog="piano_jax.evaluate",
        description="Says how likely held-out pieces are to a model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DATASET", help="what prepare made")
    add("--split", default="val", help="the pieces to evaluate on (default: %(default)s)")
    add("--out", required=True, metavar="FOLDER", type=Path, help="folder to make; must be empty or not exist")
    add("--seed", type=int, default=0, help="another seed draws others (default: %(default)s)")
    of = parser.add_argument_group("likelihood").add_argument
    of(
        "--checkpoint",
        action="append",
        default=[],
        metavar="DIR",
        help="a work directory (its newest step) or one step's folder; may be given again",
    )
    of("--pieces", type=int, metavar="N", help="only so many of the split's pieces, drawn at random")
    of("--by", action="append", metavar="COLUMN", help=f"of the labels; may be given again (default: {', '.join(BY)})")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if not options.checkpoint:
        raise BadInput("--checkpoint DIR: at least one is needed")
    if options.pieces is not None and options.pieces < 1:
        raise BadInput(f"--pieces {options.pieces}: at least one is needed")
    if not 0 <= options.seed < 1 << 32:
        raise BadInput(f"--seed {options.seed} is not between 0 and 2^32")
    dataset = Dataset(options.data)
    likelihood(options, dataset)


def likelihood(options: argparse.Namespace, dataset: Dataset) -> None:
    """How likely pieces are to checkpoints and to the floors: prints tables, and fills the folder. Raises BadInput."""
    pieces, train = split_of(dataset, options.split), split_of(dataset, "train")
    if options.pieces:
        pieces = np.sort(pieces[permutation(len(pieces), options.seed)[: options.pieces]])
    columns = read_columns(dataset)
    by = [column for column in BY if column in columns] if options.by is None else options.by
    if unknown := [column for column in by if column not in columns]:
        raise BadInput(f"{dataset.path}: no column {unknown[0]}; there are {', '.join(columns)}")
    names = [Path(checkpoint).name for checkpoint in options.checkpoint]
    names = names if len(set(names)) == len(names) else options.checkpoint

    import jax
    from absl import logging

    from piano_jax.evaluation import floors, likelihood, tables
    from piano_jax.evaluation.plots import plot_likelihood
    from piano_jax.model.mesh import make_mesh

    logging.set_verbosity(logging.FATAL)  # Orbax logs, with their stack, the errors that it raises as well
    for checkpoint in options.checkpoint:  # all, before the first is measured
        likelihood.check_language(checkpoint, dataset)
    compositions = compositions_of(columns)
    groups = np.unique(compositions[pieces], return_inverse=True)[1]
    with new_folder(options.out) as folder:
        counted = floors.fit_floors(dataset, train, compositions[train].tolist())
        tallies = {name: floors.tally_of_floor(floor, dataset, pieces) for name, floor in counted.items()}
        mesh = make_mesh()
        with jax.set_mesh(mesh):
            for name, checkpoint in zip(names, options.checkpoint, strict=True):
                print(f"{name}: {checkpoint}", flush=True)
                tallies[name] = likelihood.tally_of_checkpoint(checkpoint, mesh, dataset, pieces)
        labels = {column: np.array(columns[column])[pieces] for column in by}
        report = tables.report(tallies, dataset.seconds[pieces].astype(float), groups, labels)
        about = {
            "data": str(dataset.path),
            "fingerprint": dataset.fingerprint,
            "split": options.split,
            "checkpoints": dict(zip(names, options.checkpoint, strict=True)),
            "added to counts": {name: floor.added for name, floor in counted.items()},
        }
        bins = {name: tally.bins.sum(0) for name, tally in tallies.items()}
        write_whole(folder / "likelihood.json", tables.as_json(about, report, tallies))
        write_whole(folder / "likelihood.csv", tables.as_csv(report))
        write_whole(folder / "likelihood.png", plot_likelihood(report.whole.figures, bins))
    print(tables.printed(report))
    print(f"{options.out}: likelihood.json, likelihood.csv and likelihood.png")


def split_of(dataset: Dataset, split: str) -> Int64[np.ndarray, "N"]:
    """The pieces of a split. Raises BadInput where there are none."""
    pieces = dataset.split(split)
    if not len(pieces):
        raise BadInput(f"{dataset.path}: split {split} is empty")
    return pieces


def compositions_of(columns: dict[str, list[str]]) -> np.ndarray:
    """The composition of every piece: the column piece_id, or where that is empty or absent, the piece itself."""
    own = np.array([f"piece {number}" for number in range(len(columns["path"]))])
    known = np.array(columns.get("piece_id", [""] * len(own)))
    return np.where(known == "", own, known)


if __name__ == "__main__":
    run(main)
