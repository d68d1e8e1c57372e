"""The command, on a tiny model of random weights, as a run would have saved it."""

import json
import wave
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.generate import main
from piano_jax.learning import checkpoints, optimizer
from piano_jax.learning.phases import model_config
from piano_jax.learning.step import initializer
from piano_jax.music import Notes, Vocabulary, read_midi, write_midi
from piano_jax.music.performances import performance

PIANO = Vocabulary("piano")
SHAPE = {"size": "smoke", "d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 256, "dtype": "float32"}


def save(path: Path, **changes) -> str:
    """A work directory of an untrained model."""
    config = ConfigDict({"vocabulary": "piano", "model": SHAPE | changes})
    state = initializer(model_config(config), optimizer.adamw(lambda _: 1.0, 0.9, 0.95, 1e-5, 0.1))(jax.random.key(0))
    state = state._replace(weights=jax.tree.map(lambda x: 8 * x, state.weights))  # so that its tokens matter to it
    saved = checkpoints.Checkpoints(str(path), 1, 0)
    saved.save(3, state, config.to_dict())
    saved.close()
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("runs") / "language")


@pytest.fixture
def prompt(tmp_path) -> Path:
    write_midi(performance(1), tmp_path / "prompt.mid")
    return tmp_path / "prompt.mid"


@pytest.fixture
def generate(tmp_path, checkpoint, prompt):
    """Runs the command and returns its folder."""

    def generate(name: str, *more: str, **changes) -> Path:
        options = {"checkpoint": checkpoint, "prompt": prompt, "out": tmp_path / name, "tokens": 60, "variations": 2}
        words = [word for key, value in (options | changes).items() for word in (f"--{key}", str(value))]
        assert main([*words, *more]) == 0
        return tmp_path / name

    return generate


