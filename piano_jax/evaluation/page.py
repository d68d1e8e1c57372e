"""The page that shows how continuations were judged: one HTML file of its own, and the same as JSON and as CSV."""

import base64
import csv
import html
import io
import json
import math
from pathlib import Path

import matplotlib
import numpy as np

from piano_jax import write_whole
from piano_jax.evaluation.continuations import FEATURES, FIGURES, ITSELF, OTHER, SHARES, TRUTH, Judgement
from piano_jax.evaluation.statistics import LENGTHS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = 5  # of each system's longest runs
PITCH_CLASSES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")
STYLE = """body{font:14px sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:20px}h2{font-size:16px;margin-top:2em}p{max-width:60em}img{max-width:100%}
div{overflow-x:auto}table{border-collapse:collapse}
td,th{padding:.25em .8em;text-align:right;white-space:nowrap;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}small{color:#777}"""
WORDS = {
    ITSELF: "A silence lasts until the true continuation's last note begins at most, so that stopping early is a long "
    "one. A loop is of notes that only repeat those right before them, in time to within 10 ms. A run of training has "
    "the notes of a piece of the training split in the same order, at any tempo, in any key; the truth has some by "
    "chance, by scales and repeated chords, or because its composition was trained on under another name.",
    SHARES: f"{OTHER} is how other pieces go on, all of them and on average, {TRUTH} how the prompt's own does.",
}


def write_page(judgement: Judgement, folder: Path) -> None:
    """Writes `continuations.html`, and its figures and each prompt's as `continuations.json`, its table as `.csv`."""
    write_whole(folder / "continuations.json", (json.dumps(_plain(judgement), allow_nan=False) + "\n").encode())
    write_whole(folder / "continuations.csv", _csv(judgement).encode())
    write_whole(folder / "continuations.html", _page(judgement).encode())


def _plain(judgement: Judgement) -> dict:
    """All but the distributions; what is not a number is null."""

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    figures = {
        key: {system: [number(x) for x in found] for system, found in by_system.items()}
        for key, by_system in judgement.figures.items()
    }
    values = {
        key: {system: [number(x) for x in each] for system, each in by_system.items()}
        for key, by_system in judgement.values.items()
    }
    runs = {
        system: [run._asdict() | {"name": judgement.piece(run)} for run in each]
        for system, each in judgement.runs.items()
    }
    return {
        "prompts": judgement.names,
        "systems": judgement.systems,
        "figures": figures,
        "values": values,
        "runs": runs,
    }


def _csv(judgement: Judgement) -> str:
    text = io.StringIO()
    rows = [
        [figure.key, figure.title, system, *found]
        for figure in FIGURES
        for system, found in judgement.figures.get(figure.key, {}).items()
    ]
    header = ["figure", "title", "system", "value", "low", "high"]
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _page(judgement: Judgement) -> str:
    title = f"{len(judgement.names):,} prompts continued: {', '.join(judgement.systems)}"
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><h1>{html.escape(title)}</h1>',
        "<p>In brackets and as bars: 95 % intervals over prompts.</p>",
        _image(_plot_shares(judgement), "likeness to the prompt and spread of each feature, by system"),
    ]
    for about, titles, cells in judgement.bands():
        parts += [f"<h2>{html.escape(about)}</h2>", _table(["", *titles], [[s, *row] for s, row in cells.items()])]
        parts += [f"<p>{html.escape(WORDS[about])}</p>"] if about in WORDS else []
    parts += ["<h2>what is played</h2>", _image(_plot_features(judgement), "distributions of features, by system")]
    if judgement.runs:
        header = ["", "prompt", "notes", "seconds", "training piece", "there", "transposed", "of its time"]
        parts += [
            "<h2>the longest runs that are also in training</h2>",
            _image(_plot_runs(judgement), "how many continuations have runs of so many notes, by system"),
            _table(header, _longest(judgement)),
        ]
    return "\n".join([*parts, "</html>", ""])


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<div><table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _longest(judgement: Judgement) -> list[list[str]]:
    rows = []
    for system in judgement.systems[:-1]:
        runs = judgement.runs[system]
        for place in np.argsort([-run.notes for run in runs], kind="stable")[:SHOWN].tolist():
            run = runs[place]
            if run.notes:
                times = f"{run.start:.1f} to {run.end:.1f}"
                moved = [f"{run.there:.1f} s", f"{run.transposed:+d}", f"{run.stretched:.2f}"]
                rows.append([system, judgement.names[place], str(run.notes), times, judgement.piece(run), *moved])
    return rows


