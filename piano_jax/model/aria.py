"""Weights in the layout of the authors' released files: METHOD section 3."""

import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from piano_jax import BadInput
from piano_jax.model.transformer import Model, TransformerConfig

Path = tuple[str, ...]

HEAD_TABLES = {"language": "lm_head", "conditioned": "lm_head", "embedding": "emb_head", "classifier": "class_head"}


def layout(config: TransformerConfig) -> dict[Path, tuple[list[str], tuple[int, ...]]]:
    """For each parameter of a model: the tensors of a file, one or one a layer, that hold it, and the shape of each."""
    V, D, F = config.vocabulary_size, config.d_model, config.ff_width
    whole = {
        ("token_table",): ("model.tok_embeddings.weight", (V, D)),
        ("norm", "scale"): ("model.out_layer_norm.weight", (D,)),
        ("norm", "bias"): ("model.out_layer_norm.bias", (D,)),
        ("head_table",): (f"{HEAD_TABLES[config.head]}.weight", (V if config.gives_logits else config.head_size, D)),
    }
    if config.head == "conditioned":
        whole["adapter",] = "embedding_adapter.weight", (D, config.head_size)
    stacked = {
        ("layers", "norm1", "scale"): ("norm1.weight", (D,)),
        ("layers", "norm1", "bias"): ("norm1.bias", (D,)),
        ("layers", "qkv"): ("mixed_qkv.weight", (3 * D, D)),
        ("layers", "out"): ("att_proj_linear.weight", (D, D)),
        ("layers", "norm2", "scale"): ("norm2.weight", (D,)),
        ("layers", "norm2", "bias"): ("norm2.bias", (D,)),
        ("layers", "gate"): ("ff_gate_proj.weight", (F, D)),
        ("layers", "up"): ("ff_up_proj.weight", (F, D)),
        ("layers", "down"): ("ff_down_proj.weight", (D, F)),
    }
    return {path: ([key], shape) for path, (key, shape) in whole.items()} | {
        path: ([f"model.encode_layers.{layer}.{key}" for layer in range(config.layers)], shape)
        for path, (key, shape) in stacked.items()
    }


def load_aria(path: str | pathlib.Path, heads: int | None = None, dtype: str = "float32") -> Model:
    """The model of a safetensors file in the authors' layout, its kind and sizes read from the tensors.

    A file does not say how many heads its attention has, nor its context: these stand as `n_heads` and `max_seq_len` in
    a JSON file beside it, of the same stem or called config.json; without one, heads are of 64 and the context 8192.
    Weights become float32; `dtype` is what the model computes in. Raises BadInput.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            keys = {key.replace("_orig_mod.", ""): key for key in file.keys()}  # noqa: SIM118 (it is no dict)
            shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in keys.items()}
            config = _config(path, shapes, heads, dtype)
            tensors = layout(config)
            _check(path, shapes, {name: shape for names, shape in tensors.values() for name in names})
            definition, weights = nnx.split(nnx.eval_shape(lambda: Model(config, nnx.Rngs(0))))
            for leaf_path, leaf in nnx.to_flat_state(weights):
                value = np.stack([file.get_tensor(keys[name]).astype(np.float32) for name in tensors[leaf_path][0]])
                leaf.set_value(jnp.asarray(value.reshape(leaf.shape)))
    except SafetensorError as error:
        raise BadInput(f"{path}: not a whole safetensors file ({error})") from error
    return nnx.merge(definition, weights)


def _config(path: pathlib.Path, shapes: dict[str, tuple[int, ...]], heads: int | None, dtype: str) -> TransformerConfig:
    def size(name: str, axis: int) -> int:
        if len(shapes.get(name, ())) != 2:
            raise BadInput(f"{path}: has no matrix {name}")
        return shapes[name][axis]

    kinds = [kind for kind, table in HEAD_TABLES.items() if f"{table}.weight" in shapes]
    if not kinds:
        raise BadInput(f"{path}: has no head, none of {', '.join(sorted(set(HEAD_TABLES.values())))}")
    kind = "conditioned" if "embedding_adapter.weight" in shapes else kinds[0]
    if kind == "conditioned":
        head_size = size("embedding_adapter.weight", 1)
    else:
        head_size = 0 if kind == "language" else size(f"{HEAD_TABLES[kind]}.weight", 0)
    said = _sizes_beside(path)
    d_model = size("model.tok_embeddings.weight", 1)
    return TransformerConfig(
        vocabulary_size=size("model.tok_embeddings.weight", 0),
        d_model=d_model,
        layers=len({match[1] for name in shapes if (match := re.match(r"model\.encode_layers\.(\d+)\.", name))}),
        heads=heads or said.get("n_heads", max(1, d_model // 64)),
        ff_width=size("model.encode_layers.0.ff_gate_proj.weight", 0),
        context=said.get("max_seq_len", 8192),
        head=kind,
        head_size=head_size,
        dtype=dtype,
    )


def _sizes_beside(path: pathlib.Path) -> dict[str, int]:
    for beside in (path.with_suffix(".json"), path.with_name("config.json")):
        if beside.is_file():
            try:
                said = json.loads(beside.read_text())
                return {key: int(said[key]) for key in ("n_heads", "max_seq_len") if key in said}
            except (ValueError, TypeError) as error:
                raise BadInput(f"{beside}: does not give a model's sizes ({error})") from error
    return {}


def _check(path: pathlib.Path, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() - shapes.keys()):
        raise BadInput(f"{path}: lacks the tensor {name}")
    for name in sorted(shapes.keys() - expected.keys()):
        raise BadInput(f"{path}: has a tensor that no part of the model takes, {name}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise BadInput(f"{path}: {name} has shape {shapes[name]}, where its other tensors imply {shape}")
