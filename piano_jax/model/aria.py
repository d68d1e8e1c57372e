"""Weights in the layout of the authors' files: METHOD section 3."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from piano_jax import BadInput, write_whole
from piano_jax.command import progress
from piano_jax.model.transformer import Model, TransformerConfig

Leaf = tuple[str, ...]  # the path of a parameter in a model

HEAD_TABLES = {"language": "lm_head", "conditioned": "lm_head", "embedding": "emb_head", "classifier": "class_head"}
DTYPES = ("F32", "BF16", "F16")
OLD_PREFIX = "_orig_mod."


def layout(config: TransformerConfig) -> dict[Leaf, tuple[list[str], tuple[int, ...]]]:
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


def parameters(config: TransformerConfig) -> dict[Leaf, nnx.Param]:
    """The parameters of a model by path, abstract: their shapes alone."""
    model = nnx.eval_shape(lambda: Model(config, nnx.Rngs(0)))
    return dict(nnx.to_flat_state(nnx.state(model)))


def load_aria(path: str | Path, heads: int | None = None, dtype: str = "float32") -> Model:
    """The model of a safetensors file in the authors' layout, its kind and sizes read from the tensors.

    A file does not say how many heads its attention has, nor its context: these stand as `n_heads` and `max_seq_len` in
    a JSON file beside it, of the same stem or called config.json; without one, heads are of 64 and the context 8192.
    Weights become float32; `dtype` is what the model computes in. Raises BadInput.
    """
    config = read_sizes(path, heads, dtype)
    definition, weights = nnx.split(nnx.eval_shape(lambda: Model(config, nnx.Rngs(0))))
    for leaf, place in nnx.to_flat_state(weights):
        place.set_value(jnp.asarray(read_leaf(path, config, leaf), jnp.float32))
    return nnx.merge(definition, weights)


def read_sizes(path: str | Path, heads: int | None = None, dtype: str = "float32") -> TransformerConfig:
    """The config of the model in a file, as `load_aria` finds it; every tensor has its place. Raises BadInput."""
    path = Path(path)
    with _opened(path) as (file, keys):
        slices = {name: file.get_slice(key) for name, key in keys.items()}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        types = {name: part.get_dtype() for name, part in slices.items()}
    config = _config(path, shapes, heads, dtype)
    _check(path, shapes, {name: shape for names, shape in layout(config).values() for name in names})
    for name, kind in types.items():
        if kind not in DTYPES:
            raise BadInput(f"{path}: {name} is of type {kind}, none of {', '.join(DTYPES)}")
    return config


def read_leaf(path: str | Path, config: TransformerConfig, leaf: Leaf) -> Shaped[np.ndarray, "..."]:
    """A parameter of the model in a file, in the file's precision. Raises BadInput for a number that is not finite."""
    path, (names, shape), value = Path(path), layout(config)[leaf], None
    with _opened(path) as (file, keys):
        for row, name in enumerate(names):
            tensor = file.get_tensor(keys[name])
            _check_finite(path, name, tensor)
            if value is None:
                value = np.empty((len(names), *shape), tensor.dtype)
            if tensor.dtype != value.dtype:
                raise BadInput(f"{path}: {name} is {tensor.dtype}, where the layers before it are {value.dtype}")
            value[row] = tensor
    return value.reshape(parameters(config)[leaf].shape)


def write_file(path: str | Path, config: TransformerConfig, read: Callable[[Leaf], Shaped[np.ndarray, "..."]]) -> None:
    """Writes a file in the authors' layout, and their names of its sizes to config.json beside it.

    Raises BadInput where the file is there, where config.json is that of another model, and for a number that is not
    finite.
    """
    path, tensors = Path(path), {}
    beside, sizes = check_free(path, config)
    tensors_of = layout(config)
    for leaf in progress(tensors_of, len(tensors_of), "arrays"):
        names, shape = tensors_of[leaf]
        for name, tensor in zip(names, read(leaf).reshape(len(names), *shape), strict=True):
            _check_finite(path, name, tensor)
            tensors[name] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        write_whole(beside, sizes)
        partial.chmod(beside.stat().st_mode)  # the library writes for the owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_free(path: str | Path, config: TransformerConfig) -> tuple[Path, bytes]:
    """The config.json for beside a file to write, and what it says. Raises BadInput where there is something else."""
    path = Path(path)
    if path.exists():
        raise BadInput(f"{path}: exists already")
    beside, sizes = path.with_name("config.json"), (json.dumps(_sizes(config), indent=4) + "\n").encode()
    if beside.exists() and beside.read_bytes() != sizes:
        raise BadInput(f"{beside}: exists already, and is not of this model; give each model a folder of its own")
    return beside, sizes


def _sizes(config: TransformerConfig) -> dict:
    """What the authors' code builds the same model from."""
    size = {"embedding": "emb_size", "conditioned": "emb_size", "classifier": "class_size"}.get(config.head)
    times, rest = divmod(config.ff_width, config.d_model)
    return {
        "d_model": config.d_model,
        "n_heads": config.heads,
        "n_layers": config.layers,
        "ff_mult": config.ff_width / config.d_model if rest else times,
        "drop_p": 0.0,
        "max_seq_len": config.context,
        "grad_checkpoint": False,
        "resid_dropout": config.residual_dropout,
        "vocab_size": config.vocabulary_size,
    } | ({size: config.head_size} if size else {})


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict[str, str]]]:
    """An open file, and its keys by the names without the older prefix. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy", backend="pread") as file:  # mapped pages would count as memory
            keys = {}
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                if (name := key.replace(OLD_PREFIX, "")) in keys:
                    raise BadInput(f"{path}: has {name} twice, with {OLD_PREFIX} and without")
                keys[name] = key
            yield file, keys
    except SafetensorError as error:
        raise BadInput(f"{path}: not a whole safetensors file ({error})") from error


def _config(path: Path, shapes: dict[str, tuple[int, ...]], heads: int | None, dtype: str) -> TransformerConfig:
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


def _sizes_beside(path: Path) -> dict[str, int]:
    for beside in (path.with_suffix(".json"), path.with_name("config.json")):
        if beside.is_file():
            try:
                said = json.loads(beside.read_text())
                return {key: int(said[key]) for key in ("n_heads", "max_seq_len") if key in said}
            except (ValueError, TypeError) as error:
                raise BadInput(f"{beside}: does not give a model's sizes ({error})") from error
    return {}


def _check(path: Path, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() - shapes.keys()):
        raise BadInput(f"{path}: lacks the tensor {name}")
    for name in sorted(shapes.keys() - expected.keys()):
        raise BadInput(f"{path}: has a tensor that no part of the model takes, {name}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise BadInput(f"{path}: {name} has shape {shapes[name]}, where its other tensors imply {shape}")


def _check_finite(path: Path, name: str, tensor: Shaped[np.ndarray, "..."]) -> None:
    if not np.isfinite(tensor).all():
        raise BadInput(f"{path}: {name} holds numbers that are not finite")
