"""From what was played to the tokens that a model continues, and back."""

import numpy as np
from jaxtyping import Float32, Int32, Integer

from piano_jax import BadInput
from piano_jax.data.vectors import read_vectors
from piano_jax.music import Notes, Vocabulary
from piano_jax.music.vocabulary import SEGMENT, STEP


def prompt_of(notes: Notes, vocabulary: Vocabulary, seconds: float) -> Int32[np.ndarray, "T"]:
    """Ids of the events in the first seconds of a piece of piano, without `<E>`; of no notes, a piece's opening."""
    opening = np.array([vocabulary.prefix[0], vocabulary.begin], np.int32)  # the first prefix is the piano's
    if not len(notes):
        return opening
    ids = vocabulary.encode(notes)[:-1].astype(np.int32)
    at, sizes = vocabulary.events(ids)
    onset = np.cumsum(ids == vocabulary.time)[at] * SEGMENT + (ids[at + 1] - vocabulary.onset.start) * STEP
    kept = onset < 1000 * seconds
    return ids[: (at + sizes)[kept].max(initial=len(opening))]


def continued(
    prompt: Integer[np.ndarray, "T"], new: Integer[np.ndarray, "N"], vocabulary: Vocabulary
) -> tuple[Notes, Notes]:
    """The notes of a prompt with its continuation, and those of the continuation alone, at their times in the whole."""
    segments = prompt[prompt == vocabulary.time]
    whole, alone = (np.concatenate([before, new]) for before in (prompt, segments))
    return vocabulary.decode(whole), vocabulary.decode(alone)


def read_embedding(spec: str) -> Float32[np.ndarray, "E"]:
    """The embedding of `FILE.npz`, or `FILE.npz:PATH` where that holds several. Raises BadInput."""
    file, _, wanted = spec.partition(".npz:")
    file += ".npz" if wanted else ""
    paths, embeddings = read_vectors(file)
    found = np.flatnonzero(np.array(paths) == wanted) if wanted else np.arange(len(paths))
    if len(found) != 1:
        raise BadInput(
            f"{file}: holds {len(found)} embeddings" + (f" of {wanted}" if wanted else "; name one, FILE:PATH")
        )
    return embeddings[found[0]]
