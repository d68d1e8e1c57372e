import jax
import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.inference.decoding import Decoder, sizes_for, tail
from piano_jax.inference.sampling import Sampling
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


def test_a_conditioned_model_is_guided_as_the_formula_says(make_model, prompts):
    """At a temperature of 0: each token is the likeliest of the mixed logits of two full forward passes."""
    model = make_model(head="conditioned", head_size=6)
    embeddings = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32) * 3
    decoder, short = Decoder(model, PIANO, rules=False), prompts[1:]
    greedy = Sampling(temperature=0.0)
    drawn, likelihoods = run(decoder, short, 30, sampling=greedy, embeddings=embeddings, guidance=3.0)
    assert not np.array_equal(drawn, run(decoder, short, 30, sampling=greedy)[0])
    for row, prompt in enumerate(short):
        ids = np.concatenate([prompt, drawn[row]])
        share = 3 * np.arange(1, 31)[:, None] / 30  # warmed up over all 30
        padded = np.append(ids, 0).astype(np.int32)[None]  # the model drops the last
        given, plain = (np.asarray(model(padded, *more))[0] for more in ([embeddings[row : row + 1]], []))
        mixed = share * given[len(prompt) - 1 :][:30] + (1 - share) * plain[len(prompt) - 1 :][:30]
        mixed[:, PIANO.diminish] = -np.inf
        expected = np.asarray(jax.nn.log_softmax(mixed))[np.arange(30), drawn[row]]
        np.testing.assert_allclose(likelihoods[row], expected, atol=2e-4)
        np.testing.assert_allclose(mixed.max(1), mixed[np.arange(30), drawn[row]], atol=2e-4)


def test_the_same_seed_gives_the_same_and_rows_do_not_depend_on_their_number(decoder, prompts):
    one, other = (run(decoder, prompts[:1], 60, variations=4, seed=5) for _ in range(2))
    assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1], equal_nan=True)
    fewer, _ = run(decoder, prompts[:1], 60, variations=2, seed=5)
    assert np.array_equal(fewer, one[0][:2]) and not np.array_equal(one[0][0], one[0][1])
    assert not np.array_equal(run(decoder, prompts[:1], 60, variations=4, seed=6)[0], one[0])


@pytest.mark.parametrize("mesh", [{}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_a_prompt_of_another_length_compiles_nothing(make_model, prompts, mesh):
    with jax.set_mesh(make_mesh(**mesh) if mesh else make_mesh(devices=jax.devices()[:1])):
        decoder = Decoder(make_model(), PIANO)
        run(decoder, prompts[1:2], 100, variations=2)
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
        try:
            run(decoder, prompts[:1], 130, variations=2, sampling=Sampling(temperature=0.5, min_p=0.1), seed=3)
            found = [event for event in compiled if "compile" in event]
            assert compiled is not None and not found
            jax.jit(lambda x: x * 3 + len(found))(np.arange(3))
            assert any("compile" in event for event in compiled)  # it would have been noticed
        finally:
            jax.monitoring.clear_event_listeners()


def test_beyond_the_context_it_goes_on_from_the_last_half(make_model, prompts):
    """Of a window of 64, 33 to 64 tokens are seen, and what is drawn is what the full pass over them says."""
    model = make_model(context=64)
    drawn, likelihoods = run(Decoder(model, PIANO, rules=False), prompts[:1], 150)
    ids, seen = np.concatenate([prompts[0], drawn[0]]), len(tail(prompts[0], 32, PIANO))
    for count in range(150):
        before = ids[: len(prompts[0]) + count]
        if seen > 64:
            seen = len(tail(before, 32, PIANO))
        logits = np.asarray(jax.nn.log_softmax(model(np.pad(before[-seen:], (0, 64 - seen))[None]))[0, seen - 1])
        np.testing.assert_allclose(likelihoods[0, count], logits[drawn[0, count]], atol=1e-4)
        seen += 1


def test_endings(decoder, prompts):
    tokens, likelihoods = run(decoder, prompts[1:], 200, variations=3, to_end=True)
    for ids, nats in zip(tokens, likelihoods, strict=True):
        places = np.flatnonzero(ids == PIANO.diminish)
        assert len(places) == 1 or PIANO.end in ids[:70]
        if not np.isnan(nats[places]).any():
            continue
        assert 70 <= places[0] <= 72  # not inside a note
        before = PIANO.role[ids[places[0] - 1]]
        assert before != 1 and (before != 3 or PIANO.role[ids[places[0] - 2]] == 2)


def test_rows_that_end_are_padded_and_all_ended_stops(make_model, prompts):
    model = make_model()
    model.head_table[...] = model.head_table[...].at[PIANO.end].set(0.2 * np.ones(32))
    model.norm.bias[...] = model.norm.bias[...] + 4.0  # so that `<E>` is likely wherever it may come
    tokens, _ = run(Decoder(model, PIANO), prompts[1:2], 500, variations=4)
    assert tokens.shape[1] < 500
    for ids in tokens:
        ended = np.flatnonzero(ids == PIANO.end)
        assert len(ended) == 1 and (ids[ended[0] + 1 :] == PIANO.pad).all()


def test_sizes_and_tails(prompts):
    assert sizes_for(300, 8192) == sizes_for(2048, 8192) == (512, 1024, 2048)
    assert sizes_for(2049, 8192) == (512, 1024, 2048, 4096) and sizes_for(9000, 8192)[-1] == 8192
    assert sizes_for(100, 1000) == (512, 1024) and sizes_for(100, 64) == (256,)
    assert len(tail(prompts[0], 10_000, PIANO)) == len(prompts[0])
    for keep in range(20, 40):
        kept = tail(prompts[0], keep, PIANO)
        assert keep - 4 <= len(kept) <= keep and np.array_equal(kept, prompts[0][-len(kept) :])
        assert PIANO.role[kept[0]] in (1, 2) or kept[0] == PIANO.time


def test_what_cannot_continue(make_model, decoder, prompts):
    with pytest.raises(BadInput, match="head 'embedding' gives no tokens"):
        Decoder(make_model(head="embedding", head_size=4), PIANO)
    with pytest.raises(BadInput, match="head 'language' takes no embedding"):
        run(decoder, prompts[:1], 3, embeddings=np.zeros((1, 4), np.float32))