def _colours(judgement: Judgement) -> dict[str, str]:
    """Grey for the ceiling and the floor, and a colour for each system."""
    between = {system: f"C{place}" for place, system in enumerate(judgement.systems[1:-1])}
    return {TRUTH: "0.25", **between, OTHER: "0.65"}


def _plot_shares(judgement: Judgement) -> plt.Figure:
    """Where each system stands between other and the truth, and how far its spread is the truth's."""
    titles = {
        "share_": "like its own prompt, from other (0) to truth (1)",
        "area_": "as different as true ones are: overlapping area",
    }
    bands = {
        title: [figure for figure in FIGURES if figure.key.startswith(kind) and figure.key in judgement.figures]
        for kind, title in titles.items()
    }
    bands = {title: columns for title, columns in bands.items() if columns}
    tall = 1.2 + 0.5 * max(map(len, bands.values()))
    figure, panels = plt.subplots(1, len(bands), squeeze=False, figsize=(6.5 * len(bands), tall), layout="constrained")
    for axes, (title, columns) in zip(panels[0], bands.items(), strict=True):
        for place, (system, colour) in enumerate(_colours(judgement).items()):
            rows = [row for row, column in enumerate(columns) if system in judgement.figures[column.key]]
            if not rows:
                continue
            value, low, high = np.array([judgement.figures[columns[row].key][system] for row in rows]).T
            at = np.array(rows) + 0.6 * ((place + 0.5) / len(judgement.systems) - 0.5)
            axes.errorbar(value, at, xerr=[value - low, high - value], fmt="o", ms=4, color=colour, label=system)
        axes.set_yticks(range(len(columns)), [column.title for column in columns])
        axes.set(title=title, ylim=(len(columns) - 0.5, -0.5))
        axes.grid(alpha=0.3)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    return figure


def _plot_features(judgement: Judgement) -> plt.Figure:
    """Each feature's mean histogram, the truth's filled."""
    figure, panels = plt.subplots(1, len(FEATURES), figsize=(16, 3.2), layout="constrained")
    for axes, (feature, by_system) in zip(panels, judgement.histograms.items(), strict=True):
        bins = len(by_system[TRUTH])
        in_time = feature in ("duration", "inter_onset")
        edges = LENGTHS if in_time else np.arange(bins + 1) * (10 if feature == "velocity" else 1)
        for system, shares in by_system.items():
            if system == TRUTH:
                axes.stairs(shares, edges, fill=True, color="0.85", label=system)
            else:
                axes.stairs(shares, edges, color=_colours(judgement)[system], label=system)
        axes.set(title=FEATURES[feature], yticks=[])
        if in_time:
            axes.set(xscale="log", xlabel="ms")
        if feature == "density":
            axes.set(xlabel="notes that begin in a second")
        if feature == "pitch_class":
            axes.set_xticks(np.arange(12) + 0.5, PITCH_CLASSES, fontsize=7)
    figure.legend(
        *panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(by_system)
    )
    return figure


def _plot_runs(judgement: Judgement) -> plt.Figure:
    """The share of each system's continuations with a run of so many notes or more."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for system, colour in list(_colours(judgement).items())[:-1]:
        notes = np.sort([run.notes for run in judgement.runs[system]])
        share = 1 - np.arange(len(notes)) / len(notes)
        axes.step(np.append(notes, notes[-1]), np.append(share, 0), where="pre", color=colour, label=system)
    axes.set(xscale="log", xlabel="notes", ylabel="continuations with as many", ylim=(0, 1.02))
    ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500, 1000) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _image(figure: plt.Figure, says: str) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    plt.close(figure)
    return f'<img alt="{html.escape(says)}" src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}">'
