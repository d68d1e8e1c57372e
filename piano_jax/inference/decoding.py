"""Decoding with a cache: a compiled prefill and a compiled loop, in which nothing waits for the host.

A cache has slots for as many tokens as a request may need, in a few sizes. Rows stand flush right in the slots of their
prompts, so that they go on side by side; a row's positions count from its own first slot, `start`. The loop attends to
the first 512, 1,024, 2,048, … slots, as many as have been reached: all of these lengths are compiled at once, and
prompts are fed in chunks, so that a prompt of another length compiles nothing.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, Integer, Key

from piano_jax import BadInput
from piano_jax.inference.grammar import Place, grammar_of
from piano_jax.inference.sampling import Cuts, Sampling, draw
from piano_jax.model import mesh as meshes
from piano_jax.model.mesh import placed, reshard
from piano_jax.model.transformer import Layers, Model, TransformerConfig, rotation
from piano_jax.music.vocabulary import NOTE, PAIR, Vocabulary

CHUNK = 256  # tokens of a prompt that are fed at once
BURST = 64  # tokens that the loop draws before the host looks at them
SHORTEST, SMALLEST = 512, 2048  # slots that the loop attends to, and slots of a cache, at least
ENDING = 130  # `<D>` is forced when so many tokens are left (METHOD, section 4)
WARM_UP = 250  # tokens over which guidance comes in

# Which axis of a matrix goes where, so that the input's come first: a CPU multiplies a vector by rows of the output.
MOVES = {"qkv": (-1, 0), "out": (0, -1), "gate": (-1, 0), "up": (-1, 0), "down": (-1, 0)}

Layer = tuple[Float[Array, "B H K _"], Float[Array, "B H _ K"]]  # keys and values of one layer, slots or new ones


class Weights(NamedTuple):
    """A model's weights laid out for decoding: cast, whole on each device but for tensor parallelism, by layer."""

    token_table: Float[Array, "V D"]
    layers: list[dict[tuple[str, ...], list[Array]]]  # weights by path; of `qkv` three, of others one
    norm: nnx.State
    head: Float[Array, "D C"]  # of those tokens that the grammar ever lets follow
    adapter: Float[Array, "D E"] | None


class State(NamedTuple):
    """A batch in the middle of being decoded. With guidance the cache's rows are those with embedding, then without."""

    cache: list[Layer]
    start: Int[Array, "B"]
    slot: Int[Array, ""]  # of the newest token, which is not in the cache yet
    newest: Int[Array, "R"]
    has_ended: Bool[Array, "R"]
    place: Place
    count: Int[Array, ""]  # of tokens drawn


class Request(NamedTuple):
    """What a compiled loop is asked for."""

    keys: Key[Array, "R"]
    cuts: Cuts
    guidance: Float[Array, ""]
    tokens: Int[Array, ""]
    to_end: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for: the model, the grammar, and the sizes of the cache's part that the loop attends to."""

    model: TransformerConfig
    vocabulary: str
    rules: bool
    sorts: bool
    is_guided: bool
    sizes: tuple[int, ...]


@functools.partial(jax.jit, static_argnums=(0, 1))
def lay_out(rules: tuple[str, bool], dtype: str, model: Model) -> Weights:
    """The weights of a model, cast, for decoding by the grammar of a vocabulary."""

    def put(x: Array, *axes: str | None) -> Array:
        return reshard(x.astype(dtype), *axes)

    def parts(path: tuple[str, ...], leaf: nnx.Variable, layer: int) -> list[Array]:
        if path[0] not in MOVES:
            return [leaf[layer]]
        axes = [None if name == "model" else name for name in leaf.get_metadata("axes")[1:]]
        matrix = put(leaf[layer], *axes)
        return [jnp.moveaxis(x, *MOVES[path[0]]) for x in (matrix if path[0] == "qkv" else matrix[None])]

    stacked = nnx.to_flat_state(nnx.split(model.layers)[1])
    layers = [{path: parts(path, leaf, layer) for path, leaf in stacked} for layer in range(model.config.layers)]
    head = put(model.head_table[...], None, None)[grammar_of(*rules).candidates].T
    adapter = put(model.adapter[...], None, None) if model.config.head == "conditioned" else None
    return Weights(put(model.token_table[...], None, None), layers, nnx.split(model.norm)[1], head, adapter)


