"""Speed of reading and encoding MIDI files on one core, beside the authors' tokenizer where it can be imported.

    PYTHONPATH=. python tests/benchmarks/tokenizing.py --midi PATH [--files 200]

The authors' code is `ariautils` (with `mido`); put a checkout of it on PYTHONPATH to have the ratio.
"""

import argparse
import os
import random
import time
from pathlib import Path

from piano_jax.music import Vocabulary, read_midi

try:
    from ariautils.midi import MidiDict
    from ariautils.tokenizer import AbsTokenizer
except ImportError:
    MidiDict = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--midi", required=True, type=Path, help="a folder, searched recursively")
    parser.add_argument("--files", type=int, default=200, help="how many of its files, drawn at random")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    paths = sorted(options.midi.rglob("*.mid"))
    paths = random.Random(0).sample(paths, min(options.files, len(paths)))
    vocabulary = Vocabulary("aria")
    encoders = {"piano_jax": lambda path: vocabulary.encode(read_midi(path))}
    if MidiDict is not None:
        tokenizer = AbsTokenizer()
        encoders["authors"] = lambda path: tokenizer.encode(tokenizer.tokenize(MidiDict.from_midi(path)))
    seconds, tokens = dict.fromkeys(encoders, 0.0), dict.fromkeys(encoders, 0)
    for name, encode in encoders.items():
        encode(paths[0])  # to warm up
        start = time.perf_counter()
        tokens[name] = sum(len(encode(path)) for path in paths)
        seconds[name] = time.perf_counter() - start
    for name in encoders:
        speed = len(paths) / seconds[name], tokens[name] / seconds[name]
        print(f"{name:14} {speed[0]:8.1f} files/s {speed[1]:12,.0f} tokens/s")
    if MidiDict is not None:
        print(f"ratio {seconds['authors'] / seconds['piano_jax']:.1f}")


if __name__ == "__main__":
    main()
