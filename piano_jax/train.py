"""`python -m piano_jax.train`: any phase of training, as its config says."""

import argparse
import sys
from collections.abc import Sequence

from piano_jax.command import Parser, run
from piano_jax.config import flat, overrides, read_config

EPILOG = """\
examples:
  python -m piano_jax.train --config configs/pretrain.py:small --workdir runs/mine --config.data.path=data/mine
  python -m piano_jax.train --config configs/pretrain.py:small --workdir runs/mine --config.batch=16 --config.steps=2000

The same command goes on where a run was interrupted. The work directory holds:
  config.json     what the run computes; another config is refused here
  checkpoints/    STEP/weights, STEP/optimizer and STEP/run, by Orbax
  metrics.jsonl   a line for each step and each evaluation
  tensorboard/    the same, for: tensorboard --logdir WORKDIR
  compiled/       XLA's programs, so that the next start need not compile
  profile/        a window of --config.profile.steps steps: tensorboard --logdir WORKDIR/profile
  loss.png        the curves

SIGTERM (a preemption) ends the step, saves, and exits 0. On several hosts the same command runs on each.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="piano_jax.train",
        description="Trains a model. --config.KEY=VALUE changes a value of the config.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:SIZE]", help="one of configs/, and a size in it")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder; made, or gone on in")
    options, rest = parser.parse_known_args(arguments)
    config = read_config(options.config, overrides(rest))

    # Only now, for --help and complaints about arguments need no jax.
    import jax

    from piano_jax.data import Dataset
    from piano_jax.evaluation.plots import plot_losses
    from piano_jax.learning import cluster
    from piano_jax.learning.checkpoints import find
    from piano_jax.learning.loop import Diverged, train
    from piano_jax.model.mesh import make_mesh

    same = flat(config.to_dict() | {"dataset": Dataset(config.data.path, vocabulary=config.vocabulary).fingerprint})
    same = {key: value for key, value in same.items() if key not in ("data.path", "workers")}
    cluster.join(" ".join(f"{key}={value}" for key, value in same.items()), config.cluster.timeout)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", f"{options.workdir}/compiled")
    try:
        with cluster.leaving_on_errors(), jax.set_mesh(mesh := make_mesh(**config.mesh)):
            found = train(config, options.workdir, mesh)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if jax.process_index():
        return 0
    if not found:
        print(f"stopped by SIGTERM: step {find(options.workdir).name} is saved, and the same command goes on from it")
        return 0
    picture = plot_losses(options.workdir)
    print("validation " + ", ".join(f"{name} {value:.4f}" for name, value in found.items() if "/" not in name))
    print(f"checkpoint   {options.workdir}/checkpoints/{config.steps}")
    print(f"curves       {picture}, or tensorboard --logdir {options.workdir}")
    return 0


if __name__ == "__main__":
    run(main)
