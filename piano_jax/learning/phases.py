"""Phases of training: each a model, rows to learn from, an objective and its figures, as a config chooses them."""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.data import (
    ClassRows,
    ContinuationEvaluation,
    ContinuationRows,
    Dataset,
    Embeddings,
    EvaluationRows,
    Labelled,
    PairRows,
    PretrainingRows,
    ValidationPairs,
    ValidationSlices,
)
from piano_jax.data.batches import Rows
from piano_jax.data.pairs import no_pair
from piano_jax.data.rows import Pieces, Row, row_of
from piano_jax.data.slices import no_slice
from piano_jax.data.tasks import Task
from piano_jax.learning import classification, metrics, objectives
from piano_jax.learning import contrastive as contrasts
from piano_jax.learning.objectives import Sums
from piano_jax.learning.step import Gradient, definition, evaluation_step, summed_gradient
from piano_jax.model.transformer import TransformerConfig, proportions
from piano_jax.music.vocabulary import CLASSES, Vocabulary

SIZES = ("smoke", "laptop", "small", "medium", "medium_tpu")


@dataclasses.dataclass(frozen=True)
class Phase:
    """What the training loop needs to know of a phase.

    `rows` and `validation` make a dataset's rows to learn from, without end, and to measure on; `example` is a row of
    padding, which tells the shapes and types of all.
    """

    model: TransformerConfig
    rows: Callable[[Dataset], Rows]
    validation: Callable[[Dataset], Rows]
    example: dict[str, np.ndarray]
    gradient: Gradient
    measure: Callable[[nnx.State, dict[str, Array]], Sums]
    figures: Callable[[Sums], dict[str, float]]


def model_config(config: ConfigDict) -> TransformerConfig:
    """The model of a config: its size by name or as WIDTHxLAYERS, and what the config changes. Raises BadInput."""
    changes = config.model.to_dict()
    size = changes.pop("size")
    shape = re.fullmatch("([1-9][0-9]*)x([1-9][0-9]*)", size)
    if size not in SIZES and not shape:
        raise BadInput(
            f"{size}: no such size of model (there are {', '.join(SIZES)}, and any WIDTHxLAYERS as in 192x6)"
        )
    if shape and int(shape[1]) % 64:
        raise BadInput(f"{size}: a width is a multiple of 64, for it is cut into heads of 64")
    if rank := config.lora.rank if "lora" in config else 0:
        changes["lora_rank"] = rank
        if not config.init_from:
            raise BadInput(f"lora.rank {rank}: there are no weights to change; give --config.init_from")
    changes["vocabulary_size"] = Vocabulary(config.vocabulary).size
    if shape:
        return TransformerConfig(**proportions(*map(int, shape.groups())) | {"context": config.length} | changes)
    return getattr(TransformerConfig, size)(**changes)


def phase_of(config: ConfigDict) -> Phase:
    """The phase of a config. Raises BadInput."""
    match config.phase:
        case "pretrain":
            return pretrain(config)
        case "continue":
            return continuing(config)
        case "contrastive":
            return contrastive(config)
        case "classify":
            return classify(config)
        case _:
            raise BadInput(f"{config.phase}: no such phase (there are pretrain, continue, contrastive and classify)")


def pretrain(config: ConfigDict) -> Phase:
    """The next token, over pieces laid end to end."""
    data, vocabulary = config.data, Vocabulary(config.vocabulary)
    length, isolate = config.length, data.isolate
    return next_token(
        config,
        lambda of: PretrainingRows(_pieces(of, config), "train", length, config.seed, data.augment, isolate),
        lambda of: EvaluationRows(_pieces(of, config), "val", length, isolate),
        row_of(np.empty(0, np.uint16), length, vocabulary, isolate),
    )


