"""Checkpoints on disk, by Orbax: weights, optimizer and where the run stands, saved while training goes on.

A work directory holds `checkpoints/STEP/{weights,optimizer,run}`; `run` is a small JSON of the step, which is also the
number of batches learnt from, and of the config. A step's folder takes its name only when it is whole.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jaxtyping import PyTree

from piano_jax import BadInput
from piano_jax.learning.step import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one work directory: the last `keep_last` stay, and every `keep_every`-th step (0: none)."""

    def __init__(self, workdir: str, keep_last: int, keep_every: int):
        self.path = epath.Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every or None)
        self._manager = ocp.CheckpointManager(self.path, options=options, item_names=("weights", "optimizer", "run"))

    def newest(self) -> int | None:
        """The newest step that is whole, if there is one."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, config: dict) -> None:
        """Copies the state and returns; it is written behind. A step that is there already is left as it is.

        Raises:
            BadInput: there is no space left, here or where an earlier save was written.
        """
        if step in self._manager.all_steps():
            return
        needed, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(self.path).free
        if free < needed:  # asked first, for TensorStore's own threads print stacks when the disk fills up
            left = f"a checkpoint needs up to {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are left"
            raise BadInput(f"{self.path}: {left}; the checkpoints before this one are whole")
        items = {
            "weights": ocp.args.StandardSave(state.weights),
            "optimizer": ocp.args.StandardSave(state.optimizer),
            "run": ocp.args.JsonSave({"step": step, "config": config}),
        }
        with _full_disk(self.path):
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, in the shapes and shardings of `like`. Raises BadInput where they do not fit."""
        items = {
            "weights": ocp.args.StandardRestore(like.weights),
            "optimizer": ocp.args.StandardRestore(like.optimizer),
        }
        _check_fit(self.path / str(step), like.weights)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        position = jax.device_put(np.int32(step), like.step.sharding)
        return TrainState(position, restored["weights"], restored["optimizer"])

    def close(self) -> None:
        """Waits for what is still being written. Raises BadInput where there is no space left."""
        with _full_disk(self.path):
            self._manager.wait_until_finished()
            self._manager.close()


def find(checkpoint: str) -> epath.Path:
    """One step's folder, given that folder or a work directory, whose newest step it is. Raises BadInput."""
    path = epath.Path(checkpoint).absolute()
    if (path / "weights").exists():
        return path
    folder = path / FOLDER
    steps = [int(child.name) for child in folder.iterdir() if child.name.isdigit()] if folder.exists() else []
    if not steps:
        raise BadInput(f"{checkpoint}: holds no checkpoint")
    return folder / str(max(steps))


def read_weights(checkpoint: str, like: nnx.State) -> nnx.State:
    """The weights of a checkpoint, in the shapes and shardings of `like`. Raises BadInput where they do not fit."""
    folder = find(checkpoint)
    _check_fit(folder, like)
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder / "weights", like)


def _check_fit(folder: epath.Path, like: nnx.State) -> None:
    """Raises BadInput where a checkpoint's weights have other names or shapes than `like`."""

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        # Whether "value" is an attribute of a parameter or a key that was stored, it is one name here.
        return {jax.tree_util.keystr(path[:-1], simple=True, separator="."): leaf.shape for path, leaf in leaves}

    with ocp.StandardCheckpointer() as reader:
        stored, wanted = shapes(reader.metadata(folder / "weights").item_metadata.tree), shapes(like)
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            has, wants = (f"shape {shape}" if shape else "no place" for shape in (stored.get(name), wanted.get(name)))
            raise BadInput(f"{folder}: does not fit the model of this config: {name} has {has}, not {wants}")


@contextmanager
def _full_disk(folder: epath.Path) -> Iterator[None]:
    """Orbax and TensorStore say in several kinds of error that the disk is full."""
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in ("No space left", "Disk quota", "ENOSPC")):
            raise
        raise BadInput(f"{folder}: no space left; the checkpoints before this one are whole") from error