def _layer(matrices: dict[tuple[str, ...], list[Array]], like: Layers) -> Layers:
    """One layer of `like`, with the weights that `lay_out` gives."""
    graph, stacked = nnx.split(like)

    def whole(path: tuple[str, ...], leaf: nnx.Variable) -> nnx.Variable:
        if path[0] not in MOVES:
            return leaf.replace(matrices[path][0])
        back = [jnp.moveaxis(x, *MOVES[path[0]][::-1]) for x in matrices[path]]
        return leaf.replace(jnp.stack(back) if path[0] == "qkv" else back[0])

    leaves = [(path, whole(path, leaf)) for path, leaf in nnx.to_flat_state(stacked)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def embed_tokens(weights: Weights, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    tokens = reshard(tokens, "batch", None)
    return weights.token_table.at[tokens].get(out_sharding=placed((*tokens.shape, 1), "batch", None, None))


def advance(
    config: TransformerConfig,
    weights: Weights,
    cache: list[Layer],
    start: Int[Array, "B"],
    x: Float[Array, "B T D"],
    slot: Int[Array, ""],
) -> tuple[Float[Array, "B T D"], list[Layer]]:
    """The states after the last normalisation of tokens that go into the slots from `slot` on, and what to write there.

    It reads the slots before, and leaves the cache as it is.
    """
    at, start = slot + jnp.arange(x.shape[1]), reshard(start, "batch")
    by = rotation(jnp.maximum(at[None] - start[:, None], 0), config.d_model // config.heads)
    size = cache[0][1].shape[2]
    slots = jnp.concatenate([jnp.arange(size), at])
    written = jnp.concatenate([jnp.arange(size) < slot, jnp.ones(at.shape, bool)])
    visible = (written[None] & (slots[None] <= at[:, None]))[None] & (slots >= start[:, None])[:, None]
    visible, new = visible[:, None], []  # B 1 T S

    def attend(q: Array, k: Array, v: Array) -> Array:
        keys, values = cache[len(new)]
        new.append((k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)))
        q = q * q.shape[3] ** -0.5
        past = jnp.einsum("BTHK,BHKS->BHTS", q, keys, preferred_element_type=jnp.float32)
        own = jnp.einsum("BTHK,BSHK->BHTS", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(visible, jnp.concatenate([past, own], 3), np.finfo(np.float32).min)
        shares = jnp.exp(scores - scores.max(-1, keepdims=True))
        total = jnp.einsum("BHTS->BTH", shares)[..., None]
        shares = shares.astype(v.dtype)
        past = jnp.einsum("BHTS,BHSK->BTHK", shares[..., :size], values, preferred_element_type=jnp.float32)
        own = jnp.einsum("BHTS,BSHK->BTHK", shares[..., size:], v, preferred_element_type=jnp.float32)
        return ((past + own) / total).astype(v.dtype)

    like = nnx.eval_shape(lambda: Model(config, nnx.Rngs(0)))
    for matrices in weights.layers:
        x = _layer(matrices, like.layers)(x, by, attend, None)
    return nnx.merge(nnx.split(like.norm)[0], weights.norm)(x), new


def write(cache: list[Layer], new: list[Layer], slot: Int[Array, ""]) -> list[Layer]:
    """The cache with the keys and values of new tokens in the slots from `slot` on."""
    put = jax.lax.dynamic_update_slice_in_dim
    return [(put(a, x, slot, 3), put(b, y, slot, 2)) for (a, b), (x, y) in zip(cache, new, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 6))
def prefill(
    program: Program,
    weights: Weights,
    tokens: Int[Array, "P S"],
    start: Int[Array, "P"],
    length: Int[Array, ""],
    embedding: Float[Array, "P E"] | None,
    variations: int,
) -> tuple[list[Layer], Int[Array, "B"]]:
    """A cache that holds the first `length` slots of these rows, each row as often as there are variations of it.

    An embedding, projected, takes a row's first slot, and the rows without it begin at the next.
    """
    config, rows = program.model, tokens.shape[0]
    if embedding is not None:
        prefix = jnp.einsum("PE,DE->PD", embedding.astype(config.dtype), weights.adapter)
        prefix, first = jnp.concatenate([prefix, prefix])[:, None], jnp.concatenate([start, start])[:, None]
        tokens, start, rows = jnp.concatenate([tokens, tokens]), jnp.concatenate([start, start + 1]), 2 * rows
    size, head_size = program.sizes[-1], config.d_model // config.heads

    def empty(*shape: int) -> Array:
        return reshard(jnp.zeros((rows, config.heads, *shape), config.dtype), "batch", "heads", None, None)

    def chunk(index: Int[Array, ""], cache: list[Layer]) -> list[Layer]:
        x = embed_tokens(weights, jax.lax.dynamic_slice_in_dim(tokens, index * CHUNK, CHUNK, 1))
        if embedding is not None:
            is_first = (index * CHUNK + jnp.arange(CHUNK))[None] == first
            x = jnp.where(reshard(is_first[:, :, None], "batch", None, None), reshard(prefix, "batch", None, None), x)
        return write(cache, advance(config, weights, cache, start, x, index * CHUNK)[1], index * CHUNK)

    cache = [(empty(head_size, size), empty(size, head_size)) for _ in range(config.layers)]
    cache = jax.lax.fori_loop(0, (length + CHUNK - 1) // CHUNK, chunk, cache)

    def repeat(x: Array) -> Array:
        return reshard(jnp.repeat(reshard(x, None, "heads", None, None), variations, 0), "batch", "heads", None, None)

    return jax.tree.map(repeat, cache), jnp.repeat(start, variations)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    program: Program, weights: Weights, state: State, request: Request, burst: Int[Array, ""]
) -> tuple[State, Int32[Array, "R N"], Float[Array, "R N"]]:
    """Draws `burst` tokens, at most BURST, for each row, fewer where all end; also their log-probabilities (nats).

    Rows that have ended go on with `<P>`; a token that was forced has a log-probability of nan.
    """
    grammar, rows = grammar_of(program.vocabulary, program.rules), len(state.newest)
    vocabulary, candidates = grammar.vocabulary, jnp.asarray(grammar.candidates, jnp.int32)
    until = state.slot + burst

    def step(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        state, tokens, likelihoods = carry
        newest = jnp.concatenate([state.newest, state.newest]) if program.is_guided else state.newest
        x = embed_tokens(weights, newest[:, None])
        hidden, new = advance(program.model, weights, state.cache, state.start, x, state.slot)
        hidden = reshard(hidden.astype(program.model.dtype)[:, 0], None, None)
        logits = jnp.einsum("BD,DC->BC", hidden, weights.head, preferred_element_type=jnp.float32)
        if program.is_guided:
            share = request.guidance * jnp.minimum(1, (state.count + 1) / jnp.minimum(WARM_UP, request.tokens))
            logits = share * logits[:rows] + (1 - share) * logits[rows:]
            logits = jnp.where((candidates == vocabulary.diminish)[None], -jnp.inf, logits)
        logits = jnp.where(grammar.allowed(state.place), logits, -jnp.inf)
        keys = jax.vmap(jax.random.fold_in, (0, None))(request.keys, state.count)
        drawn, likelihood = draw(logits, keys, request.cuts, program.sorts)

        place, left = state.place, request.tokens - state.count
        forced = request.to_end & (left <= ENDING) & (place.expects == 0) & ~place.is_ending
        token = jnp.where(forced, vocabulary.diminish, candidates[drawn])
        token = jnp.where(state.has_ended, vocabulary.pad, token)
        likelihood = jnp.where(forced | state.has_ended, jnp.nan, likelihood)
        put = jax.lax.dynamic_update_slice_in_dim
        column = state.slot - (until - burst)
        tokens, likelihoods = put(tokens, token[:, None], column, 1), put(likelihoods, likelihood[:, None], column, 1)
        # XLA updates the cache in place where it knows that all has been read: where the slot depends on the token.
        cache = write(state.cache, new, state.slot + jnp.minimum(token[0], 0))
        has_ended = state.has_ended | (token == vocabulary.end)
        place = grammar.follow(place, token)
        state = State(cache, state.start, state.slot + 1, token, has_ended, place, state.count + 1)
        return state, tokens, likelihoods

    def goes_on(carry: tuple[State, Array, Array]) -> Bool[Array, ""]:
        return (carry[0].slot < until) & ~carry[0].has_ended.all()

    def attending_to(size: int):
        def run(state: State) -> tuple[State, Array, Array]:
            part = [(keys[..., :size], values[:, :, :size]) for keys, values in state.cache]
            drawn = jnp.full((rows, BURST), vocabulary.pad, jnp.int32), jnp.full((rows, BURST), jnp.nan)
            after, tokens, likelihoods = jax.lax.while_loop(goes_on, step, (state._replace(cache=part), *drawn))
            return after._replace(cache=write(state.cache, after.cache, jnp.int32(0))), tokens, likelihoods

        return run

    which = jnp.searchsorted(jnp.asarray(program.sizes), until)
    return jax.lax.switch(which, [attending_to(size) for size in program.sizes], state)


def tail(ids: Integer[np.ndarray, "T"], keep: int, vocabulary: Vocabulary) -> Integer[np.ndarray, "_"]:
    """The last tokens, if they are more than `keep` at most so many, from where an event or a segment begins."""
    opens = np.isin(vocabulary.role[ids], (NOTE, PAIR)) | (ids == vocabulary.time)
    places = np.flatnonzero(opens[-keep:])
    return ids if len(ids) <= keep else ids[-keep:][places[0] if len(places) else 0 :]


def sizes_for(slots: int, context: int) -> tuple[int, ...]:
    """How many slots the loop attends to, size by size, where that many are needed; the last is the cache's size."""
    whole = -(-context // CHUNK) * CHUNK
    size = min(max(SMALLEST, 1 << (slots - 1).bit_length()), whole)
    halved = [SHORTEST << power for power in range(32)]
    return (*(half for half in halved if half < size), size)


class Decoder:
    """A model laid out to continue pieces in a vocabulary, by its grammar or, without `rules`, as it likes.

    Raises:
        BadInput: the model gives no logits.
    """

    def __init__(self, model: Model, vocabulary: Vocabulary, rules: bool = True):
        if not model.config.gives_logits:
            raise BadInput(f"a model with head {model.config.head!r} gives no tokens, and so continues nothing")
        self.config, self.vocabulary, self.rules = model.config, vocabulary, rules
        if meshes.platform() == "cpu":  # whose bfloat16 is the slower
            self.config = dataclasses.replace(self.config, dtype="float32")
        self.weights = lay_out((vocabulary.name, rules), self.config.dtype, model)

    def program(self, slots: int, sampling: Sampling, is_guided: bool) -> Program:
        sizes = sizes_for(slots, self.config.context)
        return Program(self.config, self.vocabulary.name, self.rules, sampling.sorts, is_guided, sizes)

    def fill(
        self,
        program: Program,
        windows: Sequence[Integer[np.ndarray, "_"]],
        variations: int,
        embeddings: Float[np.ndarray, "P E"] | None,
    ) -> tuple[list[Layer], Array, int]:
        """A cache of all but the last token of these windows, where its rows start, and the slot of their last tokens.

        Windows stand flush right, before them the slot of an embedding where there is one.
        """
        length = max(map(len, windows)) - 1 + program.is_guided
        tokens = np.full((len(windows), program.sizes[-1]), self.vocabulary.pad, np.int32)
        for row, window in zip(tokens, windows, strict=True):
            row[length - len(window) + 1 : length] = window[:-1]
        start = np.array([length - len(window) + 1 - program.is_guided for window in windows], np.int32)
        return *prefill(program, self.weights, tokens, start, length, embeddings, variations), length

    def decode(
        self,
        prompts: Sequence[Integer[np.ndarray, "_"]],
        tokens: int,
        variations: int = 1,
        sampling: Sampling | None = None,
        seed: int = 0,
        to_end: bool = False,
        embeddings: Float[np.ndarray, "P E"] | None = None,
        guidance: float = 1.0,
    ) -> Iterator[tuple[Int32[np.ndarray, "R n"], Float[np.ndarray, "R n"]]]:
        """Continues prompts (ids without `<E>`) by up to `tokens` tokens, and yields them as they are drawn, some at a
        time, with their log-probabilities (nats); rows are the variations of the first prompt, then of the next.

        A row draws from (seed, its number), whatever the others are. One that has ended goes on with `<P>`; when all
        have, this ends. Past the model's context it goes on from the last half of that, as it does from a prompt that
        is longer. With an embedding for each prompt, logits are mixed as METHOD, section 4 says.
        """
        is_guided, sampling, context = embeddings is not None, sampling or Sampling(), self.config.context
        if is_guided and self.config.head != "conditioned":
            raise BadInput(f"a model with head {self.config.head!r} takes no embedding")
        rows = [np.asarray(prompt, np.int32) for prompt in prompts for _ in range(variations)]
        grammar = grammar_of(self.vocabulary.name, self.rules)
        places = jax.tree.map(lambda *parts: np.concatenate(parts), *(grammar.after(row) for row in rows))
        windows = [self._window(np.asarray(prompt, np.int32), is_guided) for prompt in prompts]
        program = self.program(min(max(map(len, windows)) + tokens + is_guided, context), sampling, is_guided)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(len(rows)))
        request = Request(keys, sampling.cuts, np.float32(guidance), np.int32(tokens), np.bool_(to_end))

        cache, start, slot = self.fill(program, windows, variations, embeddings)
        newest, has_ended = np.array([row[-1] for row in rows]), np.zeros(len(rows), bool)
        state = State(cache, start, np.int32(slot), newest, has_ended, places, np.int32(0))
        done = 0
        while done < tokens and not has_ended.all():
            if slot == context:
                windows = [tail(row, context // 2, self.vocabulary) for row in rows]
                each = np.repeat(embeddings, variations, 0) if is_guided else None
                cache, start, slot = self.fill(program, windows, 1, each)
                state = state._replace(cache=cache, start=start, slot=np.int32(slot))
            burst = min(BURST, tokens - done, context - slot)
            state, drawn, likelihoods = decode(program, self.weights, state, request, np.int32(burst))
            drawn, likelihoods, has_ended = (np.asarray(x) for x in (drawn, likelihoods, state.has_ended))
            if has_ended.all():
                burst = int((drawn != self.vocabulary.pad).any(0).sum())
            drawn, likelihoods = drawn[:, :burst], likelihoods[:, :burst]
            rows = [np.concatenate([row, new]) for row, new in zip(rows, drawn, strict=True)]
            done, slot = done + burst, slot + burst
            yield drawn, likelihoods

    def _window(self, ids: Int32[np.ndarray, "_"], is_guided: bool) -> Int32[np.ndarray, "_"]:
        context = self.config.context
        return ids if len(ids) + is_guided <= context else tail(ids, context // 2, self.vocabulary)
