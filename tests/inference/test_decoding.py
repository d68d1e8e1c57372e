import jax
import numpy as np
import pytest

from piano_jax.inference.decoding import Decoder
from piano_jax.model.mesh import make_mesh
from piano_jax.music import Vocabulary

PIANO = Vocabulary("piano")


def run(decoder: Decoder, prompts, tokens: int, **wishes) -> tuple[np.ndarray, np.ndarray]:
    """All tokens that a decoder draws, and their log-probabilities."""
    drawn, likelihoods = zip(*decoder.decode(prompts, tokens, **wishes), strict=True)
    return np.concatenate(drawn, 1), np.concatenate(likelihoods, 1)


def expected(model, rows: list[np.ndarray], count: int, **given) -> np.ndarray:
    """Log-probabilities of the last tokens of rows, each given all before it, by the full forward pass."""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    logits = np.asarray(jax.nn.log_softmax(model(padded, **given)))
    return np.stack(
        [of[np.arange(len(row) - count - 1, len(row) - 1), row[-count:]] for of, row in zip(logits, rows, strict=True)]
    )


@pytest.mark.parametrize("mesh", [None, {"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_cached_decoding_equals_the_full_forward_pass(make_model, prompts, mesh):
    """Over 200 positions, for prompts of three lengths side by side, each twice. Without rules, so that the softmax
    over all logits is compared."""
    with jax.set_mesh(make_mesh(**mesh) if mesh else make_mesh(devices=jax.devices()[:1])):
        drawn, likelihoods = run(Decoder(make_model(), PIANO, rules=False), prompts, 200, variations=2)
    assert drawn.shape == (6, 200)
    rows = [np.concatenate([prompts[row // 2], drawn[row]]) for row in range(6)]
    shown = (drawn != PIANO.pad) & ~np.isnan(likelihoods)
    assert shown[:, :50].all()
    np.testing.assert_allclose(likelihoods[shown], expected(make_model(), rows, 200)[shown], atol=1e-4)
