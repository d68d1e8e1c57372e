"""Eight fake CPU devices, and shapes and types of public functions checked at run time."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

SHARED = Path(__file__).parents[2] / "shared"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# Most of the tests' time goes into compiling the same few programs.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

install_import_hook("piano_jax", "beartype.beartype")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared folder, which only developers and CI have."""
    if not SHARED.exists():
        pytest.skip("the shared folder is not here")
    return SHARED
