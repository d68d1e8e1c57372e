import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from piano_jax import BadInput
from piano_jax.convert import load_aria

FIXTURES = pathlib.Path(__file__).parents[3] / "shared/fixtures/checkpoints"

V, D, F, LAYERS, HEADS, E = 29, 16, 24, 2, 2, 6
HEAD = {
    "language": {"lm_head.weight": (V, D)},
    "embedding": {"emb_head.weight": (E, D)},
    "classifier": {"class_head.weight": (E, D)},
    "conditioned": {"lm_head.weight": (V, D), "embedding_adapter.weight": (D, E)},
}


def random_tensors(kind):
    shapes = {"model.tok_embeddings.weight": (V, D), "model.out_layer_norm.weight": (D,), **HEAD[kind]}
    shapes["model.out_layer_norm.bias"] = (D,)
    for layer in range(LAYERS):
        at = f"model.encode_layers.{layer}."
        shapes |= {at + "mixed_qkv.weight": (3 * D, D), at + "att_proj_linear.weight": (D, D)}
        shapes |= {at + "ff_gate_proj.weight": (F, D), at + "ff_up_proj.weight": (F, D)}
        shapes |= {at + "ff_down_proj.weight": (D, F)}
        shapes |= {at + f"norm{i}.{name}": (D,) for i in (1, 2) for name in ("weight", "bias")}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}


def normalise(x, tensors, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def attend(x, tensors, at):
    """One row and one head at a time, positions as complex rotations: nothing shared with the code under test."""
    length, size, out = len(x), D // HEADS, np.zeros_like(x)
    turn = np.exp(1j * np.outer(np.arange(length), 500_000.0 ** (-np.arange(size // 2) * 2 / size)))
    for head in range(HEADS):
        q, k, v = (
            x @ tensors[at + "mixed_qkv.weight"][part * D + head * size :][:size].T.astype(np.float64)
            for part in range(3)
        )
        q, k = (((z[:, : size // 2] + 1j * z[:, size // 2 :]) * turn) for z in (q, k))
        scores = (q @ k.conj().T).real / np.sqrt(size)
        weights = np.exp(scores) * np.tri(length)
        out[:, head * size : (head + 1) * size] = weights / weights.sum(-1, keepdims=True) @ v
    return out @ tensors[at + "att_proj_linear.weight"].T


def reference(tensors, tokens, embedding=None):
    """METHOD section 3 in NumPy's float64, a row at a time: hidden states."""
    rows = []
    for i, row in enumerate(tokens):
        x = tensors["model.tok_embeddings.weight"][row].astype(np.float64)
        if embedding is not None:
            x = np.vstack([tensors["embedding_adapter.weight"] @ embedding[i], x[:-1]])
        for layer in range(LAYERS):
            at = f"model.encode_layers.{layer}."
            x = x + attend(normalise(x, tensors, at + "norm1"), tensors, at)
            h = normalise(x, tensors, at + "norm2")
            gate, up = h @ tensors[at + "ff_gate_proj.weight"].T, h @ tensors[at + "ff_up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ tensors[at + "ff_down_proj.weight"].T
        rows.append(normalise(x, tensors, "model.out_layer_norm"))
    return np.stack(rows)


@pytest.fixture
def write(tmp_path):
    def write(tensors, sizes=None):
        (tmp_path / "model.json").write_text(json.dumps(sizes or {"n_heads": HEADS, "max_seq_len": 64}))
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return write


@pytest.mark.parametrize("kind", HEAD)
def test_agrees_with_a_plain_forward_pass(write, kind):
    tensors, rng = random_tensors(kind), np.random.default_rng(1)
    tokens, embedding = rng.integers(0, V, (3, 12), dtype=np.int32), rng.normal(size=(3, E)).astype(np.float32)
    model = load_aria(write(tensors))
    assert model.config.head == kind
    hidden = reference(tensors, tokens)
    np.testing.assert_allclose(model.encode(tokens), hidden, atol=1e-4)
    table = next(tensors[name] for name in HEAD[kind] if "head" in name)
    np.testing.assert_allclose(model(tokens), hidden @ table.T, atol=1e-4)
    if kind == "conditioned":
        hidden = reference(tensors, tokens, embedding)
        np.testing.assert_allclose(model.encode(tokens, embedding=embedding), hidden, atol=1e-4)
        np.testing.assert_allclose(model(tokens, embedding), hidden[:, 1:] @ table.T, atol=1e-4)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"the authors' outputs are not here: {FIXTURES}")
@pytest.mark.parametrize("name", ["lm", "embedding", "classifier", "conditioned_lm"])
def test_agrees_with_the_authors(name):
    model, said = load_aria(FIXTURES / f"{name}.safetensors"), np.load(FIXTURES / f"{name}.npz")
    np.testing.assert_allclose(model.encode(said["tokens"]), said["hidden"], atol=1e-4)
    out = model(said["tokens"], said["embedding"]) if "embedding" in said else model(said["tokens"])
    last = said["output"].shape[1]
    np.testing.assert_allclose(out[:, -last:], said["output"], atol=1e-4)
    if "embedding" in said:
        np.testing.assert_allclose(model(said["tokens"])[:, -4:], said["output_unconditioned"], atol=1e-4)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_reads_half_precision_and_the_older_prefix(write, dtype):
    tensors = {name: value.astype(dtype) for name, value in random_tensors("language").items()}
    tokens = np.arange(10, dtype=np.int32)[None]
    model = load_aria(write({f"_orig_mod.{name}": value for name, value in tensors.items()}))
    exact = {name: value.astype(np.float32) for name, value in tensors.items()}
    np.testing.assert_allclose(model.encode(tokens), reference(exact, tokens), atol=1e-4)


def test_heads_and_context_come_from_the_caller_or_from_beside_the_file(write):
    path = write(random_tensors("language"))
    assert load_aria(path).config.heads == HEADS and load_aria(path).config.context == 64
    assert load_aria(path, heads=4).config.heads == 4
    path.with_suffix(".json").rename(path.with_name("config.json"))
    assert load_aria(path).config.heads == HEADS
    path.with_name("config.json").unlink()
    assert load_aria(path).config.heads == 1 and load_aria(path).config.context == 8192


def test_bad_files_name_the_culprit(write, tmp_path):
    tensors = random_tensors("language")

    def refused(culprit, path):
        with pytest.raises(BadInput, match=culprit) as error:
            load_aria(path)
        assert "\n" not in str(error.value) and "model" in str(error.value)

    refused("no such file", tmp_path / "model.none")
    without = {name: value for name, value in tensors.items() if name != "model.encode_layers.1.norm2.bias"}
    refused("lacks the tensor model.encode_layers.1.norm2.bias", write(without))
    refused("takes, model.extra", write(tensors | {"model.extra": np.zeros(3, np.float32)}))
    refused("up_proj.weight has shape", write(tensors | {"model.encode_layers.0.ff_up_proj.weight": np.ones((2, D))}))
    refused("no head", write({name: value for name, value in tensors.items() if name != "lm_head.weight"}))
    refused("no matrix model.tok", write({"lm_head.weight": np.zeros((V, D), np.float32)}))
    path = write(tensors)
    path.with_suffix(".json").write_text("{")
    refused("model.json: does not give", path)
    path = write(tensors)
    path.write_bytes(path.read_bytes()[:-100])
    refused("not a whole safetensors file", path)
    path.write_bytes(b"not safetensors")
    refused("not a whole safetensors file", path)
