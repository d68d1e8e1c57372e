"""Tasks: files of classes, draws of few labels, and compositions on two sides, refused."""

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data.tasks import TASKS, check_apart, check_classes, draw, read_task, task_of


def test_shipped_tasks_have_the_classes_that_were_reported():
    sizes = {"genre": 2, "period": 4, "composer": 10, "form": 6, "pianist": 8, "emotion": 4}
    assert {file.stem: len(read_task(file.stem).classes) for file in TASKS.glob("*.txt")} == sizes


def test_a_task_is_a_file_or_a_column(tmp_path):
    (tmp_path / "mood.txt").write_text("wild\n\n mild \n")
    columns = {"mood": ["mild", "wild", "", "odd"], "composer": ["bach"] * 4}
    mood = read_task(str(tmp_path / "mood.txt"))
    assert mood == task_of(str(tmp_path / "mood.txt"), columns, "") == ("mood", ("wild", "mild"))
    assert mood.targets(columns["mood"]).tolist() == [1, 0, -1, -1]
    assert task_of("mood", columns, "").classes == ("mild", "odd", "wild")
    assert task_of("composer", columns, "") == read_task("composer")


def test_few_labels_are_of_all_classes():
    targets = np.array([0] * 50 + [1] * 5 + [2] * 3 + [-1] * 20)
    few = draw(targets, 9, seed=1)
    assert np.bincount(targets[few]).tolist() == [3, 3, 3]
    assert np.bincount(targets[draw(targets, 13, seed=1)]).tolist() == [5, 5, 3]
    assert set(few) < set(draw(targets, 20, seed=1)) and set(few) != set(draw(targets, 9, seed=2))
    assert draw(targets, 1000, seed=0).tolist() == list(range(58))


def test_bad_input_is_one_line(tmp_path):
    def refused(culprit: str, call, *arguments) -> None:
        with pytest.raises(BadInput, match=culprit) as error:
            call(*arguments)
        assert "\n" not in str(error.value)

    paths, splits = ["a.mid", "b.mid", "c.mid"], ["train", "train", "val"]
    check_apart(paths, splits, ["one", "one", "two"], "labels.csv")
    check_apart(paths, splits, ["", "", ""], "labels.csv")
    check_apart(paths, ["train", "", "val"], ["one", "one", "two"], "labels.csv")
    planted = ["one", "two", "two"]
    refused(
        r"labels.csv: composition two is in train \(b.mid\) and in val \(c.mid\)",
        check_apart,
        paths,
        splits,
        planted,
        "labels.csv",
    )

    task = read_task("genre")
    refused("labels.csv: genre jazz has 1 file", check_classes, task, np.array([0, 0, 1, -1]), "labels.csv")
    refused("genre classical has no file", check_classes, task, np.array([1, 1]), "labels.csv")
    refused("mood: no such task; there are composer, emotion", read_task, "mood")
    refused("labels.csv: no column genre; there are mood", task_of, "genre", {"mood": []}, "labels.csv")
    (tmp_path / "mood.txt").write_text("wild\nwild\n")
    refused("mood.txt: a task needs two classes or more", read_task, str(tmp_path / "mood.txt"))
