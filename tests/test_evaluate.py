"""The evaluate command: what it leaves, that what it says is what the files hold, and one line for bad input."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from piano_jax import BadInput, evaluate
from piano_jax.learning import checkpoints, optimizer
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import initializer
from piano_jax.music import read_midi
from piano_jax.music.performances import STYLES, performance
from tests.evaluation.made import make_dataset

SHAPE = {"size": "smoke", "d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 256, "dtype": "float32"}


def save(path: Path, vocabulary: str = "piano", **changes) -> str:
    """A work directory of an untrained model."""
    config = ConfigDict({"vocabulary": vocabulary, "length": 128, "model": SHAPE | changes})
    state = initializer(model_config(config), optimizer.adamw(lambda _: 1.0, 0.9, 0.95, 1e-5, 0.1))(jax.random.key(0))
    saved = checkpoints.Checkpoints(str(path), 1, 0)
    saved.save(3, state, config.to_dict())
    saved.close()
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Nine performances, of which five of four compositions are for validation."""
    path = tmp_path_factory.mktemp("evaluate") / "data"
    pieces = [performance(seed, STYLES[seed % 6])[:150] for seed in range(9)]
    make_dataset(path, pieces, [0] * 4 + [1] * 5, ["a", "b", "c", "d", "e", "e", "f", "g", "h"])
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("runs") / "language")


def run(data: Path, out: Path, *arguments: str) -> Path:
    evaluate.main(["--data", str(data), "--out", str(out), *arguments])
    return out


def test_likelihood(data, checkpoint, tmp_path, capsys):
    out = run(data, tmp_path / "out", "--checkpoint", checkpoint)
    assert {path.name for path in out.iterdir()} == {"likelihood.json", "likelihood.csv", "likelihood.png"}
    said = json.loads((out / "likelihood.json").read_text())
    assert (said["pieces"], said["compositions"], said["notes"]) == (5, 4, 750)
    assert set(said["figures"]) == {"unigram", "class bigram", "language"}
    with (out / "likelihood.csv").open() as file:
        rows = list(csv.DictReader(file))
    printed = capsys.readouterr().out
    for model, figures in said["figures"].items():
        assert figures["token"]["low"] <= figures["token"]["value"] <= figures["token"]["high"]
        table = {row["figure"]: row for row in rows if row["model"] == model and not row["column"]}
        assert {name: float(row["value"]) for name, row in table.items()} == pytest.approx(
            {name: figure["value"] for name, figure in figures.items()}
        )
        count, _, hits = np.sum(said["bins"][model]["all"], 0)
        assert figures["accuracy"]["value"] == pytest.approx(hits / count)
        assert figures["note"]["value"] == pytest.approx(figures["token"]["value"] * count / 750)
        assert f"{figures['token']['value']:.3f} (" in printed
    nats = {model: figures["token"]["value"] for model, figures in said["figures"].items()}
    assert nats["class bigram"] < nats["unigram"] < np.log(2675) == pytest.approx(nats["language"], abs=0.05)
    assert list(said["labels"]) == ["composer"] and set(said["labels"]["composer"]) == {"bach", "satie"}
    assert "nats a token by composer" in printed


def test_several_checkpoints_and_few_pieces(data, checkpoint, tmp_path):
    same = str(Path(checkpoint) / "checkpoints" / "3")
    words = ("--checkpoint", checkpoint, "--checkpoint", same, "--pieces", "2", "--by", "piece_id")
    said = json.loads((run(data, tmp_path / "out", *words) / "likelihood.json").read_text())
    assert said["pieces"] == 2 and list(said["labels"]) == ["piece_id"]
    assert said["checkpoints"] == {"language": checkpoint, "3": same}
    assert said["figures"]["language"] == said["figures"]["3"]


SHORT = ("--prompt-seconds", "4", "--seconds", "3", "--prompts", "4")


