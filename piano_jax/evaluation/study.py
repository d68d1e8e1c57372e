"""A listening study: blind pairs of continuations as a folder for listeners, with the key to them beside it.

Listeners get sound of one instrument and the same prompt on both sides, and a picture in which times and velocities are
coarser than any system's; so nothing but the music tells one system from another.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from piano_jax import BadInput, write_whole
from piano_jax.command import progress
from piano_jax.data.shards import new_folder
from piano_jax.data.sources import open_source
from piano_jax.evaluation.openings import after_prompt
from piano_jax.inference import audio, tone
from piano_jax.music import Notes, read_midi, write_midi
from piano_jax.music.notes import PIANO

LISTEN, AUDIO, KEY = "listen", "audio", "key.json"
SIDES = ("A", "B")
LOUDNESS, PEAK = 0.07, 0.9  # of full scale: 23 dB below it, and what no sample exceeds
TICK, SHADE = 20, 16  # milliseconds and steps of velocity that the page's picture tells apart


class Pair(NamedTuple):
    """A prompt, and the systems whose continuations stand on each side."""

    prompt: str
    systems: tuple[str, str]


class Piece(NamedTuple):
    """A continuation with its prompt, which is the same for all systems."""

    prompt: Notes
    new: Notes


class Music(NamedTuple):
    """What a study is made of: pieces by system and prompt, the names of the prompts, and a digest of it all."""

    pieces: dict[tuple[str, str], Piece]
    prompts: list[str]
    digest: bytes


def read_music(systems: Mapping[str, str], prompts: str, prompt_seconds: float, seconds: float) -> Music:
    """What each system plays after the first `prompt_seconds` of each file, `seconds` long at most.

    Raises:
        BadInput: a file cannot be read or is not MIDI, continues another prompt or none, or is not there for every
            system.
    """
    opened = {name: (path, _notes(path, data)) for name, (path, data) in _contents(prompts).items()}
    digest, pieces = hashlib.sha256(), {}
    for system, folder in systems.items():
        played = _contents(folder)
        for name in sorted(opened.keys() ^ played.keys())[:1]:
            lacks, has = (folder, prompts) if name in opened else (prompts, folder)
            common = "" if opened.keys() & played.keys() else "; they have no name in common"
            raise BadInput(f"{lacks}: no {name}.mid, which {has} has{common}")
        for name, (path, data) in played.items():
            digest.update(data)
            prompt, notes = opened[name][1], _notes(path, data)
            try:
                new = after_prompt(notes, prompt, prompt_seconds)
            except BadInput as error:
                raise BadInput(f"{path}: {error} ({opened[name][0]})") from error
            end = 1000 * (prompt_seconds + seconds)
            pieces[system, name] = Piece(_before(prompt, 1000 * prompt_seconds, end), _before(new, end, end))
    return Music(pieces, sorted(opened), digest.digest())


def make_study(
    music: Music, systems: Sequence[str], out: Path, each: int, soundfont: str | None, seed: int, about: Mapping
) -> tuple[int, float]:
    """Makes `out`, of LISTEN and KEY, with `each` pairs for every two systems; returns how many pairs there are, and
    the minutes that they sound. `about` is what else the key says; its `prompt_seconds` the page shows.

    Raises:
        BadInput: `out` is there already, or there are fewer than `each` prompts.
    """
    if each > len(music.prompts):
        raise BadInput(
            f"{each:,} pairs of every two systems need as many prompts, and there are {len(music.prompts):,}"
        )
    # The music is part of the seed, or else whoever knows the command would know the sides.
    rng = np.random.default_rng([seed, int.from_bytes(music.digest[:16])])
    pairs = draw_pairs(systems, music.prompts, each, rng)
    listed = [
        {"pair": number, "prompt": pair.prompt} | dict(zip(SIDES, pair.systems, strict=True))
        for number, pair in enumerate(pairs, 1)
    ]
    study = hashlib.sha256(music.digest + json.dumps(listed).encode()).hexdigest()[:12]
    with new_folder(out) as folder:
        (folder / LISTEN / AUDIO).mkdir(parents=True)
        laid, minutes = [], 0.0
        for number, pair in enumerate(progress(pairs, len(pairs), "pairs"), 1):
            sides = [music.pieces[system, pair.prompt] for system in pair.systems]
            sounds = level([_sound(piece, soundfont) for piece in sides])
            files = [f"{AUDIO}/{number:03d}{side}.wav" for side in SIDES]
            for file, sound in zip(files, sounds, strict=True):
                write_whole(folder / LISTEN / file, audio.wav(sound, tone.RATE))
            drawn = [{"audio": file, "notes": _drawn(piece.new)} for file, piece in zip(files, sides, strict=True)]
            lengths = [len(sound) / tone.RATE for sound in sounds]
            laid.append({"end": round(max(lengths), 2), "prompt": _drawn(sides[0].prompt), "sides": drawn})
            minutes += sum(lengths) / 60
        page = {"id": study, "prompt": about["prompt_seconds"], "tick": TICK / 1000, "minutes": round(minutes)}
        write_whole(folder / LISTEN / "index.html", page_of(page | {"pairs": laid}).encode())
        write_whole(folder / KEY, (json.dumps({"study": study, **about, "pairs": listed}, indent=1) + "\n").encode())
    return len(pairs), minutes


def draw_pairs(systems: Sequence[str], prompts: Sequence[str], each: int, rng: np.random.Generator) -> list[Pair]:
    """As many pairs of every two systems, whatever part of the study a listener hears first; each system of two is as
    often on one side as on the other, or once more; and a prompt comes again only when all others came, and never for
    the same two systems."""
    every_two = list(itertools.combinations(systems, 2))
    deck = rng.permutation(len(prompts))
    dealt = deck[np.arange(len(every_two) * each).reshape(-1, each) % len(prompts)]
    swapped = (rng.permuted(np.tile(np.arange(each), (len(every_two), 1)), axis=1) + rng.integers(2)) % 2
    return [
        Pair(prompts[dealt[two, turn]], every_two[two][:: -1 if swapped[two, turn] else 1])
        for turn in range(each)
        for two in rng.permutation(len(every_two)).tolist()
    ]


def level(sounds: Sequence[Float[np.ndarray, "_"]]) -> list[Float[np.ndarray, "_"]]:
    """Sounds scaled to one loudness (`audio.loudness`): LOUDNESS, or less where a sample would exceed PEAK."""
    loud = [max(audio.loudness(sound, tone.RATE), 1e-9) for sound in sounds]
    most = [PEAK / max(float(np.abs(sound).max(initial=0)), 1e-9) for sound in sounds]
    common = min(LOUDNESS, *(peak * rms for peak, rms in zip(most, loud, strict=True)))
    return [sound * (common / rms) for sound, rms in zip(sounds, loud, strict=True)]


def page_of(data: Mapping) -> str:
    """The page with its data in it, for a page on disk may not read another file."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return Path(__file__).with_name("study.html").read_text("utf-8").replace("{study}", text, 1)


