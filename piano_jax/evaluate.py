"""`python -m piano_jax.evaluate`: how likely held-out pieces are, and how good continuations."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from piano_jax import BadInput, write_whole
from piano_jax.command import Parser, run
from piano_jax.data.rows import permutation
from piano_jax.data.shards import Dataset, new_folder
from piano_jax.data.slices import read_columns
from piano_jax.evaluation.prompts import OTHER, PROMPTS, TRUTH

EPILOG = """\
examples:
  python -m piano_jax.evaluate --checkpoint runs/mine --data data/mine --out likelihood
  python -m piano_jax.evaluate --checkpoint runs/a --checkpoint runs/b --data data/mine --out both --by composer
  python -m piano_jax.evaluate --system mine=runs/mine --system markov --data data/mine --out judged
  python -m piano_jax.evaluate --system mine=runs/mine --system theirs=theirs/ --data data/mine --out again \\
      --embedder runs/embedding

--checkpoint: how likely a split's pieces are, beside two models that count: nats per token, in all and by class of
token (other is the end), per note and per second of music; calibration; by label. Pieces are told in windows as long
as the rows that a run learnt from, each half a window on. Each figure has its 95 % interval, by bootstrap over
compositions (the labels' column piece_id, or else files); what a model needs more of than the last checkpoint, too,
which is surer than both apart. The folder gets likelihood.json, .csv and .png.

--system: how good continuations of a split's pieces are, of one performance of each composition, drawn at random.
WHAT is a checkpoint; a folder of MIDI made elsewhere; markov, or markov:K for one of K tokens; truth, or other, which
is another piece's continuation. The latter two are judged in any case, as ceiling and floor.
the folder gets prompts/001.mid, … and for each system NAME/001.mid, …: prompt and continuation in one file. Another
run with the same --data, --split, --seed, --prompts and lengths has the same prompts, so that a folder filled elsewhere
from these prompts, by the same names, can be judged by the next run.
"""
BY = ("composer", "period", "form", "genre")  # columns that figures are split by, where the labels have them


def system(text: str) -> tuple[str, str]:
    """The name and the origin of a system, from NAME=WHAT, or from a word that is both."""
    name, _, what = text.partition("=")
    if not what and re.fullmatch(rf"{TRUTH}|{OTHER}|markov(:\d+)?", name):
        name, what = name.replace(":", "-"), name
    if not what or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=WHAT, of a name of letters, digits, _, . and -")
    if name == PROMPTS or (name in (TRUTH, OTHER) and what != name):
        raise argparse.ArgumentTypeError(f"{text!r}: {name} is the name of something else; give another")
    return name, what


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="piano_jax.evaluate",
        description="Says how likely held-out pieces are to models, or how good their continuations are.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DATASET", help="what prepare made")
    add("--split", default="val", help="the pieces to evaluate on (default: %(default)s)")
    add("--out", required=True, metavar="FOLDER", type=Path, help="folder to make; must be empty or not exist")
    add("--seed", type=int, default=0, help="another seed draws others (default: %(default)s)")
    of = parser.add_argument_group("how likely pieces are").add_argument
    of(
        "--checkpoint",
        action="append",
        default=[],
        metavar="DIR",
        help="a work directory (its newest step) or one step's folder; may be given again",
    )
    of("--pieces", type=int, metavar="N", help="only so many of the split's pieces, drawn at random")
    of("--by", action="append", metavar="COLUMN", help=f"of the labels; may be given again (default: {', '.join(BY)})")
    of = parser.add_argument_group("how good continuations are").add_argument
    of(
        "--system",
        action="append",
        default=[],
        type=system,
        metavar="NAME=WHAT",
        help="who continues; may be given again",
    )
    of("--prompts", type=int, default=100, metavar="N", help="how many, at most (default: %(default)s)")
    of(
        "--prompt-seconds",
        metavar="S",
        type=float,
        default=15.0,
        help="of a piece are the prompt (default: %(default)s)",
    )
    of("--seconds", metavar="S", type=float, default=45.0, help="that follow are judged (default: %(default)s)")
    of("--embedder", metavar="DIR", help="a run of configs/contrastive.py, for distances between embeddings")
    of("--no-grammar", action="store_true", help="lets checkpoints err, as in a note without its onset")
    options = parser.parse_args(arguments)
    if bool(options.checkpoint) == bool(options.system):
        parser.error("--checkpoint DIR or --system NAME=WHAT is needed, not both")
    if options.prompts < 2 or (options.pieces is not None and options.pieces < 1):
        parser.error("--prompts and --pieces: two prompts and one piece are the least")
    if not (0 < options.prompt_seconds < 1e5 and 0 < options.seconds < 1e5 and 0 <= options.seed < 1 << 32):
        parser.error("--prompt-seconds and --seconds must be positive, --seed between 0 and 2^32")
    names = [name for name, _ in options.system]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"argument --system: {twice[0]} is given twice")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    dataset = Dataset(options.data)
    (likelihood if options.checkpoint else continuations)(options, dataset)


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

    from piano_jax.evaluation import floors, likelihood, tables
    from piano_jax.evaluation.plots import plot_likelihood
    from piano_jax.model.mesh import make_mesh

    for checkpoint in options.checkpoint:  # all, before the first is measured
        if (theirs := likelihood.check_language(checkpoint)) != dataset.vocabulary.name:
            raise BadInput(f"{checkpoint}: of the vocabulary {theirs}, and {dataset.path} of {dataset.vocabulary.name}")
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


def continuations(options: argparse.Namespace, dataset: Dataset) -> None:
    """How good systems' continuations are: fills the folder, with a page, and prints a table. Raises BadInput."""
    split_of(dataset, options.split)
    columns = read_columns(dataset)
    compositions = compositions_of(columns)

    import jax

    from piano_jax.evaluation import prompts, systems
    from piano_jax.evaluation.continuations import judge
    from piano_jax.evaluation.page import write_page
    from piano_jax.model.mesh import make_mesh

    lengths = options.prompt_seconds, options.seconds
    drawn = prompts.draw_prompts(dataset, options.split, compositions, options.prompts, *lengths, options.seed)
    if len(drawn.names) < options.prompts:
        print(f"{len(drawn.names)} prompts, for so many compositions of {options.split} are long enough")
    mesh = make_mesh()
    with jax.set_mesh(mesh), new_folder(options.out) as folder:
        embed = systems.embedder(options.embedder, mesh) if options.embedder else None
        named = dict(options.system) | {TRUTH: TRUTH, OTHER: OTHER}
        rules = not options.no_grammar
        made = systems.make(named, dataset, drawn, *lengths, options.seed, mesh, rules)
        prompts.write_folder(folder / PROMPTS, drawn.names, drawn.prompts, options.prompt_seconds)
        for name, of in made.items():
            prompts.write_folder(folder / name, drawn.names, of.whole, sum(lengths), of.source)

        # What is judged is what the files hold, for elsewhere they are all that there is.
        heard = {
            name: [
                prompts.continuation_of(notes, *lengths) for notes in prompts.read_folder(folder / name, drawn.names)
            ]
            for name in made
        }
        train = dataset.split("train")
        judgement = judge(
            prompts.read_folder(folder / PROMPTS, drawn.names),
            heard[TRUTH],
            {name: alone for name, alone in heard.items() if name not in (TRUTH, OTHER)},
            embed=embed,
            training=systems.performances(dataset, train),
            training_names=[columns["path"][piece] for piece in train],
            names=drawn.names,
            seed=options.seed,
            valid={name: of.valid for name, of in made.items() if of.valid is not None},
        )
        write_page(judgement, folder)
        paths = {name: columns["path"][piece] for name, piece in zip(drawn.names, drawn.pieces, strict=True)}
        said = {
            "systems": dict(options.system),
            "embedder": options.embedder,
            "data": str(dataset.path),
            "fingerprint": dataset.fingerprint,
            "split": options.split,
            "prompt seconds": options.prompt_seconds,
            "seconds": options.seconds,
            "seed": options.seed,
            "grammar": rules,
            "prompts": paths,
        }
        write_whole(folder / "prompts.json", (json.dumps(said, indent=1) + "\n").encode())
    print(judgement.table())
    print(f"{options.out}: the page, the table, and the continuations of {len(drawn.names)} prompts")


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
