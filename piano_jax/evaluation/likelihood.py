"""How likely held-out pieces are: nats by piece and class of token, whether the likeliest token was right, and how sure
the prediction was of it; by a model, or by anything else that gives each token a probability.

What is told is a piece's music, all that follows `<S>`, `<E>` too; prefixes and `<S>` are given. Sums of nats over
notes and over seconds compare models of different vocabularies, nats a token do not. Pieces are as they are stored,
with no `<D>`, so that a run of configs/finetune.py hardly expects their `<E>`: that is all that the class `other` has.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int64, Integer, Num

from piano_jax import BadInput
from piano_jax.command import progress
from piano_jax.data.prefixes import Labelled
from piano_jax.data.rows import Pieces
from piano_jax.data.shards import Dataset
from piano_jax.learning.checkpoints import read_config, read_model
from piano_jax.model import Model
from piano_jax.model import mesh as meshes
from piano_jax.music.vocabulary import CLASSES, Vocabulary

BINS = 15  # of confidence, equally wide, as in Guo et al. (arXiv 1706.04599)
RESAMPLES = 1000
TOKENS = 8192  # at a time, of each device
SHORTEST = 128  # a row; those of a piece's last window are cut to a half, a quarter, … of the others
COUNT, CONFIDENCE, HITS = range(3)  # what is summed in a bin


def is_told(vocabulary: Vocabulary) -> Bool[np.ndarray, "V"]:
    """Which ids count as music, where they are to be told."""
    told = np.ones(vocabulary.size, bool)
    told[[vocabulary.begin, vocabulary.pad, *vocabulary.prefix]] = False
    return told


class Tally:
    """Sums over the tokens of some pieces.

    `sums` (pieces, CLASSES, 3) are of tokens, nats and hits; `bins` (pieces, BINS, 3) of tokens, confidence (the
    probability of the likeliest token) and hits, by confidence, and `bins_of_class` (CLASSES, BINS, 3) the same.
    """

    def __init__(self, pieces: int):
        self.sums = np.zeros((pieces, len(CLASSES), 3))
        self.bins = np.zeros((pieces, BINS, 3))
        self.bins_of_class = np.zeros((len(CLASSES), BINS, 3))

    def add(
        self,
        piece: Integer[np.ndarray, "N"],
        kind: Integer[np.ndarray, "N"],
        nats: Num[np.ndarray, "N"],
        right: Bool[np.ndarray, "N"],
        confidence: Num[np.ndarray, "N"],
    ) -> None:
        """Adds tokens of these pieces and classes."""
        where = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        ones = np.ones(len(piece))
        np.add.at(self.sums, (piece, kind), np.stack([ones, nats, right], 1))
        sure = np.stack([ones, confidence, right], 1)
        np.add.at(self.bins, (piece, where), sure)
        np.add.at(self.bins_of_class, (kind, where), sure)

    def part(self, of: Int64[np.ndarray, "n"]) -> "Tally":
        """The tally of some of the pieces, but for the bins by class, which are of all."""
        part = Tally(0)
        part.sums, part.bins, part.bins_of_class = self.sums[of], self.bins[of], self.bins_of_class
        return part


class Windows(NamedTuple):
    """Rows cut from pieces: of which piece, at which token, of how many, and the first position that is counted."""

    piece: Int64[np.ndarray, "W"]
    start: Int64[np.ndarray, "W"]
    length: Int64[np.ndarray, "W"]
    first: Int64[np.ndarray, "W"]


def windows(tokens: Int64[np.ndarray, "N"], size: int) -> Windows:
    """Windows of `size` over pieces of so many tokens, each half a window on from the one before.

    Every token but a piece's first is told once, from half a window before it or more, or all that the piece has.
    """
    told, stride = tokens - 1, size // 2
    count = 1 + -(-np.maximum(told - size, 0) // stride)
    piece = np.repeat(np.arange(len(tokens)), count)
    number = np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count)
    start = number * stride
    return Windows(piece, start, np.minimum(size, told[piece] - start), np.where(number > 0, size - stride, 0))


@jax.jit
def tell(
    model: Model, tokens: Int[Array, "B T"], targets: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Float[Array, "B T"]]:
    """Nats of each target, whether it was the likeliest token, and that one's probability, by the one encoder."""
    logits = model.head(model.encode(tokens, segment_ids))
    targets = meshes.reshard(targets, "batch", "time")
    top, total = logits.max(-1), jax.nn.logsumexp(logits, -1)
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])[None, None]
    return total - jnp.where(is_target, logits, 0).sum(-1), logits.argmax(-1) == targets, jnp.exp(top - total)


