import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data.labels import Manifest, Table, drawn_split, given_split


def test_manifest(tmp_path):
    file = tmp_path / "manifest.csv"
    file.write_text('\ufeffcomposer,path,title\nbach,a.mid,"Fugue, in C"\n,b/c.mid,étude\n', encoding="utf-8")
    manifest = Manifest(str(file))
    assert manifest.columns == ("composer", "title") and len(manifest) == 2
    assert manifest("a.mid") == ("bach", "Fugue, in C")
    assert manifest("b/c.mid") == ("", "étude")
    assert manifest("c.mid") is None


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "a manifest needs a `path` column"),
        (b"file,composer\na.mid,bach\n", "a manifest needs a `path` column"),
        (b"path,composer\na.mid\n", "line 2: 1 values under 2 columns"),
        (b"path,composer\na.mid,bach\na.mid,bach\n", "a.mid is there more than once"),
        (b"path,composer\n\xff\xfe,bach\n", "not a CSV file"),
        (b'path,composer\n"a.mid,bach\n', "not a CSV file"),
    ],
)
def test_bad_manifest(tmp_path, content, complaint):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(BadInput, match=f"manifest.csv.*{complaint}"):
        Manifest(str(tmp_path / "manifest.csv"))


def test_absent_manifest(tmp_path):
    with pytest.raises(BadInput, match=r"none\.csv: No such file"):
        Manifest(str(tmp_path / "none.csv"))


def test_table_is_a_dict():
    table, plain = Table(), {}
    for number in range(1000):
        key, row = f"key {number * number % 700}", (f"{number}", "é\0\n" * (number % 3))
        table.add(key, row)
        plain[key] = row
    assert all(table.get(key) == row for key, row in plain.items()) and table.get("key") is None
    assert set(table.repeated()) and len(table) == 1000
    assert Table().get("key") is None and not Table().repeated()


def test_given_split_puts_the_usual_names_first():
    names, split = given_split(["val", "", "bonus", "train", "val"])
    assert names == ("train", "val", "bonus")
    assert split.tolist() == [1, -1, 2, 0, 1]
    with pytest.raises(BadInput, match="300 different names"):
        given_split([str(number) for number in range(300)])


@pytest.mark.parametrize("fractions", [(0.9, 0.05, 0.05), (0.9, 0.1, 0.0), (0.0, 0.5, 0.5), (1.0, 0.0, 0.0)])
def test_drawn_split_keeps_values_together_and_meets_the_fractions(fractions):
    random = np.random.default_rng(0)
    values = [f"piece {number}" for number in random.integers(0, 500, 5000)]
    split = drawn_split(values, fractions)
    assert np.allclose(np.bincount(split, minlength=3) / 5000, fractions, atol=0.003)
    assert len(set(zip(values, split.tolist(), strict=True))) == len(set(values))
    order = random.permutation(5000)  # the order of the pieces does not enter
    assert np.array_equal(drawn_split([values[place] for place in order], fractions), split[order])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("fractions", [(0.98, 0.01, 0.01), (0.99, 0.0, 0.01), (0.01, 0.98, 0.01), (0.01, 0.01, 0.98)])
def test_every_split_gets_something_when_there_is_enough(count, fractions):
    sizes = np.bincount(drawn_split([str(number) for number in range(count)], fractions), minlength=3)
    wanted = np.array(fractions) > 0
    assert sizes.sum() == count and not sizes[~wanted].any()
    if count >= wanted.sum():
        assert sizes[wanted].all()
