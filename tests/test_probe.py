"""The probe command: a table, confusions, the curve of few labels, and one line for bad input."""

import csv

import numpy as np
import pytest

from piano_jax import BadInput, probe

MOODS = ("wild", "mild", "odd")


def write_labels(folder, rows) -> None:
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "split", "piece_id", "mood"), *rows])


@pytest.fixture
def files(tmp_path):
    """180 files of three moods, three files a composition, in three splits: told well by `near`, and not by `far`."""
    rng = np.random.default_rng(0)
    mood = np.arange(180) // 3 % 3
    near = rng.normal(size=(3, 8))[mood] + 0.3 * rng.normal(size=(180, 8))
    paths = [f"{number}.mid" for number in range(180)]
    for name, vectors in (("near", near), ("far", rng.normal(size=(180, 8)))):
        np.savez(tmp_path / f"{name}.npz", paths=paths, embeddings=vectors.astype(np.float32))
    splits = ["train"] * 90 + ["val"] * 45 + ["test"] * 45
    write_labels(tmp_path, [(paths[n], splits[n], f"piece{n // 3}", MOODS[mood[n]]) for n in range(180)])
    return tmp_path


def run(files, *arguments: str) -> None:
    probe.main(["--labels", str(files / "labels.csv"), "--task", "mood", *arguments])


@pytest.mark.parametrize("protocol", ["logistic", "authors"])
def test_a_table_beside_the_majority(files, capsys, protocol):
    run(files, f"--embeddings={files}/near.npz", f"--embeddings={files}/far.npz", "--protocol", protocol)
    said = capsys.readouterr().out
    assert "learns from 90 files, tells 45 of test, 15 compositions" in said
    assert [line.split()[0] for line in said.splitlines()[1:4]] == sorted(MOODS)
    with (files / "near.mood.csv").open() as file:
        found = {row["name"]: {key: float(row[key]) for key in row if key != "name"} for row in csv.DictReader(file)}
    assert list(found) == ["majority", "near", "far"]
    assert found["near"]["accuracy"] > 0.95 and found["near"]["macro_f1"] > 0.95
    for name in ("majority", "far"):
        assert found[name]["accuracy"] < 0.6
        assert found[name]["low"] <= found[name]["accuracy"] <= found[name]["high"]
    assert (files / "near.mood.png").read_bytes().startswith(b"\x89PNG")


def test_few_labels(files, capsys):
    run(files, f"--embeddings={files}/near.npz", "--shots", "3,30,500", "--seeds", "2")
    with (files / "near.mood.shots.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["files"], row["draw"]) for row in rows] == [(n, d) for n in ("3", "30", "90") for d in "01"]
    assert float(rows[-1]["accuracy"]) > 0.95 and "3 files" in capsys.readouterr().out
    assert (files / "near.mood.shots.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_test_split_val_is_told_and_does_not_choose(files, capsys):
    manifest = (files / "labels.csv").read_text()
    (files / "labels.csv").write_text(manifest.replace("test", ""))
    run(files, f"--embeddings={files}/near.npz")
    assert "tells 45 of val" in capsys.readouterr().out
    (files / "labels.csv").write_text(manifest.replace("split", "other"))
    run(files, f"--embeddings={files}/near.npz")
    assert "of test, 12 compositions" in capsys.readouterr().out


def test_bad_input_is_one_line(files):
    near = f"--embeddings={files}/near.npz"

    def refused(culprit: str, *arguments: str) -> None:
        with pytest.raises(BadInput, match=culprit) as error:
            run(files, *arguments)
        assert "\n" not in str(error.value) and not list(files.glob("*.mood.*"))

    refused("labels.csv: no column key; there are split, piece_id, mood", near, "--task", "key")
    refused("labels.csv: no column composer", near, "--task", "composer")
    refused("no such task", near, "--task", "absent.txt")
    refused("--shots and --seeds", near, "--shots", "1")
    refused("labels.csv: not a file of embeddings", "--embeddings", str(files / "labels.csv"))
    whole = (files / "labels.csv").read_text()
    (files / "labels.csv").write_text(whole.replace("90.mid,val,piece30", "90.mid,val,piece0"))
    refused(r"composition piece0 is in train \(0.mid\) and in val \(90.mid\)", near)
    (files / "labels.csv").write_text(whole.replace("0.mid,train,piece0,wild", "0.mid,train,piece0,rare"))
    refused("mood rare has 1 file to learn from", near)
    (files / "labels.csv").write_text(whole.replace(".mid", ".midi"))
    refused("none of its paths is that of a file of .*near.npz, such as 0.mid", near)
    (files / "labels.csv").write_text(whole.replace("test", "train").replace("val", "train"))
    refused("split val holds no file with a mood", near)
