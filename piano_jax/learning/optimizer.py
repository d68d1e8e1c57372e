"""AdamW and its learning-rate schedules, from Optax."""

import optax

from piano_jax import BadInput


def schedule(shape: str, peak: float, warmup: int, steps: int, final: float) -> optax.Schedule:
    """The learning rate at a step: `warmup` steps up to `peak`, then down to `peak * final` at `steps`.

    `shape` says how: "linear" (METHOD, section 4), "cosine", or "constant", which holds the peak and falls linearly
    over the last fifth.

    Raises:
        BadInput: no such shape, or the warm-up is longer than the run.
    """
    if not 0 <= warmup < steps:
        raise BadInput(f"a warm-up of {warmup} steps does not fit into {steps} steps")
    left = steps - warmup
    match shape:
        case "linear":
            fall = optax.linear_schedule(peak, peak * final, left)
        case "cosine":
            fall = optax.cosine_decay_schedule(peak, left, final)
        case "constant":
            fall = optax.linear_schedule(peak, peak * final, max(left // 5, 1), transition_begin=left - left // 5)
        case _:
            raise BadInput(f"{shape}: no such schedule (there are linear, cosine and constant)")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup]) if warmup else fall


def adamw(learning_rate: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: float):
    """AdamW over every parameter, as the authors apply it."""
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
