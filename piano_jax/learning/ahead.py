"""Compiling a config's train step ahead of time, for devices that are described and not there."""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.learning import loop, metrics
from piano_jax.learning.step import abstract_state
from piano_jax.model import mesh as meshes

COLLECTIVES = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step needs of one chip, in bytes, FLOPs and seconds."""

    weights: int
    optimizer: int
    batch: int
    temporaries: int
    program: int
    memory: float  # that a chip has
    collectives: dict[str, tuple[int, int]]  # by kind: how many a step, and the bytes of their results
    flops: float  # that learning from the tokens of a step needs, without what remat computes again
    floor: float  # seconds, at the chip's peak
    compiling: float  # seconds
    compiled: jax.stages.Compiled

    @property
    def total(self) -> int:
        """Bytes in use at the step's peak: the state is updated in place."""
        return self.weights + self.optimizer + self.batch + self.temporaries + self.program

    @property
    def fits(self) -> bool:
        """Whether a chip has the memory."""
        return self.total <= self.memory


class TooLarge(Exception):
    """The compiler found no way to keep a step inside a chip's memory; the message says how much it lacks."""


def topology(name: str, slices: int) -> list:
    """The devices of TPU slices such as "v5e:16x16", described by libtpu. Raises BadInput."""
    if not importlib.util.find_spec("libtpu"):
        raise BadInput("plans need the TPU compiler: pip install libtpu")
    # Nothing here touches a TPU: several may compile at once, and libtpu need not ask what machine this is.
    quiet = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3"}
    os.environ.update({"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"} | quiet)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise BadInput(f"{name}: no such topology, as v5e:16x16, v5p:4x4x4 or v6e:16x16 are ({reason})") from error


def plan(config: ConfigDict, mesh: Mesh) -> Plan:
    """Compiles the step that `train` would run on a mesh. Raises BadInput and TooLarge."""
    loop.check_batch(config, mesh)
    chip = meshes.chip(mesh)
    if chip is None:
        raise BadInput(f"nothing is known of the memory of a {mesh.devices.flat[0].device_kind}")
    with jax.set_mesh(mesh):
        phase, init, step = loop.assemble(config)
        state = abstract_state(init, mesh)
        rows = NamedSharding(mesh, meshes.spec("batch"))
        batch = {
            name: jax.ShapeDtypeStruct((config.batch, *row.shape), row.dtype, sharding=rows)
            for name, row in phase.example.items()
        }
        lowered = step.lower(state, batch)
        start = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            lack = re.search(r"Used \S+ of \S+ \w+\. Exceeded \w+ capacity by \S+?(?=\.\s|$)", str(error), re.M)
            raise TooLarge(lack[0] if lack else str(error).splitlines()[0]) from error
        seconds = time.perf_counter() - start
    used = compiled.memory_analysis()
    tokens = config.batch * phase.example["tokens"].size
    flops = tokens * metrics.flops_per_token(phase.model, config.length) / mesh.size
    return Plan(
        weights=bytes_on_a_device(state.weights),
        optimizer=bytes_on_a_device(state.optimizer),
        batch=bytes_on_a_device(batch),
        temporaries=used.temp_size_in_bytes,
        program=used.generated_code_size_in_bytes,
        memory=chip.memory,
        collectives=collectives(compiled.as_text()),
        flops=flops,
        floor=flops / chip.flops,
        compiling=seconds,
        compiled=compiled,
    )


def most_rows(config: ConfigDict, mesh: Mesh) -> int:
    """The most rows a chip's part of the batch can have; 0 where not one fits. Temporaries grow evenly with rows."""
    config = config.copy_and_resolve_references()
    found: dict[int, Plan | None] = {}

    def fits(rows: int) -> bool:
        if rows not in found:
            config.batch = rows * config.accumulate * meshes.parts("batch", mesh)
            try:
                found[rows] = plan(config, mesh)
            except TooLarge:
                found[rows] = None
        return found[rows] is not None and found[rows].fits

    if not fits(1):
        return 0
    if not fits(2):
        return 1
    one, two = found[1], found[2]
    most = max(2, int(1 + (one.memory - one.total) // max(two.total - one.total, 1)))
    while not fits(most):
        most -= max(1, most // 16)
    while fits(most + 1):
        most += 1
    return most


def bytes_on_a_device(tree: object) -> int:
    """Of sharded arrays or their shapes, by their shards."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves)


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind a module runs, and the bytes of their results, loops as often as they run.

    The text is XLA's. The steps of one asynchronous collective share its channel and count once.
    """
    bodies = dict(_computations(text))
    runs: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        if runs[name] >= times:
            return
        runs[name] = times
        for line in bodies[name]:
            loop_of = re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line)
            if loop_of:
                bound = re.findall(r" s32\[\][^ ]* constant\((\d+)\)", "\n".join(bodies[loop_of[1]]))
                visit(loop_of[2], times * max(map(int, bound), default=1))
            for other in re.findall(r"(?:calls|to_apply|branch_computations)=\{?%?([\w.-]+)", line):
                visit(other, times)

    visit(next(iter(name for name in bodies if name.startswith("ENTRY "))), 1)
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for name, times in runs.items():
        for line in bodies[name]:
            match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line)
            if match:
                channel = re.search(r"channel_id=(\d+)", line)
                key = match[2], channel[1] if channel else line
                found[key] = max(found.get(key, (0, 0)), (times, times * _bytes(match[1])))
    totals: dict[str, tuple[int, int]] = {}
    for (kind, _), (times, size) in found.items():
        count, before = totals.get(kind, (0, 0))
        totals[kind] = count + times, before + size
    return totals


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Names and lines of a module's computations; the entry's name begins with "ENTRY "."""
    for part in re.split(r"\n\n", text):
        lines = part.strip().splitlines()
        if head := lines and re.match(r"(ENTRY )?%?([\w.-]+) \(", lines[0]):
            yield (head[1] or "") + head[2], lines[1:]


def _bytes(shapes: str) -> int:
    """Of the arrays that an HLO type names, as in "(bf16[2,3]{1,0}, f32[4])"."""
    arrays = re.findall(r"\b(\w+)\[([\d,]*)\]", shapes)
    return sum(ITEM_BYTES.get(kind, 0) * math.prod(map(int, filter(None, sizes.split(",")))) for kind, sizes in arrays)