def _contents(folder: str) -> dict[str, tuple[str, bytes]]:
    """The MIDI files of a folder: path and content by the name without suffix. Raises BadInput."""
    source, found = open_source(folder), {}
    for path, content in source.read():
        if isinstance(content, str):
            raise BadInput(f"{folder}/{path}: {content}")
        found[str(PurePosixPath(source.relative(path)).with_suffix(""))] = f"{folder}/{path}", content
    return found


def _notes(path: str, data: bytes) -> Notes:
    try:
        return read_midi(data)
    except BadInput as error:
        raise BadInput(f"{path}: {str(error).removeprefix('MIDI data: ')}") from error


def _before(notes: Notes, begun: float, end: float) -> Notes:
    """The piano's notes that begin before one time, sounding until another at the latest, in milliseconds."""
    kept = (notes.onset < begun) & (notes.instrument == PIANO)
    length = np.minimum(notes.duration, np.ceil(end - notes.onset))[kept]
    return Notes(notes.onset[kept], length, notes.pitch[kept], notes.velocity[kept])


def _sound(piece: Piece, soundfont: str | None) -> Float[np.ndarray, "S"]:
    """Samples of a piece, `tone.RATE` a second: of durations, without pedal, which not all systems play."""
    onset, duration, pitch, velocity = (
        np.concatenate([getattr(notes, name) for notes in piece]) for name in ("onset", "duration", "pitch", "velocity")
    )
    whole = Notes(onset, duration, pitch, velocity)
    if soundfont is None:
        return tone.play_tone(whole)
    from scipy.signal import resample_poly

    with tempfile.TemporaryDirectory() as folder:
        write_midi(whole, Path(folder) / "piece.mid")
        stereo = audio.play(Path(folder) / "piece.mid", whole.seconds, soundfont)
    return resample_poly(stereo.mean(1), tone.RATE, audio.RATE)


def _drawn(notes: Notes) -> list[int]:
    """Start and end in TICKs, pitch and shade of each note in turn."""
    # Rounded down: to the nearest even, as rint does, would tell a system of 10 ms steps from one without.
    start, end = notes.onset // TICK, (notes.onset + notes.duration) // TICK
    return np.stack([start, end, notes.pitch, notes.velocity // SHADE], axis=1).reshape(-1).tolist()
