"""Checkpoints on disk, by Orbax: weights, optimizer and where the run stands, saved while training goes on.

A work directory holds `checkpoints/STEP/{weights,optimizer,run}`; `run` is a small JSON of the step, which is also the
number of batches learnt from, and of the config. A step's folder takes its name only when it is whole. A run of LoRA
saves what learns alone, and holds the frozen weights once, in `base/weights`; whoever reads its checkpoints gets both,
merged.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Shaped
from ml_collections import ConfigDict
from orbax.checkpoint import v1

from piano_jax import BadInput
from piano_jax.command import progress
from piano_jax.data.shards import new_folder
from piano_jax.learning.metrics import LINES
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import TrainState
from piano_jax.model import Model
from piano_jax.model import mesh as meshes
from piano_jax.model.lora import merged, split
from piano_jax.music import Vocabulary

FOLDER, BASE = "checkpoints", "base"
Leaf = tuple[str, ...]  # the path of a parameter in a model


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
        learning, frozen = split(state.weights)
        if frozen and self.newest() is not None:  # then they are there
            frozen = None
        needed = sum(x.nbytes for x in jax.tree.leaves((learning, frozen, state.optimizer)))
        free = shutil.disk_usage(self.path).free
        if free < needed:  # asked first, for TensorStore's own threads print stacks when the disk fills up
            left = f"a checkpoint needs up to {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are left"
            raise BadInput(f"{self.path}: {left}; the checkpoints before this one are whole")
        items = {
            "weights": ocp.args.StandardSave(learning),
            "optimizer": ocp.args.StandardSave(state.optimizer),
            "run": ocp.args.JsonSave({"step": step, "config": config}),
        }
        with _full_disk(self.path):
            if frozen:
                with ocp.StandardCheckpointer() as writer:
                    writer.save(self.path.parent / BASE / "weights", frozen, force=True)
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, in the shapes and shardings of `like`. Raises BadInput where they do not fit."""
        learning, frozen = split(like.weights)
        items = {
            "weights": ocp.args.StandardRestore(learning),
            "optimizer": ocp.args.StandardRestore(like.optimizer),
        }
        folder = self.path / str(step)
        stored = {".".join(path): array.shape for path, (_, array) in _stored(folder).items()}
        _check_fit(folder, stored, _shapes(like.weights))
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        position = jax.device_put(np.int32(step), like.step.sharding)
        weights = restored["weights"]
        if frozen:
            weights = nnx.merge_state(weights, _restore(self.path.parent / BASE, frozen))
        return TrainState(position, weights, restored["optimizer"])

    def wait(self) -> None:
        """Waits for what is still being written. Raises BadInput where there is no space left."""
        with _full_disk(self.path):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and ends."""
        with _full_disk(self.path):
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


def best(workdir: str, figure: str) -> epath.Path:
    """The folder of the step that is best on validation: of the highest figure, then of the lowest loss.

    Raises BadInput where no step that is still there was evaluated. One step's folder is itself the best.
    """
    path = epath.Path(workdir)
    if (path / "weights").exists():
        return path
    lines = (path / LINES).read_text().splitlines() if (path / LINES).exists() else []
    measured = [line for line in map(json.loads, lines) if line["group"] == "validation" and figure in line]
    there = [line for line in measured if (path / FOLDER / str(line["step"])).exists()]
    if not there:
        raise BadInput(f"{workdir}: holds no checkpoint whose {figure} were measured on validation")
    step = min(there, key=lambda line: (-line[figure], line["loss"]))["step"]
    return path / FOLDER / str(step)


def read_run(checkpoint: str) -> dict:
    """The step and the config of a checkpoint's run, without LoRA, for weights are read merged. Raises BadInput."""
    path = find(checkpoint) / "run/metadata"
    if not path.exists():
        raise BadInput(f"{checkpoint}: does not say of which run it is")
    run = json.loads(path.read_text())
    run["config"].pop("lora", None)
    return run


def read_config(checkpoint: str) -> ConfigDict:
    """The config of a checkpoint's run, without LoRA. Raises BadInput."""
    return ConfigDict(read_run(checkpoint)["config"])


def read_weights(checkpoint: str, like: nnx.State) -> nnx.State:
    """The weights of a checkpoint, in the shapes and shardings of `like`. Raises BadInput where they do not fit."""
    folder = find(checkpoint)
    _check_fit(folder, _stored_shapes(folder), _shapes(like))
    return _restore(folder, like)


