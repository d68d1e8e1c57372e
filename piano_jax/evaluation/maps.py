"""A map of embeddings: each performance a point, near those like it, coloured by a label."""

import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Float32
from sklearn.manifold import TSNE

from piano_jax import write_whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = 12  # labels that have one, the commonest; all others share grey
OTHER, GREY = "other", "#c8c8c8"
SIDE, DOT = 900, 4  # of the page's picture, in pixels


def project(vectors: Float32[np.ndarray, "N E"]) -> Float[np.ndarray, "N 2"]:
    """The plane's points by t-SNE on cosine distance (JMLR 9:2579); the same at every call. Needs four vectors."""
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=0).fit_transform(vectors)


def draw(
    points: Float[np.ndarray, "N 2"], names: Sequence[str], labels: Sequence[str], title: str, out: Path
) -> tuple[Path, Path]:
    """Draws points as OUT.png, and as OUT.html: a page that needs no other file and shows a point's name on hover."""
    common = [label for label, _ in Counter(label for label in labels if label).most_common(COLOURS)]
    palette = [matplotlib.colors.to_hex(colour) for colour in plt.get_cmap("Paired").colors]
    colour = dict(zip(common, palette, strict=False))
    drawn = sorted({*common, *(OTHER for label in labels if label not in colour)}, key=[*common, OTHER].index)
    shown = np.array([label if label in colour else OTHER for label in labels])

    figure, axes = plt.subplots(figsize=(9, 8), layout="constrained")
    for label in reversed(drawn):
        of = points[shown == label]
        axes.scatter(*of.T, s=12, color=colour.get(label, GREY), label=f"{label} ({len(of)})")
    axes.set(title=title, xticks=[], yticks=[])
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    data = io.BytesIO()
    figure.savefig(data, dpi=120, format="png")
    plt.close(figure)
    picture, page = out.with_suffix(".png"), out.with_suffix(".html")
    write_whole(picture, data.getvalue())

    low, span = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-9)
    at = 2 * DOT + (points - low) / span * (SIDE - 4 * DOT)
    dots = "\n".join(
        f'<circle cx="{x:.1f}" cy="{SIDE - y:.1f}" r="{DOT}" fill="{colour.get(label, GREY)}">'
        f"<title>{html.escape(name)}\n{html.escape(original)}</title></circle>"
        for (x, y), label, original, name in zip(at.tolist(), shown, labels, names, strict=True)
    )
    key = "\n".join(
        f'<li><span style="background:{colour.get(label, GREY)}"></span>{html.escape(label)}</li>' for label in drawn
    )
    write_whole(page, PAGE.format(title=html.escape(title), side=SIDE, dots=dots, key=key).encode())
    return picture, page


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 1em; display: flex; gap: 2em; flex-wrap: wrap }}
h1 {{ font-size: 16px; width: 100% }}
circle:hover {{ stroke: #000; stroke-width: 2 }}
ul {{ list-style: none; padding: 0 }}
span {{ display: inline-block; width: 12px; height: 12px; border-radius: 6px; margin-right: 6px }}
</style>
<h1>{title}</h1>
<svg width="{side}" height="{side}" viewBox="0 0 {side} {side}">
{dots}
</svg>
<ul>
{key}
</ul>
</html>
"""
