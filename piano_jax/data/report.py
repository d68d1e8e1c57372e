"""A page to look at: what a dataset's pieces are like, as one HTML file of its own with nothing in it but text."""

import html
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, Integer

REPORT = "report.html"
LABELS, MOST = ("composer", "period", "form", "genre", "performer", "pianist", "emotion"), 15
WIDTH, HEIGHT, ROW = 420, 120, 16  # of a figure and of a row of a bar chart, in pixels
STYLE = """body{font:14px sans-serif;max-width:1320px;margin:2em auto;color:#222}
figure{display:inline-block;margin:0 1em 2em 0;vertical-align:top}figcaption{margin-bottom:.4em}
svg{overflow:visible;font-size:11px}rect{fill:#4878a8}line{stroke:#999}text{fill:#555}"""


def write_report(
    folder: Path,
    notes: Int32[np.ndarray, "N"],
    seconds: Float32[np.ndarray, "N"],
    tally: Int64[np.ndarray, "2 128"],
    columns: Sequence[str],
    labels: Callable[[], Iterable[tuple[str, ...]]],
) -> None:
    """Draws lengths, densities, pitches, velocities and labels; `tally` is notes by pitch and by velocity."""
    density = notes / np.maximum(seconds, 1e-3)
    figures = [
        _histogram("length of a piece, minutes", *_bins(seconds / 60)),
        _histogram("notes per second of a piece", *_bins(density)),
        _histogram("notes by pitch (60 is middle C)", tally[0], np.arange(129.0)),
        _histogram("notes by velocity", tally[1], np.arange(129.0)),
    ]
    counted = {columns.index(name): Counter[str]() for name in LABELS if name in columns}
    for row in labels() if counted else ():
        for at, counter in counted.items():
            counter[row[at]] += 1
    figures += [_bars(columns[at], counter) for at, counter in counted.items() if set(counter) != {""}]
    total = f"{len(notes):,} pieces, {seconds.sum(dtype=float) / 3600:,.1f} hours, {notes.sum(dtype=int):,} notes"
    page = f'<!doctype html><meta charset="utf-8"><title>{total}</title><style>{STYLE}</style><h1>{total}</h1>'
    (folder / REPORT).write_text(page + "\n".join(figures) + "\n", "utf-8", "replace")


def _bins(values: Float[np.ndarray, "N"]) -> tuple[Int64[np.ndarray, "B"], Float[np.ndarray, "B+1"]]:
    """Fifty bins up to a round number that few values exceed; those count in the last."""
    most = max(float(np.quantile(values, 0.995)), 1e-3)
    step = 10.0 ** np.floor(np.log10(most))
    top = float(np.ceil(most / step) * step)
    return np.histogram(np.minimum(values, top), 50, (0, top))


def _histogram(title: str, counts: Integer[np.ndarray, "B"], edges: Float[np.ndarray, "B+1"]) -> str:
    width, most = WIDTH / len(counts), max(int(counts.max()), 1)
    heights = counts / most * HEIGHT
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{HEIGHT - height:.1f}" width="{width * 0.9:.1f}" height="{height:.1f}"/>'
        for i, height in enumerate(heights.tolist())
        if height
    )
    axis = f'<line y1="{HEIGHT}" y2="{HEIGHT}" x2="{WIDTH}"/><text y="-2">{most:,}</text>'
    for part in range(5):
        value = edges[0] + (edges[-1] - edges[0]) * part / 4
        axis += f'<text x="{WIDTH * part / 4:.0f}" y="{HEIGHT + 14}" text-anchor="middle">{value:g}</text>'
    return _figure(title, HEIGHT + 20, bars + axis)


def _bars(title: str, counter: Counter[str]) -> str:
    known = sorted(((count, name) for name, count in counter.items() if name), key=lambda x: (-x[0], x[1]))
    title += f": {len(known):,} in {sum(count for count, _ in known):,} pieces"
    scale = WIDTH * 0.35 / max(known[0][0], 1)
    rows = [
        f'<text x="{WIDTH / 2 - 6:.0f}" y="{i * ROW + 12}" text-anchor="end">{html.escape(name[:40])}</text>'
        f'<rect x="{WIDTH / 2:.0f}" y="{i * ROW + 2}" width="{count * scale:.1f}" height="{ROW - 4}"/>'
        f'<text x="{WIDTH / 2 + count * scale + 4:.1f}" y="{i * ROW + 12}">{count:,}</text>'
        for i, (count, name) in enumerate(known[:MOST])
    ]
    return _figure(title, ROW * len(rows), "".join(rows))


def _figure(title: str, height: int, drawing: str) -> str:
    caption = f"<figcaption>{html.escape(title)}</figcaption>"
    return f'<figure>{caption}<svg width="{WIDTH}" height="{height}">{drawing}</svg></figure>'
