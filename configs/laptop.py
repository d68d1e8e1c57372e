"""Half an hour of pretraining on a CPU: 5.6 M parameters, 400 steps of 8,192 tokens.

    python -m piano_jax.train --config configs/laptop.py --workdir runs/laptop --config.data.path=data/mine

Wants a dataset of the vocabulary "piano" and a few hundred hours of music, of which it sees ten or twenty.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config; every value can be changed by --config.KEY=VALUE."""
    return ConfigDict(
        {
            "phase": "pretrain",
            "seed": 0,
            "vocabulary": "piano",
            "model": {
                "size": "smoke",
                "d_model": 256,
                "layers": 4,
                "ff_width": 1024,
                "context": 512,
                "dtype": "float32",
                "remat": "none",
                "attention": "auto",
                "block_q": 512,
                "block_kv": 512,
                "unroll": 1,
            },
            "data": {"path": "data/mine", "augment": True, "labels": False, "isolate": True},
            "length": 512,
            "batch": 16,
            "accumulate": 1,
            "loss": {"chunk": 1024, "z": 0.0},
            "steps": 400,
            "schedule": {"shape": "linear", "peak": 3e-3, "warmup": 40, "final": 0.1},
            "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1},
            "init_from": "",
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "workers": 0,
            "evaluation": {"every": 50, "batches": 8},
            "checkpoint": {"every": 50, "keep_last": 2, "keep_every": 0},
            "profile": {"start": 10, "steps": 0},
            "cluster": {"timeout": 300},
        }
    )
