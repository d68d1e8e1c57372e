"""`python -m piano_jax.generate`: continues a MIDI file."""

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int32

from piano_jax import BadInput, write_whole
from piano_jax.command import Parser, progress, run
from piano_jax.evaluation.plots import plot_piano_roll
from piano_jax.inference.audio import read_soundfont, render
from piano_jax.inference.prompts import continued, prompt_of, read_embedding
from piano_jax.music import Notes, Vocabulary, read_midi, write_midi
from piano_jax.music.notes import INSTRUMENTS, PIANO
from piano_jax.music.vocabulary import SEGMENT

EPILOG = """\
examples:
  python -m piano_jax.generate --checkpoint runs/mine --prompt piece.mid --out continued
  python -m piano_jax.generate --checkpoint runs/mine --prompt piece.mid --out continued --end --variations 8 --seed 1

For each variation the folder gets 1.mid (prompt and continuation), 1.png (a piano roll), with --only-new 1-new.mid,
with --wav 1.wav; and continuations.json says what was asked, and each token with its log-probability. The same seed
gives the same files. Beyond the model's context, decoding goes on from the last half of that.
"""


def parser() -> Parser:
    parser = Parser(
        prog="piano_jax.generate",
        description="Continues a piano performance, as a trained model would.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a work directory (its newest step) or one step's folder")
    add("--prompt", required=True, metavar="FILE.mid", help="what to continue")
    add("--out", required=True, metavar="DIR", type=Path, help="folder to make; must be empty or not exist")
    add("--prompt-seconds", type=float, default=15.0, help="how much of it, from its first note (default: %(default)s)")
    add("--variations", type=int, default=4, help="how many continuations (default: %(default)s)")
    add("--tokens", type=int, default=2048, help="the longest continuation; a note is three (default: %(default)s)")
    add("--temperature", type=float, default=0.98, help="0 takes the likeliest token (default: %(default)s)")
    add("--min-p", type=float, default=0.035, help="cuts tokens less likely than this share of the likeliest")
    add("--top-p", type=float, default=1.0, help="keeps the likeliest tokens that make up this share of all")
    add("--top-k", type=int, default=0, help="keeps this many of the likeliest tokens (0: all)")
    add("--end", action="store_true", help="asks for an ending within --tokens")
    add("--seed", type=int, default=0, help="another seed, other continuations (default: %(default)s)")
    add("--embedding", metavar="FILE.npz[:PATH]", help="what to sound like: an embedding that embed wrote")
    add("--guidance", type=float, default=1.0, help="how strongly --embedding pulls (default: %(default)s)")
    add("--no-grammar", action="store_true", help="lets the model err, as in a note without its onset")
    add("--only-new", action="store_true", help="also writes the continuation alone")
    add("--wav", action="store_true", help="also renders audio, with --soundfont")
    add("--soundfont", metavar="FILE.sf2", help="the piano that --wav plays")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    complain = (of := parser()).error
    options = of.parse_args(arguments)
    for name in ("variations", "tokens"):
        if getattr(options, name) < 1:
            complain(f"argument --{name}: must be positive, not {getattr(options, name)}")
    if options.prompt_seconds < 0 or not 0 <= options.seed < 1 << 32 or not 0 <= options.guidance <= 10:
        complain("--prompt-seconds must not be negative, --seed be below 2^32, --guidance between 0 and 10")
    if options.wav != bool(options.soundfont):
        complain("--wav and --soundfont FILE.sf2 go together")

    # Only now, for --help and complaints about arguments need no jax.
    import jax

    from piano_jax.data.shards import new_folder
    from piano_jax.inference.decoding import Decoder
    from piano_jax.inference.sampling import Sampling
    from piano_jax.learning.checkpoints import read_model
    from piano_jax.model.mesh import make_mesh

    sampling = Sampling(temperature=options.temperature, min_p=options.min_p, top_p=options.top_p, top_k=options.top_k)
    if options.wav:
        read_soundfont(options.soundfont)
    embedding = read_embedding(options.embedding) if options.embedding else None
    notes = read_prompt(options.prompt)
    if others := [INSTRUMENTS[index] for index in np.unique(notes.instrument[notes.instrument != PIANO])]:
        print(f"{options.prompt}: continues the piano alone, without {', '.join(others)}")
        notes = notes.piano
    mesh = make_mesh()
    with new_folder(options.out) as folder, jax.set_mesh(mesh):
        model, config = read_model(options.checkpoint, mesh)
        vocabulary = Vocabulary(config.vocabulary)
        decoder = Decoder(model, vocabulary, rules=not options.no_grammar)
        if embedding is not None and model.config.head_size != len(embedding):
            takes = f"embeddings of size {model.config.head_size}" if model.config.head_size else "no embedding"
            raise BadInput(f"{options.embedding}: of size {len(embedding)}, and {options.checkpoint} takes {takes}")
        prompt = prompt_of(notes, vocabulary, options.prompt_seconds)
        if len(prompt) == len(prompt_of(notes, vocabulary, 0.0)):
            print(f"{options.prompt}: no notes to continue, so the continuations start from nothing")
        if len(prompt) > model.config.context:
            print(
                f"{options.prompt}: {len(prompt):,} tokens, of which the model hears the last; its context is shorter"
            )
        asked = [prompt], options.tokens, options.variations, sampling, options.seed, options.end
        given = None if embedding is None else embedding[None]
        bursts = follow(decoder.decode(*asked, given, options.guidance), vocabulary, options)
        tokens, likelihoods = (np.concatenate(parts, 1) for parts in zip(*bursts, strict=True))
        write(folder, options, vocabulary, prompt, tokens, likelihoods)
    print(f"{options.out}: {options.variations} continuations of {options.prompt}")
    return 0


