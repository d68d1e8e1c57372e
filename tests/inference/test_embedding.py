"""Embedding: by the encoder that training calls, what the authors' code gives, and few compiled shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from piano_jax.convert import load_aria
from piano_jax.inference import embedding
from piano_jax.inference.embedding import Embedder, embed
from piano_jax.learning import contrastive
from piano_jax.model import Model, TransformerConfig
from piano_jax.model import mesh as meshes

CONFIG = TransformerConfig(
    vocabulary_size=60,
    d_model=16,
    layers=2,
    heads=2,
    ff_width=32,
    context=700,
    dtype="float32",
    head="embedding",
    head_size=8,
)


@pytest.fixture
def mesh():
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        yield mesh


def random_chunks(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(6, CONFIG.vocabulary_size, length, dtype=np.int32) for length in lengths]


@pytest.mark.parametrize("longest", [120, 700])  # several chunks of a device at a time, and one
def test_vectors_are_in_order_and_those_of_each_chunk_alone(mesh, longest):
    model = Model(CONFIG, nnx.Rngs(0))
    lengths = np.random.default_rng(1).integers(1, 120, 37).tolist()
    chunks = random_chunks(lengths)
    found = Embedder(model, mesh, longest)(chunks)
    rows = np.zeros((40, 120), np.int32)
    for row, chunk in enumerate(chunks):
        rows[row, : len(chunk)] = chunk
    output = np.asarray(model(rows))
    np.testing.assert_allclose(found, [output[row, length - 1] for row, length in enumerate(lengths)], atol=1e-5)


def test_shapes_are_few(mesh, monkeypatch):
    shapes = set()
    monkeypatch.setattr(embedding, "embed", lambda model, tokens, ends: shapes.add(tokens.shape) or jnp.zeros((8, 8)))
    lengths = np.random.default_rng(1).integers(1, 700, 800).tolist()
    Embedder(Model(CONFIG, nnx.Rngs(0)), mesh, 700)(random_chunks(lengths))
    assert len(shapes) <= 4 + 12 and {rows for rows, _ in shapes} == {8} and max(shapes)[1] <= 700


def test_pieces_keep_their_order_and_reasons(mesh, monkeypatch):
    monkeypatch.setattr(embedding, "WINDOW", 1)
    embedder = Embedder(Model(CONFIG, nnx.Rngs(0)), mesh, 700)
    read = [(number, random_chunks([5 + number] * (number % 4)) or "nothing") for number in range(13)]
    parts = list(embedder.pieces(iter(read)))
    entries = [entry for part in parts for entry in part]
    assert [entry.key for entry in entries] == list(range(13)) and len(parts) > 1
    for entry, (_, chunks) in zip(entries, read, strict=True):
        if isinstance(chunks, str):
            assert entry.vector is None and entry.chunks == 0 and entry.reason == "nothing"
        else:
            assert entry.chunks == len(chunks)
            np.testing.assert_allclose(entry.vector, embedder(chunks).mean(axis=0), atol=1e-6)


def test_training_and_embedding_call_the_same_jitted_encoder(mesh, monkeypatch):
    encoder, calls = Model.encode, []
    assert isinstance(encoder, type(jax.jit(lambda: None)))

    class Seen:
        """Stands where the encoder does, and notes what it is called with."""

        def __get__(self, model, owner):
            return lambda tokens, *rest, **named: (calls.append(tokens.shape), encoder(model, tokens, *rest, **named))[
                1
            ]

    monkeypatch.setattr(Model, "encode", Seen())
    model = Model(CONFIG, nnx.Rngs(0))
    tokens, ends = np.zeros((8, 2, 11), np.int32), np.full((8, 2), 10, np.int32)
    batch = meshes.shard_batch({"tokens": tokens, "ends": ends, "weights": np.ones(8, np.float32)}, mesh)
    contrastive.objective(model, batch, None, 1, 0.1, "all", 1)
    embed(model, jnp.asarray(tokens[:, 0, :9]), jnp.asarray(ends[:, 0] - 2))
    assert calls == [(16, 11), (8, 9)]
    # And no other way leads from tokens to embeddings: with the encoder's output changed, both change.
    monkeypatch.setattr(Model, "encode", lambda model, tokens, **_: jnp.ones((*tokens.shape, CONFIG.d_model)))
    views = contrastive.embed_pairs(model, batch["tokens"], batch["ends"])
    assert np.ptp(np.asarray(views), axis=(0, 1)).max() == 0


def test_agrees_with_the_authors(shared, mesh):
    folder = shared / "fixtures/checkpoints"
    model, said = load_aria(folder / "embedding.safetensors"), np.load(folder / "embedding.npz")
    tokens, output = said["tokens"], said["output"]
    assert output.shape[:2] == tokens.shape
    # Every length of every row: the state at its last token, whatever follows.
    chunks = [row[:length] for row in tokens for length in range(1, len(row) + 1)]
    found = Embedder(model, mesh, model.config.context)(chunks)
    np.testing.assert_allclose(found, output.reshape(-1, output.shape[-1]), atol=1e-4)
