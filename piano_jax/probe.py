"""`python -m piano_jax.probe`: how much embeddings tell of a label, beside what chance and note statistics tell."""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from piano_jax import BadInput, write_whole
from piano_jax.command import Parser, progress, run
from piano_jax.data.chunks import chunks
from piano_jax.data.labels import Manifest, drawn_split
from piano_jax.data.shards import Dataset
from piano_jax.data.slices import read_columns
from piano_jax.data.tasks import Task, check_apart, check_classes, draw, task_of
from piano_jax.data.vectors import read_vectors

EPILOG = """\
examples:
  python -m piano_jax.embed --checkpoint runs/embedding --midi recordings/ --out vectors.npz
  python -m piano_jax.embed --checkpoint runs/embedding --untrained --midi recordings/ --out untrained.npz
  python -m piano_jax.embed --statistics --midi recordings/ --out statistics.npz
  python -m piano_jax.probe --finetuned runs/composer --labels manifest.csv --task composer
  python -m piano_jax.probe --embeddings vectors.npz --embeddings untrained.npz --embeddings statistics.npz \\
      --labels manifest.csv --task composer --shots 10,30,100,300

a task is a column of the labels. configs/tasks/COLUMN.txt has its classes, one a line; without such a file they are
all that the column holds, and with your own, --task my/COLUMN.txt, those that you list.

the column `split` says what is learnt from (train) and what is told (test, or val where there is no test); without it,
a fifth of the files is dealt to val and to test. Files of one composition (the column piece_id) must be on one side.
the penalty of logistic regression is chosen on val, or where val is told, on a fifth of the train compositions.

beside the first file of embeddings are written, NAME.TASK.csv and .png: the table and the confusion matrices; and with
--shots NAME.TASK.shots.csv and .png: accuracies learnt from so many labelled files, as many of each class as there are.
"""


