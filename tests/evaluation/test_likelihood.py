"""Likelihood: what a model is told in windows, the floors, and the figures made of both."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from piano_jax.data import Labelled
from piano_jax.data.rows import row_of
from piano_jax.evaluation import floors, likelihood, tables
from piano_jax.evaluation.likelihood import Tally, is_told, per, windows
from piano_jax.learning import objectives
from piano_jax.model import Model, TransformerConfig
from piano_jax.model.mesh import make_mesh
from piano_jax.music import Vocabulary
from piano_jax.music.performances import performance
from piano_jax.music.vocabulary import CLASSES
from tests.evaluation.made import make_dataset

PIANO = Vocabulary("piano")
LENGTHS = (10, 40, 90, 61, 25, 70)  # notes of pieces
FLAT = floors.Floor(np.log(np.full((len(CLASSES), Vocabulary("aria").size), 1 / Vocabulary("aria").size)), 1.0)
TRAIN, VALIDATION = np.arange(4), np.arange(4, 6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    pieces = [performance(seed)[:length] for seed, length in enumerate(LENGTHS)]
    path = tmp_path_factory.mktemp("likelihood") / "data"
    return make_dataset(path, pieces, [0, 0, 0, 0, 1, 1], ["a", "a", "b", "c", "d", "e"])


@pytest.fixture(scope="module")
def model() -> Model:
    shape = {"vocabulary_size": PIANO.size, "d_model": 16, "layers": 2, "heads": 2, "ff_width": 32, "context": 512}
    model = Model(TransformerConfig(**shape, dtype="float32"), nnx.Rngs(0))
    for leaf in (model.layers.qkv, model.layers.out, model.token_table, model.head_table):
        leaf[...] = leaf[...] * 8  # so that tokens depend on each other
    return model


@pytest.mark.parametrize("size", [2, 7, 64])
def test_windows_tell_every_token_once_with_half_a_window_before_it(size):
    tokens = np.array([2, 3, size, size + 1, size + 2, 5 * size, 200])
    cut = windows(tokens, size)
    told = [np.zeros(length, int) for length in tokens]
    for piece, start, length, first in zip(*cut, strict=True):
        assert 0 < length <= size and start + length < tokens[piece]
        assert not start or first >= size // 2
        told[piece][start + 1 :][first:length] += 1
    for counts in told:
        assert counts[0] == 0 and (counts[1:] == 1).all()


def test_a_model_is_told_what_training_is(dataset, model):
    """In one window a piece, the sums by class are those of the objective that training evaluates by."""
    mesh, pieces = make_mesh(), np.arange(6)
    with jax.set_mesh(mesh):
        tally = likelihood.tally_of_model(model, mesh, dataset, pieces, 512)
    rows = [row_of(ids, 512, PIANO, isolate=False) for ids in dataset.read(pieces)]
    objective = functools.partial(objectives.next_token, kind=PIANO.kind, kinds=len(CLASSES), chunk=128, z=0.0)
    measure = jax.jit(lambda batch: objective(model, batch, None)[1])
    for row, sums in zip(rows, tally.sums, strict=True):
        row["weights"] *= is_told(PIANO)[row["targets"]]
        found = measure({name: x[None] for name, x in row.items()})
        theirs = np.stack([np.asarray(found[name]) for name in ("weight", "loss", "correct")], 1)
        np.testing.assert_allclose(sums, theirs, rtol=1e-4, atol=1e-4)
    assert tally.sums[..., 0].sum() == sum(map(len, dataset.read(pieces))) - 2 * len(pieces)


def test_windows_are_told_as_they_stand(dataset, model):
    """A plain loop over windows of 32, the model's logits by softmax, gives the same sums and bins."""
    mesh, ids = make_mesh(), dataset[5].astype(np.int32)
    nats, right, confidence = [], [], []
    with jax.set_mesh(mesh):
        tally = likelihood.tally_of_model(model, mesh, dataset, np.array([5]), 32)
    for _, start, length, first in zip(*windows(np.array([len(ids)]), 32), strict=True):
        row = np.pad(ids[start : start + length], (0, 32 - length), constant_values=PIANO.pad)[None]
        shares = np.asarray(jax.nn.softmax(model(row)[0]), np.float64)[first:length]
        targets = ids[start + 1 :][first:length]
        kept = is_told(PIANO)[targets]
        nats.append(-np.log(shares[np.arange(len(targets)), targets])[kept])
        right.append((shares.argmax(1) == targets)[kept])
        confidence.append(shares.max(1)[kept])
    nats, right, confidence = map(np.concatenate, (nats, right, confidence))
    np.testing.assert_allclose(tally.sums.sum((0, 1)), [len(nats), nats.sum(), right.sum()], rtol=1e-4)
    np.testing.assert_allclose(tally.bins.sum((0, 1)), [len(nats), confidence.sum(), right.sum()], rtol=1e-4)
    np.testing.assert_allclose(tally.bins.sum(0), tally.bins_of_class.sum(0))


