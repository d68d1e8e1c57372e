"""Pretrain on a prepared dataset.

    python -m piano_jax.train --config configs/pretrain.py:medium --workdir runs/medium --config.data.path=data/aria

Sizes: `medium` is the authors' run (658,538,496 parameters, 75 epochs of Aria-MIDI's pruned subset: 0.4 T tokens, 9
days on 8 H100); `medium_tpu` the same in heads of 128, for a run from scratch on TPUs; `small` (30 M) fits one GPU.
"""

from ml_collections import ConfigDict

from piano_jax import BadInput

BATCH = {"small": 32, "medium": 128, "medium_tpu": 128}
STEPS = {"small": 50_000, "medium": 400_000, "medium_tpu": 400_000}
LENGTH = {"small": 2048, "medium": 8192, "medium_tpu": 8192}


def get_config(size: str = "small") -> ConfigDict:
    """The config of a size; every value can be changed by --config.KEY=VALUE."""
    if size not in STEPS:
        raise BadInput(f"{size}: no such size (there are {', '.join(STEPS)})")
    return ConfigDict(
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
