"""Systems that continue the same prompts: checkpoints, Markov models, folders made elsewhere; and what judges need."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Int64, Integer

from piano_jax import BadInput
from piano_jax.command import progress
from piano_jax.data.shards import Dataset
from piano_jax.evaluation.likelihood import check_language
from piano_jax.evaluation.markov import ORDER, Markov
from piano_jax.evaluation.prompts import Prompts, check_prompts, others, read_folder, spliced
from piano_jax.inference.decoding import Decoder
from piano_jax.inference.embedding import read_embedder
from piano_jax.inference.grammar import Place, grammar_of
from piano_jax.inference.prompts import continued, prompt_of
from piano_jax.learning.checkpoints import FOLDER, read_model
from piano_jax.model import mesh as meshes
from piano_jax.music import Notes, Vocabulary
from piano_jax.music.vocabulary import SEGMENT

ROWS = 16  # prompts at a time on an accelerator, half as many on a CPU
DENSEST = 90  # tokens a second of music; what would be denser is cut


class Made(NamedTuple):
    """Performances, each a prompt and its continuation; where these were written as tokens, the share of each that the
    grammar lets follow; and the folder that they were read from, if any."""

    whole: list[Notes]
    valid: Float[np.ndarray, "N"] | None = None
    source: Path | None = None


def make(
    named: dict[str, str],
    dataset: Dataset,
    drawn: Prompts,
    prompt_seconds: float,
    seconds: float,
    seed: int,
    mesh: Mesh,
    rules: bool,
) -> dict[str, Made]:
    """What systems make, by their names.

    A system is `truth`, `other` (of each prompt what follows the next), `markov`, `markov:ORDER`, a checkpoint, or a
    folder of MIDI. Nothing is computed before all folders were read.

    Raises BadInput.
    """
    asked = drawn.prompts, prompt_seconds, seconds, seed

    def later(what: str) -> Callable[[], Made]:
        word, _, order = what.partition(":")
        if what == "truth":
            return lambda: Made(drawn.whole)
        if what == "other":
            return lambda: Made(others(drawn, prompt_seconds))
        if word == "markov":
            return lambda: by_markov(dataset, int(order or ORDER), *asked)
        if is_checkpoint(what):
            check_language(what)
            return lambda: by_checkpoint(what, mesh, *asked, rules)
        if not Path(what).is_dir():
            raise BadInput(f"{what}: neither a checkpoint nor a folder of MIDI, nor truth, other or markov")
        found = read_folder(Path(what), drawn.names)
        check_prompts(Path(what), drawn, found, prompt_seconds)
        return lambda: Made(found, source=Path(what))

    waiting = {name: later(what) for name, what in named.items()}
    return {name: make() for name, make in waiting.items()}


def performances(dataset: Dataset, pieces: Int64[np.ndarray, "N"]) -> Iterator[Notes]:
    """The piano's notes of pieces, one after the other."""
    for piece in pieces.tolist():
        yield dataset.vocabulary.decode(dataset[piece]).piano


def is_checkpoint(path: str) -> bool:
    """Whether a path is a work directory or one step's folder."""
    return any((epath.Path(path) / name).exists() for name in ("weights", FOLDER))