def tally_of_checkpoint(checkpoint: str, mesh: Mesh, dataset: Dataset, which: Int64[np.ndarray, "N"]) -> Tally:
    """The tally of a checkpoint's model in windows as long as its run's rows were, by float32 on a CPU.

    A run that learnt from labels is given them.
    """
    model, config = read_model(checkpoint, mesh)
    if meshes.platform() == "cpu":  # whose bfloat16 is the slower
        model.config = dataclasses.replace(model.config, dtype="float32")
    pieces = Labelled(dataset) if config.get("data", {}).get("labels") else dataset
    return tally_of_model(model, mesh, pieces, which, config.get("length", model.config.context))


def check_language(checkpoint: str) -> str:
    """The vocabulary of a checkpoint. Raises BadInput where it is none of a model that gives tokens a probability."""
    config = read_config(checkpoint)
    if (head := config.model.get("head", "language")) not in ("language", "conditioned"):
        raise BadInput(f"{checkpoint}: has a {head} head, and gives tokens no probability")
    return config.vocabulary


def tally_of_model(model: Model, mesh: Mesh, pieces: Pieces, which: Int64[np.ndarray, "N"], size: int) -> Tally:
    """The tally of a model on the mesh that is set, of pieces in windows of `size` tokens (see `windows`).

    A conditioned model is given no embedding.
    """
    vocabulary = pieces.vocabulary
    told, cut = is_told(vocabulary), windows(pieces.offsets[which + 1] - pieces.offsets[which], size)
    tally, waiting = Tally(len(which)), None

    def book(windows: np.ndarray, targets: np.ndarray, found: tuple) -> None:
        nats, right, confidence = (np.asarray(x)[: len(windows)] for x in found)
        place = np.arange(targets.shape[1])[None]
        counted = (place >= cut.first[windows][:, None]) & (place < cut.length[windows][:, None])
        counted &= told[targets[: len(windows)]]
        row, _ = np.nonzero(counted)
        kind = vocabulary.kind[targets[: len(windows)][counted]]
        tally.add(cut.piece[windows][row], kind, nats[counted], right[counted], confidence[counted])

    def batches() -> Iterator[int]:
        nonlocal waiting
        for windows, length, rows in _batches(cut.length, size, meshes.parts("batch", mesh)):
            tokens = np.full((rows, length + 1), vocabulary.pad, np.int32)
            own, which_of = np.unique(cut.piece[windows], return_inverse=True)
            records = pieces.read(which[own])
            for row, (record, window) in enumerate(zip(which_of, windows, strict=True)):
                ids = records[record][cut.start[window] :][: cut.length[window] + 1]
                tokens[row, : len(ids)] = ids
            tokens, targets = tokens[:, :-1], tokens[:, 1:]
            batch = {"tokens": tokens, "targets": targets, "segment_ids": (tokens != vocabulary.pad).astype(np.int32)}
            found = tell(model, **meshes.shard_batch(batch, mesh))
            if waiting:  # fetched while the next is computed
                book(*waiting)
            waiting = windows, targets, found
            yield from [0] * len(windows)
        book(*waiting)

    for _ in progress(batches(), len(cut.piece), "windows"):
        pass
    return tally