def read_model(checkpoint: str, mesh: Mesh, fresh: bool = False) -> tuple[Model, ConfigDict]:
    """The model of a checkpoint, laid out over the mesh that is set, and its run's config. Raises BadInput.

    A fresh one has the weights that training from scratch would begin with, in place of the checkpoint's.
    """
    config = read_config(checkpoint)
    model = nnx.eval_shape(lambda: Model(model_config(config), nnx.Rngs(0)))
    graph, shapes = nnx.split(model)
    places = meshes.shardings(shapes, mesh)
    if fresh:
        init = jax.jit(lambda key: nnx.split(Model(model_config(config), nnx.Rngs(key)))[1], out_shardings=places)
        return nnx.merge(graph, init(jax.random.key(config.get("seed", 0)))), config
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
        if ours[name][1].get_metadata().get("frozen"):
            raise BadInput(
                f"{checkpoint}: has no {name} (head {new.head}), which LoRA leaves as it is; set lora.rank 0"
            )
        if "lora" not in ours[name][0]:
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
    if config.get("phase") == "classify":  # <E>, which ended pieces, is to sum them up, and learns that afresh
        path, leaf = ours["token_table"]
        is_end = jnp.arange(leaf.shape[0])[:, None] == Vocabulary.end
        found[path] = leaf.replace(jnp.where(is_end, leaf[...], found[path][...]))
    return nnx.from_flat_state([(path, found.get(path, leaf)) for path, leaf in ours.values()])


def read_leaf(checkpoint: str, leaf: Leaf) -> Shaped[np.ndarray, "..."]:
    """One weight of a checkpoint by its path, in the precision that it was saved in, on the host. Raises BadInput."""
    folder = find(checkpoint)
    stored = _stored(folder)
    if leaf not in stored:
        raise BadInput(f"{folder}: holds no {'.'.join(leaf)}")

    def read(leaf: Leaf) -> np.ndarray:
        item, array = stored[leaf]
        like = nnx.traversals.unflatten_mapping({(*leaf, "value"): jax.ShapeDtypeStruct(array.shape, array.dtype)})
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        with ocp.PyTreeCheckpointer() as reader:
            return jax.tree.leaves(reader.restore(item, ocp.args.PyTreeRestore(like, how, partial_restore=True)))[0]

    change = [(*leaf[:-1], "lora", leaf[-1], part) for part in ("a", "b")]
    return merged(read(leaf), *map(read, change)) if change[0] in stored else read(leaf)


def write_leaves(
    folder: str, leaves: Collection[Leaf], read: Callable[[Leaf], Shaped[np.ndarray, "..."]], run: dict
) -> None:
    """A new folder like a step's, without an optimizer; no more than one weight is held at a time. Raises BadInput."""
    with new_folder(Path(folder)) as partial:
        item = partial / "item"
        for leaf in progress(leaves, len(leaves), "arrays"):
            v1.partial.save(item, nnx.traversals.unflatten_mapping({(*leaf, "value"): read(leaf)}))
        v1.partial.finalize(item)
        (item / "state").rename(partial / "weights")
        shutil.rmtree(item)
        (partial / "run").mkdir()
        (partial / "run/metadata").write_text(json.dumps(run))


def _restore(folder: epath.Path, like: nnx.State) -> nnx.State:
    """Those weights of a checkpoint that `like` has, in its shapes and shardings."""
    if any("lora" in path for path in _stored(folder)):

        def put(path: Leaf, leaf: nnx.Variable) -> nnx.Variable:
            value = read_leaf(str(folder), path)
            return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, x.sharding, value.__getitem__), leaf)

        return nnx.from_flat_state([(path, put(path, leaf)) for path, leaf in nnx.to_flat_state(like)])
    how = ocp.checkpoint_utils.construct_restore_args(like)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder / "weights", ocp.args.PyTreeRestore(like, how, partial_restore=True))


def _stored(folder: epath.Path) -> dict[Leaf, tuple[epath.Path, Any]]:
    """A checkpoint's weights by path, with LoRA's and those that it leaves frozen: the folder, and Orbax's metadata."""

    def arrays(item: epath.Path) -> dict[Leaf, tuple[epath.Path, Any]]:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(item).item_metadata.tree
        return {path[:-1]: (item, array) for path, array in nnx.traversals.flatten_mapping(tree).items()}

    own, base = arrays(folder / "weights"), folder.parent.parent / BASE / "weights"
    if not any("lora" in path for path in own):
        return own
    if not base.exists():
        raise BadInput(f"{folder}: holds what LoRA trained alone; the weights that it changes are missing, {base}")
    return arrays(base) | own


def _shapes(weights: nnx.State) -> dict[str, tuple[int, ...]]:
    """Shapes of weights by name."""
    return {".".join(path): leaf.shape for path, leaf in nnx.to_flat_state(weights)}


def _stored_shapes(folder: epath.Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's weights by name, LoRA's merged."""
    return {".".join(path): array.shape for path, (_, array) in _stored(folder).items() if "lora" not in path}


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
