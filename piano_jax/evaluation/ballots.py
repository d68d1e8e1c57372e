"""What listeners answered: exports of a study's page, checked against its key and counted.

The checksum that a page puts into an export is no secret: it tells a slip of an editor, not a forger.
"""

import itertools
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from piano_jax import BadInput
from piano_jax.evaluation.study import SIDES

TIE = "tie"


class Tally(NamedTuple):
    """How often the first of two systems was preferred, neither, and the second; of all listeners and prompts."""

    wins: int
    ties: int
    losses: int

    @property
    def p(self) -> float:
        """Of the exact two-sided binomial test that either wins as often; ties are left out."""
        from scipy.stats import binomtest

        decided = self.wins + self.losses
        return float(binomtest(self.wins, decided).pvalue) if decided else 1.0


def written_p(p: float) -> str:
    """Three digits: 0.0386, 9.43e-7."""
    digits, _, exponent = f"{p:.3g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def checksum(export: dict) -> str:
    """CRC-32 of an export but for its checksum, as the page writes it."""
    body = {name: value for name, value in export.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(body, separators=(',', ':'), ensure_ascii=False).encode()):08x}"


def count(key: str, files: Sequence[str]) -> dict[tuple[str, str], Tally]:
    """A tally for every two systems, both in the key's order.

    Raises:
        BadInput: the key is none, or an export is none, of another study, edited, without answers, about pairs that
            the key lacks, or by a listener who is counted already.
    """
    study, order, sides = read_key(key)
    if not sides:
        raise BadInput(f"{key}: an empty study, of no pairs")
    listeners: dict[str, str] = {}
    votes = Counter[tuple[frozenset[str], str]]()
    for file in files:
        listener, answers = read_export(file, key, study)
        if listener in listeners:
            raise BadInput(f"{file}: by the same listener as {listeners[listener]}; give the newest alone")
        listeners[listener] = file
        for pair, choice in answers.items():
            if pair not in sides:
                raise BadInput(f"{file}: answers pair {pair}, which {key} does not have")
            better = TIE if choice == TIE else sides[pair][SIDES.index(choice)]
            votes[frozenset(sides[pair]), better] += 1
    compared = {frozenset(systems) for systems in sides.values()}
    return {
        (one, other): Tally(votes[two, one], votes[two, TIE], votes[two, other])
        for one, other in itertools.combinations(order, 2)
        if (two := frozenset((one, other))) in compared
    }


def read_key(path: str) -> tuple[str, list[str], dict[int, tuple[str, ...]]]:
    """A study's name, its systems, and those on each side of each pair. Raises BadInput."""
    what = "the key of a study"
    key = _read(path, what, "study", "systems", "pairs")
    try:
        systems, sides = (
            list(key["systems"]),
            {pair["pair"]: tuple(pair[side] for side in SIDES) for pair in key["pairs"]},
        )
        known = all({*two} <= {*systems} for two in sides.values())
    except (TypeError, KeyError) as error:
        raise BadInput(f"{path}: not {what} ({error})") from error
    if not known:
        raise BadInput(f"{path}: not {what}, for its pairs are of other systems")
    return key["study"], systems, sides


def read_export(file: str, key: str, study: str) -> tuple[str, dict[int, str]]:
    """The listener of an export, and the choice for each pair that was answered: a side or TIE.

    Raises:
        BadInput: as `count` does.
    """
    what = "an export of a study's page"
    export = _read(file, what, "study", "listener", "answers", "checksum")
    if export["checksum"] != checksum(export):
        raise BadInput(f"{file}: edited since the page made it, for its checksum does not fit")
    if export["study"] != study:
        raise BadInput(f"{file}: of another study, {export['study']}, while {key} is of {study}")
    try:
        answers = {answer["pair"]: answer["choice"] for answer in export["answers"]}
    except (TypeError, KeyError) as error:
        raise BadInput(f"{file}: not {what} ({error})") from error
    if not answers:
        raise BadInput(f"{file}: no answers")
    if len(answers) < len(export["answers"]):
        raise BadInput(f"{file}: answers a pair twice")
    for pair, choice in answers.items():
        if choice not in (*SIDES, TIE):
            raise BadInput(f"{file}: answers pair {pair} by {choice!r}")
    return export["listener"], answers


def _read(path: str, what: str, *names: str) -> dict:
    try:
        found = json.loads(epath.Path(path).read_text())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not {what} ({error})") from error
    if not isinstance(found, dict) or not found.keys() >= {*names}:
        raise BadInput(f"{path}: not {what}")
    return found
