"""Pictures of a run."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int, Int64

from piano_jax import write_whole
from piano_jax.music import Notes

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_losses(workdir: str) -> Path:
    """Draws the losses of `metrics.jsonl`, in all and by class of token or else what is told right, into `loss.png`."""
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
    left.set(title="loss", xlabel="step", ylabel="nats")
    measured = {key for line in validation for key in line}
    by_class = sorted(key for key in measured if key.startswith("loss/"))
    for name in by_class or sorted(measured & {"accuracy", "files", "retrieval"}):
        points = [(line["step"], line[name]) for line in validation if name in line]
        right.plot(*zip(*points, strict=True), "o-", markersize=3, label=name.removeprefix("loss/"))
    right.set(
        title="validation loss by class of token" if by_class else "validation, the share told right", xlabel="step"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    path = Path(workdir) / "loss.png"
    write_whole(path, _png(figure))
    return path


def plot_likelihood(
    figures: Mapping[str, Mapping[str, tuple[float, float, float]]], bins: Mapping[str, Float[np.ndarray, "B 3"]]
) -> bytes:
    """A PNG of nats a token by class with their intervals, and of accuracy over confidence, with the error's size.

    `bins` are of tokens, summed confidence and hits, by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), width_ratios=(2, 1), layout="constrained")
    names = [name for name in next(iter(figures.values())) if name.startswith("token")]
    width, place = 0.8 / len(figures), np.arange(len(names))
    for number, (model, found) in enumerate(figures.items()):
        value, low, high = np.array([found[name] for name in names]).T
        at = place + (number - (len(figures) - 1) / 2) * width
        bars = np.maximum((value - low, high - value), 0)  # where all agree, a sum may differ in its last digit
        left.bar(at, value, width, yerr=bars, capsize=2, label=model, error_kw={"linewidth": 1})
    left.set_xticks(place, [name.removeprefix("token/").replace("token", "all") for name in names])
    left.set(title="by class of token", ylabel="nats a token")
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4)
    right.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for model, (count, confidence, hits) in ((model, of[of[:, 0] > 0].T) for model, of in bins.items()):
        label = f"{model}, off by {100 * figures[model]['calibration'][0]:.1f} %"
        right.plot(confidence / count, hits / count, "o-", markersize=4, label=label)
    right.set(title="calibration", xlabel="probability of the likeliest token", ylabel="how often it is right")
    right.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    right.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return _png(figure)


def plot_piano_roll(prompt: Notes, new: Notes, pedal: Int[np.ndarray, "P 2"]) -> bytes:
    """A PNG of notes over time, the louder the darker, new ones in another colour; below them the pedal's presses."""
    figure, (roll, below) = plt.subplots(
        2, 1, sharex=True, figsize=(14, 5), height_ratios=(12, 1), layout="constrained"
    )
    for notes, colour, label in ((prompt, "tab:blue", "prompt"), (new, "tab:orange", "continuation")):
        shade = [(colour, alpha) for alpha in 0.35 + 0.65 * notes.velocity / 127]
        roll.hlines(notes.pitch, notes.onset / 1000, (notes.onset + notes.duration) / 1000, shade, linewidth=2.6)
        roll.plot([], color=colour, linewidth=2.6, label=label)
    roll.set(ylabel="pitch", yticks=range(24, 109, 12), ylim=(20, 109))
    roll.legend(frameon=False, ncols=2, loc="upper right")
    roll.grid(alpha=0.3)
    below.broken_barh(np.stack([pedal[:, 0], np.diff(pedal)[:, 0]], 1) / 1000, (0, 1), color="0.4")
    below.set(xlabel="seconds", yticks=[], ylabel="pedal", ylim=(0, 1))
    return _png(figure)


def plot_confusions(confusions: Mapping[str, Int64[np.ndarray, "C C"]], classes: Sequence[str]) -> bytes:
    """A PNG of confusion matrices side by side: a row for each true class, shaded by its share, with counts."""
    side = 1.5 + 0.45 * len(classes)
    figure, grid = plt.subplots(
        1, len(confusions), squeeze=False, figsize=(side * len(confusions) + 1, side + 0.5), layout="constrained"
    )
    for axes, (name, confusion) in zip(grid[0], confusions.items(), strict=True):
        shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, confusion[row, column], ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes if axes is grid[0, 0] else [])
        axes.set(title=name, xlabel="told")
    grid[0, 0].set_ylabel("true")
    return _png(figure)


def plot_few_labels(curves: Mapping[str, Mapping[int, Sequence[float]]], chance: float, title: str) -> bytes:
    """A PNG of accuracies over the number of labelled files: the mean of the draws, and their extremes."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    for name, points in curves.items():
        shots = sorted(points)
        [line] = axes.plot(shots, [np.mean(points[count]) for count in shots], "o-", markersize=4, label=name)
        bounds = [[bound(points[count]) for count in shots] for bound in (min, max)]
        axes.fill_between(shots, *bounds, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(chance, color="0.5", linestyle="--", linewidth=1, label="majority")
    axes.set(title=title, xscale="log", xlabel="labelled files", ylabel="accuracy", ylim=(0, 1))
    ticks = sorted({count for points in curves.values() for count in points})
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png(figure)


def _png(figure: plt.Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    plt.close(figure)
    return drawn.getvalue()