def test_what_it_leaves(generate, prompt):
    out = generate("out", "--only-new", "--prompt-seconds", "5")
    names = {path.name for path in out.iterdir()}
    assert names == {f"{n}{end}" for n in (1, 2) for end in (".mid", "-new.mid", ".png")} | {"continuations.json"}
    said = json.loads((out / "continuations.json").read_text())
    assert said["asked"]["tokens"] == 60 and said["asked"]["prompt_seconds"] == 5
    given = PIANO.decode(np.array(said["prompt"]))
    assert 0 < len(given) < len(read_midi(prompt)) and given.onset.max() < 5000
    for number, continuation in enumerate(said["continuations"], 1):
        ids = np.array(said["prompt"] + continuation["tokens"])
        whole, new = read_midi(out / f"{number}.mid"), read_midi(out / f"{number}-new.mid")
        assert len(continuation["log_probabilities"]) == len(continuation["tokens"]) <= 60
        assert max(continuation["log_probabilities"]) <= 0
        assert continuation["notes"] == len(PIANO.decode(ids)) - len(given)
        played = set(zip(whole.onset.tolist(), whole.pitch.tolist(), strict=True))
        assert set(zip(given.onset.tolist(), given.pitch.tolist(), strict=True)) <= played
        assert len(new) and whole.onset[len(whole) - 1] >= 4500
        assert (out / f"{number}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_seed_gives_the_same_bytes(generate, tmp_path):
    def files(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    one, same, other = generate("1"), generate("2"), generate("3", seed=1)
    assert files(one) == files(same)
    assert not set(files(one).values()) & set(files(other).values())


def test_an_ending_is_asked_for(generate):
    said = json.loads((generate("out", "--end", tokens=140) / "continuations.json").read_text())
    for continuation in said["continuations"]:
        assert PIANO.diminish in continuation["tokens"]


def test_prompts_to_start_from_nothing_or_in_part(generate, tmp_path, capsys):
    write_midi(Notes([], [], [], []), tmp_path / "empty.mid")
    assert len(list(generate("1", prompt=tmp_path / "empty.mid").glob("*.mid"))) == 2
    assert "empty.mid: no notes to continue, so the continuations start from nothing" in capsys.readouterr().out
    write_midi(Notes([0, 10, 500], [400] * 3, [60, 30, 64], [70] * 3, [0, 3, 0]), tmp_path / "band.mid")
    said = json.loads((generate("2", prompt=tmp_path / "band.mid") / "continuations.json").read_text())
    assert "continues the piano alone, without bass" in capsys.readouterr().out
    assert len(PIANO.decode(np.array(said["prompt"]))) == 2
    generate("3", "--prompt-seconds", "60")
    assert "tokens, of which the model hears the last" in capsys.readouterr().out


def test_conditioned_on_an_embedding(generate, tmp_path, capsys):
    conditioned = save(tmp_path / "conditioned", head="conditioned", head_size=3)
    vectors = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32) * 100
    np.savez(tmp_path / "e.npz", paths=np.array(["a.mid", "b:c.mid"]), embeddings=vectors)
    given = [f"--embedding={tmp_path}/e.npz:{path}" for path in ("a.mid", "b:c.mid")]
    folders = [generate(str(n), *more, checkpoint=conditioned) for n, more in enumerate([given[:1], given[1:], []])]
    assert len({(folder / "1.mid").read_bytes() for folder in folders}) == 3
    with pytest.raises(BadInput, match="holds 2 embeddings; name one"):
        generate("x", f"--embedding={tmp_path}/e.npz", checkpoint=conditioned)
    with pytest.raises(BadInput, match=r"of size 3, and .* takes no embedding"):
        generate("x", given[0])


def test_bad_input(generate, tmp_path, checkpoint):
    def refused(message: str, *more: str, **changes) -> None:
        with pytest.raises(BadInput, match=message):
            generate("refused", *more, **changes)
        assert not list(tmp_path.glob("*refused*"))

    refused("holds no checkpoint", checkpoint=tmp_path)
    refused("absent.mid: No such file", prompt=tmp_path / "absent.mid")
    refused("not a MIDI file", prompt=__file__)
    refused("temperature 11 is not between", "--temperature", "11")
    refused("--tokens: must be positive", tokens=0)
    refused("--wav and --soundfont FILE.sf2 go together", "--wav")
    refused("head 'embedding' gives no tokens", checkpoint=save(tmp_path / "embedding", head="embedding", head_size=4))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(BadInput, match="not an empty folder"):
        generate("full")


def test_audio(generate, tmp_path):
    pytest.importorskip("tinysoundfont")
    path = tmp_path / "tone.sf2"
    path.write_bytes(soundfont())
    out = generate("1", "--wav", "--soundfont", str(path))
    with wave.open(str(out / "1.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert file.getnchannels() == 2 and 0 < file.getnframes() / 44_100 - read_midi(out / "1.mid").seconds < 3
    assert np.abs(samples).max() > 30_000
    assert (out / "1.wav").read_bytes() == (generate("2", "--wav", "--soundfont", str(path)) / "1.wav").read_bytes()
    for broken in (b"RIFF", soundfont()[:-30], b"hello"):
        path.write_bytes(broken)
        with pytest.raises(BadInput, match=r"tone.sf2: not a whole SoundFont"):
            generate("x", "--wav", "--soundfont", str(path))
    with pytest.raises(BadInput, match=r"absent.sf2: No such file"):
        generate("x", "--wav", "--soundfont", str(tmp_path / "absent.sf2"))


def soundfont() -> bytes:
    """The smallest SoundFont 2: a tenth of a second of 440 Hz, for all keys."""

    def chunk(name: bytes, *parts: bytes) -> bytes:
        data = b"".join(parts)
        return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)

    def words(*values: int) -> bytes:
        return np.array(values, "<u2").tobytes()

    def named(name: str, *rest: bytes) -> bytes:
        return name.encode().ljust(20, b"\0") + b"".join(rest)

    tone = (20_000 * np.sin(np.arange(2205) * 2 * np.pi * 440 / 22_050)).astype("<i2").tobytes()
    sample = np.array([0, 2205, 0, 2204, 22_050], "<u4").tobytes() + bytes([69, 0]) + words(0, 1)
    info = [chunk(b"ifil", words(2, 1)), chunk(b"isng", b"EMU8000\0"), chunk(b"INAM", b"tone")]
    tables = {
        b"phdr": named("p", bytes(18)) + named("EOP", words(0, 0, 1), bytes(12)),
        b"pbag": words(0, 0, 1, 0),
        b"pmod": bytes(10),
        b"pgen": words(41, 0, 0, 0),
        b"inst": named("i", words(0)) + named("EOI", words(1)),
        b"ibag": words(0, 0, 2, 0),
        b"imod": bytes(10),
        b"igen": words(54, 1, 53, 0, 0, 0),
        b"shdr": named("s", sample) + named("EOS", bytes(26)),
    }
    presets = [chunk(name, table) for name, table in tables.items()]
    lists = [(b"INFO", info), (b"sdta", [chunk(b"smpl", tone, bytes(92))]), (b"pdta", presets)]
    return chunk(b"RIFF", b"sfbk", *(chunk(b"LIST", name, *chunks) for name, chunks in lists))
