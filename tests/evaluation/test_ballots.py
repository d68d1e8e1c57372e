import json
from pathlib import Path

import pytest

from piano_jax import BadInput
from piano_jax.evaluation.ballots import Tally, checksum, count, written_p


def test_p_is_exact():
    assert written_p(Tally(38, 0, 6).p) == written_p(Tally(6, 9, 38).p) == "9.43e-7"
    assert Tally(3, 5, 0).p == Tally(0, 0, 3).p == 0.25
    assert Tally(0, 7, 0).p == Tally(4, 0, 4).p == 1
    assert [written_p(p) for p in (1.0, 0.03857, 1e-12)] == ["1", "0.0386", "1e-12"]


@pytest.fixture
def key(tmp_path) -> str:
    """A study of three systems, whose names do not sort in its order."""
    sides = [("z", "y"), ("y", "z"), ("x", "z"), ("y", "x")]
    pairs = [{"pair": n, "prompt": "1", "A": a, "B": b} for n, (a, b) in enumerate(sides, 1)]
    (tmp_path / "key.json").write_text(
        json.dumps({"study": "s", "systems": {"z": "", "y": "", "x": ""}, "pairs": pairs})
    )
    return str(tmp_path / "key.json")


@pytest.fixture
def export(tmp_path):
    """Writes an export as the page would, and returns its path."""

    def export(listener: str, *answers: tuple, study: str = "s") -> str:
        body = {"study": study, "listener": listener, "answers": [{"pair": p, "choice": c} for p, c in answers]}
        path = tmp_path / f"{listener}.json"
        path.write_text(json.dumps(body | {"checksum": checksum(body)}))
        return str(path)

    return export


def test_votes_go_to_systems_not_to_sides(key, export):
    files = [
        export("one", (1, "A"), (2, "A"), (3, "tie"), (4, "B")),
        export("two", (1, "A"), (2, "B"), (4, "tie")),
        export("three", (3, "A")),
    ]
    assert count(key, files) == {("z", "y"): (3, 0, 1), ("z", "x"): (0, 1, 1), ("y", "x"): (0, 1, 1)}
    assert count(key, files[2:])["z", "y"] == (0, 0, 0)


def test_bad_exports_are_named(key, export, tmp_path):
    def refused(message: str, *files: str) -> None:
        with pytest.raises(BadInput, match=message) as error:
            count(key, files)
        assert "\n" not in str(error.value)

    good = export("good", (1, "A"))
    refused("good.json: by the same listener as .*good.json", good, good)
    (tmp_path / "copy.json").write_text(Path(good).read_text())
    refused("copy.json: by the same listener as .*good.json", good, str(tmp_path / "copy.json"))
    refused("other.json: of another study, t, while .*key.json is of s", good, export("other", (1, "A"), study="t"))
    refused("unknown.json: answers pair 9, which .*key.json does not have", export("unknown", (9, "A")))
    refused("odd.json: answers pair 1 by 'C'", export("odd", (1, "C")))
    refused("twice.json: answers a pair twice", export("twice", (1, "A"), (1, "B")))
    refused("empty.json: no answers", export("empty"))
    refused("absent.json: No such file", good, str(tmp_path / "absent.json"))
    refused("key.json: not an export", key)
    for changed in ({"pair": 1, "choice": "B"}, {"pair": 2, "choice": "A"}, {"pair": 1}, 7):
        edited = json.loads(Path(good).read_text()) | {"answers": [changed]}
        (tmp_path / "edited.json").write_text(json.dumps(edited))
        refused("edited.json: edited since the page made it", str(tmp_path / "edited.json"))
        (tmp_path / "forged.json").write_text(json.dumps(edited | {"checksum": checksum(edited)}))
        if changed == 7 or "choice" not in changed:
            refused("forged.json: not an export", str(tmp_path / "forged.json"))
    for text in ("", "[]", "{}", "null", good, '{"study":'):
        (tmp_path / "broken.json").write_text(text)
        refused("broken.json: not an export of a study's page", str(tmp_path / "broken.json"))
    # Written otherwise, it says the same.
    (tmp_path / "spaced.json").write_text(json.dumps(json.loads(Path(good).read_text()), indent=4))
    assert count(key, [str(tmp_path / "spaced.json")])["z", "y"] == (1, 0, 0)


def test_bad_keys_are_named(key, export):
    good, whole = export("good", (1, "A")), json.loads(Path(key).read_text())
    for broken, message in (
        ("hello", "not the key of a study"),
        ("{}", "not the key of a study"),
        (json.dumps(whole | {"pairs": []}), "an empty study"),
        (json.dumps(whole | {"pairs": [{"pair": 1}]}), "not the key of a study"),
        (json.dumps(whole | {"pairs": [{"pair": 1, "A": "z", "B": "w"}]}), "not the key of a study"),
    ):
        Path(key).write_text(broken)
        with pytest.raises(BadInput, match=f"key.json: {message}"):
            count(key, [good])
