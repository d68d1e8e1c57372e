"""Models from other programs: `load_aria` reads the weights that the authors released."""

from piano_jax.model.aria import load_aria

__all__ = ["load_aria"]
