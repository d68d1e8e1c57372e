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
from piano_jax.inference.prompts import piano_of
from piano_jax.music import Notes, read_midi, write_midi

APART, SHARE = 50, 0.9  # milliseconds by which notes of the same prompt may differ, and the share that must not


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
        notes = piano_of(dataset.vocabulary.decode(dataset[piece]))[0]
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


def read_folder(folder: Path, names: Sequence[str], prompts: Sequence[Notes]) -> list[Notes]:
    """The performances of a folder, of the piano alone. Raises BadInput: a file is missing, or of another prompt."""
    found = []
    for name, prompt in zip(names, prompts, strict=True):
        file = folder / f"{name}.mid"
        notes = piano_of(read_midi(file))[0]
        if not is_prompt(notes, prompt):
            raise BadInput(f"{file}: another prompt, for it does not begin as prompt {name} does")
        found.append(notes)
    return found


def is_prompt(notes: Notes, prompt: Notes) -> bool:
    """Whether notes begin as a prompt does: up to its last onset, nine of ten of each have one of the other's there."""
    begun = notes[: np.searchsorted(notes.onset, prompt.onset[-1])]  # what comes then may be of a continuation
    return min(_matched(begun, prompt), _matched(prompt, notes)) >= SHARE


def _matched(notes: Notes, by: Notes) -> float:
    """The share of notes for which there is another of the same pitch, with an onset at most APART ms away."""
    if not len(notes):
        return 1.0
    far = 1 << 32  # more than any onset
    key, there = (x.pitch.astype(np.int64) * far + x.onset for x in (notes, by))
    there = np.concatenate([[-far], np.sort(there), [1 << 62]])
    at = np.searchsorted(there, key)
    return float((np.minimum(key - there[at - 1], there[at] - key) <= APART).mean())
