"""Configs: read from a file of configs/, changed by `--config.a.b=value`."""

import ast
import difflib
import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from piano_jax import BadInput


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
    keys = flat(config.to_dict())
    for override in overrides:
        key, is_pair, text = override.partition("=")
        if not is_pair:
            raise BadInput(f"--config.{override}: write --config.{override}=value")
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1, 0.75)
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


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """The values of a nested dict by their keys joined with dots."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _kind(config: ConfigDict, key: str) -> str:
    for part in key.split("."):
        config = config[part]
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a word"}[type(config)]
