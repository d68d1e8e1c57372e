"""Time and peak memory of importing a safetensors file, beside the file's size.

    python -m tests.benchmarks.importing --scratch FOLDER [--size medium]

Writes a file of random weights (2.6 GB for `medium`) into FOLDER, imports it in a process of its own, and removes both.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from piano_jax.model import TransformerConfig
from piano_jax.model.aria import layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", required=True, type=Path, help="a folder with room for the file, twice")
    parser.add_argument("--size", default="medium", help="of the model")
    options = parser.parse_args()
    config = getattr(TransformerConfig, options.size)()
    file, folder = options.scratch / "random.safetensors", options.scratch / "random"
    write(file, config)
    start, size = time.perf_counter(), file.stat().st_size
    try:
        command = [sys.executable, "-m", "piano_jax.convert", "import", str(file), str(folder)]
        subprocess.run([*command, "--heads", str(config.heads)], check=True)
    finally:
        file.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"file {size / 1e9:.2f} GB, import {seconds:.0f} s, peak {peak / 1e9:.2f} GB: {peak / size:.2f} of the file")


def write(file: Path, config: TransformerConfig) -> None:
    """Writes random weights in the authors' layout."""
    rng = np.random.default_rng(0)
    shapes = {name: shape for names, shape in layout(config).values() for name in names}
    save_file({name: rng.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()}, file)


if __name__ == "__main__":
    main()
