"""Judging continuations without listeners: any number of systems that continue the same prompts, by numbers.

Two more stand beside them in every table: `truth`, how the pieces do go on, is the ceiling, and `other`, how some other
piece goes on, the floor. A figure of likeness to the prompt is told only if it has truth above a Markov model above
other, apart by more than their intervals, on 300 held-out performances. None had to be dropped.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Num

from piano_jax import BadInput
from piano_jax.command import progress
from piano_jax.evaluation.distances import frechet, pairwise, spread_alike
from piano_jax.evaluation.memorisation import Run, longest_runs
from piano_jax.evaluation.prompts import OTHER, PROMPTS, TRUTH
from piano_jax.evaluation.statistics import note_statistics
from piano_jax.music import Notes

RESAMPLES, HALVES = 1000, 100
JITTER = 10  # milliseconds by which times of a loop may differ: a step of the grid
FEATURES = {
    "pitch_class": "pitch class",
    "duration": "note length",
    "inter_onset": "inter-onset",
    "velocity": "velocity",
    "density": "density",
}


class Figure(NamedTuple):
    """What a column of the table holds, and with how many digits."""

    key: str
    title: str
    band: str
    digits: int = 3


SETS, AREAS, KL, LIKE, SHARES, ITSELF = (
    "all continuations against the true ones of other prompts: squared Fréchet distance, the less the better",
    "as different from true ones as those are among themselves: overlapping area, 1 is best",
    "the same as divergence (KL, nats): 0 is best",
    "each like its own prompt: cosine",
    "the same, from other, 0, to truth, 1",
    "each by itself: seconds, notes",
)
FIGURES = (
    Figure("frechet_embedding", "embeddings", SETS),
    Figure("frechet_statistics", "note statistics", SETS),
    *(Figure(f"area_{name}", title, AREAS) for name, title in FEATURES.items()),
    *(Figure(f"kl_{name}", title, KL) for name, title in FEATURES.items()),
    *(Figure(f"like_{name}", title, LIKE) for name, title in FEATURES.items()),
    Figure("like_statistics", "note statistics", LIKE),
    Figure("like_embedding", "embeddings", LIKE),
    *(Figure(f"share_{name}", title, SHARES) for name, title in FEATURES.items()),
    Figure("share_statistics", "note statistics", SHARES),
    Figure("share_embedding", "embeddings", SHARES),
    Figure("valid", "valid tokens", ITSELF, 4),
    Figure("silence", "longest silence", ITSELF, 2),
    Figure("loop", "longest loop", ITSELF, 1),
    Figure("copied", "longest run of training", ITSELF, 1),
)


class Estimate(NamedTuple):
    """A value, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What came out, for the page and for programs.

    Attributes:
        names: of the prompts.
        systems: in the order of the table: the truth, the systems, other.
        figures: by key of FIGURES, then by system; what was not measured is not there.
        values: each prompt's own, of figures that are means over prompts.
        histograms: by feature, then by system: the mean over continuations.
        runs: by system, each continuation's longest run that is also in training.
        training_names: of the training pieces, where they are known.
    """

    names: list[str]
    systems: list[str]
    figures: dict[str, dict[str, Estimate]]
    values: dict[str, dict[str, Float[np.ndarray, "N"]]]
    histograms: dict[str, dict[str, Float32[np.ndarray, "_"]]]
    runs: dict[str, list[Run]]
    training_names: list[str] | None = None

    def bands(self) -> list[tuple[str, list[str], dict[str, list[str]]]]:
        """The table in bands that a page holds: what each is about, titles of columns, and every system's cells."""
        bands = []
        for band in dict.fromkeys(figure.band for figure in FIGURES):
            columns = [figure for figure in FIGURES if figure.band == band and figure.key in self.figures]
            if columns:
                rows = [system for system in self.systems if any(system in self.figures[x.key] for x in columns)]
                cells = {system: [self._cell(column, system) for column in columns] for system in rows}
                bands.append((band, [column.title for column in columns], cells))
        return bands

    def piece(self, run: Run) -> str:
        """What to call the training piece of a run: its name, or else its number."""
        if run.piece is None:
            return ""
        return self.training_names[run.piece] if self.training_names else f"number {run.piece:,}"

    def _cell(self, figure: Figure, system: str) -> str:
        found = self.figures[figure.key].get(system)
        return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*found, d=figure.digits) if found else "–"

    def table(self) -> str:
        """The figures as text, a line for each system, with 95 % intervals over prompts."""
        lines = [f"{len(self.names):,} prompts, with [95 % intervals] over them"]
        wide = max(map(len, self.systems))
        for about, titles, rows in self.bands():
            widths = [
                max(len(title), *(len(cells[column]) for cells in rows.values())) for column, title in enumerate(titles)
            ]
            lines += ["", about]
            for name, cells in (("", titles), *rows.items()):
                parts = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
                lines.append(f"{name:{wide}}{parts}")
        return "\n".join(lines)


