"""Finetune a pretrained model to continue pieces: rows begin where pieces do, and `<D>` tells that one ends soon.

    python -m piano_jax.train --config configs/finetune.py:medium --workdir runs/continuing \
        --config.data.path=data/aria --config.init_from=runs/medium

The size is that of the pretrained model. `medium` is the authors' run, about an epoch of Aria-MIDI's deduped subset;
`laptop` and `smoke` go on from those runs, minutes on two CPU cores, and `gpu` in a minute of an H200. With
--config.data.embeddings=FILE.npz, which `embed` wrote for the same MIDI, --config.model.head=conditioned and
--config.model.head_size=512 it also learns to sound like an embedding, which it sees half of the time.
"""

from ml_collections import ConfigDict

from piano_jax import BadInput

LENGTH = {"smoke": 256, "laptop": 256, "gpu": 2048, "small": 2048, "medium": 8192, "medium_tpu": 8192}
BATCH = {"smoke": 16, "laptop": 8, "gpu": 64, "small": 32, "medium": 128, "medium_tpu": 128}
PEAK = {"smoke": 1e-3, "laptop": 1e-3, "gpu": 3e-4, "small": 3e-4, "medium": 3e-4, "medium_tpu": 3e-4}
STEPS = {"smoke": 60, "laptop": 1000, "gpu": 300, "small": 20_000, "medium": 4000, "medium_tpu": 4000}


def get_config(size: str = "small") -> ConfigDict:
    """The config of a size; every value can be changed by --config.KEY=VALUE."""
    if size not in STEPS:
        raise BadInput(f"{size}: no such size (there are {', '.join(STEPS)})")
    on_cpu, steps = size in ("smoke", "laptop"), STEPS[size]
    is_little = on_cpu or size == "gpu"
    return ConfigDict(
        {
            "phase": "continue",
            "seed": 0,
            "vocabulary": "piano" if is_little else "aria",
            "model": {
                "size": "small" if size == "gpu" else size,
                "head": "language",
                "head_size": 0,
                "dtype": "float32" if on_cpu else "bfloat16",
                "remat": "none" if is_little else "full",
                "attention": "auto",
                "block_q": 512,
                "block_kv": 512,
                "unroll": 1,
            },
            "data": {"path": "data/mine", "augment": True, "labels": False, "embeddings": ""},
            "length": LENGTH[size],
            "batch": BATCH[size],
            "accumulate": 1,
            "loss": {"chunk": 2048, "z": 0.0},
            "steps": steps,
            "schedule": {"shape": "linear", "peak": PEAK[size], "warmup": min(200, steps // 20), "final": 0.1},
            "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1},
            "init_from": "runs/mine",
            "lora": {"rank": 0},
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "workers": 0 if on_cpu else 4,
            "evaluation": {"every": max(20, steps // 20), "batches": 8 if on_cpu else 50},
            "checkpoint": {"every": max(20, steps // 10), "keep_last": 2, "keep_every": 0},
            "profile": {"start": 10, "steps": 0},
            "cluster": {"timeout": 300},
        }
    )
