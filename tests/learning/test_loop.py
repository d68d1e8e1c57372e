"""A run is the same however often it is killed, wherever it goes on, and stops where it should."""

import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.data import Dataset
from piano_jax.data.shards import Writer, new_folder
from piano_jax.learning.checkpoints import Checkpoints, find
from piano_jax.learning.loop import Diverged
from piano_jax.train import main
from tests.learning.runs import launch, losses, run


def test_killed_three_times_and_resumed_writes_the_same_losses_to_the_bit(config_file, data, tmp_path):
    steps = ("steps=40", "evaluation.every=10")
    assert launch(config_file, data, tmp_path / "alone", *steps).wait() == 0
    rng = random.Random(time.time_ns())
    stops = sorted(rng.sample(range(4, 30), 3))
    for stop in stops:
        # Another number of workers each time: it changes nothing either.
        process = launch(config_file, data, tmp_path / "killed", *steps, f"workers={rng.choice([0, 2])}")
        while process.poll() is None:
            if (tmp_path / "killed/metrics.jsonl").exists() and max(losses(tmp_path / "killed"), default=0) >= stop:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert launch(config_file, data, tmp_path / "killed", *steps).wait() == 0
    for group in ("train", "validation"):
        assert losses(tmp_path / "killed", group) == losses(tmp_path / "alone", group), stops
    assert sorted(losses(tmp_path / "alone")) == list(range(40))


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_other_meshes_give_the_same_losses(config, tmp_path, mesh):
    run(config, tmp_path / "fsdp")
    config.mesh = dict(zip(("replica", "fsdp", "tensor"), mesh, strict=True))
    run(config, tmp_path / "other")
    for group in ("train", "validation"):
        ours, theirs = losses(tmp_path / "fsdp", group), losses(tmp_path / "other", group)
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


def test_a_run_goes_on_on_another_mesh(config, tmp_path):
    run(config, tmp_path / "alone")
    config.checkpoint.every = 6
    run(config, tmp_path / "moved")
    (tmp_path / "moved/checkpoints/12").rename(tmp_path / "12")  # as if killed after step 6
    config.mesh.replica, config.mesh.tensor = 2, 2
    run(config, tmp_path / "moved")
    np.testing.assert_allclose(
        list(losses(tmp_path / "moved").values()), list(losses(tmp_path / "alone").values()), 1e-5
    )


def test_the_loss_falls_for_every_class_of_token(config, tmp_path):
    config.steps, config.evaluation.every = 60, 59
    found = run(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["group"] == "validation")
    assert first["loss"] == pytest.approx(np.log(2675), abs=0.1)
    for kind in ("note", "onset", "duration", "time", "pedal"):
        assert found[f"loss/{kind}"] < first[f"loss/{kind}"] - 0.3, kind


def test_checkpoints_that_stay_and_where_they_are_found(config, tmp_path):
    config.checkpoint = {"every": 2, "keep_last": 2, "keep_every": 4}
    run(config, tmp_path)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 8, 10, 12]
    assert find(str(tmp_path)).name == "12" and find(str(tmp_path / "checkpoints/8")).name == "8"
    assert json.loads((find(str(tmp_path)) / "run/metadata").read_text())["config"]["length"] == 64
    with pytest.raises(BadInput, match="holds no checkpoint"):
        find(str(tmp_path / "nowhere"))


def test_init_from_starts_with_the_weights_of_another_run(config, tmp_path):
    first = run(config, tmp_path / "first")
    config.init_from, config.steps = str(tmp_path / "first"), 3
    run(config, tmp_path / "second")
    assert losses(tmp_path / "second", "validation")[0] == pytest.approx(first["loss"], rel=1e-6)
    config.init_from, config.model.d_model = str(tmp_path / "first"), 32
    with pytest.raises(BadInput, match=r"first.*does not fit"):
        run(config, tmp_path / "third")


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(config, tmp_path, monkeypatch):
    config.schedule.peak = 1e30
    config.schedule.warmup = 0
    config.checkpoint.every = 1
    with pytest.raises(Diverged, match="step 1: loss is nan"):
        run(config, tmp_path)
    saved = Checkpoints(str(tmp_path), 2, 0)
    assert saved.newest() in (None, 1)
    saved.close()


