import csv
import dataclasses

import numpy as np
import pytest

from piano_jax.command import run
from piano_jax.music.composition import BASS, MELODY, STYLES, compose
from piano_jax.music.midi import read_midi
from piano_jax.music.performances import generate_corpus, main, perform, performance

SEEDS = range(12)


@pytest.fixture(scope="module")
def pieces():
    return {style: [performance(seed, style) for seed in SEEDS] for style in STYLES}


def same(one, other):
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))


@pytest.mark.parametrize("style", STYLES)
def test_the_same_seed_gives_the_same_notes_and_another_seed_others(style, pieces):
    assert same(performance(3, style), pieces[style][3])
    assert not same(pieces[style][4], pieces[style][3])


def test_without_a_style_the_seed_chooses_one():
    assert same(performance(5), performance(5))
    lengths = {len(performance(seed)) for seed in range(8)}
    assert len(lengths) > 4


@pytest.mark.parametrize("style", STYLES)
def test_notes_stay_on_the_piano(style, pieces):
    for notes in pieces[style]:
        assert 30 <= notes.seconds <= 120
        assert notes.onset[0] == 0 and (np.diff(notes.onset) >= 0).all()
        assert notes.pitch.min() >= 21 and notes.pitch.max() <= 108
        assert notes.velocity.min() >= 1 and notes.velocity.max() <= 127
        assert notes.duration.min() >= 20
        a_second_later = np.searchsorted(notes.onset, notes.onset + 1000)
        assert np.quantile(a_second_later - np.arange(len(notes)), 0.99) <= 20
        down, up = notes.pedal.T
        assert (down < up).all() and (up[:-1] < down[1:]).all()


@pytest.mark.parametrize("style", STYLES)
def test_a_key_is_released_before_it_is_struck_again(style, pieces):
    for notes in pieces[style]:
        order = np.lexsort((notes.onset, notes.pitch))
        onset, end, pitch = (x[order] for x in (notes.onset, notes.onset + notes.duration, notes.pitch))
        assert (end[:-1] < onset[1:])[pitch[:-1] == pitch[1:]].all()


def test_styles_differ_in_their_statistics(pieces):
    def mean(measure, style):
        return np.mean([measure(notes) for notes in pieces[style]])

    density = {style: mean(lambda n: len(n) / n.seconds, style) for style in STYLES}
    loudness = {style: mean(lambda n: n.velocity.mean(), style) for style in STYLES}
    length = {style: mean(lambda n: n.duration.mean(), style) for style in STYLES}
    assert density["chorale"] < density["nocturne"] < density["waltz"] < density["toccata"]
    assert loudness["nocturne"] < loudness["invention"] < loudness["stride"]
    assert length["toccata"] < length["waltz"] < length["nocturne"] < length["chorale"]
    assert mean(lambda n: len(n.pedal), "invention") == 0 < mean(lambda n: len(n.pedal), "nocturne")


@pytest.mark.parametrize("style", STYLES)
def test_another_take_plays_the_same_notes_in_other_time(style):
    score = compose(7, style)
    one, other = perform(score), perform(score, take=1)
    assert np.array_equal(np.sort(one.pitch), np.sort(other.pitch))
    assert np.array_equal(np.sort(score.pitch), np.sort(one.pitch))
    assert abs(one.seconds / other.seconds - 1) < 0.25
    stretched = other.onset * (one.onset[-1] / other.onset[-1])
    assert 10 < np.abs(stretched - one.onset).mean() < 3000
    assert not np.array_equal(one.velocity, other.velocity)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_motif_returns_transposed(seed):
    score = compose(seed, "toccata")
    mask = (score.voice == MELODY) & (score.beat < score.phrases[1])
    figures = score.pitch[mask].reshape(-1, 8)
    intervals = figures - figures[:, :1]
    assert len(np.unique(figures[:, 0])) > 1
    assert (np.sign(np.diff(figures)) == np.sign(np.diff(figures[0]))).all()
    assert (np.abs(intervals - intervals[0]) <= 2).all()


