"""Prompts from pieces, and the folders that prompts and continuations are kept in.

OUT/prompts/NAME.mid is a prompt, OUT/SYSTEM/NAME.mid the prompt and its continuation. What is judged is what is read
from these files, so that a folder of MIDI made elsewhere is judged as all others are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from piano_jax import BadInput, write_whole
from piano_jax.data.rows import permutation
from piano_jax.data.shards import Dataset
from piano_jax.evaluation.openings import after_prompt
from piano_jax.music import Notes, read_midi, write_midi

TRUTH, OTHER, PROMPTS = "truth", "other", "prompts"  # folders of how pieces do go on, of how others do, and of prompts


class Prompts(NamedTuple):
    """Prompts, and the performances that they begin: names, pieces of the dataset, and both as notes from 0 ms on."""

    names: list[str]
    pieces: Int64[np.ndarray, "N"]
    prompts: list[Notes]
    whole: list[Notes]


def draw_prompts(
    dataset: Dataset,
    split: str,
    compositions: Shaped[np.ndarray, "M"],
    count: int,
    prompt_seconds: float,
    seconds: float,
    seed: int,
) -> Prompts:
    """The beginnings of pieces drawn from a split, one of each composition, that go on for `seconds` or longer.

    `compositions` are those of all pieces. There may be fewer than `count`. Raises BadInput where there are not two.
    """
    pieces, length = dataset.split(split), prompt_seconds + seconds
    pieces = pieces[permutation(len(pieces), seed)]
    found: dict[str, tuple[int, Notes]] = {}
    for piece in pieces[dataset.seconds[pieces] >= length]:
        if len(found) == count:
            break
        notes = dataset.vocabulary.decode(dataset[piece]).piano
        if notes.seconds >= length:  # the piano's
            found.setdefault(str(compositions[piece]), (int(piece), starting_at_0(notes)))
    if len(found) < 2:
        longest = f"; the longest piece has {dataset.seconds[pieces].max():.0f} s" if len(pieces) else ""
        raise BadInput(
            f"{dataset.path}: split {split} has no two compositions of {prompt_seconds:g} s to continue and "
            f"{seconds:g} s that follow{longest}"
        )
    drawn, performances = zip(*found.values(), strict=True)
    whole = [notes[: np.searchsorted(notes.onset, 1000 * length)] for notes in performances]
    prompts = [notes[: np.searchsorted(notes.onset, 1000 * prompt_seconds)] for notes in whole]
    digits = max(3, len(str(len(drawn))))
    return Prompts([f"{number:0{digits}}" for number in range(1, len(drawn) + 1)], np.array(drawn), prompts, whole)


def starting_at_0(notes: Notes, zero: int | None = None) -> Notes:
    """Notes whose time begins at the first of them, or at `zero` ms."""
    zero = int(notes.onset[0]) if zero is None else zero
    pedal = np.maximum(notes.pedal - zero, 0)
    columns = (notes.duration, notes.pitch, notes.velocity)
    return Notes(notes.onset - zero, *columns, pedal=pedal[pedal[:, 0] < pedal[:, 1]])


def continuation_of(notes: Notes, prompt_seconds: float, seconds: float) -> Notes:
    """The notes that begin in the `seconds` after the prompt; time begins where the prompt ends."""
    start, end = np.searchsorted(notes.onset, (1000 * prompt_seconds, 1000 * (prompt_seconds + seconds)))
    return starting_at_0(notes[start:end], round(1000 * prompt_seconds))


def spliced(prompt: Notes, other: Notes, prompt_seconds: float) -> Notes:
    """A prompt that goes on as another performance does after so many seconds."""
    cut = round(1000 * prompt_seconds)
    rest = other[np.searchsorted(other.onset, 1000 * prompt_seconds) :]
    columns = zip(*((x.onset, x.duration, x.pitch, x.velocity) for x in (prompt, rest)), strict=True)
    pedal = np.concatenate([np.minimum(prompt.pedal, cut), np.maximum(rest.pedal, cut)])
    return Notes(*map(np.concatenate, columns), pedal=pedal[pedal[:, 0] < pedal[:, 1]])


def others(prompts: Prompts, prompt_seconds: float) -> list[Notes]:
    """Each prompt with the next one's continuation."""
    return [
        spliced(prompt, other, prompt_seconds)
        for prompt, other in zip(prompts.prompts, [*prompts.whole[1:], prompts.whole[0]], strict=True)
    ]


def write_folder(
    folder: Path, names: Sequence[str], notes: Sequence[Notes], seconds: float, source: Path | None = None
) -> None:
    """Writes performances as far as their notes begin in the first so many seconds.

    Files of `source` that are no longer are copied, for a note that is struck again under the pedal has a length in
    the file that it has no more when it was read and written.
    """
    folder.mkdir()
    for name, of in zip(names, notes, strict=True):
        file = f"{name}.mid"
        if source and of.onset[-1] < 1000 * seconds:
            write_whole(folder / file, (source / file).read_bytes())
        else:
            write_midi(of[: np.searchsorted(of.onset, 1000 * seconds)], folder / file)


def read_folder(folder: Path, names: Sequence[str]) -> list[Notes]:
    """The performances of a folder, of the piano alone. Raises BadInput."""
    return [read_midi(folder / f"{name}.mid").piano for name in names]


def check_prompts(folder: Path, prompts: Prompts, found: Sequence[Notes], prompt_seconds: float) -> None:
    """Raises BadInput where what was found in a folder opens with another prompt, or ends with it."""
    for name, prompt, notes in zip(prompts.names, prompts.prompts, found, strict=True):
        try:
            after_prompt(notes, prompt, prompt_seconds)
        except BadInput as error:
            raise BadInput(f"{folder / name}.mid: {error}") from error