def judge(
    prompts: list[Notes],
    truth: list[Notes],
    systems: dict[str, list[Notes]],
    *,
    embed: Callable[[list[Notes]], Float32[np.ndarray, "N E"]] | None,
    training: Iterable[Notes] | None,
    names: list[str],
    valid: dict[str, Float[np.ndarray, "N"]] | None,
    seed: int,
    training_names: list[str] | None = None,
) -> Judgement:
    """Judges continuations, which are notes alone, with onsets in milliseconds from where their prompts end.

    All lists go along the prompts. `names` say what each is of: prompts of one name are never each other's `other`, and
    intervals keep them together. `embed` takes performances that have notes; what has none lies at the origin. `valid`
    holds, for the systems that made tokens, the share of each continuation's that the grammar allows. Without `embed`,
    `training` or `valid`, their figures are not there. `training_names` are what the page calls training pieces.

    What `other` is like is the mean over all continuations of other names; by itself, or as a set, it is the truth, and
    not told. Intervals of means are percentiles of a bootstrap over names. Figures of sets are means over 100 halvings
    of the names, of one half's continuations against the other half's true ones, and their intervals are percentiles
    over halvings (the jackknife that leaves out a half; Shao and Wu, 1989): so the truth has figures that are not
    perfect, which the best of systems would come to. They need four names.

    Raises:
        BadInput: there are not two names; or a system is called truth or other, or has not a continuation for each
            prompt.
    """
    if taken := {TRUTH, OTHER, PROMPTS}.intersection(systems):
        raise BadInput(f"{min(taken)}: no name for a system, for it means something else in the table")
    for system, continuations in (("names", names), (TRUTH, truth), *systems.items()):
        if len(continuations) != len(prompts):
            raise BadInput(f"{system}: {len(continuations)} continuations of {len(prompts)} prompts")
    if len(set(names)) < 2:
        raise BadInput(f"prompts of {len(set(names))} pieces: there is no other piece to compare with")
    groups = np.unique(np.array(names, str), return_inverse=True)[1]
    played = {TRUTH: truth, **systems}
    performances = {PROMPTS: prompts, **played}
    statistics = {system: _statistics(notes) for system, notes in performances.items()}
    vectors = {feature: {system: _unit(found[feature]) for system, found in statistics.items()} for feature in FEATURES}
    vectors["statistics"] = {
        system: _unit(np.sqrt(np.concatenate(list(found.values()), axis=1))) for system, found in statistics.items()
    }
    if embed is not None:
        vectors["embedding"] = _embedded(embed, performances)

    values = {
        f"like_{kind}": {system: (found[PROMPTS] * found[system]).sum(1) for system in played}
        | {OTHER: _like_others(found[PROMPTS] @ found[TRUTH].T, groups)}
        for kind, found in vectors.items()
    }
    if valid:
        values["valid"] = {system: np.asarray(valid[system], float) for system in played if system in valid}
    last = [int(notes.onset[-1]) if len(notes) else 0 for notes in truth]
    for system, found in played.items():
        silences = [longest_silence(notes, until) for notes, until in zip(found, last, strict=True)]
        values.setdefault("silence", {})[system] = np.array(silences)
        values.setdefault("loop", {})[system] = np.array([longest_loop(notes) for notes in found])
    runs: dict[str, list[Run]] = {}
    if training is not None:
        pieces = progress(training, len(training_names) if training_names else None, "training pieces")
        found = iter(longest_runs([notes for continuations in played.values() for notes in continuations], pieces))
        runs = {system: [next(found) for _ in prompts] for system in played}
        values["copied"] = {system: np.array([float(run.notes) for run in each]) for system, each in runs.items()}

    random = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    drawn = random.multinomial(count, np.full(count, 1 / count), RESAMPLES)[:, groups]
    figures = {}
    for key, by_system in values.items():
        figures[key] = {system: _mean(each, drawn) for system, each in by_system.items()}
        if key.startswith("like_"):
            figures[key.replace("like_", "share_")] = {
                system: _share(each, by_system[OTHER], by_system[TRUTH], drawn) for system, each in by_system.items()
            }
    if count >= 4:
        halves = [(random.permutation(count) < count // 2)[groups] for _ in range(HALVES)]
        figures |= _of_sets({system: statistics[system] for system in played}, vectors, halves)
    means = {feature: {system: statistics[system][feature].mean(0) for system in played} for feature in FEATURES}
    return Judgement(names, [*played, OTHER], figures, values, means, runs, training_names)


def longest_silence(notes: Notes, until: int) -> float:
    """Longest time in seconds, from the prompt's end to `until` (milliseconds), in which no note sounds."""
    ends = np.maximum.accumulate(np.append(0, notes.onset + notes.duration))
    starts = np.append(notes.onset, until)
    return float((starts - ends).max(initial=0)) / 1000


def longest_loop(notes: Notes) -> float:
    """How many notes, at most, only repeat those before them, over and over: the same pitches, in time to within 10 ms.

    A loop of p notes that is played k times, one right after the other, has p·(k - 1). People repeat themselves often,
    but not in time: performances have loops of a few notes.
    """
    order = np.lexsort((notes.pitch, notes.onset))
    pitch, onset = notes.pitch[order], notes.onset[order]
    gaps = np.diff(onset, prepend=onset[:1])
    longest = 0
    for period in range(1, len(pitch) // 2 + 1):
        same = pitch[period:] == pitch[:-period]
        timed = abs(gaps[period:] - gaps[:-period]) <= JITTER
        joined = same[1:] & same[:-1] & timed[1:]  # the first note's own gap is not the loop's
        broken = np.flatnonzero(np.concatenate([[True], ~joined, [True]]))
        repeated = int(np.diff(broken).max()) if same.any() else 0
        longest = max(longest, repeated) if repeated >= period else longest
    return float(longest)


def _statistics(performances: Sequence[Notes]) -> dict[str, Float32[np.ndarray, "N _"]]:
    found = [note_statistics(notes) for notes in performances]
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


def _like_others(alike: Float[np.ndarray, "N N"], groups: Int64[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """How much, on average, prompts are like true continuations of other groups; `alike` has a row for each prompt.

    The mean of the numbers is that of all pairs. Each is what a prompt and its continuation add to that, or else a
    resampling of them would take the other side as given (Hájek's projection).
    """
    apart = groups[:, None] != groups
    by_prompt, by_continuation = ((alike * apart).sum(axis) / apart.sum(axis) for axis in (1, 0))
    return by_prompt + by_continuation - by_continuation.mean()


def _embedded(embed: Callable, performances: dict[str, list[Notes]]) -> dict[str, Float64[np.ndarray, "N E"]]:
    """Embeddings of length 1, as contrastive learning compares them; of what has no notes, 0."""
    everything = [notes for each in performances.values() for notes in each]
    found = embed([notes for notes in everything if len(notes)])
    vectors = np.zeros((len(everything), found.shape[1]))
    vectors[[len(notes) > 0 for notes in everything]] = found
    parts = np.split(_unit(vectors), len(performances))
    return dict(zip(performances, parts, strict=True))


def _unit(vectors: Num[np.ndarray, "N E"]) -> Float64[np.ndarray, "N E"]:
    return vectors / np.maximum(np.linalg.norm(vectors.astype(float), axis=1, keepdims=True), 1e-12)


def _mean(values: Float[np.ndarray, "N"], drawn: Int64[np.ndarray, "R N"]) -> Estimate:
    return _over(drawn @ values / drawn.sum(1), values.mean())


def _share(
    values: Float[np.ndarray, "N"],
    floor: Float[np.ndarray, "N"],
    ceiling: Float[np.ndarray, "N"],
    drawn: Int64[np.ndarray, "R N"],
) -> Estimate:
    """How far the mean has come from the floor's to the ceiling's; not a number where these are the same."""
    weights = np.concatenate([np.ones((1, len(values))), drawn])
    whole = weights @ (ceiling - floor)
    value, *resampled = weights @ (values - floor) / np.where(abs(whole) > 1e-9 * len(values), whole, np.nan)
    return _over(resampled, value)


def _over(resampled: Sequence[float] | Float[np.ndarray, "R"], value: float | np.floating | None = None) -> Estimate:
    """An estimate, or else the mean of resampled ones, with their percentiles."""
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(float(np.mean(resampled) if value is None else value), float(low), float(high))


def _of_sets(
    statistics: dict[str, dict[str, Float32[np.ndarray, "N _"]]],
    vectors: dict[str, dict[str, Float[np.ndarray, "N _"]]],
    halves: Sequence[Bool[np.ndarray, "N"]],
) -> dict[str, dict[str, Estimate]]:
    """Figures of one half's continuations against the other half's true ones, over halvings."""
    kinds = [kind for kind in vectors if kind not in FEATURES]
    true = statistics[TRUTH]
    between = {
        system: {feature: pairwise(found[feature], true[feature]) for feature in FEATURES}
        for system, found in statistics.items()
    }
    each: dict[str, dict[str, list[float]]] = {}
    for half in progress(halves, len(halves), "halvings"):
        rest = np.flatnonzero(~half)
        one, another = (rest[corner] for corner in np.triu_indices(len(rest), 1))
        for system in statistics:
            found = {
                f"frechet_{kind}": frechet(vectors[kind][system][half], vectors[kind][TRUTH][~half]) for kind in kinds
            }
            for feature in FEATURES:
                apart = between[system][feature][half][:, ~half].ravel()
                found[f"area_{feature}"], found[f"kl_{feature}"] = spread_alike(
                    between[TRUTH][feature][one, another], apart
                )
            for key, value in found.items():
                each.setdefault(key, {}).setdefault(system, []).append(value)
    return {key: {system: _over(found) for system, found in by_system.items()} for key, by_system in each.items()}
