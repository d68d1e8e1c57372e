"""What a run reports: sums turned into figures, written as JSON lines and for TensorBoard; FLOPs and their share."""

import json
import os
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tensorboardX import SummaryWriter

from piano_jax import write_whole
from piano_jax.model.mesh import chip
from piano_jax.model.transformer import TransformerConfig

LINES = "metrics.jsonl"


def flops_per_token(config: TransformerConfig, length: int) -> int:
    """Floating-point operations that training on one token of a row of `length` needs.

    A multiplication with an addition is two. Forward: 2 for each weight of a matrix that meets the token (not the table
    of embeddings), and in each layer 2 · 2 · d_model for each position attended to, of which causality leaves
    (length + 1) / 2. The backward pass takes twice as many, or once for weights that LoRA leaves frozen, whose gradient
    nothing needs. What remat computes again does not count.
    """
    D, F, L = config.d_model, config.ff_width, config.layers
    outputs = config.vocabulary_size if config.gives_logits else config.head_size
    matrices = L * (4 * D * D + 3 * D * F) + D * outputs
    attended = L * 2 * D * (length + 1)
    return (2 if config.lora_rank else 3) * 2 * matrices + 3 * attended


def figures(sums: dict[str, np.ndarray], kinds: Sequence[str]) -> dict[str, float]:
    """Mean loss (nats) and accuracy over all targets, and by class of token for the classes that occur."""
    loss, correct, weight = (np.asarray(sums[name], np.float64) for name in ("loss", "correct", "weight"))
    found = {"loss": loss.sum() / max(weight.sum(), 1), "accuracy": correct.sum() / max(weight.sum(), 1)}
    for index in np.flatnonzero(weight):
        found[f"loss/{kinds[index]}"] = loss[index] / weight[index]
        found[f"accuracy/{kinds[index]}"] = correct[index] / weight[index]
    return {name: float(value) for name, value in found.items()}


def utilization(tokens_per_second: float, config: TransformerConfig, length: int, mesh: Mesh) -> dict[str, float]:
    """MFU: the share of all devices' peak that a run's useful FLOPs are; nothing for a device of unknown peak."""
    known = chip(mesh)
    return {"mfu": tokens_per_second * flops_per_token(config, length) / (known.flops * mesh.size)} if known else {}


class Writer:
    """Writes figures of the first host's process to `metrics.jsonl` and `tensorboard/`; other processes write nothing.

    A run that goes on from `step` takes back what was written from there on, and writes it anew.
    """

    def __init__(self, workdir: str, step: int):
        self._is_first = jax.process_index() == 0
        if not self._is_first:
            return
        path = epath.Path(workdir)
        lines = (path / LINES).read_text().splitlines() if (path / LINES).exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
        write_whole(path / LINES, "".join(f"{line}\n" for line in kept).encode())
        self._lines = (path / LINES).open("a")
        self._board = SummaryWriter(os.fspath(path / "tensorboard"), purge_step=step, flush_secs=10)

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Writes the figures of a group ("train" or "validation") at a step."""
        if not self._is_first:
            return
        self._lines.write(json.dumps({"step": step, "group": group} | values) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self._is_first:
            self._lines.close()
            self._board.close()
