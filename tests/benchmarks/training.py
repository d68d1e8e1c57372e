"""Speed of a train step on the CPU, beside the authors' compiled PyTorch step: same shape, batch and float32.

    python -m tests.benchmarks.training --authors CHECKOUT --python PYTHON [--batch 4] [--length 512] [--steps 8]

CHECKOUT is one of the authors' aria; PYTHON an interpreter that has PyTorch. The two take steps in turn, in processes
of their own, each on all cores; the figure is the ratio of median times.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHAPE = {"d_model": 384, "layers": 8, "heads": 6, "ff_width": 1280, "vocabulary_size": 17_727}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", required=True, help="a checkout of aria")
    parser.add_argument("--python", required=True, help="an interpreter that has PyTorch")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=512, help="of positions in our loss")
    parser.add_argument("--step-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step_of:
        step = (ours if options.step_of == "ours" else theirs)(options)
        for _ in sys.stdin:
            start = time.perf_counter()
            step()
            print(time.perf_counter() - start, flush=True)
        return

    def worker(python: str, whose: str) -> subprocess.Popen:
        command = [python, str(Path(__file__)), *sys.argv[1:], "--step-of", whose]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    workers = {"ours": worker(sys.executable, "ours"), "theirs": worker(options.python, "theirs")}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.steps + 2):
        for name, process in workers.items():
            print("step", file=process.stdin, flush=True)
            seconds[name].append(float(process.stdout.readline()))
    medians = {name: statistics.median(found[2:]) for name, found in seconds.items()}  # the first two compile
    tokens = options.batch * options.length
    for name, median in medians.items():
        print(f"{name:7} {median:7.3f} s a step, {tokens / median:8,.0f} tokens/s")
    print(f"ratio of times {medians['theirs'] / medians['ours']:.2f}")
    for process in workers.values():
        process.stdin.close()
        process.wait()


def ours(options: argparse.Namespace) -> Callable[[], None]:
    """A step of ours, as `train` takes it."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import jax
    import numpy as np
    from ml_collections import ConfigDict

    from piano_jax.config import read_config
    from piano_jax.learning.loop import assemble
    from piano_jax.learning.step import abstract_state
    from piano_jax.model import mesh as meshes

    config: ConfigDict = read_config(str(Path(__file__).parents[2] / "configs/pretrain.py:small"), [])
    config.model.update({"dtype": "float32", "remat": "none", "unroll": SHAPE["layers"]})
    config.length, config.loss.chunk = options.length, options.chunk
    mesh = meshes.make_mesh()
    jax.set_mesh(mesh)
    _, init, step = assemble(config)
    places = jax.tree.map(lambda x: x.sharding, abstract_state(init, mesh))
    state = jax.jit(init, out_shardings=places)(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocabulary_size"], (options.batch, options.length + 1))
    batch = {"tokens": tokens[:, :-1].astype(np.int32), "targets": tokens[:, 1:].astype(np.int32)}
    batch |= {"segment_ids": np.ones_like(batch["tokens"]), "weights": np.ones(batch["tokens"].shape, np.float32)}

    def take() -> None:
        nonlocal state
        state, sums = step(state, meshes.shard_batch(batch, mesh))
        jax.block_until_ready((state, sums))

    return take


def theirs(options: argparse.Namespace) -> Callable[[], None]:
    """The authors' model, compiled as they compile it, with their loss and optimizer."""
    sys.path.insert(0, options.authors)
    import torch
    from aria.model import ModelConfig, TransformerLM

    class Width(int):
        """The factor that makes the feed-forward part as wide as ours, which is no multiple of d_model."""

        def __rmul__(self, _: int) -> int:
            return SHAPE["ff_width"]

    torch.manual_seed(0)
    config = ModelConfig(
        d_model=SHAPE["d_model"],
        n_heads=SHAPE["heads"],
        n_layers=SHAPE["layers"],
        ff_mult=Width(),
        drop_p=0.0,
        max_seq_len=2048,
        grad_checkpoint=False,
        vocab_size=SHAPE["vocabulary_size"],
    )
    model = TransformerLM(config)
    model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-5)
    measure = torch.nn.CrossEntropyLoss(ignore_index=2, reduction="none")
    tokens = torch.randint(3, SHAPE["vocabulary_size"], (options.batch, options.length + 1))

    def take() -> None:
        loss = measure(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])
        loss = loss[loss != 0.0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return take


if __name__ == "__main__":
    main()
