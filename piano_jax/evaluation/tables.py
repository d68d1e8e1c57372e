"""What is said of likelihood: figures of all pieces and of each label, printed, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Shaped

from piano_jax.evaluation.likelihood import Figure, Figures, Tally, more, per
from piano_jax.music.vocabulary import CLASSES

LABELS = 12  # of a column, those of most pieces, that are printed


class Part(NamedTuple):
    """Some of the pieces: how many of how many compositions, their notes and seconds, and the figures by model."""

    pieces: int
    compositions: int
    notes: int
    seconds: float
    figures: dict[str, Figures]


class Report(NamedTuple):
    """The figures of all pieces, and by column those of each label, the label of most pieces first.

    `more` is what each model but the last has more of nats a token than the last.
    """

    whole: Part
    labels: dict[str, dict[str, Part]]
    more: dict[str, Figure]


def report(
    tallies: Mapping[str, Tally],
    seconds: Float[np.ndarray, "N"],
    groups: Int64[np.ndarray, "N"],
    labels: Mapping[str, Shaped[np.ndarray, "N"]],
) -> Report:
    """The report of tallies of the same pieces, with their lengths, compositions and labels by column; "" is none."""

    def part(of: np.ndarray) -> Part:
        parts = {name: tally.part(of) for name, tally in tallies.items()}
        notes = int(next(iter(parts.values())).sums[:, CLASSES.index("note"), 0].sum())
        figures = {name: per(tally, seconds[of], groups[of]) for name, tally in parts.items()}
        return Part(len(of), len(np.unique(groups[of])), notes, float(seconds[of].sum()), figures)

    by_label: dict[str, dict[str, Part]] = {}
    for column, values in labels.items():
        names, counts = np.unique(values[values != ""], return_counts=True)
        in_order = names[np.argsort(-counts, kind="stable")]
        by_label[column] = {str(name): part(np.flatnonzero(values == name)) for name in in_order}
    *others, last = tallies
    return Report(
        part(np.arange(len(seconds))), by_label, {name: more(tallies[name], tallies[last], groups) for name in others}
    )


def printed(report: Report) -> str:
    """The report as text, nats with their 95 % intervals."""
    whole = report.whole
    models, rows = list(whole.figures), list(next(iter(whole.figures.values())))
    titles = {"note": "note, with all its tokens", "second": "second of music", "calibration": "calibration error, %"}
    titles |= {"accuracy": "accuracy, %"} | {row: f"  {row[6:]}" for row in rows if row.startswith("token/")}

    def line(title: str, part: Part, row: str) -> str:
        scale = 100 if row in ("accuracy", "calibration") else 1
        cells = ([scale * x for x in part.figures[model][row]] for model in models)
        is_one = part.compositions == 1  # which tells nothing of how much others differ
        texts = (f"{value:.3f}" + ("" if is_one else f" ({low:.3f} to {high:.3f})") for value, low, high in cells)
        return f"{title:28}" + "".join(f"{text:>30}" for text in texts)

    of = f"{whole.pieces:,} pieces of {whole.compositions:,} compositions, {whole.notes:,} notes"
    lines = [f"{of}, {whole.seconds / 3600:.2f} h of music"]
    lines.append(f"{'nats a':28}" + "".join(f"{model[-28:]:>30}" for model in models))
    lines += [line(titles.get(row, row), whole, row) for row in rows]
    if report.more:
        cells = "".join(f"{value:.3f} ({low:.3f} to {high:.3f})".rjust(30) for value, low, high in report.more.values())
        lines.append(f"{f'token, more than {models[-1]}':28.28}{cells}")
    for column, parts in report.labels.items():
        lines += [f"nats a token by {column}"] if parts else []
        for label, part in list(parts.items())[:LABELS]:
            lines.append(line(f"  {label[:18]:18} {part.pieces:6,}", part, "token"))
        if len(parts) > LABELS:
            lines.append(f"  and {len(parts) - LABELS:,} more, of fewer pieces, in likelihood.csv")
    return "\n".join(lines)


def as_csv(report: Report) -> bytes:
    """A line for each figure of each model, of all pieces (no column and label) and of each label."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["column", "label", "pieces", "compositions", "model", "figure", "value", "low", "high"])
    parts = [("", "", report.whole)]
    parts += [(column, label, part) for column, of in report.labels.items() for label, part in of.items()]
    for column, label, part in parts:
        for model, figures in part.figures.items():
            for name, figure in figures.items():
                table.writerow([column, label, part.pieces, part.compositions, model, name, *figure])
    return text.getvalue().encode()


def as_json(about: dict, report: Report, tallies: Mapping[str, Tally]) -> bytes:
    """All of the report, what it is about, and the bins of confidence: tokens, summed confidence, hits."""

    def part(of: Part) -> dict:
        figures = {
            model: {name: figure._asdict() for name, figure in found.items()} for model, found in of.figures.items()
        }
        return of._asdict() | {"figures": figures}

    bins = {
        name: {"all": tally.bins.sum(0).tolist()} | dict(zip(CLASSES, tally.bins_of_class.tolist(), strict=True))
        for name, tally in tallies.items()
    }
    labels = {column: {label: part(of) for label, of in parts.items()} for column, parts in report.labels.items()}
    apart = {name: figure._asdict() for name, figure in report.more.items()}
    whole = about | part(report.whole) | {"more nats a token than the last": apart, "labels": labels, "bins": bins}
    return (json.dumps(whole, indent=1) + "\n").encode()
