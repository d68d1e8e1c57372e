"""Speed from MIDI files to vectors on the CPU, beside the authors' code, with the same random weights of size `small`.

    python -m tests.benchmarks.embedding --midi FOLDER [--files 12] [--rounds 3] [--cores 1] [--authors CHECKOUT …]

CHECKOUTs are the authors' aria and aria-utils, whose needs (torch among them) must be installed. Each round runs all on
the same files, end to end, and then their encoders on the chunks that each has read; ratios are of the rounds' medians.
Beside wall time stands processor time, into which other work on the machine hardly enters.
"""

import argparse
import importlib
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

LENGTH, EMBEDDING = 2048, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--midi", required=True, type=Path, help="a folder, searched recursively")
    parser.add_argument("--files", type=int, default=12, help="how many of its files, drawn at random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--authors", nargs="*", default=[], help="checkouts of aria and aria-utils")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))
    paths = sorted(options.midi.rglob("*.mid"))
    paths = random.Random(0).sample(paths, min(options.files, len(paths)))

    import jax

    from piano_jax.model.mesh import make_mesh

    mesh = make_mesh()
    with jax.set_mesh(mesh):
        programs = {dtype: ours(mesh, dtype) for dtype in ("float32", "bfloat16")}
        if options.authors:
            sys.path += options.authors
            programs["authors"] = theirs(programs["float32"].model)
        taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for round_ in range(options.rounds + 1):  # the first warms up and compiles
            for name, program in programs.items():
                for part, call in (("end to end", program.embed), ("encoder", program.encode)):
                    seconds = measure(call, paths)
                    if round_:
                        taken.setdefault((part, name), []).append(seconds)
        for (part, name), seconds in taken.items():
            wall, processor = np.median(seconds, axis=0)
            line = f"{part:10} {name:8} {wall / len(paths):7.3f} s a file, {processor / len(paths):7.3f} s of processor"
            if options.authors:
                theirs_wall, theirs_processor = np.median(taken[part, "authors"], axis=0)
                line += f"; ratio {theirs_wall / wall:.2f}, {theirs_processor / processor:.2f} of processor"
            print(line)
        if options.authors:
            chunks = programs["authors"].chunks[:16]
            expected = np.stack(programs["authors"].forward(chunks))
            for name in ("float32", "bfloat16"):
                apart = np.abs(programs[name].embedder(chunks) - expected).max()
                print(f"{name}: at most {apart:.1e} apart on the same tokens, of at most {np.abs(expected).max():.1f}")


def measure(call: Callable, paths: list[Path]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call(paths)
    return time.perf_counter() - wall, time.process_time() - processor


def ours(mesh: object, dtype: str) -> SimpleNamespace:
    """The model, and how this code embeds files, and chunks that are read."""
    from flax import nnx

    from piano_jax.data.chunks import ChunkReader
    from piano_jax.inference.embedding import Embedder
    from piano_jax.model import Model, TransformerConfig
    from piano_jax.music import Vocabulary

    config = TransformerConfig.small(
        vocabulary_size=Vocabulary("aria").size, head="embedding", head_size=EMBEDDING, context=LENGTH, dtype=dtype
    )
    model = Model(config, nnx.Rngs(0))
    reader, embedder = ChunkReader("aria", 300, LENGTH), Embedder(model, mesh, LENGTH)
    chunks: dict[Path, list] = {}

    def embed(paths: list[Path]) -> None:
        chunks.update((path, reader(path.read_bytes())) for path in paths)
        for _ in embedder.pieces(chunks.items()):
            pass

    def encode(paths: list[Path]) -> None:
        embedder([chunk for path in paths for chunk in chunks[path]])

    return SimpleNamespace(model=model, embedder=embedder, embed=embed, encode=encode)


def theirs(model: object) -> SimpleNamespace:
    """How the authors' code does the same, with the same weights."""
    import torch
    from flax import nnx

    from piano_jax.model.aria import layout

    authors, embedding = importlib.import_module("aria.model"), importlib.import_module("aria.embedding")
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    c = model.config
    sizes = {"d_model": c.d_model, "n_heads": c.heads, "n_layers": c.layers, "ff_mult": 1, "max_seq_len": LENGTH}
    more = {"drop_p": 0.0, "grad_checkpoint": False, "vocab_size": c.vocabulary_size, "emb_size": c.head_size}
    torch_model = authors.TransformerEMB(authors.ModelConfig(**sizes, **more))
    for layer in torch_model.model.encode_layers:  # their widths are whole multiples of d_model; ours is 3 1/3 of it
        for name in ("ff_gate_proj", "ff_up_proj"):
            setattr(layer, name, torch.nn.Linear(c.d_model, c.ff_width, bias=False))
        layer.ff_down_proj = torch.nn.Linear(c.ff_width, c.d_model, bias=False)
    weights = dict(nnx.to_flat_state(nnx.state(model)))
    tensors = {}
    for path, (names, shape) in layout(c).items():
        values = np.asarray(weights[path][...]).reshape(len(names), *shape)
        tensors |= {name: torch.from_numpy(value.copy()) for name, value in zip(names, values, strict=True)}
    torch_model.load_state_dict(tensors)
    torch_model.eval()
    chunks: list[np.ndarray] = []
    encoder = torch_model.forward

    def embed(paths: list[Path]) -> None:
        chunks.clear()
        torch_model.forward = lambda tokens: (chunks.append(tokens[0].numpy()), encoder(tokens))[1]
        for path in paths:
            embedding.get_global_embedding_from_midi(torch_model, midi_path=str(path), device="cpu")

    def forward(chunks: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [encoder(torch.from_numpy(chunk)[None])[0, -1].numpy() for chunk in chunks]

    return SimpleNamespace(chunks=chunks, embed=embed, encode=lambda paths: forward(chunks), forward=forward)


if __name__ == "__main__":
    main()
