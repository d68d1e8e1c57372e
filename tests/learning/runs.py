"""Runs that tests start, here and in processes of their own, and the losses that they write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax

from piano_jax.learning.loop import train
from piano_jax.model.mesh import make_mesh

ROOT = Path(__file__).parents[2]


def losses(workdir: Path, group: str = "train") -> dict[int, float]:
    whole, _, _ = (workdir / "metrics.jsonl").read_text().rpartition("\n")  # a run may be writing another line
    lines = [json.loads(line) for line in whole.splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if line["group"] == group]
    assert len(found) == len(dict(found)), "a step is written twice"
    return dict(found)


def run(config, workdir: Path) -> dict[str, float]:
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        return train(config, str(workdir), mesh)


def launch(config_file: Path, data: Path, workdir: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "piano_jax.train", f"--config={config_file}", f"--workdir={workdir}"]
    words = [f"--config.{override}" for override in (f"data.path={data}", *overrides)]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command + words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
