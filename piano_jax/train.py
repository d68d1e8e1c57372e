"""`python -m piano_jax.train`: any phase of training, as its config says."""

import argparse
import ast
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.command import Parser, run

EPILOG = """\
examples:
  python -m piano_jax.train --config configs/pretrain.py:small --workdir runs/mine --config.data.path=data/mine
  python -m piano_jax.train --config configs/pretrain.py:small --workdir runs/mine --config.batch=16 --config.steps=2000

The same command goes on where a run was interrupted. The work directory holds:
  config.json     what the run computes; another config is refused here
  checkpoints/    STEP/weights, STEP/optimizer and STEP/run, by Orbax
  metrics.jsonl   a line for each step and each evaluation
  tensorboard/    the same, for: tensorboard --logdir WORKDIR
  loss.png        the curves
"""


def read_config(spec: str, overrides: Sequence[str]) -> ConfigDict:
    """The config of `PATH.py[:SIZE]`, changed by overrides `a.b=value`, where values are Python literals or words.

    Raises:
        BadInput: no such file or size, a key that does not exist, or a value of another type.
    """
    path, _, size = spec.partition(":")
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such config")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if size and not inspect.signature(module.get_config).parameters:
        raise BadInput(f"{spec}: this config has no sizes")
    config = module.get_config(size) if size else module.get_config()
    flat = dict.fromkeys(_keys(config.to_dict()))
    for override in overrides:
        key, is_pair, text = override.partition("=")
        if not is_pair:
            raise BadInput(f"--config.{override}: write --config.{override}=value")
        if key not in flat:
            near = difflib.get_close_matches(key, flat, 1, 0.75)
            raise BadInput(f"--config.{key}: {path} has no such key" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise BadInput(f"--config.{key}={text}: not {_kind(config, key)}") from error
    return config


def overrides(words: Sequence[str]) -> list[str]:
    """The `a.b=value` of arguments `--config.a.b=value`. Raises BadInput for any other."""
    for word in words:
        if not word.startswith("--config."):
            raise BadInput(f"unknown argument {word} (see --help)")
    return [word.removeprefix("--config.") for word in words]


def _keys(tree: dict, prefix: str = "") -> list[str]:
    pairs = [(prefix + key, value) for key, value in tree.items()]
    return [name for key, value in pairs for name in (_keys(value, f"{key}.") if isinstance(value, dict) else [key])]


def _kind(config: ConfigDict, key: str) -> str:
    for part in key.split("."):
        config = config[part]
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a word"}[type(config)]


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
    from absl import logging

    from piano_jax.evaluation.plots import plot_losses
    from piano_jax.learning.loop import Diverged, train
    from piano_jax.model.mesh import make_mesh

    logging.set_verbosity(logging.FATAL)  # Orbax logs, with their stack, the errors that it raises as well
    mesh = make_mesh(**config.mesh)
    try:
        with jax.set_mesh(mesh):
            found = train(config, options.workdir, mesh)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    picture = plot_losses(options.workdir)
    print("validation " + ", ".join(f"{name} {value:.4f}" for name, value in found.items() if "/" not in name))
    print(f"checkpoint   {options.workdir}/checkpoints/{config.steps}")
    print(f"curves       {picture}, or tensorboard --logdir {options.workdir}")
    return 0


if __name__ == "__main__":
    run(main)