def test_continuations(data, checkpoint, tmp_path, capsys):
    pytest.importorskip("piano_jax.evaluation.page", reason="what judges continuations is not here")
    embedder = save(tmp_path / "embedding", head="embedding", head_size=8)
    out = run(data, tmp_path / "out", "--system", f"mine={checkpoint}", "--system", "markov", *SHORT)
    names = [f"00{number}.mid" for number in range(1, 5)]
    for folder in ("prompts", "mine", "markov", "truth", "other"):
        assert sorted(path.name for path in (out / folder).iterdir()) == names
    for name in names:
        prompt = read_midi(out / "prompts" / name)
        assert prompt.onset[-1] < 4000
        for folder in ("mine", "markov", "truth", "other"):
            whole = read_midi(out / folder / name)
            before = whole.onset <= prompt.onset[-1]
            assert whole.onset[-1] < 7000 and len(set(prompt.pitch[:-1]) - set(whole.pitch[before])) == 0
    table = capsys.readouterr().out
    assert all(f"\n{name}" in table for name in ("truth", "mine", "markov", "other"))
    assert "1.0000" in next(line for line in table.splitlines()[::-1] if line.startswith("markov"))  # valid tokens

    # The same prompts, of which one system's folder comes from elsewhere: it is the same, so far as a file can tell.
    more = ("--system", f"again={out / 'mine'}", "--system", f"mine={checkpoint}", "--embedder", embedder)
    again = run(data, tmp_path / "again", *more, *SHORT)
    for name in names:
        files = [(folder / name).read_bytes() for folder in (out / "mine", again / "mine", again / "again")]
        assert len(set(files)) == 1
    table = capsys.readouterr().out.splitlines()
    theirs, mine = ([line.split()[1:] for line in table if line.startswith(f"{name} ")] for name in ("again", "mine"))
    assert len(mine) > 3 and mine[:-1] == theirs[:-1]
    paths = json.loads((again / "prompts.json").read_text())["prompts"]
    assert sorted(paths) == ["001", "002", "003", "004"] and len(set(paths.values())) == 4


def test_without_the_grammar_a_model_errs(data, checkpoint, tmp_path, capsys):
    pytest.importorskip("piano_jax.evaluation.page", reason="what judges continuations is not here")
    run(data, tmp_path / "out", "--system", f"mine={checkpoint}", "--no-grammar", *SHORT)
    line = next(line for line in capsys.readouterr().out.splitlines()[::-1] if line.startswith("mine"))
    assert 0 < float(line.split()[1]) < 0.5


def test_bad_input(data, checkpoint, tmp_path):
    def refused(message: str, *arguments: str) -> None:
        with pytest.raises(BadInput, match=message) as error:
            run(data, tmp_path / "refused", *arguments)
        assert "\n" not in str(error.value) and not list(tmp_path.glob("*refused*"))

    refused("--checkpoint DIR or --system NAME=WHAT is needed, not both")
    refused("is needed, not both", "--checkpoint", checkpoint, "--system", "markov")
    refused("holds no checkpoint", "--checkpoint", str(tmp_path))
    refused("no column key; there are path, piece_id, composer", "--checkpoint", checkpoint, "--by", "key")
    refused("no split test; there are train, val", "--checkpoint", checkpoint, "--split", "test")
    refused("one piece are the least", "--checkpoint", checkpoint, "--pieces", "0")
    other = save(tmp_path / "aria", vocabulary="aria")
    refused("aria: of the vocabulary aria, and .*data of piano", "--checkpoint", other)
    embedding = save(tmp_path / "embedding", head="embedding", head_size=4)
    refused("has a embedding head, and gives tokens no probability", "--checkpoint", embedding)

    refused("'mine' is no NAME=WHAT", "--system", "mine")
    refused("'a/b=markov' is no NAME=WHAT", "--system", "a/b=markov")
    refused("prompts is the name of something else", "--system", "prompts=markov")
    refused("truth is the name of something else", "--system", "truth=markov")
    refused("x is given twice", "--system", "x=markov", "--system", "x=markov:2")


def test_bad_systems(data, checkpoint, tmp_path):
    pytest.importorskip("piano_jax.evaluation.page", reason="what judges continuations is not here")

    def refused(message: str, *arguments: str) -> None:
        with pytest.raises(BadInput, match=message):
            run(data, tmp_path / "refused", *SHORT, *arguments)
        assert not list(tmp_path.glob("*refused*"))

    refused("absent: neither a checkpoint nor a folder of MIDI", "--system", "x=absent")
    refused("has no two compositions of 4 s to continue and 9999 s", "--system", "markov", "--seconds", "9999")
    refused("order 9: orders are 0 to 6", "--system", "markov:9")
    refused("has a language head and no embedding head", "--system", "markov", "--embedder", checkpoint)
    embedding = save(tmp_path / "embedding", head="embedding", head_size=4)
    refused("has a embedding head, and gives tokens no probability", "--system", f"x={embedding}")
    (tmp_path / "made").mkdir()
    refused("made/001.mid: No such file", "--system", f"x={tmp_path / 'made'}")
