"""Classification: the loss and the votes, on every mesh; the fresh <E>; a run, its best epoch, and what it tells."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from piano_jax import BadInput, probe
from piano_jax.config import read_config
from piano_jax.data.shards import Writer, new_folder
from piano_jax.data.tasks import Task
from piano_jax.learning import checkpoints, classification
from piano_jax.learning.phases import phase_of
from piano_jax.learning.step import definition, evaluation_step, summed_gradient
from piano_jax.model import Model, TransformerConfig
from piano_jax.model import mesh as meshes
from piano_jax.music import Notes, Vocabulary

from .runs import ROOT, run

PIANO = Vocabulary("piano")
MODEL = TransformerConfig(
    vocabulary_size=37,
    d_model=32,
    layers=3,
    heads=8,
    ff_width=64,
    context=16,
    dtype="float32",
    head="classifier",
    head_size=3,
    residual_dropout=0.5,
)


def batch() -> dict[str, np.ndarray]:
    """16 slices of five files, of which two are padding."""
    rng = np.random.default_rng(0)
    weights = (np.arange(16) < 14).astype(np.float32)
    file = np.arange(16) // 3
    return {
        "tokens": rng.integers(0, 37, (16, 16), dtype=np.int32),
        "ends": rng.integers(0, 16, 16, dtype=np.int32),
        "targets": (file % 3).astype(np.int32),
        "weights": weights,
        "files": (file[:, None] == np.arange(5)).astype(np.float32),
    }


@functools.cache
def sums_on(*sizes: int) -> tuple:
    mesh = meshes.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        init = lambda: nnx.split(Model(MODEL, nnx.Rngs(0)))[1]  # noqa: E731
        weights = jax.jit(init, out_shardings=meshes.shardings(jax.eval_shape(init), mesh))()
        sums = evaluation_step(definition(MODEL), classification.objective)(weights, meshes.shard_batch(batch(), mesh))
        logits = np.asarray(nnx.merge(definition(MODEL), weights)(batch()["tokens"]), np.float64)
        return jax.device_get(sums), logits[np.arange(16), batch()["ends"]]


@pytest.mark.parametrize("sizes", [(1, 8, 1), (8, 1, 1), (2, 2, 2)])
def test_a_files_class_is_its_slices_weighted_by_their_tokens(sizes):
    sums, logits = sums_on(*sizes)
    of = batch()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    votes = np.zeros((5, 3))
    for row in range(14):
        votes[row // 3] += shares[row] * (of["ends"][row] + 1)
    np.testing.assert_allclose(sums["votes"].reshape(5, 3), votes, rtol=1e-5)
    found, expected = classification.figures(sums, 3), np.arange(5) % 3
    assert found["files"] == pytest.approx((votes.argmax(1) == expected).mean())
    assert found["loss"] == pytest.approx(-np.log(shares[np.arange(14), of["targets"][:14]]).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == of["targets"])[:14].mean())


def test_dropout_is_the_keys_and_off_without_one():
    with jax.set_mesh(meshes.make_mesh()) as _:
        graph, weights = nnx.split(Model(MODEL, nnx.Rngs(0)))
        gradient = jax.jit(summed_gradient(graph, classification.objective, 1))
        norms = [jax.device_get(gradient(weights, batch(), jax.random.key(key))[1]["loss"]) for key in (0, 0, 1)]
        plain = jax.device_get(evaluation_step(graph, classification.objective)(weights, batch())["loss"])
    assert norms[0] == norms[1] != norms[2] and plain not in norms


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """32 pieces, high or low, in compositions of two; every fourth in val."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("classes") / "data"
    with new_folder(path) as folder:
        writer = Writer(folder, PIANO)
        for number in range(32):
            count = int(rng.integers(10, 40))
            pitch = rng.integers(70, 90, count) if number % 2 else rng.integers(30, 50, count)
            onset = np.cumsum(rng.integers(50, 300, count))
            notes = Notes(onset, rng.integers(50, 500, count), pitch, rng.integers(30, 100, count))
            writer.add(PIANO.encode(notes), count, 10.0)
        labels = [(f"{n}.mid", str(n // 2), ("low", "high")[n % 2]) for n in range(32)]
        split = np.array([n // 2 % 4 == 3 for n in range(32)], np.int8)
        writer.finish(("path", "piece_id", "register"), labels, ("train", "val"), split, {}, [])
    rows = [f"{n}.mid,{n // 2},{('low', 'high')[n % 2]},{('train', 'val')[split[n]]}" for n in range(32)]
    (path.parent / "labels.csv").write_text("\n".join(["path,piece_id,register,split", *rows]))
    return path


@pytest.fixture(scope="module")
def config(data) -> ConfigDict:
    (data.parent / "register.txt").write_text("low\nhigh\n")
    spec = f"{ROOT}/configs/classify.py:laptop,{data.parent}/register.txt"
    changes = {"length": 64, "batch": 8, "steps": 24, "data.path": data, "data.notes": 15, "schedule.peak": 1e-2}
    changes |= {"evaluation.every": 6, "checkpoint.every": 6, "accumulate": 1}
    config = read_config(spec, [f"{key}={value}" for key, value in changes.items()])
    tiny = {"d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 64}
    config.model = config.model.to_dict() | tiny
    return config


@pytest.fixture(scope="module")
def trained(config, data):
    workdir = data.parent / "register"
    return workdir, run(config, workdir)


def test_learns_and_tells(trained, data, capsys):
    workdir, found = trained
    assert found["files"] == 1.0 and found["loss"] < 0.3
    common = ("--labels", str(data.parent / "labels.csv"), "--task", str(data.parent / "register.txt"))
    probe.main(["--finetuned", str(workdir), *common])
    said = capsys.readouterr().out
    assert "tells 8 of val, 4 compositions" in said and (data.parent / "register.register.png").exists()
    line = next(line for line in said.splitlines() if line.startswith("register  "))
    assert line.split()[1] == "100.0"
    finetuned = probe.Finetuned(str(workdir))
    with pytest.raises(BadInput, match="register: does not know the class middle; it tells low, high"):
        finetuned.tell(Task("register", ("low", "middle")), ["6.mid"], "val")
    with pytest.raises(BadInput, match=r"0\.mid is not in split val of"):
        finetuned.tell(Task("register", ("low", "high")), ["0.mid"], "val")


def test_votes_of_training_are_those_of_telling(trained, data):
    workdir, _ = trained
    finetuned = probe.Finetuned(str(workdir / "checkpoints/6"))
    val = [f"{n}.mid" for n in range(32) if n // 2 % 4 == 3]
    told = finetuned.tell(Task("register", ("low", "high")), val, "val")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    [files] = [line["files"] for line in lines if line["group"] == "validation" and line["step"] == 6]
    assert (told == np.arange(8) % 2).mean() == files


def test_few_labels_are_a_point_of_the_curve(config, data):
    few = ConfigDict(config.to_dict())
    few.data.shots, few.steps = 6, 12
    run(few, data.parent / "six")
    labels = ("--labels", str(data.parent / "labels.csv"), "--task", str(data.parent / "register.txt"))
    probe.main(["--finetuned", str(data.parent / "six"), *labels])
    header, row = (data.parent / "six.register.shots.csv").read_text().splitlines()
    assert header == "name,files,draw,accuracy" and row.startswith("finetuned,6,0,") and float(row.split(",")[3]) > 0.5


def test_the_best_epoch_is_chosen_on_validation(tmp_path):
    for step in (2, 4, 8):
        (tmp_path / f"checkpoints/{step}").mkdir(parents=True)
    measured = [(0, 1.0, 0.1), (2, 0.5, 0.6), (4, 0.7, 0.5), (6, 0.9, 0.1), (8, 0.7, 0.4)]
    lines = [{"step": step, "group": "validation", "files": f, "loss": loss} for step, f, loss in measured]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert checkpoints.best(str(tmp_path), "files").name == "8"
    with pytest.raises(BadInput, match="holds no checkpoint whose votes were measured"):
        checkpoints.best(str(tmp_path), "votes")


def test_starts_with_an_end_token_of_its_own(trained, config, data):
    workdir, _ = trained
    with jax.set_mesh(meshes.make_mesh()):
        fresh = nnx.split(Model(phase_of(config).model, nnx.Rngs(7)))[1]
        fresh = jax.device_put(fresh, meshes.shardings(fresh, jax.sharding.get_mesh()))
        begun = checkpoints.start_from(str(workdir), fresh, config)
        theirs = checkpoints.read_weights(str(workdir), fresh)
    end = PIANO.end
    mine, old, new = (np.asarray(of["token_table"][...]) for of in (begun, theirs, fresh))
    np.testing.assert_array_equal(mine[end], new[end])
    np.testing.assert_array_equal(np.delete(mine, end, 0), np.delete(old, end, 0))
    np.testing.assert_array_equal(begun["head_table"][...], theirs["head_table"][...])


def test_a_head_of_other_classes_is_refused(config):
    other = ConfigDict(config.to_dict())
    other.model.head_size = 3
    with pytest.raises(BadInput, match="register needs the head classifier and the head_size 2"):
        phase_of(other)
