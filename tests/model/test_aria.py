import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from piano_jax import BadInput
from piano_jax.convert import load_aria
from piano_jax.model.aria import layout, parameters, read_leaf, read_sizes, write_file

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


@pytest.mark.parametrize("name", ["lm", "embedding", "classifier", "conditioned_lm"])
def test_agrees_with_the_authors(name, shared):
    path = shared / f"fixtures/checkpoints/{name}.safetensors"
    model, said = load_aria(path), np.load(path.with_suffix(".npz"))
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
    refused("twice", write(tensors | {"_orig_mod.lm_head.weight": tensors["lm_head.weight"]}))
    name = "model.encode_layers.1.mixed_qkv.weight"
    refused(f"{name} is of type I8", write(tensors | {name: tensors[name].astype(np.int8)}))
    refused(f"{name} is float16, where", write(tensors | {name: tensors[name].astype(np.float16)}))
    for bad in (np.nan, -np.inf):
        refused(f"{name} holds numbers that are not finite", write(tensors | {name: np.full((3 * D, D), bad, "f4")}))


@pytest.mark.parametrize("kind", HEAD)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_file_read_and_written_has_the_same_bytes(write, tmp_path, kind, dtype):
    tensors = {name: value.astype(dtype) for name, value in random_tensors(kind).items()}
    path, out = (
        write({f"_orig_mod.{name}": value for name, value in tensors.items()}),
        tmp_path / "out/model.safetensors",
    )
    config = read_sizes(path)
    write_file(out, config, lambda leaf: read_leaf(path, config, leaf))
    assert sorted(file.name for file in out.parent.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(out, framework="numpy") as file:
        assert set(file.keys()) == tensors.keys()
        for name, value in tensors.items():
            again = file.get_tensor(name)
            assert (again.dtype, again.shape, again.tobytes()) == (value.dtype, value.shape, value.tobytes()), name
    assert read_sizes(out) == config


def test_parameters_are_read_in_the_shapes_of_the_model(write):
    tensors = random_tensors("language")
    path = write(tensors)
    config = read_sizes(path)
    assert layout(config).keys() == parameters(config).keys()
    qkv = read_leaf(path, config, ("layers", "qkv"))
    assert qkv.shape == parameters(config)["layers", "qkv"].shape
    second = tensors["model.encode_layers.1.mixed_qkv.weight"]
    np.testing.assert_array_equal(qkv[1, 2, 1], second[2 * D + D // HEADS :])  # of layer 1 the values of head 1


def test_sizes_are_written_as_the_authors_name_them(write, tmp_path):
    for kind, size in [("language", {}), ("embedding", {"emb_size": E}), ("classifier", {"class_size": E})]:
        path, out = write(random_tensors(kind)), tmp_path / kind / "model.safetensors"
        config = read_sizes(path)
        write_file(out, config, lambda leaf, path=path, config=config: read_leaf(path, config, leaf))
        said = json.loads((tmp_path / kind / "config.json").read_text())
        shape = {"d_model": D, "n_heads": HEADS, "n_layers": LAYERS, "ff_mult": F / D, "max_seq_len": 64}
        constant = {"drop_p": 0.0, "resid_dropout": 0.0, "grad_checkpoint": False}
        assert said == shape | constant | {"vocab_size": V} | size


def test_nothing_is_written_over_nor_half(write, tmp_path):
    path, out = write(random_tensors("language")), tmp_path / "out/model.safetensors"
    config = read_sizes(path)

    def read(leaf):
        return read_leaf(path, config, leaf)

    with pytest.raises(BadInput, match=r"model\.encode_layers\.0\.ff_up_proj\.weight holds"):
        write_file(out, config, lambda leaf: read(leaf) * (np.nan if leaf == ("layers", "up") else 1))
    assert not out.parent.exists()
    write_file(out, config, read)
    before = out.read_bytes()
    with pytest.raises(BadInput, match="exists already"):
        write_file(out, config, read)
    write_file(out.with_name("second.safetensors"), config, read)  # of the same sizes
    other = dataclasses.replace(config, heads=4)
    with pytest.raises(BadInput, match=r"config\.json: exists already"):
        write_file(out.with_name("third.safetensors"), other, read)
    assert out.read_bytes() == before
    assert sorted(x.name for x in out.parent.iterdir()) == ["config.json", "model.safetensors", "second.safetensors"]
