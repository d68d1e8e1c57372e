"""Tasks: a label column to tell, and its classes; and the files that have them, no composition on two sides.

A task is a text file of classes, one a line, of which the stem is the column: configs/tasks/*.txt, or one of your own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from piano_jax import BadInput
from piano_jax.data.rows import permutation

TASKS = Path(__file__).parents[2] / "configs/tasks"


class Task(NamedTuple):
    """A column of labels, and those of its values that are told apart, in the order of a classifier's outputs."""

    column: str
    classes: tuple[str, ...]

    def targets(self, labels: Sequence[str]) -> Int64[np.ndarray, "N"]:
        """The place of each label among the classes, or -1."""
        places = {name: place for place, name in enumerate(self.classes)}
        return np.array([places.get(label, -1) for label in labels], np.int64)


def read_task(name: str) -> Task:
    """The task of a name in configs/tasks or of a file. Raises BadInput."""
    path = Path(name) if name.endswith(".txt") else TASKS / f"{name}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in TASKS.glob("*.txt")))
        raise BadInput(f"{name}: no such task; there are {there}, or a file COLUMN.txt of classes, one a line")
    classes = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise BadInput(f"{path}: a task needs two classes or more, each on a line of its own, once")
    return Task(path.stem, tuple(classes))


def task_of(name: str, columns: Mapping[str, Sequence[str]], source: str) -> Task:
    """The task of a name or a file, or else of a column by this name with all its values. Raises BadInput."""
    known = name.endswith(".txt") or (TASKS / f"{name}.txt").is_file()
    column = read_task(name).column if known else name
    if column not in columns:
        raise BadInput(f"{source}: no column {column}; there are {', '.join(columns)}")
    return read_task(name) if known else Task(name, tuple(sorted(set(columns[name]) - {""})))


def check_apart(paths: Sequence[str], splits: Sequence[str], compositions: Sequence[str], source: str) -> None:
    """Raises BadInput where a composition ("": not known) stands in two splits, and names it with a file of each."""
    first: dict[str, tuple[str, str]] = {}
    for path, split, composition in zip(paths, splits, compositions, strict=True):
        if split and composition:
            other, where = first.setdefault(composition, (split, path))
            if other != split:
                raise BadInput(
                    f"{source}: composition {composition} is in {other} ({where}) and in {split} ({path}); what is "
                    "told would be known already"
                )


def check_classes(task: Task, targets: Int64[np.ndarray, "N"], source: str) -> None:
    """Raises BadInput where a class has fewer than two files to learn from."""
    counts = np.bincount(targets[targets >= 0], minlength=len(task.classes))
    if counts.min() < 2:
        least = int(counts.argmin())
        files = "1 file" if counts[least] else "no file"
        raise BadInput(
            f"{source}: {task.column} {task.classes[least]} has {files} to learn from, and two are needed; "
            f"a file {task.column}.txt of classes, one a line, leaves it out"
        )


def draw(targets: Int64[np.ndarray, "N"], count: int, seed: int) -> Int64[np.ndarray, "_"]:
    """So many of the examples that have a class, or all that there are: of each class one, then of each another."""
    order = permutation(len(targets), seed)
    order = order[targets[order] >= 0]
    turn = np.empty(len(order), np.int64)
    for target in np.unique(targets[order]):
        of_class = targets[order] == target
        turn[of_class] = np.arange(of_class.sum())
    return np.sort(order[np.argsort(turn, kind="stable")][:count])
