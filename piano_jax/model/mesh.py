"""Meshes and shardings: the one file that counts devices and says on which mesh axes an array's axes lie.

Axes are explicit (`jax.sharding.AxisType.Explicit`): the sharding of every array is part of its type. A program enters
its mesh once, `jax.set_mesh(make_mesh(...))`; without a mesh the same model code runs on one device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from piano_jax import BadInput

AXES = ("replica", "fsdp", "tensor")

# Where an array's axis lies, by its name; an axis named None is whole on every device.
PLACES = {
    "batch": ("replica", "fsdp"),
    "model": ("fsdp",),  # of a layer's weight, gathered where it is used
    "heads": ("tensor",),
    "ff": ("tensor",),
    # 17,727 = 3 · 19 · 311 and 2,675 = 5² · 107 divide over no usual mesh. So tables of the vocabulary are stored cut
    # along the model axis, and tensor parallelism divides the time axis of the logits: a softmax stays on its device.
    "table": ("fsdp", "tensor"),
    "time": ("tensor",),
    None: (),
}


class Chip(NamedTuple):
    """What one device can do: dense bfloat16 FLOP/s and bytes of memory that a program gets."""

    flops: float
    memory: float


# By the kind that JAX calls a device: FLOP/s from the makers' data sheets, memory as XLA's compiler counts it on TPUs.
CHIPS = {
    "TPU v4": Chip(275e12, 30.75 * 2**30),
    "TPU v5 lite": Chip(197e12, 15.75 * 2**30),
    "TPU v5": Chip(459e12, 95.74 * 2**30),
    "TPU v5p": Chip(459e12, 95.74 * 2**30),
    "TPU v6 lite": Chip(918e12, 31.25 * 2**30),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9),
    "NVIDIA H200": Chip(989e12, 141e9),
}


def make_mesh(replica: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices, over all hosts; one size may be -1, the rest of the devices.

    TPU slices are joined by the slower network, so only replicas lie on different ones. Raises BadInput.
    """
    sizes, devices = [replica, fsdp, tensor], jax.devices() if devices is None else devices
    shown = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise BadInput(f"mesh {shown}: sizes are at least 1, and -1 (the rest of the devices) stands once at most")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // -math.prod(sizes))
    if math.prod(sizes) != len(devices):
        raise BadInput(f"mesh {shown} does not match the device count, {len(devices)}")
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1
    if sizes[0] % slices:
        raise BadInput(f"mesh {shown}: replica must be a multiple of {slices}, the number of slices")
    inside = [sizes[0] // slices, *sizes[1:]]
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(inside, [slices, 1, 1], devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def chip(mesh: Mesh) -> Chip | None:
    """What each device of a mesh can do, where its kind is known."""
    return CHIPS.get(mesh.devices.flat[0].device_kind)


def spec(*names: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these names."""
    return PartitionSpec(*(PLACES[name] or None for name in names))


def parts(name: str | None, mesh: Any) -> int:
    """Into how many parts a mesh, concrete or abstract, cuts an axis of that name; 1 on no mesh."""
    return math.prod(mesh.shape.get(axis, 1) for axis in PLACES[name])


def placed(shape: tuple[int, ...], *names: str | None) -> NamedSharding:
    """The sharding on the current mesh of an activation of that shape; an axis that does not divide stays whole."""
    mesh = jax.sharding.get_abstract_mesh()
    cut = (
        name if parts(name, mesh) > 1 and size % parts(name, mesh) == 0 else None
        for size, name in zip(shape, names, strict=True)
    )
    return NamedSharding(mesh, spec(*cut))


def reshard(x: Shaped[Array, "..."], *names: str | None) -> Shaped[Array, "..."]:
    """The same values with their axes on the places of these names, all-gathered or sliced; on no mesh, x itself."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.sharding.reshard(x, placed(x.shape, *names))


def on_each(function: Callable, takes: tuple[PartitionSpec, ...], gives: PyTree[PartitionSpec]) -> Callable:
    """A function of global arrays from one of each device's parts of them; on no mesh, the function itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=takes, out_specs=gives, check_vma=False)


def platform() -> str:
    """What the devices of the current mesh, or else of this machine, are: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of every array of a tree of parameters, of their gradients, or of an optimizer's state.

    A parameter carries the names of its axes, and Optax's moments carry them on; whatever has none lies whole on every
    device. The tree may hold arrays or shapes (`jax.eval_shape`). Raises BadInput for an axis that does not divide.
    """

    def place(leaf: Any) -> Any:
        whole = (None,) * len(leaf.shape)
        names = leaf.get_metadata().get("axes", whole) if isinstance(leaf, nnx.Variable) else whole
        for size, name in zip(leaf.shape, names, strict=True):
            if size % parts(name, mesh):
                raise BadInput(f"a {name} axis of {size} does not divide over {parts(name, mesh)} ({PLACES[name]})")
        return jax.tree.map(lambda _: NamedSharding(mesh, spec(*names)), leaf)

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def rows_here(batch_size: int, mesh: Mesh) -> Int[np.ndarray, "b"]:
    """Which rows of a global batch lie on this host's devices, in order; hosts may hold the same ones."""
    cuts = NamedSharding(mesh, spec("batch")).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[cut] for cut in cuts]))


def shard_batch(batch: PyTree[np.ndarray], mesh: Mesh, batch_size: int | None = None) -> PyTree[Array]:
    """A global batch over the mesh, from this host's rows of it, `rows_here`. Raises BadInput."""

    def place(rows: np.ndarray) -> Array:
        total = batch_size or len(rows)
        if total % parts("batch", mesh):
            raise BadInput(f"a batch of {total} does not divide over {parts('batch', mesh)} (replica × fsdp)")
        shape = (total, *rows.shape[1:])
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec("batch")), rows, shape)

    return jax.tree.map(place, batch)


def table(tree: PyTree[Array]) -> list[str]:
    """A line for each array of a tree of parameters: its name, shape, where its axes lie, and its bytes on a device."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        cuts = ", ".join("+".join([axes] if isinstance(axes, str) else axes or "-") for axes in leaf.sharding.spec)
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        shape = " × ".join(map(str, leaf.shape))
        lines.append(f"{name:<20} {leaf.dtype.name:<8} {shape:<24} {cuts:<40} {size / 2**20:9.2f} MiB")
    return lines
