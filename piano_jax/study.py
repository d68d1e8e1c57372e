"""`python -m piano_jax.study`: which of two continuations listeners prefer, by a page to listen with, and a count."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from piano_jax.command import Parser, run

EPILOG = """\
examples:
  python -m piano_jax.study make --prompts judged/prompts --system ours=judged/ours --system truth=judged/truth \\
      --out study
  python -m piano_jax.study score --key study/key.json answers-*.json
"""

MAKE = """\
Lays out blind pairs: the same prompt, continued by two systems. study/listen/ is for listeners: they open its
index.html from disk or from any web server, and send back the file that the page makes of their answers.
study/key.json, which says what stands where, is not for them.

A system's folder has a MIDI file for each prompt, of the same name, that begins with the prompt. Sound is mono, of
22,050 samples a second, in WAV files of 2.6 MB a minute, which every browser plays. Both sides of a pair have the same
loudness: root mean square over blocks of 0.4 s, without those more than 10 dB below average; 23 dB below full scale,
or less where a peak would clip.
"""

SCORE = """\
Counts the files that listeners sent back: wins of the first system, wins of the second, ties; and p, of the exact
two-sided binomial test that either is as likely to be preferred. Ties are left out of p. It takes answers for
independent of each other, as those of one listener, or to one prompt, are not quite, and is not corrected for comparing
several systems. A file that was edited by hand is noticed by its checksum, unless that was made to fit.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(
        prog="piano_jax.study",
        description="A listening study: blind pairs of continuations, and what listeners preferred.",
        epilog=EPILOG,
        **shape,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="make|score")
    make = commands.add_parser("make", description=MAKE, help="lays out a folder for listeners", **shape)
    make.add_argument(
        "--system", action="append", required=True, metavar="NAME=FOLDER", help="what is compared; twice or more"
    )
    make.add_argument("--prompts", required=True, metavar="FOLDER", help="the prompts alone, a MIDI file each")
    make.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="must not exist, or be empty")
    make.add_argument("--pairs", type=int, default=10, help="of every two systems (default: %(default)s)")
    make.add_argument("--prompt-seconds", type=float, default=15.0, help="how long prompts are (default: %(default)s)")
    make.add_argument("--seconds", type=float, default=45.0, help="the longest continuation (default: %(default)s)")
    make.add_argument("--soundfont", metavar="FILE.sf2", help="the piano to hear (default: a plain synthetic tone)")
    make.add_argument("--seed", type=int, default=0, help="another seed, other pairs (default: %(default)s)")
    score = commands.add_parser("score", description=SCORE, help="counts what listeners answered", **shape)
    score.add_argument("--key", required=True, metavar="key.json", help="what make left beside the listeners' folder")
    score.add_argument("files", nargs="+", metavar="FILE", help="what listeners sent back")
    options = parser.parse_args(arguments)
    if options.command == "make":
        named = [system.partition("=") for system in options.system]
        for system, (name, _, folder) in zip(options.system, named, strict=True):
            if not name or not folder:
                parser.error(f"argument --system: NAME=FOLDER, not {system}")
        options.system = {name: folder for name, _, folder in named}
        if len(options.system) < max(2, len(named)):
            parser.error("argument --system: a study compares two systems or more, of different names")
        for name in ("pairs", "prompt_seconds", "seconds"):
            if not 0 < getattr(options, name) < 1 << 16:
                parser.error(f"argument --{name.replace('_', '-')}: must be positive, not {getattr(options, name)}")
        if not 0 <= options.seed < 1 << 32:
            parser.error("argument --seed: must be between 0 and 2^32")
    return options


def make(options: argparse.Namespace) -> None:
    from piano_jax.evaluation.study import KEY, LISTEN, make_study, read_music
    from piano_jax.inference.audio import read_soundfont

    if options.soundfont:
        read_soundfont(options.soundfont)
    music = read_music(options.system, options.prompts, options.prompt_seconds, options.seconds)
    about = {
        "systems": options.system,
        **{name: getattr(options, name) for name in ("prompts", "prompt_seconds", "seconds", "soundfont", "seed")},
    }
    pairs, minutes = make_study(
        music, list(options.system), options.out, options.pairs, options.soundfont, options.seed, about
    )
    print(f"{options.out / LISTEN}: {pairs} pairs, {minutes:.0f} minutes of sound; for listeners, who open index.html")
    print(f"{options.out / KEY}: which system is which; not for listeners")


def score(options: argparse.Namespace) -> None:
    from piano_jax.evaluation.ballots import count, written_p

    tallies = count(options.key, options.files)
    answers = sum(sum(tally) for tally in tallies.values())
    print(f"listeners: {len(options.files):,}; answers: {answers:,}")
    width = max(len(f"{one} : {other}") for one, other in tallies)
    for (one, other), tally in tallies.items():
        score = f"{tally.wins:,} : {tally.losses:,}"
        print(f"{f'{one} : {other}':{width}}  {score:>9}  ties {tally.ties:,}  p = {written_p(tally.p)}")
    print("p is exact, two-sided and without the ties")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    (make if options.command == "make" else score)(options)


if __name__ == "__main__":
    run(main)
