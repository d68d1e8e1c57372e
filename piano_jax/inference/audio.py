"""MIDI to sound, by TinySoundFont and a SoundFont of the user's."""

import io
import wave
from pathlib import Path

import numpy as np

from piano_jax import BadInput

RATE = 44_100  # samples a second
REST = 2.0  # seconds after the last note, for it to die away


def read_soundfont(path: str | Path):
    """A synthesiser that plays a SoundFont (.sf2 or .sf3). Raises BadInput."""
    try:
        import tinysoundfont
    except ImportError as error:
        raise BadInput("--wav needs TinySoundFont: pip install --no-deps tinysoundfont==0.3.7") from error
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


def render(midi: str | Path, seconds: float, soundfont: str | Path) -> bytes:
    """A WAV file (stereo, 16 bits) of the first seconds of a MIDI file, as loud as it can be. Raises BadInput."""
    synthesizer = read_soundfont(soundfont)
    import tinysoundfont

    sequencer = tinysoundfont.Sequencer(synthesizer)
    sequencer.midi_load(str(midi))
    samples = np.frombuffer(synthesizer.generate(int(RATE * (seconds + REST))), np.float32)
    samples = np.rint(samples * (32_767 / max(1e-6, np.abs(samples).max()))).astype("<i2")
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return written.getvalue()
