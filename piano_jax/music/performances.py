"""Licence-free piano performances for smoke runs: composed by rule in six styles, then played with expression."""

import csv
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

from piano_jax import BadInput
from piano_jax.command import Parser, run
from piano_jax.music.composition import MANNERS, MELODY, STYLES, Score, compose
from piano_jax.music.midi import write_midi
from piano_jax.music.notes import Notes


def clock(score: Score, rng: Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Milliseconds at a beat: phrases that arch and slow at their ends, a wandering tempo, a final ritardando."""
    rubato, start = MANNERS[score.style].rubato, score.phrases
    grid = np.arange(0, (score.beat + score.length).max() + 1, 0.25)
    place = grid % start[1] / start[1]
    strays = rng.normal(0, 0.4, int(grid[-1]) // 2 + 2)
    wander = np.interp(grid, 2 * np.arange(len(strays)), strays)
    speed = 1 + rubato * (4 * place * (1 - place) - 0.67 + wander - 2 * np.clip(8 * place - 7, 0, 1) ** 2)
    speed *= 1 - 0.4 * np.clip((grid - start[-1]) / 4 + 1, 0, 1) ** 2
    pulse = 60_000 / (score.bpm * np.clip(rng.normal(1, 0.04), 0.9, 1.1))
    time = np.append(0, np.cumsum(0.25 * pulse / speed[:-1]))
    return functools.partial(np.interp, xp=grid, fp=time)


def perform(score: Score, take: int = 0) -> Notes:
    """Plays a composition; each take is another interpretation. Durations are the keys', before the pedal."""
    manner, beat, size = MANNERS[score.style], score.beat, len(score.beat)
    rng = default_rng([take, STYLES.index(score.style), size, int(score.pitch.sum())])
    time, even = clock(score, rng), np.linspace(0, manner.groove[-1], len(manner.groove))

    def played(at):
        within = at % even[-1]
        return time(at - within + np.interp(within, even, manner.groove))

    first = np.searchsorted(beat, beat)  # of the notes struck together, from the lowest up
    spread = rng.uniform(0, 9, size)[first] * (np.arange(size) - first)
    lead = rng.uniform(5, 25) * (score.voice == MELODY)
    onset = played(beat) + spread - lead + rng.normal(0, 4, size)
    held = played(beat + score.length) - played(beat)
    release = onset + held * (np.array(manner.legato)[score.voice] + rng.normal(0, 0.06, size))

    number, place = np.divmod(beat / score.phrases[1], 1)
    letters, section = np.unique(list(score.form + score.form[-1]), return_inverse=True)
    mood = rng.normal(0, 5, len(letters))[section] + rng.normal(0, 3, len(section))
    accent = 5 * (beat % manner.meter == 0) + 3 * (beat % 1 == 0) + 0.25 * (score.pitch - 60)
    velocity = manner.velocity + mood[number.astype(int)] + 20 * (4 * place * (1 - place) - 0.67) + accent
    velocity += np.array([9, -6, 0])[score.voice] + rng.normal(0, 3, size)

    zero, order = onset.min(), np.lexsort((onset, score.pitch))
    again = np.append(np.diff(score.pitch[order]) == 0, False)  # a key is let go before it is struck again
    release[order] = np.where(again, np.minimum(release[order], np.roll(onset[order], -1) - 15), release[order])
    onset, release = np.rint(onset - zero), np.rint(release - zero)

    change = played(np.append(score.harmony, (beat + score.length).max())) - zero
    pedal = np.c_[change[:-1] + rng.uniform(50, 110, len(change) - 1), change[1:] + rng.uniform(0, 30, len(change) - 1)]
    pedal = np.rint(pedal[rng.random(len(pedal)) < manner.pedal])
    order = np.lexsort((score.pitch, onset))
    duration, velocity = np.maximum(release - onset, 1), np.clip(np.rint(velocity), 1, 127)
    return Notes(*(column[order] for column in (onset, duration, score.pitch, velocity)), pedal=pedal)


def performance(seed: int, style: str | None = None, take: int = 0) -> Notes:
    """A performance of composition `seed` in a style (or one the seed chooses), 30 to 120 seconds long."""
    return perform(compose(seed, style or STYLES[default_rng(seed).integers(len(STYLES))]), take)


# Writing.


def generate_corpus(out: Path, minutes: float | int, seed: int = 0) -> tuple[int, float]:
    """Writes `minutes` of performances or a little more, two of each composition, and manifest.csv last.

    Returns how many files there are, and how many minutes. The folder appears under its name only when whole.

    Raises:
        BadInput: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out}: exists and is not an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        draft, table, made = Path(folder) / "corpus", [], 0.0
        draft.mkdir()
        while made < minutes:
            turn, style = divmod(len(table), len(STYLES))
            piece, take = divmod(turn, 2)
            entropy = SeedSequence([seed, piece]).generate_state(1)[0]
            notes = performance(int(entropy), STYLES[style], take)
            table.append((f"{STYLES[style]}_{turn:03d}.mid", STYLES[style], f"{STYLES[style]}_{piece:03d}"))
            write_midi(notes, draft / table[-1][0])
            made += notes.seconds / 60
        with (draft / "manifest.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "style", "piece_id"), *table])
        draft.replace(out)
    return len(table), made


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="piano_jax.music.performances", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must be empty or not exist")
    parser.add_argument("--minutes", type=float, default=10, help="how much music (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pieces (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < 1e6:
        parser.error(f"argument --minutes: must be positive and below a million, not {options.minutes:g}")
    if options.seed < 0:
        parser.error(f"argument --seed: must not be negative, not {options.seed}")
    count, minutes = generate_corpus(options.out, options.minutes, options.seed)
    print(f"{options.out}: {count} performances, {minutes:.1f} minutes, manifest.csv")


if __name__ == "__main__":
    run(main)
