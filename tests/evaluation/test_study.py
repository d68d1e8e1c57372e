"""How pairs are drawn, how loud they are, and what a page is given."""

import itertools
from collections import Counter

import numpy as np
import pytest

from piano_jax.evaluation.study import draw_pairs, level, page_of
from piano_jax.inference.audio import loudness
from piano_jax.inference.tone import RATE

SYSTEMS, PROMPTS = ["c", "a", "b"], [f"{number:02d}" for number in range(30)]


@pytest.mark.parametrize("each", [4, 9, 10])
def test_pairs_are_balanced(each):
    pairs = draw_pairs(SYSTEMS, PROMPTS, each, np.random.default_rng(1))
    two = [frozenset(pair.systems) for pair in pairs]
    assert {*two} == {frozenset(names) for names in itertools.combinations(SYSTEMS, 2)}
    assert all(len({*two[start : start + 3]}) == 3 for start in range(0, len(two), 3))
    sides = Counter(pair.systems for pair in pairs)
    assert all(abs(sides[one, other] - sides[other, one]) == each % 2 for one, other in sides)
    assert len({pair.prompt for pair in pairs}) == len(pairs)


def test_prompts_come_again_when_they_must():
    pairs = draw_pairs(SYSTEMS, PROMPTS[:4], 4, np.random.default_rng(1))
    assert len({(pair.prompt, frozenset(pair.systems)) for pair in pairs}) == len(pairs) == 12
    assert {*Counter(pair.prompt for pair in pairs).values()} == {3}


def test_sides_and_order_are_drawn():
    drawn = [draw_pairs(SYSTEMS[:2], PROMPTS, 1, np.random.default_rng(seed))[0] for seed in range(400)]
    left = Counter(pair.systems for pair in drawn)
    assert 150 < left["a", "c"] < 250 and sum(left.values()) == left["a", "c"] + left["c", "a"]
    assert {pair.prompt for pair in drawn} == {*PROMPTS}
    first = Counter(
        frozenset(draw_pairs(SYSTEMS, PROMPTS, 1, np.random.default_rng(seed))[0].systems) for seed in range(300)
    )
    assert min(first.values()) > 60
    again = draw_pairs(SYSTEMS, PROMPTS, 10, np.random.default_rng(7))
    assert again == draw_pairs(SYSTEMS, PROMPTS, 10, np.random.default_rng(7))


def test_both_sides_are_as_loud_and_do_not_clip():
    rng = np.random.default_rng(0)
    soft, loud, peaked = (scale * rng.normal(size=3 * RATE) for scale in (0.001, 2, 1))
    peaked[7] = 500
    one, other = level([soft, loud])
    assert np.isclose(loudness(one, RATE), 0.07) and np.isclose(loudness(other, RATE), 0.07)
    one, other = level([peaked, loud])
    assert np.isclose(loudness(one, RATE), loudness(other, RATE)) and np.isclose(np.abs(one).max(), 0.9)
    assert [np.abs(sound).max() for sound in level([np.zeros(9), loud])] == [
        0,
        pytest.approx(np.abs(loud).max(), rel=1),
    ]


def test_a_page_cannot_be_broken_out_of():
    page = page_of({"id": "</script><b>", "pairs": []})
    assert page.count("</script>") == 2 and "</script><b>" not in page
