"""Loss against compute, a line through it, and what it would say of a larger run.

    python -m tests.benchmarks.scaling --out scaling.png RUN RUN RUN [RUN …] [--config configs/pretrain.py:medium]

RUN is a work directory of pretraining, at its end; runs must have measured the same validation rows. The line is
L = a · C^-b, by least squares of log L on log C; compute C is what a run's tokens need (metrics.flops_per_token).
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from piano_jax.config import read_config
from piano_jax.learning.metrics import LINES, flops_per_token
from piano_jax.learning.phases import model_config

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def compute_of(config: ConfigDict, tokens: float) -> float:
    """Floating-point operations of a run on so many tokens."""
    return tokens * flops_per_token(model_config(config), config.length)


def tokens_of(config: ConfigDict) -> int:
    return config.steps * config.batch * config.length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--config", default="configs/pretrain.py:medium", help="what to predict (default: %(default)s)")
    parser.add_argument("--tokens", type=float, default=4e11, help="that it learns from (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="FILE.png")
    options = parser.parse_args()
    if len(options.runs) < 3:
        parser.error("a line and its residuals need three runs or more")

    compute, losses = [], []
    for run in map(Path, options.runs):
        config = ConfigDict(json.loads((run / "config.json").read_text()))
        last = json.loads((run / LINES).read_text().splitlines()[-1])
        if (last["group"], last["step"]) != ("validation", config.steps):
            parser.error(f"{run}: has not come to its end")
        compute.append(compute_of(config, tokens_of(config)))
        losses.append(last["loss"])
    x, y = np.log(compute), np.log(losses)
    line = stats.linregress(x, y)
    left = y - (line.intercept + line.slope * x)
    print(f"{'run':24} {'FLOPs':>9} {'loss':>7} {'line':>7} {'residual':>9}")
    for run, flops, loss, residual in zip(options.runs, compute, losses, left, strict=True):
        print(f"{Path(run).name:24} {flops:9.2e} {loss:7.3f} {loss / np.exp(residual):7.3f} {100 * residual:7.1f} %")
    sure = stats.t.ppf(0.975, len(x) - 2)
    print(f"L = a C^-b with b = {-line.slope:.3f} ± {sure * line.stderr:.3f} (95 %), r² = {line.rvalue**2:.3f}")

    asked = read_config(options.config, [])
    flops = compute_of(asked, options.tokens)
    at, spread = np.log(flops) - x.mean(), np.sqrt(np.square(left).sum() / (len(x) - 2))
    middle = line.intercept + line.slope * np.log(flops)
    half = sure * spread * np.sqrt(1 + 1 / len(x) + at**2 / np.square(x - x.mean()).sum())
    low, high = np.exp(middle - half), np.exp(middle + half)
    print(
        f"{options.config}, {options.tokens:.1e} tokens, {flops:.1e} FLOPs, {flops / max(compute):,.0f} times the "
        f"largest run's: {np.exp(middle):.2f} ({low:.2f} to {high:.2f}, if the line went on)"
    )

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(compute, losses, "o", color="tab:blue")
    for run, flops, loss in zip(options.runs, compute, losses, strict=True):
        axes.annotate(Path(run).name, (flops, loss), xytext=(5, 4), textcoords="offset points", fontsize=8)
    along = np.geomspace(min(compute) / 1.5, max(compute) * 1.5, 2)
    axes.loglog(along, np.exp(line.intercept) * along**line.slope, color="0.6")
    axes.set(title="validation loss and compute", xlabel="floating-point operations", ylabel="nats a token")
    axes.yaxis.set_major_formatter("{x:.1f}")
    axes.yaxis.set_minor_formatter("{x:.1f}")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
