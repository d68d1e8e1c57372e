"""The training loop, one for every phase.

Its order is the law: evaluate and save the old state, take the next batch, step, log the step before. So whatever is
saved was learnt from exactly `step` batches, and the devices never wait for a number to be printed.
"""

import contextlib
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from piano_jax import BadInput, write_whole
from piano_jax.command import progress
from piano_jax.data import Dataset
from piano_jax.data.batches import batches
from piano_jax.learning import checkpoints, metrics, objectives, optimizer
from piano_jax.learning.phases import Phase, phase_of
from piano_jax.learning.step import Initializer, Step, abstract_state, initializer, train_step
from piano_jax.model import mesh as meshes

CONFIG = "config.json"
# What a run may change when it goes on: where it computes and how it reports, but not what it computes.
FREE = (
    *("mesh", "workers", "accumulate", "loss.chunk", "evaluation", "checkpoint", "data.path"),
    *("model.remat", "model.attention", "model.block", "model.unroll"),
)


class Diverged(RuntimeError):
    """A loss or a gradient is not finite."""


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raises BadInput where the batch does not divide over the mesh."""
    if config.batch % (parts := config.accumulate * meshes.parts("batch", mesh)):
        raise BadInput(f"batch {config.batch} does not divide by {parts}, accumulate times the mesh's replica × fsdp")


def assemble(config: ConfigDict) -> tuple[Phase, Initializer, Step]:
    """A config's phase, what makes the state before its first step, and the step. Raises BadInput."""
    phase = phase_of(config)
    rate = optimizer.schedule(steps=config.steps, **config.schedule)
    tx = optimizer.adamw(rate, **config.adamw)
    return phase, initializer(phase.model, tx), train_step(phase.gradient, tx, rate, config.seed)


def check_owner(workdir: str, run: dict) -> None:
    """Raises BadInput where `workdir` holds another run than this one, or is no folder."""

    def flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    if workdir.startswith("gs://"):
        raise BadInput(f"{workdir}: work directories are local, for now")
    path = epath.Path(workdir) / CONFIG
    if path.parent.exists() and not path.parent.is_dir():
        raise BadInput(f"{workdir}: not a folder")
    if path.exists():
        theirs, mine = dict(flat(json.loads(path.read_text()))), dict(flat(json.loads(json.dumps(run))))
        for key in sorted(theirs.keys() | mine.keys()):
            if theirs.get(key) != mine.get(key) and not key.startswith(FREE):
                was, now = (repr(config.get(key)) for config in (theirs, mine))
                raise BadInput(f"{workdir}: belongs to a run with {key} {was}, not {now}; give another --workdir")


def claim(workdir: str, run: dict) -> None:
    """Makes `workdir` that of this run."""
    if jax.process_index() == 0:
        write_whole(epath.Path(workdir) / CONFIG, (json.dumps(run, indent=1) + "\n").encode())


def train(config: ConfigDict, workdir: str, mesh: Mesh) -> dict[str, float]:
    """Trains as `config` says, on the mesh that is set, and returns the last evaluation's figures.

    Raises:
        BadInput: the config, the dataset, the devices and the work directory do not fit together.
        Diverged: a loss or gradient is not finite; the checkpoints in `workdir` are from before.
    """
    # 1. What learns, from what.
    check_batch(config, mesh)
    phase, init, step_on = assemble(config)
    dataset = Dataset(config.data.path, vocabulary=config.vocabulary)
    rows, validation = phase.rows(dataset), phase.validation(dataset)
    tokens = phase.example["tokens"].size
    run = config.to_dict() | {"dataset": dataset.fingerprint}
    check_owner(workdir, run)

    # 2. Where, and from which weights on: the work directory's own, else those of init_from, else fresh.
    like = abstract_state(init, mesh)
    saved = checkpoints.Checkpoints(workdir, config.checkpoint.keep_last, config.checkpoint.keep_every)
    first = saved.newest() or 0
    if first:
        state = saved.restore(first, like)
    else:
        state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))(jax.random.key(config.seed))
        if config.init_from:
            state = state._replace(weights=checkpoints.start_from(config.init_from, state.weights, config))
    claim(workdir, run)
    origin = f"step {first:,} of {workdir}" if first else config.init_from or "fresh weights"
    count = sum(x.size for x in jax.tree.leaves(state.weights))
    print(f"{count:,} parameters, from {origin}", flush=True)
    print(f"{rows.rows_per_epoch * tokens:,} tokens an epoch, from {dataset.path}", flush=True)

    # 3. How it learns and is measured.
    host = {"host": jax.process_index(), "hosts": jax.process_count()}
    writer = metrics.Writer(workdir, first)
    utilization = functools.partial(metrics.utilization, config=phase.model, length=config.length, mesh=mesh)
    report = Report(writer, phase.figures, utilization, config.batch * tokens)

    def evaluate(weights: nnx.State, step: int) -> dict[str, float]:
        limit = config.evaluation.batches or math.ceil(len(validation) / config.batch)
        feed = itertools.islice(batches(validation, config.batch, **host), limit)
        sums = [phase.measure(weights, meshes.shard_batch(batch, mesh)) for batch in feed]
        found = phase.figures(jax.tree.map(lambda *parts: sum(map(np.asarray, parts)), *sums))
        writer.write(step, "validation", found)
        return found

    # 4. The loop.
    feed = batches(rows, config.batch, first, **host, workers=config.workers)
    with contextlib.closing(saved), contextlib.closing(writer), contextlib.closing(feed):
        for step in progress(range(first, config.steps), config.steps, "steps", first, report.note):
            if config.evaluation.every and step % config.evaluation.every == 0:
                with report.pause():
                    report.validation = evaluate(state.weights, step)
            if step % config.checkpoint.every == 0 and step > first:
                with report.pause():
                    report.flush()
                    saved.save(step, state, config.to_dict())
            state, sums = step_on(state, meshes.shard_batch(next(feed), mesh))
            report.step(step, sums)
        report.flush()
        found = evaluate(state.weights, config.steps)
        saved.save(config.steps, state, config.to_dict())
    return found


class Report:
    """Figures of steps, each fetched when the next is under way, and the speed between them."""

    def __init__(
        self,
        writer: metrics.Writer,
        figures: Callable[[objectives.Sums], dict[str, float]],
        utilization: Callable[[float], dict[str, float]],
        tokens: int,
    ):
        self._writer, self._figures, self._utilization, self._tokens = writer, figures, utilization, tokens
        self._pending: tuple[int, dict] | None = None
        self._since = time.perf_counter()
        self._train: dict[str, float] = {}
        self.validation: dict[str, float] = {}

    def step(self, step: int, sums: objectives.Sums) -> None:
        """Takes the sums of a step just dispatched, and reports the step before."""
        self.flush()
        self._pending = step, sums

    def flush(self) -> None:
        """Reports the step that waits. Raises Diverged."""
        if self._pending is None:
            return
        (step, sums), self._pending = self._pending, None
        sums = jax.device_get(sums)
        self._train = self._figures(sums) | {name: float(sums[name]) for name in ("gradient_norm", "learning_rate")}
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        speed = self._tokens / seconds
        speeds = {"tokens_per_second": speed} | self._utilization(speed)
        self._writer.write(step, "train", self._train | speeds)
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(self._train[name]):
                raise Diverged(f"step {step}: {name} is {self._train[name]}; the last checkpoint is from before")

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent here is no step's."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def note(self) -> str:
        """What a progress bar says."""
        said = {"loss": self._train.get("loss"), "validation": self.validation.get("loss")}
        return ", ".join(f"{name} {value:.4f}" for name, value in said.items() if value is not None)
