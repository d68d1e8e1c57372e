"""Memory and time of a train step by LoRA, beside one of the whole model, on this machine's devices.

    python -m tests.benchmarks.adapting [--size small] [--rank 8] [--batch 1] [--length 1024] [--steps 5]

Memory is what the compiler says of one device: arguments and temporaries. Steps of both take turns.
"""

import argparse
import functools
import time

import jax
import numpy as np

from piano_jax.learning import objectives, optimizer
from piano_jax.learning.step import abstract_state, definition, initializer, summed_gradient, train_step
from piano_jax.model import TransformerConfig
from piano_jax.model import mesh as meshes
from piano_jax.model.lora import split
from piano_jax.music.vocabulary import CLASSES, Vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="of the model")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="rows that a device takes at a time")
    parser.add_argument("--length", type=int, default=1024, help="of a row, in tokens")
    parser.add_argument("--steps", type=int, default=5, help="timed, of each; 0 only compiles")
    options = parser.parse_args()

    vocabulary = Vocabulary("aria")
    kinds = {"kind": vocabulary.kind, "kinds": len(CLASSES), "chunk": 2048, "z": 0.0}
    objective = functools.partial(objectives.next_token, **kinds)
    rate = optimizer.schedule("linear", 1e-4, 0, 1000, 0.1)
    tx = optimizer.adamw(rate, 0.9, 0.95, 1e-5, 0.1)
    mesh, runs = meshes.make_mesh(), {}
    rows = options.batch * meshes.parts("batch", mesh)
    tokens = np.random.default_rng(0).integers(0, vocabulary.size, (2, rows, options.length), dtype=np.int32)
    ones = np.ones((rows, options.length), np.int32)
    batch = {"tokens": tokens[0], "targets": tokens[1], "segment_ids": ones, "weights": ones.astype(np.float32)}
    with jax.set_mesh(mesh):
        batch = meshes.shard_batch(batch, mesh)
        for name, rank in (("whole", 0), ("lora", options.rank)):
            config = getattr(TransformerConfig, options.size)(lora_rank=rank, remat="full")
            init, gradient = initializer(config, tx), summed_gradient(definition(config), objective, 1)
            like = abstract_state(init, mesh)
            step = train_step(gradient, tx, rate, 0).lower(like, batch).compile()
            memory = step.memory_analysis()
            arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
            learns, count = (
                sum(x.size for x in jax.tree.leaves(part)) for part in (split(like.weights)[0], like.weights)
            )
            said = f"arguments {arguments / 1e6:.0f} MB, temporaries {temporaries / 1e6:.0f} MB"
            print(f"{name:5} {learns:,} of {count:,} parameters learn ({learns / count:.2%}); {said}", flush=True)
            places = jax.tree.map(lambda x: x.sharding, like)
            state = jax.jit(init, out_shardings=places)(jax.random.key(0)) if options.steps else None
            runs[name] = {"step": step, "state": state, "memory": arguments + temporaries, "seconds": 0.0}
        for turn in range(options.steps + 1):  # the first warms up
            for run in runs.values():
                start = time.perf_counter()
                run["state"], sums = run["step"](run["state"], batch)
                jax.block_until_ready(sums)
                run["seconds"] += (time.perf_counter() - start) * (turn > 0)
    for what in ("memory", "seconds") if options.steps else ("memory",):
        print(f"ratio of {what} {runs['lora'][what] / runs['whole'][what]:.2f}")


if __name__ == "__main__":
    main()