def test_floors_count_the_training_pieces(dataset):
    found = floors.fit_floors(dataset, TRAIN, ["a", "a", "b", "c"])
    ids = [piece.astype(int) for piece in dataset.read(TRAIN)]
    told = np.concatenate([piece[2:] for piece in ids])  # after the prefix and <S>
    before = np.concatenate([piece[1:-1] for piece in ids])
    assert set(found) == {"unigram", "class bigram"}
    for name, (table, added) in found.items():
        assert added in floors.ADDED
        np.testing.assert_allclose(np.exp(table).sum(1), 1)
        for kind in range(len(CLASSES)):
            seen = told if name == "unigram" else told[PIANO.kind[before] == kind]
            counts = np.bincount(seen, minlength=PIANO.size) + added
            np.testing.assert_allclose(np.exp(table[kind]), counts / counts.sum())
    tallies = {name: floors.tally_of_floor(floor, dataset, VALIDATION) for name, floor in found.items()}
    assert tallies["class bigram"].sums[..., 1].sum() < tallies["unigram"].sums[..., 1].sum()
    ids = dataset[4].astype(int)
    expected = -found["class bigram"].log_probability[PIANO.kind[ids[1:-1]], ids[2:]].sum()
    assert tallies["class bigram"].sums[0, :, 1].sum() == pytest.approx(expected)


def test_smoothing_is_chosen_on_other_compositions_of_training(dataset):
    """The one under which the held-out fifth is likeliest, which no piece of another split changes."""
    compositions = ["a", "a", "b", "c"]
    held_out = floors.drawn_split(compositions, (0.8, 0.2)) == 1
    assert held_out.any() and held_out[0] == held_out[1]
    learnt, others = (floors.count(dataset, TRAIN[of]) for of in (~held_out, held_out))
    for name, table in (("unigram", floors.unigram), ("class bigram", floors.class_bigram)):
        likelihoods = {added: (others * table(learnt, added)).sum() for added in floors.ADDED}
        assert floors.fit_floors(dataset, TRAIN, compositions)[name].added == max(likelihoods, key=likelihoods.get)
        assert len(set(likelihoods.values())) == len(floors.ADDED)


def test_labels_before_a_piece_are_given_not_told(tmp_path):
    pieces = [performance(seed)[:30] for seed in range(3)]
    dataset = make_dataset(tmp_path / "data", pieces, [0, 1, 1], ["a", "b", "c"], "aria")
    labelled, which = Labelled(dataset), np.arange(3)
    lengths = [[len(ids) for ids in of.read(which)] for of in (dataset, labelled)]
    assert np.subtract(lengths[1], lengths[0]).tolist() == [1, 1, 0]
    one, other = (floors.tally_of_floor(FLAT, pieces, which) for pieces in (dataset, labelled))
    np.testing.assert_array_equal(one.sums, other.sums)
    assert one.sums[..., 0].sum() == sum(lengths[0]) - 2 * len(which)


def tally_of(confidence: np.ndarray, right: np.ndarray, pieces: int = 1) -> Tally:
    """Notes with these predictions, dealt to pieces in turn."""
    tally = Tally(pieces)
    count = len(confidence)
    tally.add(np.arange(count) % pieces, np.zeros(count, int), -np.log(confidence), right, confidence)
    return tally


