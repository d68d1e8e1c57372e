"""Eight fake CPU devices, and shapes and types of public functions checked at run time."""

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

install_import_hook("piano_jax", "beartype.beartype")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared folder, which only developers and CI have."""
    if not SHARED.exists():
        pytest.skip("the shared folder is not here")
    return SHARED
