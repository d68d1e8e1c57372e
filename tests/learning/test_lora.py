"""Finetuning by LoRA: what a run saves, how it goes on, and what others read from it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.config import read_config
from piano_jax.convert import export, load_aria
from piano_jax.learning import checkpoints
from piano_jax.learning.loop import assemble, train
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import TrainState, abstract_state, definition
from piano_jax.model.aria import parameters
from piano_jax.model.lora import split
from piano_jax.model.mesh import make_mesh, shard_batch

STEPS = 40
TUNING = ("lora.rank=2", f"steps={STEPS}", "schedule.peak=0.03", "evaluation.every=20", "checkpoint.every=30")


def run(config: ConfigDict, workdir: Path) -> dict[str, float]:
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        return train(config, str(workdir), mesh)


def losses(workdir: Path, group: str = "train") -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["group"] == group}


def last_state(config: ConfigDict, workdir: Path) -> TrainState:
    """What a run restores when it goes on, on the mesh that is set."""
    saved = checkpoints.Checkpoints(str(workdir), 1, 0)
    state = saved.restore(saved.newest(), abstract_state(assemble(config)[1], jax.sharding.get_mesh()))
    saved.close()
    return state


def flat(weights: nnx.State) -> dict[str, np.ndarray]:
    return {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(weights)}


@pytest.fixture(scope="module")
def base(tmp_path_factory, data, config_file) -> Path:
    """A pretrained model."""
    path = tmp_path_factory.mktemp("base") / "run"
    run(read_config(str(config_file), [f"data.path={data}"]), path)
    return path


@pytest.fixture(scope="module")
def tuning(base, data, config_file) -> ConfigDict:
    """The config of its finetuning by LoRA."""
    return read_config(str(config_file), [f"data.path={data}", f"init_from={base}", *TUNING])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tuning) -> tuple[Path, dict[str, float]]:
    """The finetuned run, and its last figures."""
    path = tmp_path_factory.mktemp("tuned") / "run"
    return path, run(tuning, path)


def test_only_the_changes_learn_and_are_saved(base, tuning, tuned):
    path, found = tuned
    first = losses(path, "validation")[0]
    assert first == pytest.approx(losses(base, "validation")[12], rel=1e-6) and found["loss"] < first - 0.005
    with jax.set_mesh(make_mesh(**tuning.mesh)):
        state = last_state(tuning, path)
        learning, frozen = map(flat, split(state.weights))
        reader = checkpoints.ocp.StandardCheckpointer()
        stored = jax.tree.leaves(reader.metadata(path / "checkpoints/40/weights").item_metadata.tree)
    assert sorted(leaf.shape for leaf in stored) == sorted(value.shape for value in learning.values())
    for name, value in frozen.items():
        np.testing.assert_array_equal(value, checkpoints.read_leaf(str(base), tuple(name.split("."))), err_msg=name)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in learning.values())


def test_a_run_goes_on_with_the_same_losses_wherever_it_was_moved(tuning, tuned, tmp_path):
    mine = tmp_path / "moved"
    shutil.copytree(tuned[0], mine)
    shutil.rmtree(mine / "checkpoints/40")  # as if killed after step 30
    run(tuning, mine)
    assert losses(mine) == losses(tuned[0]) and losses(mine, "validation") == losses(tuned[0], "validation")


def test_exported_weights_are_the_adapted_model(tuning, tuned, tmp_path):
    tokens = np.arange(40, dtype=np.int32).reshape(2, 20)
    config = tuning.copy_and_resolve_references()
    config.mesh.fsdp, config.mesh.replica = 2, 4
    with jax.set_mesh(make_mesh(**config.mesh)):
        weights = jax.device_get(last_state(config, tuned[0]).weights)
    adapted = nnx.merge(definition(assemble(config)[0].model), weights)
    export(str(tuned[0]), str(tmp_path / "model.safetensors"))
    np.testing.assert_allclose(load_aria(tmp_path / "model.safetensors")(tokens), adapted(tokens), atol=1e-5)


def test_a_phase_starts_from_the_changed_weights(tuning, tuned, tmp_path, base):
    export(str(tuned[0]), str(tmp_path / "alone"))
    config = tuning.copy_and_resolve_references()
    config.steps, config.schedule.warmup = 1, 0
    for index, (rank, start) in enumerate([(0, tuned[0]), (3, tuned[0]), (0, tmp_path / "alone")]):
        config.lora.rank, config.init_from = rank, str(start)
        run(config, tmp_path / str(index))
        assert losses(tmp_path / str(index), "validation")[0] == pytest.approx(tuned[1]["loss"], rel=1e-6)


def test_bad_input_is_named(tuning, tuned, tmp_path):
    config = tuning.copy_and_resolve_references()
    config.init_from = ""
    with pytest.raises(BadInput, match=r"lora\.rank 2: .* --config\.init_from"):
        run(config, tmp_path / "none")
    said = config.to_dict() | {
        "model": config.model.to_dict() | {"head": "embedding", "head_size": 4},
        "lora": {"rank": 0},
    }
    shapes = parameters(model_config(ConfigDict(said)))
    headless = str(tmp_path / "headless")
    checkpoints.write_leaves(headless, shapes, lambda leaf: np.ones(shapes[leaf].shape), {"step": 0, "config": said})
    config.init_from = headless
    with pytest.raises(BadInput, match=r"headless: has no head_table .* LoRA leaves as it is"):
        run(config, tmp_path / "none")
    shutil.copytree(tuned[0] / "checkpoints/40", tmp_path / "alone")
    with pytest.raises(BadInput, match=r"alone: holds what LoRA trained alone; .*base"):
        export(str(tmp_path / "alone"), str(tmp_path / "model.safetensors"))
    assert not (tmp_path / "model.safetensors").exists()


def test_a_step_needs_far_less_memory(tuning):
    """Where the weights are most of it: the compiler's arguments and temporaries of one device."""
    config = tuning.copy_and_resolve_references()
    config.model = config.model.to_dict() | {"d_model": 128, "ff_width": 512}
    config.mesh.fsdp, config.mesh.replica, config.length = 1, 8, 16
    needed = {}
    for rank in (0, 2):
        config.lora.rank, mesh = rank, make_mesh(**config.mesh)
        with jax.set_mesh(mesh):
            phase, init, step = assemble(config)
            batch = shard_batch({name: np.stack([row] * 8) for name, row in phase.example.items()}, mesh)
            memory = step.lower(abstract_state(init, mesh), batch).compile().memory_analysis()
        needed[rank] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert needed[2] < 0.6 * needed[0]
