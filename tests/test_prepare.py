import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from time import sleep

import numpy as np
import pytest

from piano_jax import BadInput, prepare
from piano_jax.command import run
from piano_jax.data import Dataset
from piano_jax.data.shards import Writer, new_folder
from piano_jax.music import Notes, Vocabulary, read_midi, write_midi
from piano_jax.music.performances import performance

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    """12 readable pieces in folders, one without notes, one that is no MIDI, one cut short; and a manifest."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("prepare") / "pieces"
    rows = ["path,composer,work,split"]
    for number in range(12):
        path = f"data/{number % 3}/{number:06d}_0.mid"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        count = int(random.integers(30, 60))
        time, pitch = np.cumsum(random.integers(0, 300, count)), random.integers(30, 90, count)
        write_midi(Notes(time, random.integers(50, 900, count), pitch, random.integers(20, 100, count)), root / path)
        rows.append(f"{path},composer {number % 2},work {number // 2},{'train' if number < 8 else 'val'}")
    whole = (root / "data/0/000000_0.mid").read_bytes()
    (root / "data/cut.mid").write_bytes(whole[: len(whole) // 2])
    (root / "data/noise.mid").write_bytes(b"this is not MIDI")
    (root / "data/silent.mid").write_bytes(b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk\0\0\0\4\0\xff\x2f\0")
    rows += ["data/noise.mid,,,train", "data/absent.mid,bach,work 3,train", "data/gone.mid,bach,work 3,val"]
    (root.parent / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def manifest(pieces) -> str:
    return str(pieces.parent / "manifest.csv")


def make(out: Path, *arguments: object) -> Dataset:
    prepare.main([*map(str, arguments), "--out", str(out)])
    return Dataset(out)


def labels(dataset: Dataset) -> list[dict[str, str]]:
    with (dataset.path / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_ids_labels_and_splits(pieces, manifest, tmp_path, capsys):
    dataset = make(tmp_path / "out", "--midi", pieces, "--labels", manifest)
    dataset.verify()
    rows, aria = labels(dataset), Vocabulary("aria")
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows) and len(rows) == 12
    for piece, row in enumerate(rows):
        notes = read_midi(pieces / row["path"])
        assert np.array_equal(dataset[piece], aria.encode(notes))
        assert dataset.notes[piece] == len(notes) and dataset.seconds[piece] == np.float32(notes.seconds)
    for name in ("train", "val"):
        assert {rows[piece]["split"] for piece in dataset.split(name)} == {name}
    assert dataset.manifest["splits"]["train"]["pieces"] == 8
    printed = capsys.readouterr().out
    assert "2 rows of" in printed and "absent files" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "dataset.json")


def test_unreadable_files_are_skipped_counted_and_named(pieces, tmp_path, capsys):
    dataset = make(tmp_path / "out", "--midi", pieces)
    skipped = dataset.manifest["skipped"]
    assert skipped["counts"] == {"unreadable": 2, "no notes": 1}
    assert [(file["path"], file["reason"]) for file in skipped["files"]] == [
        ("data/cut.mid", "unreadable"),
        ("data/noise.mid", "unreadable"),
        ("data/silent.mid", "no notes"),
    ]
    assert all(file["detail"] for file in skipped["files"])
    with (dataset.path / "skipped.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == skipped["files"]
    assert "data/noise.mid" in capsys.readouterr().out


@pytest.mark.parametrize("suffix, top", [("tar.gz", "pieces"), ("tar", ".")])
def test_archive_and_folder_give_the_same_bytes(pieces, manifest, tmp_path, suffix, top):
    archive = tmp_path / f"pieces.{suffix}"
    with tarfile.open(archive, "w:gz" if suffix == "tar.gz" else "w") as tar:
        for path in sorted(path for path in pieces.rglob("*") if path.is_file()):
            tar.add(path, f"{top}/{path.relative_to(pieces)}")
    one = make(tmp_path / "one", "--midi", pieces, "--labels", manifest)
    other = make(tmp_path / "other", "--midi", archive, "--labels", manifest)
    for name in sorted(path.name for path in one.path.iterdir() if path.name != "dataset.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    assert one.manifest | {"arguments": 0} == other.manifest | {"arguments": 0}


def test_labels_from_the_metadata_of_the_source(pieces, tmp_path):
    root = shutil.copytree(pieces, tmp_path / "pieces")
    metadata = {str(n): {"metadata": {"composer": f"c{n}"}, "audio_scores": {"0": 0.75}} for n in range(11)}
    (root / "metadata.json").write_text(json.dumps(metadata))
    rows = labels(make(tmp_path / "out", "--midi", root))
    by_path = {row["path"]: row for row in rows}
    assert by_path["data/1/000004_0.mid"] == {
        "path": "data/1/000004_0.mid",
        **{"id": "4", "composer": "c4", "form": "", "genre": "", "period": "", "performer": "", "audio_score": "0.75"},
    }
    assert not any(value for column, value in by_path["data/2/000011_0.mid"].items() if column != "path")


@pytest.mark.parametrize(
    "column, shares", [("work", "0.5,0.25,0.25"), ("composer", "0.5,0.5,0"), ("path", "0.9,0.1,0")]
)
def test_split_by_column_never_straddles(pieces, manifest, tmp_path, column, shares):
    dataset = make(tmp_path / "out", "--midi", pieces, "--labels", manifest, "--split", f"{column}:{shares}")
    rows = labels(dataset)
    found = {name: {rows[piece][column] for piece in dataset.split(name)} for name in ("train", "val", "test")}
    assert not found["train"] & found["val"] and not (found["train"] | found["val"]) & found["test"]
    assert [bool(found[name]) for name in found] == [float(share) > 0 for share in shares.split(",")]
    assert sum(dataset.manifest["splits"][name]["pieces"] for name in found) == 12


def test_pieces_without_a_split_are_in_none(pieces, tmp_path):
    (tmp_path / "some.csv").write_text("path,split\ndata/0/000000_0.mid,train\ndata/1/000001_0.mid,extra\n")
    dataset = make(tmp_path / "out", "--midi", pieces, "--labels", tmp_path / "some.csv")
    assert {name: counts["pieces"] for name, counts in dataset.manifest["splits"].items()} == {"train": 1, "extra": 1}
    assert len(dataset) == 12


def test_several_sources_and_the_other_vocabulary(pieces, tmp_path):
    single = shutil.copy(pieces / "data/0/000000_0.mid", tmp_path / "single.MID")
    dataset = make(tmp_path / "out", "--midi", single, "--midi", pieces / "data/1", "--vocabulary", "piano")
    paths = ["single.MID", *(f"{number:06d}_0.mid" for number in (1, 4, 7, 10))]
    assert [row["path"] for row in labels(dataset)] == paths
    assert np.array_equal(dataset[0], Vocabulary("piano").encode(read_midi(single)))


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ("", "the following arguments are required: --midi"),
        ("--midi {root}/none", "{root}/none: no such file or folder"),
        ("--midi {root}/empty", "{root}/empty: no .mid or .midi file"),
        ("--midi {root}/manifest.csv", "manifest.csv: not a MIDI file, a folder"),
        ("--midi {root}/pieces/data/noise.mid", "none of 1 files could be read, the first for: noise.mid"),
        ("--midi {root}/cut.tar.gz", "cut.tar.gz: a damaged archive"),
        ("--midi {root}/pieces --midi {root}/pieces", "2 pieces have this path"),
        ("--midi {root}/pieces --labels {root}/none.csv", "none.csv: No such file"),
        (
            "--midi {root}/pieces/data/0 --labels {root}/manifest.csv",
            "none of its paths is that of a piece, such as 0000",
        ),
        ("--midi {root}/pieces --labels {root}/manifest.csv --split opus:1,0,0", "the labels have no such column"),
        ("--midi {root}/pieces --split opus:1,0,0", "--split opus: the labels have no such column"),
        ("--midi {root}/pieces --split genre:1,0,0", "--split genre: no piece has this label"),
        ("--midi {root}/pieces --split path:0.5,0.5", "not a column and three fractions"),
        ("--midi {root}/pieces --split path:0.5,0.5,0.5", "not a column and three fractions"),
        ("--midi {root}/pieces --split path:nan,0.5,0.5", "not a column and three fractions"),
        ("--midi {root}/pieces --split 0.9,0.1,0", "not a column and three fractions"),
        ("--midi {root}/pieces --filters heavy", "heavy: no such filters"),
        ("--midi {root}/pieces --workers 0", "--workers 0: at least one is needed"),
        ("--midi {root}/pieces --vocabulary organ", "invalid choice: 'organ'"),
        ("--midi {root}/pieces --out {root}/pieces", "pieces: exists, and is not an empty folder"),
        ("--midi {root}/pieces --out {root}/manifest.csv", "manifest.csv: exists, and is not an empty folder"),
        ("--midi {root}/pieces --out gs://bucket/data", "gs://bucket/data: shards are written to local disks"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(pieces, tmp_path, capsys, arguments, complaint):
    root, out = pieces.parent, tmp_path / "out"
    (root / "empty").mkdir(exist_ok=True)
    (root / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\0cut")
    with pytest.raises(SystemExit) as stop:
        run(lambda: prepare.main(["--out", str(out), *arguments.format(root=root).split()]))
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert printed.count("\n") == 1 and printed.startswith("error: ") and complaint.format(root=root) in printed
    assert not list(tmp_path.iterdir())


def test_existing_dataset_is_refused(pieces, tmp_path):
    dataset = make(tmp_path / "out", "--midi", pieces)
    with pytest.raises(BadInput, match="out: holds a dataset already"):
        make(tmp_path / "out", "--midi", pieces)
    dataset.verify()


def test_full_disk(pieces, tmp_path, capsys, monkeypatch):
    def full(self):
        raise RuntimeError("write() failed: No space left on device; writing pieces; at byte 4096")

    monkeypatch.setattr("piano_jax.data.shards.ArrayRecordWriter.close", full)
    with pytest.raises(SystemExit) as stop:
        run(lambda: prepare.main(["--midi", str(pieces), "--out", str(tmp_path / "out")]))
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {tmp_path / 'out'}: No space left on device\n"
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()  # room is made
    make(tmp_path / "out", "--midi", pieces).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(pieces, tmp_path_factory) -> dict[str, bytes]:
    """What all runs on `pieces` with these arguments must write, here by a single worker and without a break."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SHARD_TOKENS", 500)
        out = tmp_path_factory.mktemp("expected") / "out"
        return contents(make(out, *ARGUMENTS, "--midi", pieces, "--workers", 1).path)


