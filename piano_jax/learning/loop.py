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
from piano_jax.config import flat
from piano_jax.data import Dataset
from piano_jax.data.batches import Batch, batches
from piano_jax.learning import checkpoints, cluster, metrics, objectives, optimizer
from piano_jax.learning.phases import Phase, phase_of
from piano_jax.learning.step import Initializer, Step, TrainState, abstract_state, initializer, train_step
from piano_jax.model import mesh as meshes
from piano_jax.model.lora import split

CONFIG = "config.json"
# What a run may change when it goes on: where it computes and how it reports, but not what it computes.
FREE = (
    *("mesh", "workers", "accumulate", "loss.chunk", "evaluation", "checkpoint", "profile", "data.path"),
    *("cluster", "model.remat", "model.attention", "model.block", "model.unroll"),
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
    if workdir.startswith("gs://"):
        raise BadInput(f"{workdir}: work directories are local, for now")
    path = epath.Path(workdir) / CONFIG
    if path.parent.exists() and not path.parent.is_dir():
        raise BadInput(f"{workdir}: not a folder")
    if path.exists():
        theirs, mine = (flat(json.loads(text)) for text in (path.read_text(), json.dumps(run)))
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

    Told to stop (SIGTERM), it saves and returns none. Raises:
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
    check_places(state, like)
    claim(workdir, run)
    if jax.process_index() == 0:
        origin = f"step {first:,} of {workdir}" if first else config.init_from or "fresh weights"
        print("\n".join(meshes.table(state.weights)))
        count, learning = (
            sum(x.size for x in jax.tree.leaves(part)) for part in (state.weights, split(state.weights)[0])
        )
        some = f" ({learning:,} of them learn)" if learning < count else ""
        print(f"{count:,} parameters{some}, from {origin}")
        print(f"{rows.rows_per_epoch * tokens:,} tokens an epoch, from {dataset.path}", flush=True)

    # 3. How it learns and is measured.
    places = meshes.rows_here(config.batch, mesh)
    writer = metrics.Writer(workdir, first)
    utilization = functools.partial(metrics.utilization, config=phase.model, length=config.length, mesh=mesh)
    report = Report(writer, phase.figures, utilization, config.batch * tokens)
    profile = Profile(f"{workdir}/profile", **config.profile, settle=saved.wait)

    def sharded(batch: Batch) -> dict[str, jax.Array]:
        return meshes.shard_batch(batch, mesh, config.batch)

    def evaluate(weights: nnx.State, step: int) -> dict[str, float]:
        limit = config.evaluation.batches or math.ceil(len(validation) / config.batch)
        feed = itertools.islice(batches(validation, config.batch, places=places), limit)
        sums = [phase.measure(weights, sharded(batch)) for batch in feed]
        found = phase.figures(jax.tree.map(lambda *parts: sum(map(np.asarray, parts)), *sums))
        writer.write(step, "validation", found)
        return found

    def save(step: int) -> None:
        with report.timed("save"):
            saved.save(step, state, config.to_dict())

    # 4. The loop.
    feed = batches(rows, config.batch, first, places, config.workers)
    steps = range(first, config.steps)
    if jax.process_index() == 0:
        steps = progress(steps, config.steps, "steps", first, report.note)
    with contextlib.ExitStack() as closing, cluster.told_to_stop() as told_to_stop:
        for part in (saved, writer, feed, profile):
            closing.enter_context(contextlib.closing(part))
        for step in steps:
            if told_to_stop(step):
                save(step)
                return {}
            if config.evaluation.every and step % config.evaluation.every == 0:
                with report.timed("evaluation"):
                    report.validation = evaluate(state.weights, step)
            if step % config.checkpoint.every == 0 and step > first:
                save(step)
            profile.at(step)
            with report.timed("data"):
                batch = sharded(next(feed))
            state, sums = step_on(state, batch)
            report.step(step, sums)
        report.flush()
        found = evaluate(state.weights, config.steps)
        save(config.steps)
    return found


def check_places(state: TrainState, like: TrainState) -> None:
    """Asserts that every array lies on the mesh as it was meant to, weights, moments and all."""
    for (path, leaf), meant in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(meant.sharding, leaf.ndim), (jax.tree_util.keystr(path), leaf.sharding)


class Profile:
    """A window of `steps` steps from `start` on, recorded for xprof; none with 0 steps."""

    def __init__(self, folder: str, start: int, steps: int, settle: Callable[[], None]):
        self._folder, self._window, self._settle, self._on = folder, range(start, start + steps), settle, False

    def at(self, step: int) -> None:
        """Begins or ends the recording before a step."""
        if (step in self._window) != self._on:
            self._turn()

    def close(self) -> None:
        """Ends a recording that the run's end cut short."""
        if self._on:
            self._turn()

    def _turn(self) -> None:
        # XLA's profiler has crashed where it began while threads that save were starting.
        self._settle()
        self._on = not self._on
        if self._on:
            jax.profiler.start_trace(self._folder)
        else:
            jax.profiler.stop_trace()


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
        self._spent: dict[str, float] = {}
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
        with self.timed("compute"):
            sums = jax.device_get(sums)
        self._train = self._figures(sums) | {name: float(sums[name]) for name in ("gradient_norm", "learning_rate")}
        now = time.perf_counter()
        spent, self._spent = self._spent, {}
        step_seconds = now - self._since - spent.get("evaluation", 0) - spent.get("save", 0)
        self._since = now
        speed = self._tokens / step_seconds
        speeds = {"tokens_per_second": speed} | self._utilization(speed)
        speeds |= {f"seconds/{name}": value for name, value in ({"step": step_seconds} | spent).items()}
        self._writer.write(step, "train", self._train | speeds)
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(self._train[name]):
                raise Diverged(f"step {step}: {name} is {self._train[name]}; the last checkpoint is from before")

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Books the time that the host waits here: for "data", for the devices' "compute", for "evaluation" or "save".

        The latter two are no step's. The host prepares a step while the devices compute the one before, so where
        waiting for compute is nothing, data is what they wait for.
        """
        if name in ("evaluation", "save"):
            self.flush()  # the step that still runs ends on its own account
        start = time.perf_counter()
        yield
        self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start

    def note(self) -> str:
        """What a progress bar says."""
        said = {"loss": self._train.get("loss"), "validation": self.validation.get("loss")}
        return ", ".join(f"{name} {value:.4f}" for name, value in said.items() if value is not None)
