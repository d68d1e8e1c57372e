"""Sound as WAV files: MIDI by TinySoundFont and a SoundFont of the user's, and how loud a sound is."""

import io
import wave
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from piano_jax import BadInput

RATE = 44_100  # samples a second
REST = 2.0  # seconds after the last note, for it to die away
BLOCK = 0.4  # seconds in which loudness is taken


def read_soundfont(path: str | Path):
    """A synthesiser that plays a SoundFont (.sf2 or .sf3). Raises BadInput."""
    try:
        import tinysoundfont
    except ImportError as error:
        raise BadInput("a SoundFont needs TinySoundFont: pip install --no-deps tinysoundfont==0.3.7") from error
    synthesizer = tinysoundfont.Synth(samplerate=RATE)
    try:
        data = Path(path).read_bytes()
        if data[:4] != b"RIFF" or len(data) < 8 + int.from_bytes(data[4:8], "little"):
            raise BadInput(f"{path}: not a whole SoundFont")
        synthesizer.sfload(data)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    except (tinysoundfont.SoundFontException, RuntimeError) as error:
        raise BadInput(f"{path}: not a SoundFont") from error
    return synthesizer


def play(midi: str | Path, seconds: float, soundfont: str | Path) -> Float32[np.ndarray, "S 2"]:
    """The first seconds of a MIDI file, and REST, in stereo, RATE samples a second. Raises BadInput."""
    synthesizer = read_soundfont(soundfont)
    import tinysoundfont

    sequencer = tinysoundfont.Sequencer(synthesizer)
    sequencer.midi_load(str(midi))
    return np.frombuffer(synthesizer.generate(int(RATE * (seconds + REST))), np.float32).reshape(-1, 2)


def render(midi: str | Path, seconds: float, soundfont: str | Path) -> bytes:
    """A WAV file (stereo, 16 bits) of the first seconds of a MIDI file, as loud as it can be. Raises BadInput."""
    samples = play(midi, seconds, soundfont)
    return wav(samples / max(1e-6, np.abs(samples).max()), RATE)


def wav(samples: Float[np.ndarray, "S *C"], rate: int) -> bytes:
    """A WAV file of 16 bits of samples between -1 and 1."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(np.rint(32_767 * samples).astype("<i2").tobytes())
    return written.getvalue()


def loudness(samples: Float[np.ndarray, "S"], rate: int) -> float:
    """Root mean square of the blocks of 0.4 s that are at most 10 dB below that of all, so that silence does not count.

    The gate is that of ITU-R BS.1770, without its filter and its overlap, for sounds of one instrument.
    """
    size = int(BLOCK * rate)
    power = np.square(np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)).mean(1)
    return float(np.sqrt(power[power >= power.mean() / 10].mean())) if len(power) else 0.0