def _batches(lengths: Int64[np.ndarray, "W"], size: int, parts: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Windows in batches of about as many tokens, the longest first: which, their padded length, and the rows.

    Lengths and rows are `size` and all, halved as often as what there is allows, so that few shapes are compiled.
    """
    order, first = np.argsort(-lengths, kind="stable"), 0
    while first < len(order):
        length = size
        while length // 2 >= max(lengths[order[first]], SHORTEST):
            length //= 2
        rows = max(1, TOKENS // length)
        while rows // 2 * parts >= len(order) - first and rows > 1:
            rows //= 2
        yield order[first : first + rows * parts], length, rows * parts
        first += rows * parts


# Figures.

Figures = dict[str, "Figure"]


class Figure(NamedTuple):
    """A mean, and its 95 % interval by bootstrap over compositions."""

    value: float
    low: float
    high: float


def per(tally: Tally, seconds: Num[np.ndarray, "N"], groups: Int64[np.ndarray, "N"]) -> Figures:
    """Nats a "token", "token/CLASS" for each class that occurs, "piece note" and "second"; "accuracy"; "calibration".

    `groups` are the pieces' compositions. Calibration is the expected calibration error: by how much confidence and
    accuracy differ, the mean over bins.
    """
    told, nats, right = np.moveaxis(tally.sums, 2, 0)
    occur = np.flatnonzero(told.sum(0))
    tops = {"token": nats.sum(1)} | {f"token/{CLASSES[kind]}": nats[:, kind] for kind in occur}
    bottoms = {"token": told.sum(1)} | {f"token/{CLASSES[kind]}": told[:, kind] for kind in occur}
    tops |= {"note": nats.sum(1), "second": nats.sum(1), "accuracy": right.sum(1)}
    bottoms |= {"note": told[:, CLASSES.index("note")], "second": seconds, "accuracy": told.sum(1)}
    columns = [*tops.values(), *bottoms.values()]
    flat = np.concatenate([np.stack(columns, 1), tally.bins.reshape(len(told), -1)], 1)

    def figures(sums: Float[np.ndarray, "R S"]) -> Float[np.ndarray, "R F"]:
        top, bottom, bins = np.split(sums, [len(tops), 2 * len(tops)], 1)
        ratios = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        return np.concatenate([ratios, calibration_error(bins.reshape(len(sums), BINS, 3))[:, None]], 1)

    found = bootstrap(flat, groups, figures)
    return dict(zip([*tops, "calibration"], found, strict=True))


def more(tally: Tally, than: Tally, groups: Int64[np.ndarray, "N"]) -> Figure:
    """Nats a token that one tally has more than another of the same tokens: surer than the difference of two figures,
    for what makes a piece hard is hard for both."""
    told, nats, _ = np.moveaxis(tally.sums, 2, 0).sum(2)
    apart = np.stack([nats - than.sums[:, :, 1].sum(1), told], 1)
    return bootstrap(apart, groups, lambda sums: sums[:, :1] / sums[:, 1:])[0]


def bootstrap(
    sums: Float[np.ndarray, "N S"], groups: Int64[np.ndarray, "N"], figures: Callable, seed: int = 0
) -> list[Figure]:
    """Figures of the summed rows; intervals are percentiles over draws of groups, with replacement, as many as there
    are."""
    _, place = np.unique(groups, return_inverse=True)
    by_group = np.zeros((place.max() + 1, sums.shape[1]))
    np.add.at(by_group, place, sums)
    count = len(by_group)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES) @ by_group
    low, high = np.nanpercentile(figures(drawn), (2.5, 97.5), axis=0)  # not of draws without any such token
    values = figures(by_group.sum(0, keepdims=True))[0]
    return [Figure(*map(float, three)) for three in zip(values, low, high, strict=True)]


def calibration_error(bins: Float[np.ndarray, "*R B 3"]) -> Float[np.ndarray, "*R"]:
    """The mean over tokens of how far apart confidence and accuracy are in a token's bin."""
    apart = np.abs(bins[..., CONFIDENCE] - bins[..., HITS]).sum(-1)
    return apart / np.maximum(bins[..., COUNT].sum(-1), 1)
