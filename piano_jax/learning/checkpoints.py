"""Checkpoints on disk, by Orbax: weights, optimizer and where the run stands, saved while training goes on.

A work directory holds `checkpoints/STEP/{weights,optimizer,run}`; `run` is a small JSON of the step, which is also the
number of batches learnt from, and of the config. A step's folder takes its name only when it is whole.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import TrainState
from piano_jax.model import Model
from piano_jax.model import mesh as meshes
from piano_jax.music import Vocabulary

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one work directory: the last `keep_last` stay, and every `keep_every`-th step (0: none)."""

    def __init__(self, workdir: str, keep_last: int, keep_every: int):
        self.path = epath.Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every or None)
        self._manager = ocp.CheckpointManager(self.path, options=options, item_names=("weights", "optimizer", "run"))

    def newest(self) -> int | None:
        """The newest step that is whole, if there is one; of several hosts, the first decides."""
        newest = self._manager.latest_step()
        if jax.process_count() > 1:
            newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest or 0))) or None
        return newest

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
        folder = self.path / str(step)
        _check_fit(folder, _stored_shapes(folder), _shapes(like.weights))
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


def read_config(checkpoint: str) -> ConfigDict:
    """The config of the run that a checkpoint is of. Raises BadInput."""
    path = find(checkpoint) / "run/metadata"
    if not path.exists():
        raise BadInput(f"{checkpoint}: does not say of which run it is")
    return ConfigDict(json.loads(path.read_text())["config"])


def read_weights(checkpoint: str, like: nnx.State) -> nnx.State:
    """The weights of a checkpoint, in the shapes and shardings of `like`. Raises BadInput where they do not fit."""
    folder = find(checkpoint)
    _check_fit(folder, _stored_shapes(folder), _shapes(like))
    return _restore(folder, like)


def read_model(checkpoint: str, mesh: Mesh) -> tuple[Model, ConfigDict]:
    """The model of a checkpoint, laid out over the mesh that is set, and its run's config. Raises BadInput."""
    config = read_config(checkpoint)
    model = nnx.eval_shape(lambda: Model(model_config(config), nnx.Rngs(0)))
    graph, shapes = nnx.split(model)
    places = meshes.shardings(shapes, mesh)
    like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)
    return nnx.merge(graph, read_weights(checkpoint, like)), config


def start_from(checkpoint: str, fresh: nnx.State, config: ConfigDict) -> nnx.State:
    """The fresh weights of a config's model, replaced by a checkpoint's wherever both models have them.

    A head of another kind or size is left out, what the checkpoint lacks stays fresh, and rows of the vocabulary's
    tables go where their tokens stand in this one; each is said in a line. Raises BadInput where a layer does not fit.
    """
    folder, theirs = find(checkpoint), read_config(checkpoint)
    old, new = model_config(theirs), model_config(config)
    ours = {".".join(path): (path, leaf) for path, leaf in nnx.to_flat_state(fresh)}
    stored, wanted = _stored_shapes(folder), {name: leaf.shape for name, (_, leaf) in ours.items()}
    same_head = (old.gives_logits and new.gives_logits) or (old.head, old.head_size) == (new.head, new.head_size)
    taken = {name for name in stored.keys() & wanted.keys() if same_head or name != "head_table"}
    for name in sorted(stored.keys() - taken):
        print(f"{checkpoint}: leaves out {name} (head {old.head})")
    for name in sorted(wanted.keys() - taken):
        print(f"{checkpoint}: has no {name} (head {new.head}), which starts fresh")

    by_token = set()
    if old.vocabulary_size != new.vocabulary_size:
        source = Vocabulary(config.vocabulary).places_in(Vocabulary(theirs.vocabulary))
        known = f"{np.count_nonzero(source >= 0):,} of {len(source):,} tokens"
        print(f"{checkpoint}: of the vocabulary {theirs.vocabulary}, which knows {known} of {config.vocabulary}")
        by_token = taken & ({"token_table", "head_table"} if new.gives_logits else {"token_table"})
    fixed = taken - by_token
    _check_fit(folder, {name: stored[name] for name in fixed}, {name: wanted[name] for name in fixed})

    def like(name: str) -> tuple[tuple[str, ...], nnx.Variable]:
        path, leaf = ours[name]
        return path, leaf.replace(jax.ShapeDtypeStruct(stored[name], leaf.dtype, sharding=leaf[...].sharding))

    found = dict(nnx.to_flat_state(_restore(folder, nnx.from_flat_state([like(name) for name in sorted(taken)]))))
    for name in by_token:
        path, leaf = ours[name]
        rows = found[path][...].at[np.maximum(source, 0)].get(out_sharding=leaf[...].sharding)
        found[path] = leaf.replace(jnp.where(source[:, None] >= 0, rows, leaf[...]))
    return nnx.from_flat_state([(path, found.get(path, leaf)) for path, leaf in ours.values()])


def _restore(folder: epath.Path, like: nnx.State) -> nnx.State:
    """Those weights of a checkpoint that `like` has, in its shapes and shardings."""
    how = ocp.checkpoint_utils.construct_restore_args(like)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder / "weights", ocp.args.PyTreeRestore(like, how, partial_restore=True))


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of weights by name, whether "value" is an attribute of a parameter or a key that was stored."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path[:-1], simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _stored_shapes(folder: epath.Path) -> dict[str, tuple[int, ...]]:
    with ocp.StandardCheckpointer() as reader:
        return _shapes(reader.metadata(folder / "weights").item_metadata.tree)


def _check_fit(folder: epath.Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises BadInput where a checkpoint's weights have other names or shapes than those wanted."""
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