def continuing(config: ConfigDict) -> Phase:
    """The next token, over rows that begin where pieces do, conditioned half of the time if there are embeddings."""
    data, vocabulary, model = config.data, Vocabulary(config.vocabulary), model_config(config)
    if bool(data.embeddings) != (model.head == "conditioned"):
        raise BadInput("data.embeddings and --config.model.head=conditioned go together")

    def embeddings(of: Dataset) -> Embeddings | None:
        return Embeddings(data.embeddings, of, model.head_size) if data.embeddings else None

    example = row_of(np.empty(0, np.uint16), config.length, vocabulary, isolate=False)
    if data.embeddings:
        example["embedding"] = np.zeros(model.head_size, np.float32)
    return next_token(
        config,
        lambda of: ContinuationRows(
            _pieces(of, config), "train", config.length, config.seed, data.augment, embeddings(of)
        ),
        lambda of: ContinuationEvaluation(_pieces(of, config), "val", config.length, embeddings(of)),
        example,
    )


def next_token(
    config: ConfigDict, rows: Callable[[Dataset], Rows], validation: Callable[[Dataset], Rows], example: Row
) -> Phase:
    """A phase that learns the next token of its rows."""
    model, vocabulary = model_config(config), Vocabulary(config.vocabulary)
    kinds = {"kind": vocabulary.kind, "kinds": len(CLASSES)}
    objective = functools.partial(objectives.next_token, **kinds, **config.loss)
    graph = definition(model)
    return Phase(
        model=model,
        rows=rows,
        validation=validation,
        example=example,
        gradient=summed_gradient(graph, objective, config.accumulate),
        measure=evaluation_step(graph, objective),
        figures=functools.partial(metrics.figures, kinds=CLASSES),
    )


def contrastive(config: ConfigDict) -> Phase:
    """Slices of one piece nearer to each other than to those of others."""
    model, loss, cut = model_config(config), config.loss.to_dict(), config.slice.to_dict()
    contrasts.check(config.batch, **loss)
    if model.head != "embedding":
        raise BadInput(f"model.head {model.head}: contrastive learning needs the head embedding")
    objective = functools.partial(contrasts.objective, **loss | {"parts": config.accumulate})
    graph = definition(model)

    def rows(of: Dataset) -> PairRows:
        drawn = {"augmented": config.data.augment, "semitones": config.data.semitones}
        found = PairRows(of, "train", config.length, config.batch, config.seed, **drawn, **cut)
        if found.left_out:
            print(f"{found.left_out:,} pieces are left out, of fewer than {2 * found.shortest} notes", flush=True)
        return found

    return Phase(
        model=model,
        rows=rows,
        validation=lambda of: ValidationPairs(of, "val", config.length, **cut),
        example=no_pair(config.length, Vocabulary(config.vocabulary)),
        gradient=summed_gradient(graph, objective, 1),
        measure=evaluation_step(graph, functools.partial(objective, groups=1)),
        figures=contrasts.figures,
    )


def classify(config: ConfigDict) -> Phase:
    """The class of slices, and of files from their slices."""
    model, data, task = model_config(config), config.data, task_of(config)
    if (model.head, model.head_size) != ("classifier", len(task.classes)):
        raise BadInput(f"{task.column} needs the head classifier and the head_size {len(task.classes)}, of its classes")
    graph, cut = definition(model), {"task": task, "length": config.length, "notes": data.notes}
    drawn = {"seed": config.seed, "augmented": data.augment, "shots": data.shots}
    return Phase(
        model=model,
        rows=lambda of: ClassRows(of, "train", **cut, **drawn),
        validation=lambda of: ValidationSlices(of, "val", **cut),
        example=no_slice(config.length, Vocabulary(config.vocabulary)),
        gradient=summed_gradient(graph, classification.objective, config.accumulate),
        measure=evaluation_step(graph, classification.objective),
        figures=functools.partial(classification.figures, classes=len(task.classes)),
    )


def task_of(config: ConfigDict) -> Task:
    """What a classifier's run tells."""
    return Task(config.task.column, tuple(config.task.classes))


def _pieces(dataset: Dataset, config: ConfigDict) -> Pieces:
    return Labelled(dataset) if config.data.labels else dataset
