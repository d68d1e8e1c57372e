"""A small model on a laptop's CPU: shows that everything works, and that the loss falls.

    ./launch/smoke.sh

Two or three minutes on 2 cores; the script makes the dataset and passes its path.
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
                "dtype": "float32",
                "remat": "none",
                "attention": "auto",
                "block_q": 512,
                "block_kv": 512,
                "unroll": 3,
            },
            "data": {"path": "runs/smoke/data", "augment": True, "labels": False, "isolate": True},
            "length": 256,
            "batch": 16,
            "accumulate": 1,
            "loss": {"chunk": 1024, "z": 0.0},
            "steps": 240,
            "schedule": {"shape": "linear", "peak": 5e-3, "warmup": 20, "final": 0.1},
            "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1},
            "init_from": "",
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "workers": 0,
            "evaluation": {"every": 40, "batches": 10},
            "checkpoint": {"every": 40, "keep_last": 2, "keep_every": 0},
            "profile": {"start": 10, "steps": 0},
            "cluster": {"timeout": 300},
        }
    )
