"""Teach a pretrained model to embed: two slices of one performance lie near each other, those of others far away.

    python -m piano_jax.train --config configs/contrastive.py:medium --workdir runs/embedding \\
        --config.init_from=runs/medium --config.data.path=data/aria

The authors' figures: temperature 0.1, 25 epochs (the default steps are those of 32,522 pieces), a rate of 1e-5. `batch`
counts pairs; `accumulate` embeds it in as many parts, in the memory of one, at the same loss. `loss.groups` takes each
view's negatives from one of so many equal groups of the batch, as where as many devices do not gather theirs. Sizes are
those of configs/pretrain.py: small, medium and medium_tpu, and for a few hundred hours of piano laptop (ten minutes of
a CPU core) and gpu (minutes of one H200; not run).
"""

from ml_collections import ConfigDict

from piano_jax import BadInput

SIZES = ("laptop", "gpu", "small", "medium", "medium_tpu")
CHANGES = {
    # Short slices and a high rate; and keys and tempi that stay, for by them a small model finds another performance of
    # the same piece. The batch is as large as everywhere, for negatives count most, in parts that a CPU's cache holds.
    # A pretrained model's weights are large, and turn only where decay shrinks them.
    "laptop": {
        "vocabulary": "piano",
        "model": {"dtype": "float32", "remat": "none", "unroll": 2},
        "data": {"augment": False},
        "slice": {"shortest": 30, "longest": 37},
        "length": 128,
        "accumulate": 64,
        "steps": 400,
        "schedule": {"peak": 3e-3, "warmup": 20},
        "adamw": {"eps": 1e-8, "weight_decay": 1.0},
        "workers": 0,
        "evaluation": {"every": 100, "batches": 4},
        "checkpoint": {"every": 200},
    },
    "gpu": {
        "vocabulary": "piano",
        "model": {"size": "small", "remat": "none"},
        "length": 1024,
        "accumulate": 1,
        "steps": 500,
        "schedule": {"peak": 5e-4, "warmup": 50},
        "adamw": {"eps": 1e-8},
        "evaluation": {"every": 50},
        "checkpoint": {"every": 250},
    },
}


def get_config(size: str = "small") -> ConfigDict:
    """The config of a size; every value can be changed by --config.KEY=VALUE."""
    if size not in SIZES:
        raise BadInput(f"{size}: no such size (there are {', '.join(SIZES)})")
    config = ConfigDict(
        {
            "phase": "contrastive",
            "seed": 0,
            "vocabulary": "aria",
            "model": {
                "size": size,
                "head": "embedding",
                "head_size": 512,
                "learn_temperature": False,
                "dtype": "bfloat16",
                "remat": "full",
                "attention": "auto",
                "block_q": 512,
                "block_kv": 512,
                "unroll": 1,
            },
            "data": {"path": "data/aria", "augment": True, "semitones": 5},
            "slice": {"shortest": 100, "longest": 650},
            "loss": {"negatives": "all", "groups": 1, "temperature": 0.1},
            "length": 2048,
            "batch": 256,
            "accumulate": 4,
            "steps": 3_200,
            "schedule": {"shape": "linear", "peak": 1e-5, "warmup": 1_000, "final": 0.1},
            "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1},
            "init_from": "",
            "lora": {"rank": 0},
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "workers": 4,
            "evaluation": {"every": 200, "batches": 0},
            "checkpoint": {"every": 200, "keep_last": 3, "keep_every": 0},
            "profile": {"start": 10, "steps": 0},
            "cluster": {"timeout": 300},
        }
    )
    config.update(CHANGES.get(size, {}))
    return config
