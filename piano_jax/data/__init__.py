"""Pieces on disk, and the rows and batches that training reads. `batches` is imported apart, for Grain is heavy."""

from piano_jax.data.continuations import ContinuationEvaluation, ContinuationRows, Embeddings
from piano_jax.data.pairs import PairRows, ValidationPairs
from piano_jax.data.prefixes import Labelled
from piano_jax.data.rows import EvaluationRows, PretrainingRows
from piano_jax.data.shards import Dataset
from piano_jax.data.slices import ClassRows, ValidationSlices

__all__ = [
    "ClassRows",
    "ContinuationEvaluation",
    "ContinuationRows",
    "Dataset",
    "Embeddings",
    "EvaluationRows",
    "Labelled",
    "PairRows",
    "PretrainingRows",
    "ValidationPairs",
    "ValidationSlices",
]
