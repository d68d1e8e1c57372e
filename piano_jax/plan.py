"""`python -m piano_jax.plan`: whether a config's train step fits on a pod, compiled without one."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from piano_jax import BadInput, write_whole
from piano_jax.command import Parser, progress, run
from piano_jax.config import overrides, read_config

if TYPE_CHECKING:
    from piano_jax.learning.ahead import Plan

EPILOG = """\
examples:
  python -m piano_jax.plan --config configs/pretrain.py:medium --topology v5e:16x16 --config.batch=256
  python -m piano_jax.plan --config configs/pretrain.py:medium --topology v5e:8x8 --slices 2 --config.mesh.replica=2
  python -m piano_jax.plan --config configs/pretrain.py:medium_tpu --topology v5p:4x4x4 --search

Needs no TPU, but its compiler: pip install libtpu. A plan takes about a minute. Exit code 2 where it does not fit.
"""
GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="piano_jax.plan",
        description="Compiles a config's train step for TPUs, and says what it needs of each chip. --config.KEY=VALUE "
        "changes a value of the config.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:SIZE]", help="one of configs/, and a size in it")
    parser.add_argument("--topology", required=True, metavar="NAME", help="of a slice, as v5e:16x16 or v5p:4x4x4")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="how many such slices (1)")
    parser.add_argument("--search", action="store_true", help="find the most rows a chip takes, for each remat policy")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="save the figures there as well")
    options, rest = parser.parse_known_args(arguments)
    config = read_config(options.config, overrides(rest))
    if options.slices < 1:
        parser.error("--slices is at least 1")
    if options.out and not options.out.parent.is_dir():
        raise BadInput(f"{options.out.parent}: no such folder")

    import jax

    jax.config.update("jax_platforms", "cpu")
    from piano_jax.learning import ahead
    from piano_jax.model.mesh import make_mesh
    from piano_jax.model.transformer import POLICIES

    mesh = make_mesh(**config.mesh, devices=ahead.topology(options.topology, options.slices))
    sizes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    chips = f"{mesh.size} chips of {mesh.devices.flat[0].device_kind}"
    print(f"{options.config} on {options.slices} × {options.topology}: {chips}, mesh {sizes}", flush=True)
    figures: dict = {"config": options.config, "topology": options.topology, "slices": options.slices}
    figures |= {"mesh": dict(mesh.shape), "length": config.length}

    if options.search:
        rows = {}
        for policy in progress(["none", *POLICIES], 1 + len(POLICIES), "remat policies"):
            config.model.remat = policy
            rows[policy] = ahead.most_rows(config, mesh)
            print(f"remat {policy:<4}  at most {rows[policy]} rows of {config.length:,} tokens a chip", flush=True)
        figures["rows"], fits = rows, any(rows.values())
    else:
        figures["batch"] = config.batch
        try:
            plan = ahead.plan(config, mesh)
        except ahead.TooLarge as error:
            print(error)
            fits = False
        else:
            print(describe(plan, config.batch * config.length))
            fits = plan.fits
            figures |= {name: value for name, value in vars(plan).items() if name != "compiled"}
    print("fits" if fits else "does not fit")
    if options.out:
        write_whole(options.out, (json.dumps(figures | {"fits": fits}, indent=1) + "\n").encode())
    return 0 if fits else 2


def describe(plan: "Plan", tokens: int) -> str:
    """A plan in lines, for a step over so many tokens."""
    parts = {name: getattr(plan, name) for name in ("weights", "optimizer", "batch", "temporaries", "program")}
    lines = [f"{name:<12} {size / GIB:9.3f} GiB a chip" for name, size in parts.items()]
    lines.append(f"{'in all':<12} {plan.total / GIB:9.3f} GiB of {plan.memory / GIB:.2f}")
    for kind, (count, size) in sorted(plan.collectives.items()):
        lines.append(f"{kind:<12} {count:9,} a step, results of {size / GIB:.3f} GiB")
    lines.append(f"{'computing':<12} {plan.flops / 1e12:9.2f} TFLOP a chip, at its peak in {plan.floor:.3f} s")
    lines.append(f"{'tokens':<12} {tokens:9,} a step, at most {tokens / plan.floor:,.0f} a second")
    return "\n".join([*lines, f"{'compiled in':<12} {plan.compiling:9.1f} s"])


if __name__ == "__main__":
    run(main)
