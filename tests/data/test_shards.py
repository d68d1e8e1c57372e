import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data import Dataset
from piano_jax.data.shards import new_folder


@pytest.fixture
def copy(performances, tmp_path) -> Path:
    return Path(shutil.copytree(performances.path, tmp_path / "copy"))


def test_pieces_come_back_in_order(numbered):
    assert len(numbered) == 30 and len(numbered.manifest["shards"]) > 2
    whole = np.concatenate(list(numbered))
    assert whole.dtype == np.uint16
    assert np.array_equal(whole, 100 + np.arange(numbered.offsets[-1]))
    assert np.array_equal(numbered[-1], numbered[29])
    some = np.array([29, 3, 17, 3])
    assert all(np.array_equal(ids, numbered[piece]) for ids, piece in zip(numbered.read(some), some, strict=True))


def test_manifest_counts_what_is_there(performances):
    performances.verify()
    counts, splits = performances.manifest["counts"], performances.manifest["splits"]
    assert counts == {"pieces": 40, "tokens": performances.offsets[-1], "notes": sum(range(40)), "hours": 0.667}
    assert [splits[name]["pieces"] for name in ("train", "val", "test")] == [30, 10, 0]
    assert splits["train"]["tokens"] + splits["val"]["tokens"] == counts["tokens"]
    assert sum(shard["pieces"] for shard in performances.manifest["shards"]) == 40
    assert performances.split("val").tolist() == list(range(3, 40, 4))


def test_pickle_reopens(performances):
    performances[0]
    copied = pickle.loads(pickle.dumps(performances))
    assert len(pickle.dumps(performances)) < 1000
    assert np.array_equal(copied[5], performances[5])


def test_not_a_dataset(tmp_path):
    with pytest.raises(BadInput, match="not a dataset"):
        Dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(BadInput, match="not a dataset"):
        Dataset(tmp_path)
    with pytest.raises(BadInput, match="gs://bucket/data: shards are read from local disks"):
        Dataset("gs://bucket/data")


@pytest.mark.parametrize("file", ["pieces-00001.arrayrecord", "pieces.npz", "labels.csv"])
def test_missing_and_shortened_files(copy, file):
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[:-1])
    with pytest.raises(BadInput, match=rf"{file}: has [\d,]+ bytes instead of"):
        Dataset(copy)
    (copy / file).unlink()
    with pytest.raises(BadInput, match=f"{file}: is missing"):
        Dataset(copy)


@pytest.mark.parametrize("file", ["pieces-00001.arrayrecord", "pieces.npz", "labels.csv"])
def test_checksums_catch_a_flipped_bit(copy, file):
    dataset, data = Dataset(copy), bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(BadInput, match=f"{file}: damaged"):
        dataset.verify()
    if file == "pieces.npz":
        with pytest.raises(BadInput, match=f"{file}: damaged"):
            Dataset(copy)


def test_reading_a_damaged_shard_names_it(copy):
    file = copy / "pieces-00001.arrayrecord"
    file.write_bytes(bytes(file.stat().st_size))
    dataset = Dataset(copy)
    with pytest.raises(BadInput, match=r"pieces-00001\.arrayrecord: damaged"):
        dataset.read(np.arange(40))


def test_other_vocabulary_and_format(copy):
    Dataset(copy, "aria")
    with pytest.raises(BadInput, match="the dataset's vocabulary is aria, the model's piano"):
        Dataset(copy, "piano")
    manifest = json.loads((copy / "dataset.json").read_text())
    changed = manifest | {"vocabulary": {"name": "aria", "sha256": "0" * 64}}
    (copy / "dataset.json").write_text(json.dumps(changed))
    with pytest.raises(BadInput, match="prepare it anew"):
        Dataset(copy)
    (copy / "dataset.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(BadInput, match="format 2, and this version reads format 1"):
        Dataset(copy)


def test_no_such_split(performances):
    with pytest.raises(BadInput, match="no split dev; there are train, val, test"):
        performances.split("dev")


def test_folder_appears_only_when_whole(tmp_path):
    out = tmp_path / "new" / "data"
    with pytest.raises(KeyboardInterrupt), new_folder(out) as folder:
        (folder / "half").write_text("half")
        assert not out.exists()
        raise KeyboardInterrupt
    assert not list((tmp_path / "new").iterdir())
    with new_folder(out) as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["data", "whole"]


def test_folder_takes_no_place_that_is_taken(performances, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "empty").mkdir()
    for path, complaint in [
        (performances.path, "holds a dataset already"),
        (tmp_path / "file", "not an empty folder"),
        (tmp_path / "full", "not an empty folder"),
        (tmp_path / "file" / "data", "not a folder"),
    ]:
        with pytest.raises(BadInput, match=complaint), new_folder(path):
            pass
    with new_folder(tmp_path / "empty"):
        pass
