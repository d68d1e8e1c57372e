"""Tokens a second of decoding with a cache, beside the authors' PyTorch model with its cache, on this machine's CPU.

    python -m tests.benchmarks.decoding --size small [--authors ARIA ARIA_UTILS --python INTERPRETER]

ARIA and ARIA_UTILS are checkouts of the authors' repositories, and INTERPRETER a Python that has their needs (torch,
tqdm, mido, safetensors). Both decode with the same random weights from the same prompt, in turn, round by round; theirs
with its device calls pointed at the CPU, in float32 or, with --authors-dtype bfloat16, as its autocast would.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from piano_jax.inference.decoding import Decoder
from piano_jax.inference.prompts import prompt_of
from piano_jax.model import Model, TransformerConfig
from piano_jax.model.aria import layout
from piano_jax.music import Vocabulary
from piano_jax.music.performances import performance

AUTHORS = """
import json, sys, time
import torch
given = json.loads(sys.argv[1])
sys.path[:0] = given["paths"]
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self
torch.cuda.is_bf16_supported = lambda *_, **__: True
class Autocast(torch.autocast):
    def __init__(self, device, dtype=None, **_):
        super().__init__("cpu", dtype=torch.bfloat16, enabled=given["dtype"] == "bfloat16")
torch.autocast = Autocast
from aria.inference import sample_cuda
from aria.inference.model_cuda import TransformerLM
from aria.model import ModelConfig
from safetensors.torch import load_file
sample_cuda.DTYPE = getattr(torch, given["dtype"])
sample_cuda.print = lambda *_: None
sample_cuda.tqdm = lambda items, **_: items
class Width:
    def __rmul__(self, _):
        return given["ff_width"]
config = ModelConfig(given["d_model"], given["heads"], given["layers"], Width(), 0.0, 8192, False)
config.set_vocab_size(17727)
model = TransformerLM(config)
model.load_state_dict(load_file(given["weights"]))
class Ids:
    pad_tok, dim_tok, eos_tok, tok_to_id = 2, 4, 1, {2: 2, 4: 4, 1: 1}
    id_to_tok = type("Names", (dict,), {"__missing__": lambda self, id: (id,)})()
    encode = decode = staticmethod(lambda ids: ids)
for line in sys.stdin:
    variations, tokens = json.loads(line)
    start = time.perf_counter()
    found = sample_cuda.sample_batch(model, Ids, given["prompt"], variations, tokens, temp=0.98, min_p=0.035)
    seconds = time.perf_counter() - start
    print("found", json.dumps([seconds, max(map(len, found)) - len(given["prompt"])]), flush=True)
"""


class Authors:
    """Their model in a process of its own, which waits for requests."""

    def __init__(self, python: str, given: dict):
        command = [python, "-c", AUTHORS, json.dumps(given)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, variations: int, tokens: int) -> tuple[float, int]:
        self._process.stdin.write(json.dumps([variations, tokens]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("found "):
                return tuple(json.loads(line.removeprefix("found ")))
        raise SystemExit("the authors' code ended; its message stands above")


def export(model: Model, path: Path) -> None:
    """The weights in the authors' layout."""
    tensors = {}
    for leaf_path, leaf in nnx.to_flat_state(nnx.split(model)[1]):
        names, shape = layout(model.config)[leaf_path]
        for name, part in zip(names, np.asarray(leaf[...]).reshape(len(names), *shape), strict=True):
            tensors[name] = np.ascontiguousarray(part)
    save_file(tensors, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("smoke", "small", "medium"))
    parser.add_argument("--variations", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=512, help="new tokens of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-grammar", action="store_true")
    parser.add_argument("--authors", nargs=2, metavar=("ARIA", "ARIA_UTILS"))
    parser.add_argument("--authors-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--python", help="the interpreter that runs the authors' code")
    options = parser.parse_args()
    vocabulary = Vocabulary("aria")
    prompt = prompt_of(performance(1), vocabulary, 15.0)
    model = Model(getattr(TransformerConfig, options.size)(dtype="float32"), nnx.Rngs(0))
    contestants = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.authors:
            export(model, Path(folder) / "model.safetensors")
            sizes = {name: getattr(model.config, name) for name in ("d_model", "heads", "layers", "ff_width")}
            given = {"paths": options.authors, "dtype": options.authors_dtype, "prompt": prompt.tolist()}
            weights = {"weights": str(Path(folder) / "model.safetensors")}
            contestants["authors"] = Authors(options.python, sizes | given | weights)
            contestants["authors"](1, 2)  # to warm up, and to have read the weights before they go
    decoder = Decoder(model, vocabulary, rules=not options.no_grammar)
    del model

    def ours(variations: int, tokens: int) -> tuple[float, int]:
        start = time.perf_counter()
        drawn = [tokens for tokens, _ in decoder.decode([prompt], tokens, variations)]
        return time.perf_counter() - start, sum(burst.shape[1] for burst in drawn)

    contestants = {"piano_jax": ours} | contestants
    print(f"{options.size}, prompt of {len(prompt)} tokens, {options.tokens} new, on {jax.devices()[0].device_kind}")
    for variations in options.variations:
        ours(variations, options.tokens)  # compiles
        speeds = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, decode in contestants.items():
                seconds, steps = decode(variations, options.tokens)
                speeds[name].append(variations * steps / seconds)
        for name, found in speeds.items():
            shown = ", ".join(f"{speed:.1f}" for speed in found)
            print(f"{variations} variations, {name:9} {shown} tokens/s", flush=True)
        if options.authors:
            ratio = statistics.median(a / b for a, b in zip(speeds["piano_jax"], speeds["authors"], strict=True))
            print(f"{variations} variations, ratio {ratio:.2f} (median over rounds)", flush=True)


if __name__ == "__main__":
    main()
