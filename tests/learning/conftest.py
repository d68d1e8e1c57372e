"""A small dataset, and a config that learns from it in seconds."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from piano_jax.data.shards import Writer, new_folder
from piano_jax.music import Vocabulary
from piano_jax.music.performances import STYLES, performance


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Twelve performances in the vocabulary "piano", ten of them to train on."""
    path = tmp_path_factory.mktemp("learning") / "data"
    vocabulary = Vocabulary("piano")
    with new_folder(path) as folder:
        writer = Writer(folder, vocabulary)
        for seed in range(12):
            notes = performance(seed, STYLES[seed % len(STYLES)])
            writer.add(vocabulary.encode(notes), len(notes), notes.seconds)
        labels = [(f"{seed}.mid",) for seed in range(12)]
        split = np.array([1] * 2 + [0] * 10, np.int8)
        writer.finish(["path"], labels, ["train", "val"], split, {}, [])
    return path


CONFIG = """
from ml_collections import ConfigDict

def get_config(size="tiny"):
    return ConfigDict({
        "phase": "pretrain",
        "seed": 0,
        "vocabulary": "piano",
        "model": {"size": "smoke", "d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 64,
                  "dtype": "float32", "remat": "none"},
        "data": {"path": "absent", "augment": True, "labels": False, "isolate": True},
        "length": 64,
        "batch": 8,
        "accumulate": 1,
        "loss": {"chunk": 64, "z": 0.0},
        "steps": 12,
        "schedule": {"shape": "linear", "peak": 1e-2, "warmup": 2, "final": 0.1},
        "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1},
        "init_from": "",
        "lora": {"rank": 0},
        "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
        "workers": 0,
        "evaluation": {"every": 4, "batches": 2},
        "checkpoint": {"every": 3, "keep_last": 2, "keep_every": 0},
        "profile": {"start": 10, "steps": 0},
        "cluster": {"timeout": 300},
    })
"""


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def config(data, config_file) -> ConfigDict:
    from piano_jax.config import read_config

    return read_config(str(config_file), [f"data.path={data}"])