def test_calibration():
    """Nought where what is said with 70 % is right in 70 %, and the difference where it is right less often."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.01, 1, 200_000)
    luck = random.random(len(confidence))
    groups, seconds = np.zeros(1, int), np.ones(1)
    assert per(tally_of(confidence, luck < confidence), seconds, groups)["calibration"].value < 0.01
    boast = per(tally_of(confidence, luck < confidence / 2), seconds, groups)["calibration"].value
    assert boast == pytest.approx(confidence.mean() / 2, abs=0.01)
    extremes = tally_of(np.array([1.0, 1e-9]), np.array([True, False]))  # the last bin, and the first
    assert extremes.bins[0, [0, -1], 0].tolist() == [1, 1]


def test_figures_are_ratios_of_sums():
    tally = Tally(2)
    note, time = CLASSES.index("note"), CLASSES.index("time")
    nats = np.array([1.0, 2.0, 3.0, 6.0])
    tally.add(np.array([0, 0, 1, 1]), np.array([note, time, note, note]), nats, nats < 3, np.full(4, 0.5))
    found = per(tally, np.array([10.0, 20.0]), np.array([0, 1]))
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {"token": 3, "token/note": 10 / 3, "token/time": 2, "note": 4, "second": 0.4, "accuracy": 0.5, "calibration": 0}
    )
    assert (found["token"].low, found["token"].high) == pytest.approx((1.5, 4.5))  # one of the two compositions, twice


def test_draws_without_a_class_say_nothing_of_it():
    tally = Tally(2)
    tally.add(np.arange(2), np.array([0, 3]), np.array([1.0, 2.0]), np.zeros(2, bool), np.full(2, 0.5))
    found = per(tally, np.ones(2), np.arange(2))
    assert found["token/note"] == (1, 1, 1) and found["token/time"] == (2, 2, 2) and found["token"] == (1.5, 1, 2)


def test_intervals_are_over_compositions():
    """A composition that was played ten times tells no more than one: the interval does not shrink."""
    values = np.random.default_rng(0).normal(size=(30, 1)) + 5
    many = np.repeat(np.concatenate([values, np.ones((30, 1))], 1), 10, axis=0)

    def mean(sums: np.ndarray) -> np.ndarray:
        return sums[:, :1] / sums[:, 1:]

    [apart], [together] = (
        likelihood.bootstrap(many, groups, mean) for groups in (np.arange(300), np.arange(300) // 10)
    )
    assert (apart.value, together.value) == pytest.approx((values.mean(),) * 2)
    assert together.high - together.low == pytest.approx(4 * values.std() / 30**0.5, rel=0.2)
    assert apart.high - apart.low == pytest.approx((together.high - together.low) / 10**0.5, rel=0.2)


def test_what_one_needs_more_is_surer_than_both():
    """Pieces that are hard are hard for both."""
    random = np.random.default_rng(0)
    hard, pieces = random.uniform(2, 8, 40), np.repeat(np.arange(40), 20)
    tallies = [Tally(40), Tally(40)]
    for tally, worse in zip(tallies, (0.1, 0.0), strict=True):
        nats = hard[pieces] + worse + 0.05 * random.normal(size=len(pieces))
        tally.add(pieces, np.zeros(len(pieces), int), nats, np.zeros(len(pieces), bool), np.full(len(pieces), 0.5))
    found, one = likelihood.more(*tallies, np.arange(40)), per(tallies[0], np.ones(40), np.arange(40))["token"]
    assert found.value == pytest.approx(0.1, abs=0.01) and 0 < found.low < found.value < found.high
    assert found.high - found.low < (one.high - one.low) / 20


def test_a_report_splits_by_label():
    random = np.random.default_rng(0)
    tally = tally_of(random.uniform(0.1, 1, 600), np.ones(600, bool), pieces=6)
    labels = {"composer": np.array(["b", "a", "b", "", "b", "a"])}
    report = tables.report({"it": tally}, np.full(6, 10.0), np.arange(6), labels)
    parts = report.labels["composer"]
    assert list(parts) == ["b", "a"] and [part.pieces for part in parts.values()] == [3, 2]
    assert parts["a"].seconds == 20 and parts["a"].notes == 200 and report.whole.notes == 600
    sums = tally.sums[[1, 5]].sum((0, 1))
    assert parts["a"].figures["it"]["token"].value == pytest.approx(sums[1] / sums[0])
    assert "a                       2" in tables.printed(report)
