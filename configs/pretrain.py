"""Pretrain on a prepared dataset.

    python -m piano_jax.train --config configs/pretrain.py:medium --workdir runs/medium --config.data.path=data/aria

Sizes: `medium` is the authors' run (658,538,496 parameters, 75 epochs of Aria-MIDI's pruned subset: 0.4 T tokens, 9
days on 8 H100); `medium_tpu` the same in heads of 128, for a run from scratch on TPUs; `small` (30 M) fits one GPU.

Two are for a few hundred hours of piano, in a dataset of the vocabulary "piano": `laptop` takes twenty minutes of a
CPU core (1.2 M parameters, 16 M tokens; configs/RESULTS.md shows what it learns), `gpu` should take minutes of one H200
(19 M parameters) and has not been run.
"""

from ml_collections import ConfigDict

from piano_jax import BadInput

STEPS = {"laptop": 8_000, "gpu": 2_000, "small": 50_000, "medium": 400_000, "medium_tpu": 400_000}
LENGTH = {"laptop": 256, "gpu": 2048, "small": 2048, "medium": 8192, "medium_tpu": 8192}
BATCH = {"laptop": 8, "gpu": 64, "small": 32, "medium": 128, "medium_tpu": 128}
CHANGES = {
    "laptop": {
        "vocabulary": "piano",
        "model": {"dtype": "float32", "remat": "none", "unroll": 2},
        "data": {"isolate": True},
        "accumulate": 2,  # as many rows at a time as a CPU's cache holds
        "loss": {"chunk": 512},
        "schedule": {"peak": 3e-3},
        "workers": 0,
        "evaluation": {"every": 1_000, "batches": 64},
        "checkpoint": {"every": 1_000, "keep_last": 2, "keep_every": 0},
    },
    "gpu": {
        "vocabulary": "piano",
        "model": {"size": "small", "remat": "none"},
        "loss": {"chunk": 16_384},
        "schedule": {"peak": 2e-3},
        "evaluation": {"every": 200, "batches": 0},
        "checkpoint": {"every": 500, "keep_last": 2, "keep_every": 0},
    },
}


def get_config(size: str = "small") -> ConfigDict:
    """The config of a size; every value can be changed by --config.KEY=VALUE."""
    if size not in STEPS:
        raise BadInput(f"{size}: no such size (there are {', '.join(STEPS)})")
    config = ConfigDict(
        {
            "phase": "pretrain",
            "seed": 0,
            "vocabulary": "aria",
            "model": {
                "size": size,
                "dtype": "bfloat16",
                "remat": "full",
                "attention": "auto",
                "block_q": 512,
                "block_kv": 512,
                "unroll": 1,
            },
            "data": {"path": "data/aria", "augment": True, "labels": False, "isolate": False},
            "length": LENGTH[size],
            "batch": BATCH[size],
            "accumulate": 1,
            "loss": {"chunk": 2048, "z": 0.0},
            "steps": STEPS[size],
            "schedule": {"shape": "linear", "peak": 3e-4, "warmup": 200, "final": 0.1},
            "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1},
            "init_from": "",
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "workers": 4,
            "evaluation": {"every": 1000, "batches": 50},
            "checkpoint": {"every": 1000, "keep_last": 3, "keep_every": 50_000},
            "profile": {"start": 10, "steps": 0},
            "cluster": {"timeout": 300},
        }
    )
    config.update(CHANGES.get(size, {}))
    return config
