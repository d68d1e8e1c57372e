"""Finetune a pretrained model to tell classes: composers, periods, pianists, emotions, or labels of your own.

    python -m piano_jax.train --config configs/classify.py:medium,composer --workdir runs/composer \\
        --config.init_from=runs/medium --config.data.path=data/aria
    python -m piano_jax.probe --finetuned runs/composer --labels manifest.csv --task composer

After the size stands the task, one of configs/tasks or a file COLUMN.txt of classes, one a line. Sizes are small,
medium and medium_tpu, as in configs/pretrain.py, and laptop and gpu, which go on from those runs there. The authors
took a rate of 1e-5 and about ten epochs, each of the slices of 300 notes over `batch` steps. Validation says for each
checkpoint how many `files` it tells right, and `probe` takes the best. `data.shots` learns from so many labelled files.
"""

from ml_collections import ConfigDict

from piano_jax import BadInput
from piano_jax.data.tasks import read_task

SIZES = ("laptop", "gpu", "small", "medium", "medium_tpu")
CHANGES = {
    # Short slices, few at a time, as a CPU's cache holds, and a high rate.
    "laptop": {
        "vocabulary": "piano",
        "model": {"dtype": "float32", "remat": "none", "unroll": 2},
        "data": {"notes": 75},
        "length": 256,
        "batch": 8,
        "accumulate": 2,
        "steps": 2_000,
        "schedule": {"peak": 5e-4},
        "workers": 0,
        "evaluation": {"every": 500},
        "checkpoint": {"every": 500},
    },
    "gpu": {
        "vocabulary": "piano",
        "model": {"size": "small", "remat": "none"},
        "steps": 600,
        "schedule": {"peak": 2e-4},
        "evaluation": {"every": 60},
        "checkpoint": {"every": 60},
    },
}


def get_config(size: str = "small,composer") -> ConfigDict:
    """The config of a size and a task; every value can be changed by --config.KEY=VALUE."""
    size, _, name = size.partition(",")
    if size not in SIZES:
        raise BadInput(f"{size}: no such size (there are {', '.join(SIZES)})")
    task = read_task(name or "composer")
    config = ConfigDict(
        {
            "phase": "classify",
            "seed": 0,
            "vocabulary": "aria",
            "task": {"column": task.column, "classes": task.classes},
            "model": {
                "size": size,
                "head": "classifier",
                "head_size": len(task.classes),
                "residual_dropout": 0.2,
                "dtype": "bfloat16",
                "remat": "full",
                "attention": "auto",
                "block_q": 512,
                "block_kv": 512,
                "unroll": 1,
            },
            "data": {"path": "data/aria", "augment": True, "notes": 300, "shots": 0},
            "length": 1024,
            "batch": 32,
            "accumulate": 1,
            "steps": 3_000,
            "schedule": {"shape": "linear", "peak": 1e-5, "warmup": 0, "final": 0.1},
            "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-5, "weight_decay": 0.1},
            "init_from": "",
            "lora": {"rank": 0},
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "workers": 4,
            "evaluation": {"every": 300, "batches": 0},
            "checkpoint": {"every": 300, "keep_last": 10, "keep_every": 0},
            "profile": {"start": 10, "steps": 0},
            "cluster": {"timeout": 300},
        }
    )
    config.update(CHANGES.get(size, {}))
    return config