def by_checkpoint(
    checkpoint: str,
    mesh: Mesh,
    prompts: Sequence[Notes],
    prompt_seconds: float,
    seconds: float,
    seed: int,
    rules: bool,
) -> Made:
    """Each prompt with a checkpoint's continuation.

    Without `rules` the grammar does not keep the model from erring. Sampled as `generate` does by default.
    """
    print(f"{checkpoint}: continues {len(prompts)} prompts", flush=True)
    model, config = read_model(checkpoint, mesh)
    vocabulary = Vocabulary(config.vocabulary)
    decoder = Decoder(model, vocabulary, rules)
    rows = [prompt_of(notes, vocabulary, prompt_seconds) for notes in prompts]
    size = ROWS // 2 if meshes.platform() == "cpu" else ROWS
    last, most = -(-1000 * (prompt_seconds + seconds) // SEGMENT), round(DENSEST * seconds)
    drawn: list[np.ndarray] = []

    def tokens() -> Iterator[None]:
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            reached = np.array([np.count_nonzero(row == vocabulary.time) for row in batch])
            has_ended, parts = np.zeros(len(batch), bool), []
            key = int(np.random.SeedSequence([seed, first]).generate_state(1)[0])
            for new, _ in decoder.decode(batch, most, seed=key):
                parts.append(new)
                reached += (new == vocabulary.time).sum(1)
                has_ended |= (new == vocabulary.end).any(1)
                yield from itertools.repeat(None, new.size)
                if (has_ended | (reached >= last)).all():
                    break
            drawn.extend(np.concatenate(parts, 1))

    for _ in progress(tokens(), None, "tokens", note=lambda: f"{len(drawn)} of {len(rows)} continuations"):
        pass
    drawn = [row[: int(np.argmax(np.append(row, vocabulary.pad) == vocabulary.pad))] for row in drawn]
    return written(vocabulary, prompts, rows, drawn, prompt_seconds)


def by_markov(
    dataset: Dataset, order: int, prompts: Sequence[Notes], prompt_seconds: float, seconds: float, seed: int
) -> Made:
    """Each prompt with the continuation of a Markov model of the training pieces."""
    vocabulary = dataset.vocabulary
    model = Markov(dataset, dataset.split("train"), order)
    rows = [prompt_of(notes, vocabulary, prompt_seconds) for notes in prompts]
    last, most = -(-1000 * (prompt_seconds + seconds) // SEGMENT), round(DENSEST * seconds)
    drawn = list(model.continued(rows, int(last), most, seed))
    return written(vocabulary, prompts, rows, drawn, prompt_seconds)


def written(
    vocabulary: Vocabulary,
    prompts: Sequence[Notes],
    rows: Sequence[Integer[np.ndarray, "_"]],
    new: Sequence[Integer[np.ndarray, "_"]],
    prompt_seconds: float,
) -> Made:
    """Prompts as they were, with what tokens drawn after theirs, `rows`, say of the time that follows.

    What begins earlier, in the silence of a prompt's end or, without the grammar, anywhere, is left out.
    """
    whole = [continued(*both, vocabulary)[0].piano for both in zip(rows, new, strict=True)]
    whole = [spliced(prompt, notes, prompt_seconds) for prompt, notes in zip(prompts, whole, strict=True)]
    return Made(whole, validity(vocabulary, rows, new))


def validity(
    vocabulary: Vocabulary, prompts: Sequence[Integer[np.ndarray, "_"]], new: Sequence[Integer[np.ndarray, "_"]]
) -> Float[np.ndarray, "N"]:
    """The share of each row's new tokens that the grammar lets follow the tokens before them; of no tokens, 1."""
    grammar = grammar_of(vocabulary.name, True)
    place = Place(*map(np.concatenate, zip(*map(grammar.after, prompts), strict=True)))
    ids = np.full((len(new), max(1, *map(len, new))), vocabulary.pad, np.int32)
    for row, tokens in zip(ids, new, strict=True):
        row[: len(tokens)] = tokens
    right = np.asarray(_is_allowed(vocabulary.name, place, ids)) & (ids != vocabulary.pad)
    lengths = np.array([len(tokens) for tokens in new])
    return np.where(lengths > 0, right.sum(1) / np.maximum(lengths, 1), 1.0)


@functools.partial(jax.jit, static_argnums=0)
def _is_allowed(name: str, place: Place, ids: Int32[Array, "R N"]) -> Bool[Array, "R N"]:
    """Whether each token is one that the grammar lets follow."""
    grammar = grammar_of(name, True)
    column = np.full(grammar.vocabulary.size, -1)
    column[grammar.candidates] = np.arange(len(grammar.candidates))

    def step(place: Place, token: Int[Array, "R"]) -> tuple[Place, Bool[Array, "R"]]:
        is_token = jnp.arange(len(grammar.candidates))[None] == jnp.asarray(column)[token][:, None]
        return grammar.follow(place, token), (grammar.allowed(place) & is_token).any(1)

    return jax.lax.scan(step, place, ids.T)[1].T


def embedder(checkpoint: str, mesh: Mesh) -> Callable[[Sequence[Notes]], Float32[np.ndarray, "N E"]]:
    """The embeddings of performances that have notes, as `embed` makes them. Raises BadInput."""
    reader, embed = read_embedder(checkpoint, mesh)

    def vectors(performances: Sequence[Notes]) -> Float32[np.ndarray, "N E"]:
        read = ((None, reader.chunks(of)) for of in performances)
        found = (one for some in embed.pieces(read) for one in some)
        return np.stack([one.vector for one in progress(found, len(performances), "performances embedded")])

    return vectors