class Examples(NamedTuple):
    """Files with a class, and by their places the parts that they play."""

    paths: list[str]
    targets: Int64[np.ndarray, "N"]
    compositions: Int64[np.ndarray, "N"]
    train: Int64[np.ndarray, "_"]
    learn: Int64[np.ndarray, "_"]
    choose: Int64[np.ndarray, "_"]
    told: Int64[np.ndarray, "_"]
    told_split: str


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="piano_jax.probe",
        description="Learns to tell a label from frozen embeddings by a linear layer, and says how often it is right.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--embeddings", action="append", default=[], metavar="FILE.npz", help="what embed wrote; may be given again"
    )
    parser.add_argument(
        "--finetuned",
        action="append",
        default=[],
        metavar="DIR",
        help="a run of configs/classify.py; may be given again",
    )
    parser.add_argument(
        "--labels", required=True, metavar="manifest.csv", help="a CSV with a `path` column and label columns"
    )
    parser.add_argument("--task", required=True, help="a column of the labels, or a file COLUMN.txt of its classes")
    parser.add_argument(
        "--protocol",
        choices=("logistic", "authors"),
        default="logistic",
        help="scikit-learn's logistic regression, or the authors' layer by AdamW in 50 epochs; default: %(default)s",
    )
    parser.add_argument("--shots", type=numbers, default=[], metavar="N,N", help="also learn from so few files")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="draws of them; default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.embeddings and not options.finetuned:
        parser.error("--embeddings, --finetuned or both are needed")
    if options.shots and not options.embeddings:
        parser.error("--shots are for --embeddings; a run learns from few labels by --config.data.shots")
    if min([2, *options.shots]) < 2 or options.seeds < 1:
        raise BadInput("--shots and --seeds: two files and one draw are the least")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    manifest = Manifest(options.labels)
    files = {name: read_vectors(name) for name in options.embeddings}
    runs = {name: Finetuned(name) for name in options.finetuned}
    sources = {name: paths for name, (paths, _) in files.items()} | {name: run.paths for name, run in runs.items()}
    task, examples = read_examples(options, manifest, sources)

    from piano_jax.evaluation import probes
    from piano_jax.evaluation.plots import plot_confusions, plot_few_labels

    names = dict(zip(sources, short_names(list(sources)), strict=True))
    vectors = {}
    for file, (paths, embeddings) in files.items():
        places = {path: place for place, path in enumerate(paths)}
        of = embeddings[[places[path] for path in examples.paths]]
        vectors[names[file]] = probes.standardised(of, examples.train)
    targets, told = examples.targets, examples.told
    groups = np.unique(examples.compositions[told], return_inverse=True)[1]

    def tell(x: Float32[np.ndarray, "N E"], learn: np.ndarray, finish: np.ndarray, seed: int) -> np.ndarray:
        if options.protocol == "authors":
            return probes.authors_probe(x, targets, finish, len(task.classes), seed)[told]
        return probes.logistic(x, targets, learn, examples.choose, finish)[told]

    def score(found: Int64[np.ndarray, "N"]) -> probes.Score:
        return probes.score(targets[told], found, groups, len(task.classes))

    scores = {"majority": score(np.full(len(told), np.bincount(targets[examples.train]).argmax()))}
    for name, x in progress(vectors.items(), len(vectors), "files of embeddings"):
        scores[name] = score(tell(x, examples.learn, examples.train, 0))
    curves: dict[str, dict[int, list[float]]] = {name: {} for name in vectors if options.shots}
    for name, classifier in runs.items():
        found = score(classifier.tell(task, [examples.paths[place] for place in told], examples.told_split))
        if classifier.shots:
            curves.setdefault("finetuned", {}).setdefault(classifier.shots, []).append(found.accuracy)
        else:
            scores[names[name]] = found
    work = [
        (name, shots, seed)
        for name in curves
        if name in vectors
        for shots in options.shots
        for seed in range(options.seeds)
    ]
    for name, shots, seed in progress(work, len(work), "probes"):
        few = examples.learn[draw(targets[examples.learn], shots, seed)]
        right = tell(vectors[name], few, few, seed) == targets[told]
        curves[name].setdefault(len(few), []).append(float(right.mean()))

    of = f"{groups.max() + 1:,} compositions"
    print(
        f"{task.column}: learns from {len(examples.train):,} files, tells {len(told):,} of {examples.told_split}, {of}"
    )
    for place, name in enumerate(task.classes):
        print(f"  {name:24} {(targets[examples.train] == place).sum():7,} {(targets[told] == place).sum():7,}")
    print(f"{options.protocol:24}   accuracy         95 %       macro-F1         95 %")
    for name, found in scores.items():
        parts = ((found.accuracy, found.accuracy_interval), (found.macro_f1, found.macro_f1_interval))
        print(f"{name:24}" + "".join(f"      {100 * x:5.1f}  {100 * a:5.1f} to {100 * b:5.1f}" for x, (a, b) in parts))
    out = Path((options.embeddings or options.finetuned)[0]).with_suffix(f".{task.column}.csv")
    header = ["name", "accuracy", "low", "high", "macro_f1", "macro_f1_low", "macro_f1_high"]
    rows = [[name, s.accuracy, *s.accuracy_interval, s.macro_f1, *s.macro_f1_interval] for name, s in scores.items()]
    write_table(out, header, rows)
    write_whole(
        out.with_suffix(".png"), plot_confusions({name: s.confusion for name, s in scores.items()}, task.classes)
    )
    print(f"{out}, and {out.with_suffix('.png')}")

    if curves:
        out = out.with_suffix(".shots.csv")
        for name, points in curves.items():
            means = "".join(f"  {shots:,} files {100 * np.mean(found):.1f}" for shots, found in sorted(points.items()))
            print(f"{name:24}{means}")
        flat = [(name, shots, found) for name, points in curves.items() for shots, found in sorted(points.items())]
        rows = [[name, shots, seed, value] for name, shots, found in flat for seed, value in enumerate(found)]
        write_table(out, ["name", "files", "draw", "accuracy"], rows)
        title = f"{task.column}, {len(task.classes)} classes"
        write_whole(out.with_suffix(".png"), plot_few_labels(curves, scores["majority"].accuracy, title))
        print(f"{out}, and {out.with_suffix('.png')}")


