"""The embed command: vectors of files however they are batched, resumed after a kill, and one line for bad input."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from piano_jax import BadInput, embed
from piano_jax.data.chunks import chunks
from piano_jax.evaluation.statistics import statistics_vector
from piano_jax.learning import checkpoints, optimizer
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import abstract_state, initializer
from piano_jax.model import mesh as meshes
from piano_jax.music import Notes, Vocabulary, read_midi, write_midi
from piano_jax.music.performances import performance

PIANO = Vocabulary("piano")
MODEL = {"size": "smoke", "d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 256, "dtype": "float32"}


def checkpoint(path: Path, seed: int = 0, slices: dict | None = None, **model: object) -> Path:
    """A work directory with one step of random weights, those that a run of seed 0 starts with."""
    config = ConfigDict({"seed": seed, "vocabulary": "piano", "length": 256, "model": MODEL | model})
    config.update({"slice": slices} if slices else {})
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        init = initializer(model_config(config), optimizer.adamw(lambda step: 0.0, 0.9, 0.9, 1e-5, 0.0))
        places = jax.tree.map(lambda x: x.sharding, abstract_state(init, mesh))
        saved = checkpoints.Checkpoints(str(path), 1, 0)
        saved.save(1, jax.jit(init, out_shardings=places)(jax.random.key(0)), config.to_dict())
        saved.close()
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "embedding", head="embedding", head_size=16)


@pytest.fixture(scope="module")
def midi(tmp_path_factory) -> Path:
    """Nine performances of different lengths, and two files without any."""
    folder = tmp_path_factory.mktemp("midi")
    for seed in range(9):
        write_midi(performance(seed)[: 20 + 60 * seed], folder / f"{seed}.mid")
    write_midi(Notes([], [], [], []), folder / "silent.mid")
    (folder / "broken.mid").write_bytes(b"MThd")
    return folder


def run(trained: Path, out: Path, *arguments: str) -> dict[str, np.ndarray]:
    embed.main(["--checkpoint", str(trained), "--out", str(out), "--notes", "50", *arguments])
    return dict(np.load(out))


def test_a_vector_is_the_mean_over_chunks_of_the_state_at_the_end(trained, midi, tmp_path, capsys):
    found = run(trained, tmp_path / "a.npz", "--midi", str(midi))
    assert found["paths"].tolist() == [f"{seed}.mid" for seed in range(9)]
    assert found["embeddings"].dtype == np.float32 and found["embeddings"].shape == (9, 16)
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        model, _ = checkpoints.read_model(str(trained), mesh)
        of = [chunks(read_midi(midi / f"{seed}.mid"), PIANO, 50, 256) for seed in range(9)]
        tokens = np.full((64, 256), PIANO.pad, np.int32)
        for row, part in enumerate(part for parts in of for part in parts):
            tokens[row, : len(part)] = part
        output = np.asarray(model(tokens))[np.arange(64), (tokens == PIANO.end).argmax(1)]
    ends = np.cumsum([len(parts) for parts in of])
    assert found["chunks"].tolist() == [len(parts) for parts in of] and ends[-1] <= 64
    for vector, start, end in zip(found["embeddings"], [0, *ends], ends, strict=False):
        np.testing.assert_allclose(vector, output[start:end].mean(axis=0), atol=1e-5)
    assert [line.split(":")[0] for line in found["skipped"].tolist()] == ["broken.mid", "silent.mid"]
    assert "silent.mid: no notes" in capsys.readouterr().out


def test_chunks_are_no_longer_than_slices_in_training(midi, tmp_path):
    for longest, expected in ((70, 8), (900, 2)):  # of 500 notes
        slices = {"shortest": 60, "longest": longest}
        run = checkpoint(tmp_path / f"{longest}", slices=slices, head="embedding", head_size=16)
        out = tmp_path / f"{longest}.npz"
        embed.main(["--checkpoint", str(run), "--out", str(out), "--midi", str(midi / "8.mid")])
        assert np.load(out)["chunks"].tolist() == [expected]


def test_goes_on_where_it_was_killed(trained, midi, tmp_path, monkeypatch):
    from piano_jax.inference import embedding

    whole = run(trained, tmp_path / "whole.npz", "--midi", str(midi))
    monkeypatch.setattr(embedding, "WINDOW", 1)
    monkeypatch.setattr(embedding, "CPU_TOKENS", 1)
    pieces, embedded = embedding.Embedder.pieces, []

    def killed(self, read):
        for part in pieces(self, read):
            embedded.append(len(part))
            yield part
            if len(embedded) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(embedding.Embedder, "pieces", killed)
    out = tmp_path / "killed.npz"
    with pytest.raises(KeyboardInterrupt):
        run(trained, out, "--midi", str(midi))
    assert not out.exists()
    with pytest.raises(BadInput, match="begun with other notes"):
        run(trained, out, "--midi", str(midi), "--notes", "20")
    embedded.append(0)  # past the place where it was killed
    found = run(trained, out, "--midi", str(midi))
    assert sum(embedded) == 11 and len(embedded) > 4
    assert {name: column.tolist() for name, column in found.items() if name != "embeddings"} == {
        name: column.tolist() for name, column in whole.items() if name != "embeddings"
    }
    np.testing.assert_allclose(found["embeddings"], whole["embeddings"], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_nearest_files(trained, midi, tmp_path, capsys):
    out = tmp_path / "a.npz"
    found = run(trained, out, "--midi", str(midi))
    capsys.readouterr()
    run(trained, out, "--query", str(midi / "3.mid"), "--nearest", "4")
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][1] == "3.mid" and len(lines) == 4
    unit = found["embeddings"] / np.linalg.norm(found["embeddings"], axis=1, keepdims=True)
    np.testing.assert_allclose([float(alike) for alike, _ in lines], np.sort(unit @ unit[3])[::-1][:4], atol=1e-4)


def test_bad_input_is_one_line(trained, midi, tmp_path):
    def refused(culprit: str, *arguments: str) -> None:
        with pytest.raises(BadInput, match=culprit) as error:
            embed.main(list(arguments))
        assert "\n" not in str(error.value)
        assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*"))

    out, some = ("--out", str(tmp_path / "a.npz")), ("--midi", str(midi))
    good = ("--checkpoint", str(trained))
    language = checkpoint(tmp_path / "language")
    refused("language: has a language head and no embedding head", "--checkpoint", str(language), *out, *some)
    refused("holds no checkpoint", "--checkpoint", str(tmp_path), *out, *some)
    refused("absent: no such file", *good, *out, "--midi", "absent")
    refused("silent.mid: no notes|silent.mid.*no notes", *good, *out, "--midi", str(midi / "silent.mid"))
    refused("--midi, --query or both", *good, *out)
    refused("--notes 0: at least one", *good, *out, *some, "--notes", "0")
    refused("no such file; --midi says what", *good, *out, "--query", str(midi / "1.mid"))

    there = tmp_path / "there"
    there.write_text(json.dumps({}))
    refused("there: exists already", *good, "--out", str(there), *some)
    refused("there: not a file of embeddings", *good, "--out", str(there), "--query", str(midi / "1.mid"))
    refused("silent.mid: no notes", *good, "--out", str(there), "--query", str(midi / "silent.mid"))


def test_statistics_need_no_checkpoint(midi, tmp_path, capsys):
    out = tmp_path / "statistics.npz"
    embed.main(["--statistics", "--out", str(out), "--midi", str(midi), "--query", str(midi / "5.mid")])
    found = np.load(out)
    assert len(found["paths"]) == 9 and (found["chunks"] == 1).all()
    np.testing.assert_array_equal(found["embeddings"][5], statistics_vector(read_midi(midi / "5.mid")))
    assert "1.0000  5.mid" in capsys.readouterr().out


def test_untrained_is_what_training_starts_with(trained, midi, tmp_path):
    one = ("--midi", str(midi / "8.mid"))
    other = checkpoint(tmp_path / "other", seed=1, head="embedding", head_size=16)
    found = run(trained, tmp_path / "a.npz", *one)["embeddings"]
    np.testing.assert_array_equal(run(trained, tmp_path / "b.npz", *one, "--untrained")["embeddings"], found)
    np.testing.assert_array_equal(run(other, tmp_path / "c.npz", *one)["embeddings"], found)
    assert np.abs(run(other, tmp_path / "d.npz", *one, "--untrained")["embeddings"] - found).max() > 0.1
