"""Pictures of a run."""

import io
import json
from pathlib import Path

import matplotlib
import numpy as np

from piano_jax import write_whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_losses(workdir: str) -> Path:
    """Draws the losses of `metrics.jsonl`, in all and by class of token, into `loss.png`."""
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["group"] == "train"]
    validation = [line for line in lines if line["group"] == "validation"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")

    steps, losses = np.array([[line["step"], line["loss"]] for line in train]).T
    left.plot(steps, losses, color="0.75", linewidth=0.8, label="training, each step")
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    left.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"training, mean of {window}")
    left.plot(
        *zip(*((line["step"], line["loss"]) for line in validation), strict=True),
        "o-",
        color="tab:red",
        label="validation",
    )
    left.set(title="next-token loss", xlabel="step", ylabel="nats a token")
    for name in sorted({key for line in validation for key in line if key.startswith("loss/")}):
        points = [(line["step"], line[name]) for line in validation if name in line]
        right.plot(*zip(*points, strict=True), "o-", markersize=3, label=name.removeprefix("loss/"))
    right.set(title="validation loss by class of token", xlabel="step")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    path = Path(workdir) / "loss.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    plt.close(figure)
    write_whole(path, drawn.getvalue())
    return path
