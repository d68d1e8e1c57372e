"""The transformer, its heads and its attention, and the one place that knows about meshes and shardings."""

from piano_jax.model.transformer import Model, TransformerConfig

__all__ = ["Model", "TransformerConfig"]
