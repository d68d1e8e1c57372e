"""The retrieve command: a table, a map, and one line for bad input."""

import numpy as np
import pytest

from piano_jax import BadInput, retrieve


@pytest.fixture
def files(tmp_path):
    """Ten vectors in five pieces of two, near each other in `near.npz`, anywhere in `far.npz`; and their labels."""
    rng = np.random.default_rng(0)
    paths = np.array([f"{number}.mid" for number in range(10)])
    near = np.repeat(rng.normal(size=(5, 8)), 2, axis=0) + 0.01 * rng.normal(size=(10, 8))
    for name, vectors in (("near", near), ("far", rng.normal(size=(10, 8)))):
        np.savez(tmp_path / f"{name}.npz", paths=paths, embeddings=vectors.astype(np.float32))
    rows = [f"{number}.mid,{number // 2},{number}" for number in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,piece_id,alone", *rows]))
    return tmp_path


def run(files, *arguments: str) -> None:
    retrieve.main(["--labels", str(files / "labels.csv"), *arguments])


def test_prints_a_table(files, capsys):
    both = [f"--embeddings={files / name}.npz" for name in ("near", "far")]
    run(files, *both, "--match", "piece_id")
    title, near, far = capsys.readouterr().out.splitlines()
    assert title.split() == ["same", "piece_id", "recall@1", "MRR", "queries", "files"]
    assert near.split()[1:] == ["1.0000", "1.0000", "10", "10"] and float(far.split()[1]) < 0.6


def test_draws_a_map(files, capsys):
    run(files, "--embeddings", str(files / "near.npz"), "--map", "piece_id")
    assert (files / "near.png").exists() and "3.mid" in (files / "near.html").read_text()


def test_bad_input_is_one_line(files):
    def refused(culprit: str, *arguments: str) -> None:
        with pytest.raises(BadInput, match=culprit) as error:
            run(files, *arguments)
        assert "\n" not in str(error.value)

    near = ("--embeddings", str(files / "near.npz"))
    refused("--match, --map or both", *near)
    refused("no column key; there are piece_id, alone", *near, "--match", "key")
    refused("no two of its files share a alone", *near, "--match", "alone")
    refused("labels.csv: not a file of embeddings", "--embeddings", str(files / "labels.csv"), "--match", "piece_id")
    refused("absent: not a file of embeddings", "--embeddings", "absent", "--match", "piece_id")
    (files / "labels.csv").write_text("path,piece_id\nother.mid,1\n")
    refused("none of its paths", *near, "--match", "piece_id")
