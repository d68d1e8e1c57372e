"""Speed of reading and encoding MIDI files on one core, beside the authors' tokenizer.

    python -m tests.benchmarks.tokenizing --midi FOLDER [--files 200] [--authors CHECKOUT]

CHECKOUT is one of the authors' aria-utils, whose needs (mido among them) must be installed.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from piano_jax.music import Vocabulary, read_midi


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--midi", required=True, type=Path, help="a folder, searched recursively")
    parser.add_argument("--files", type=int, default=200, help="how many of its files, drawn at random")
    parser.add_argument("--authors", help="a checkout of aria-utils")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    paths = sorted(options.midi.rglob("*.mid"))
    paths = random.Random(0).sample(paths, min(options.files, len(paths)))

    vocabulary = Vocabulary("aria")
    ours = measure("piano_jax", lambda path: vocabulary.encode(read_midi(path)), paths)
    if options.authors:
        sys.path.append(options.authors)
        from ariautils.midi import MidiDict
        from ariautils.tokenizer import AbsTokenizer

        tokenizer = AbsTokenizer()

        def encode(path: Path) -> list[int]:
            return tokenizer.encode(tokenizer.tokenize(MidiDict.from_midi(path)))

        print(f"ratio of times {measure('authors', encode, paths) / ours:.1f}")


def measure(name: str, encode: Callable, paths: list[Path]) -> float:
    """Prints the speed of an encoder and returns its seconds."""
    encode(paths[0])  # to warm up
    start = time.perf_counter()
    tokens = sum(len(encode(path)) for path in paths)
    seconds = time.perf_counter() - start
    print(f"{name:10} {len(paths) / seconds:8.1f} files/s {tokens / seconds:12,.0f} tokens/s")
    return seconds


if __name__ == "__main__":
    main()