def read_prompt(path: str) -> Notes:
    """The notes of a file, which may be none. Raises BadInput."""
    try:
        return read_midi(path)
    except BadInput as error:
        if not str(error).endswith(": no notes"):
            raise
        return Notes([], [], [], [])


def follow(bursts: Iterable, vocabulary: Vocabulary, options: argparse.Namespace) -> list:
    """All that a decoder yields, with its progress in tokens of all variations and in seconds of music."""
    kept, segments = [], 0.0

    def each() -> Iterator[None]:
        nonlocal segments
        for burst in bursts:
            kept.append(burst)
            segments += (burst[0] == vocabulary.time).sum(1).mean()
            yield from itertools.repeat(None, burst[0].size)

    total = options.tokens * options.variations
    for _ in progress(each(), total, "tokens", note=lambda: f"{segments * SEGMENT / 1000:.0f} s of music"):
        pass
    return kept


def write(
    folder: Path,
    options: argparse.Namespace,
    vocabulary: Vocabulary,
    prompt: Int32[np.ndarray, "T"],
    tokens: Int32[np.ndarray, "R N"],
    likelihoods: Float[np.ndarray, "R N"],
) -> None:
    """Fills the folder that `generate` leaves."""
    asked = {name: value for name, value in vars(options).items() if name != "out"}
    said = {"asked": asked, "vocabulary": vocabulary.name, "prompt": prompt.tolist(), "continuations": []}
    for number, (ids, nats) in enumerate(zip(tokens, likelihoods, strict=True), 1):
        length = int(np.argmax(np.append(ids, vocabulary.pad) == vocabulary.pad))
        ids, nats = ids[:length], nats[:length]
        whole, new = continued(prompt, ids, vocabulary)
        write_midi(whole, folder / f"{number}.mid")
        write_whole(folder / f"{number}.png", plot_piano_roll(vocabulary.decode(prompt), new, whole.pedal))
        if options.only_new:
            write_midi(new, folder / f"{number}-new.mid")
        if options.wav:
            write_whole(folder / f"{number}.wav", render(folder / f"{number}.mid", whole.seconds, options.soundfont))
        forced = [None if np.isnan(nat) else round(float(nat), 4) for nat in nats]
        said["continuations"].append(
            {
                "file": f"{number}.mid",
                "seconds": round(new.seconds, 3),
                "notes": len(new),
                "has_ended": bool(length and ids[-1] == vocabulary.end),
                "tokens": ids.tolist(),
                "log_probabilities": forced,
            }
        )
    write_whole(folder / "continuations.json", (json.dumps(said) + "\n").encode())


if __name__ == "__main__":
    run(main)