ARGUMENTS = ("--filters", "none,max_velocity=64", "--vocabulary", "piano")


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_do_not_enter(pieces, expected, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(prepare, "SHARD_TOKENS", 500)
    dataset = make(tmp_path / "elsewhere", *ARGUMENTS, "--midi", pieces, "--workers", workers)
    assert contents(dataset.path) == expected and len(dataset.manifest["shards"]) > 2


@pytest.mark.parametrize("at", [1, 4, 9, "finish"])
def test_interrupted_goes_on(pieces, expected, tmp_path, monkeypatch, at):
    monkeypatch.setattr(prepare, "SHARD_TOKENS", 500)
    out, add, added = tmp_path / "out", Writer.add, []

    def interrupted(self, *arguments):
        added.append(self)
        if len(added) == at or at == "finish":
            raise KeyboardInterrupt
        return add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish" if at == "finish" else "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(out, *ARGUMENTS, "--midi", pieces)
    assert not out.exists()
    with pytest.raises(BadInput, match=r"\.out\.partial: begun with other filters: go on with the same, or remove"):
        make(out, "--vocabulary", "piano", "--midi", pieces)
    with monkeypatch.context() as patch:
        added.clear()
        patch.setattr(Writer, "add", lambda self, *arguments: added.append(1) or add(self, *arguments))
        assert contents(make(out, *ARGUMENTS, "--midi", pieces, "--workers", 3).path) == expected
    total = Dataset(out).manifest["counts"]["pieces"]
    assert len(added) < total if at in (9, "finish") else len(added) <= total  # what was whole is not done again
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("harm", ["flipped", "absent", "torn"])
def test_what_was_damaged_meanwhile_is_done_again(pieces, expected, tmp_path, monkeypatch, harm):
    monkeypatch.setattr(prepare, "SHARD_TOKENS", 500)
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(tmp_path / "out", *ARGUMENTS, "--midi", pieces)
    shard = tmp_path / ".out.partial" / "pieces-00001.arrayrecord"
    data = shard.read_bytes()
    if harm == "flipped":
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "absent":
        shard.unlink()
    else:
        journal = shard.with_name("journal.jsonl")
        journal.write_bytes(journal.read_bytes()[:-7])
    assert contents(make(tmp_path / "out", *ARGUMENTS, "--midi", pieces).path) == expected


def test_two_at_once(pieces, tmp_path):
    with new_folder(tmp_path / "out"), pytest.raises(BadInput, match="out: another process is making it"):
        make(tmp_path / "out", "--midi", pieces)


def test_three_kills_at_random_moments(tmp_path):
    """On an archive of several hundred pieces, in shards of a few, and with another number of workers each time."""
    random, archive = np.random.default_rng(), tmp_path / "many.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for number in range(600):
            count, path = 40 + number % 7, tmp_path / "piece.mid"
            rng = np.random.default_rng(number)
            time, pitch = np.cumsum(rng.integers(0, 300, count)), rng.integers(30, 90, count)
            write_midi(Notes(time, rng.integers(50, 900, count), pitch, rng.integers(20, 100, count)), path)
            tar.add(path, f"top/{number}.mid")
    patched = "-c from piano_jax import prepare; prepare.SHARD_TOKENS = 500; prepare.main()"
    once = ("--midi", archive, "--out")
    assert command(*once, tmp_path / "one", "--workers", 1, program=patched).returncode == 0
    for number in range(3):
        line = [*once, tmp_path / "out", "--workers", 1 + number]
        partial = tmp_path / ".out.partial"
        process = subprocess.Popen([sys.executable, *patched.split(" ", 1), *map(str, line)], env=environment())
        target = int(random.integers(10 * number, 10 * number + 25))  # shards
        while process.poll() is None and len(list(partial.glob("*.arrayrecord"))) < target:
            sleep(0.002)
        sleep(random.uniform(0, 0.02))
        process.kill()
        process.wait()
    assert command(*once, tmp_path / "out", program=patched).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.tar.gz", "one", "out", "piece.mid"]


def test_filters_and_duplicates(pieces, tmp_path):
    root = Path(shutil.copytree(pieces, tmp_path / "pieces"))
    shutil.copy(root / "data/0/000003_0.mid", root / "data/2/copy.mid")
    assert make(tmp_path / "all", "--midi", root).manifest["skipped"]["counts"] == {"unreadable": 2, "no notes": 1}
    dataset = make(tmp_path / "some", "--midi", root, "--filters", "none,max_seconds=7.5")
    counts = dataset.manifest["skipped"]["counts"]
    assert counts["max_seconds"] == (Dataset(tmp_path / "all").seconds > 7.5).sum() > 0
    assert counts["max_seconds"] + counts.get("duplicate", 0) + len(dataset) == 13
    dataset = make(tmp_path / "light", "--midi", root, "--filters", "light,min_seconds=off,min_duration_entropy=off")
    with (dataset.path / "skipped.csv").open(newline="") as file:
        by_path = {row["path"]: row for row in csv.DictReader(file)}
    assert by_path["data/2/copy.mid"]["reason"] == "duplicate" and "data/0/000003_0.mid" not in by_path


def test_near_duplicates_are_in_no_split(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "midi").mkdir()
    for seed in range(4):
        write_midi(performance(seed), tmp_path / f"midi/{seed}.mid")
    whole = performance(2)
    heard = rng.random(len(whole)) < 0.97
    heard[len(whole) * 3 // 5 :] = False  # the first three fifths, transcribed again
    onset = whole.onset[heard] + rng.integers(-15, 16, heard.sum())
    order = np.argsort(onset)
    columns = (x[heard][order] for x in (whole.duration, whole.pitch, whole.velocity))
    write_midi(Notes(onset[order] - onset.min(), *columns), tmp_path / "midi/1-copy.mid")

    plain = make(tmp_path / "plain", "--midi", tmp_path / "midi")
    assert sum(counts["pieces"] for counts in plain.manifest["splits"].values()) == 5
    for workers in (1, 2):
        out = tmp_path / f"with{workers}"
        dataset = make(out, "--midi", tmp_path / "midi", "--near-duplicates", "--workers", workers)
        copy = [row["path"] for row in labels(dataset)].index("1-copy.mid")
        in_splits = np.concatenate([dataset.split(name) for name in dataset.manifest["splits"]])
        assert sorted(in_splits) == [piece for piece in range(5) if piece != copy]
        (row,) = csv.DictReader((out / "skipped.csv").open())
        assert (row["path"], row["reason"]) == ("1-copy.mid", "near-duplicate") and "nearly 2.mid" in row["detail"]
    assert contents(tmp_path / "with1") == contents(tmp_path / "with2")


def test_report(pieces, manifest, tmp_path):
    page = (make(tmp_path / "out", "--midi", pieces, "--labels", manifest).path / "report.html").read_text()
    assert "12 pieces" in page and "composer 1" in page and page.count("<figure>") == 5


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def command(*arguments: object, program: str = "-m piano_jax.prepare") -> subprocess.CompletedProcess:
    line = [sys.executable, *program.split(" ", 1), *map(str, arguments)]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)


def test_killed_leaves_nothing_under_the_final_name(pieces, tmp_path):
    killed = (
        "-c import os; from piano_jax import prepare; from piano_jax.data.shards import Writer;"
        "Writer.finish = lambda *a: os.kill(os.getpid(), 9); prepare.main()"
    )
    out = tmp_path / "out"
    assert command("--midi", pieces, "--out", out, program=killed).returncode == -9
    assert not out.exists()
    make(out, "--midi", pieces).verify()  # and what it left behind is in nobody's way


def test_as_a_command(pieces, tmp_path):
    done = command("--midi", pieces, "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(tmp_path / "out" / "dataset.json")
    done = command("--midi", tmp_path / "none", "--out", tmp_path / "other")
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'none'}: no such file or folder\n"
    done = command("--help")
    assert done.returncode == 0 and "example:" in done.stdout
    loaded = command(program="-c import sys, piano_jax.prepare; print('jax' in sys.modules, 'grain' in sys.modules)")
    assert loaded.stdout == "False False\n"