def test_a_work_directory_of_another_config_or_dataset_is_refused(config, data, tmp_path):
    config.steps = 3
    run(config, tmp_path)
    run(config, tmp_path)  # a run that has ended may be run again
    config.adamw.b2 = 0.99
    with pytest.raises(BadInput, match=r"adamw\.b2 0\.95, not 0\.99"):
        run(config, tmp_path)
    config.adamw.b2 = 0.95
    path = tmp_path / "other"
    with new_folder(path) as folder:
        copy = Dataset(data)
        writer = Writer(folder, copy.vocabulary)
        for piece in reversed(range(len(copy))):
            writer.add(copy[piece], 1, 1.0)
        split = np.array([0, 1] * 6, np.int8)
        writer.finish(["path"], [(str(piece),) for piece in range(len(copy))], ["train", "val"], split, {}, [])
    config.data.path = str(path)
    with pytest.raises(BadInput, match="belongs to a run with dataset"):
        run(config, tmp_path)
    config.data.path = str(data)
    config.workers, config.evaluation.batches, config.checkpoint.every = 1, 1, 2
    run(config, tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config.lenght=3"], "no such key; did you mean length?"),
        (["--config.steps=many"], "--config.steps=many: not a whole number"),
        (["--config.mesh.fsdp=3"], "does not match the device count"),
        (["--config.batch=12"], "batch 12 does not divide by 8"),
        (["--config.vocabulary=aria"], "the dataset's vocabulary is piano, the model's aria"),
        (["--config.data.path=/nowhere"], "/nowhere: not a dataset"),
        (["--config.schedule.shape=steps"], "steps: no such schedule"),
        (["--config.length=128"], "longer than the model's context, 64"),
        (["--config.model.size=huge"], "huge: no such size of model"),
        (["--nonsense"], "unknown argument --nonsense"),
        (["--workdir=gs://bucket/run"], "gs://bucket/run: work directories are local"),
        ([f"--workdir={__file__}"], "not a folder"),
        (["--config=absent.py"], "absent.py: no such config"),
        (["--config=configs/smoke.py:huge"], "this config has no sizes"),
        (["--config=configs/pretrain.py:huge"], "huge: no such size"),
    ],
)
def test_bad_input_is_named(config_file, data, tmp_path, words, said):
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}", f"--config.data.path={data}", *words]
    with pytest.raises(BadInput) as caught:
        main(arguments)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_bad_input_ends_in_one_line_and_code_2(config_file, data, tmp_path):
    process = launch(config_file, data, tmp_path, "adamw.b3=1")
    _, errors = process.communicate()
    assert process.returncode == 2 and errors.count("\n") == 1 and "adamw.b3" in errors


def test_a_disk_without_room_for_a_checkpoint_ends_in_one_line(config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    config.checkpoint.every = 5
    run(config, tmp_path / "alone")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(BadInput, match="1 MB, and 0 MB are left"):
            run(config, tmp_path / "full")
    run(config, tmp_path / "full")
    assert losses(tmp_path / "full") == losses(tmp_path / "alone")


def test_a_disk_that_fills_up_ends_in_one_line(config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device")

    config.checkpoint.every = 5
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(BadInput, match="no space left"):
        run(config, tmp_path)


def test_the_time_of_steps_is_split(config, tmp_path):
    config.steps, config.checkpoint.every = 9, 4
    run(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["group"] == "train"]
    for line in steps:
        assert line["seconds/step"] >= line["seconds/compute"] + line.get("seconds/data", 0) > 0
    assert [line["step"] for line in steps if "seconds/evaluation" in line] == [0, 4, 8]
    assert [line["step"] for line in steps if "seconds/save" in line] == [4, 8]


@pytest.mark.parametrize("recorded", [2, 9])
def test_steps_are_recorded_for_a_profiler_while_others_are_saved(config_file, data, tmp_path, recorded):
    # In a process of its own: XLA's profiler has crashed in one that had trained and saved hundreds of times.
    words = ("steps=9", "checkpoint.every=4", "profile.start=5", f"profile.steps={recorded}")
    process = launch(config_file, data, tmp_path, *words)
    assert process.wait() == 0, process.stderr.read()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_nothing_compiles_in_a_steady_state(config, tmp_path):
    config.steps = 10
    with jax.log_compiles(), CountCompiles() as compiles:
        run(config, tmp_path)
    assert compiles.of("step") == 1


class CountCompiles:
    """Counts what jax says it compiles."""

    def __enter__(self):
        import logging

        self.said: list[str] = []
        self._handler = logging.Handler()
        self._handler.emit = lambda record: self.said.append(record.getMessage())
        self._logger = logging.getLogger("jax")
        self._logger.addHandler(self._handler)
        return self

    def __exit__(self, *_):
        self._logger.removeHandler(self._handler)

    def of(self, name: str) -> int:
        return sum(line.startswith("Finished XLA compilation") and f"jit({name})" in line for line in self.said)