class Finetuned:
    """A run of configs/classify.py, which tells files of its own dataset by its checkpoint that is best on validation.

    Raises BadInput where it is none.
    """

    def __init__(self, run: str):
        from piano_jax.learning import checkpoints

        self.folder = str(checkpoints.best(run, "files"))
        self.run, self.config = run, checkpoints.read_config(self.folder)
        if self.config.phase != "classify":
            raise BadInput(
                f"{run}: a run of phase {self.config.phase}, which tells no classes; see configs/classify.py"
            )
        self.dataset = Dataset(self.config.data.path, vocabulary=self.config.vocabulary)
        self.paths, self.shots = read_columns(self.dataset)["path"], self.config.data.shots

    def tell(self, task: Task, paths: Sequence[str], split: str) -> Int64[np.ndarray, "N"]:
        """The classes of files, which must be of a split. Raises BadInput."""
        import jax

        from piano_jax.inference.classification import class_shares
        from piano_jax.inference.embedding import Embedder
        from piano_jax.learning import checkpoints
        from piano_jax.model.mesh import make_mesh

        theirs = list(self.config.task.classes)
        if lacking := [name for name in task.classes if name not in theirs]:
            raise BadInput(f"{self.run}: does not know the class {lacking[0]}; it tells {', '.join(theirs)}")
        places = {self.paths[piece]: int(piece) for piece in self.dataset.split(split)}
        if strange := [path for path in paths if path not in places]:
            raise BadInput(f"{self.run}: {strange[0]} is not in split {split} of {self.dataset.path}, its dataset")
        vocabulary, notes, length = self.dataset.vocabulary, self.config.data.notes, self.config.length
        pieces = (chunks(vocabulary.decode(self.dataset[places[path]]), vocabulary, notes, length) for path in paths)
        mesh = make_mesh()
        with jax.set_mesh(mesh):
            model, _ = checkpoints.read_model(self.folder, mesh)
            shares = class_shares(Embedder(model, mesh, length), pieces)
            found = np.stack(list(progress(shares, len(paths), "files")))
        return found[:, [theirs.index(name) for name in task.classes]].argmax(1)


def read_examples(
    options: argparse.Namespace, manifest: Manifest, sources: dict[str, list[str]]
) -> tuple[Task, Examples]:
    """The task, and the files with one of its classes that all sources have. Raises BadInput."""
    source = options.labels
    (name, first), *others = sources.items()
    everywhere = set(first).intersection(*(paths for _, paths in others))
    known = {path: row for path in first if path in everywhere and (row := manifest(path)) is not None}
    if not known:
        raise BadInput(f"{source}: none of its paths is that of a file of {name}, such as {first[0]}")
    columns = dict(zip(manifest.columns, zip(*known.values(), strict=True), strict=True))
    task = task_of(options.task, columns, source)
    targets = task.targets(columns[task.column])
    paths = np.array(list(known))
    compositions = np.array(columns.get("piece_id", paths))
    compositions = np.where(compositions == "", paths, compositions)
    if "split" in columns:
        split = np.array(columns["split"])
    else:
        split = np.array(["train", "val", "test"])[drawn_split(compositions.tolist(), (0.6, 0.2, 0.2))]
    labelled = targets >= 0
    paths, targets, compositions, split = (x[labelled] for x in (paths, targets, compositions, split))
    check_apart(paths.tolist(), split.tolist(), compositions.tolist(), source)

    train, told_split = np.flatnonzero(split == "train"), "test" if "test" in split else "val"
    told = np.flatnonzero(split == told_split)
    check_classes(task, targets[train], source)
    if not len(told):
        raise BadInput(f"{source}: split {told_split} holds no file with a {task.column}")
    learn, choose = train, np.flatnonzero(split == "val")
    if told_split == "val" or not len(choose):
        held_out = drawn_split(compositions[train].tolist(), (0.8, 0.2)) == 1
        learn, choose = train[~held_out], train[held_out]
    number = np.unique(compositions, return_inverse=True)[1]
    return task, Examples(paths.tolist(), targets, number, train, learn, choose, told, told_split)


def short_names(files: Sequence[str]) -> list[str]:
    """The files' stems, or where two are the same, all of their paths."""
    stems = [Path(file).stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(files)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_whole(path, text.getvalue().encode())


if __name__ == "__main__":
    run(main)