@pytest.mark.parametrize("style", STYLES)
def test_a_section_returns(style):
    shares = []
    for seed in SEEDS:
        score = compose(seed, style)
        names, melody, last = score.pitch % 12, score.voice == MELODY, score.phrases[-2]
        first_half = melody & (score.beat < score.phrases[1] / 2)
        notes = set(zip(score.beat[first_half], names[first_half], strict=True))
        again = set(zip(score.beat - last, names, strict=True))  # in any octave, in either hand
        shares.append(len(notes & again) / len(notes))
    assert np.mean(shares) > 0.6


def test_the_voices_of_a_chorale_move_in_parallel_fifths_or_octaves_at_most_rarely():
    parallels = moves = 0
    for seed in SEEDS:
        score = compose(seed, "chorale")
        struck = (score.beat % 1 == 0) & (score.beat < score.phrases[1])  # within one phrase
        chords = score.pitch[struck].reshape(-1, 4)
        assert (np.diff(chords) > 0).all()
        outer = np.diff(chords[:, [0, 3]], axis=1)[:, 0] % 12
        moved = np.diff(chords[:, 3]) != 0
        parallels += (moved & (outer[1:] == outer[:-1]) & np.isin(outer[1:], (0, 7))).sum()
        moves += moved.sum()
    assert parallels / moves < 0.02


def test_the_end_slows_down_on_the_tonic():
    score = compose(2, "waltz")
    notes = perform(score)
    bass = score.voice == BASS
    beats = notes.onset[np.isin(notes.pitch, score.pitch[bass]) & (notes.pitch < 52)]
    gaps = np.diff(beats)
    assert gaps[-1] > 1.15 * np.median(gaps)
    assert score.pitch[-1] % 12 in {score.pitch[bass][-1] % 12, (score.pitch[bass][-1] + 7) % 12}


def test_a_corpus_is_what_was_asked_for(tmp_path, capsys):
    main(["--out", str(tmp_path / "corpus"), "--minutes", "8", "--seed", "1"])
    assert "minutes" in capsys.readouterr().out
    with (tmp_path / "corpus" / "manifest.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["path"] for row in table} | {"manifest.csv"} == {p.name for p in (tmp_path / "corpus").iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]
    pieces = [read_midi(tmp_path / "corpus" / row["path"]) for row in table]
    assert 8 <= sum(notes.seconds for notes in pieces) / 60 <= 10
    assert {row["style"] for row in table} == set(STYLES)
    one, other = (pieces[i] for i, row in enumerate(table) if row["piece_id"] == "nocturne_000")
    assert np.array_equal(np.sort(one.pitch), np.sort(other.pitch)) and not np.array_equal(one.onset, other.onset)


def test_the_files_of_a_corpus_hold_the_notes_and_depend_on_the_seed(tmp_path):
    counts = [generate_corpus(tmp_path / name, 1, seed) for name, seed in (("a", 4), ("b", 4), ("c", 5))]
    first, again, other = (sorted((tmp_path / name).glob("*.mid")) for name in "abc")
    assert counts[0] == counts[1]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    assert first[0].read_bytes() != other[0].read_bytes()


@pytest.mark.parametrize(
    "arguments, culprit",
    [
        ([], "--out"),
        (["--out", "{}/new", "--minutes", "0"], "--minutes"),
        (["--out", "{}/new", "--minutes", "many"], "many"),
        (["--out", "{}/new", "--seed", "-1"], "--seed"),
        (["--out", "{}"], "not an empty folder"),
        (["--out", "{}/file/new"], "file"),
    ],
)
def test_bad_arguments_get_one_line_and_code_2(tmp_path, capsys, arguments, culprit):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run(lambda: main([word.format(tmp_path) for word in arguments]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and culprit in error
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
