"""Judging: truth above what is nearly true above another piece; what silence, loops and intervals are; the page."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.evaluation.continuations import FIGURES, judge, longest_loop, longest_silence
from piano_jax.evaluation.page import write_page
from piano_jax.evaluation.statistics import statistics_vector
from piano_jax.music import Notes
from piano_jax.music.performances import performance

COUNT, CUT, END = 24, 10_000, 30_000  # prompts; milliseconds
NAMES = [f"{number:03d}" for number in range(COUNT)]
NONE = Notes([], [], [], [])
NOTHING = {"embed": None, "training": None, "valid": None, "seed": 0}


def between(notes: Notes, start: int, end: int) -> Notes:
    inside = (notes.onset >= start) & (notes.onset < end)
    return Notes(*(x[inside] for x in (notes.onset - start, notes.duration, notes.pitch, notes.velocity)))


def mixed(notes: Notes, other: Notes, seed: int) -> Notes:
    """About a half of the notes of each."""
    rng, parts = np.random.default_rng(seed), []
    for part in (notes, other):
        kept = rng.random(len(part)) < 0.5
        parts.append([x[kept] for x in (part.onset, part.duration, part.pitch, part.velocity)])
    columns = [np.concatenate(both) for both in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return Notes(*(column[order] for column in columns))


@pytest.fixture(scope="module")
def played() -> tuple[list[Notes], list[Notes]]:
    """Prompts, and how they go on."""
    whole = [performance(seed) for seed in range(COUNT)]
    return [between(notes, 0, CUT) for notes in whole], [between(notes, CUT, END) for notes in whole]


@pytest.fixture(scope="module")
def judgement(played):
    prompts, truth = played
    others = [*truth[1:], truth[0]]
    halfway = [mixed(one, other, seed) for seed, (one, other) in enumerate(zip(truth, others, strict=True))]
    systems = {"same": truth, "halfway": halfway, "others": others, "silent": [NONE] * COUNT}
    valid = {"same": np.ones(COUNT), "halfway": np.linspace(0, 1, COUNT)}
    names = [f"<{seed}>" for seed in range(COUNT)]

    def embed(performances: list[Notes]) -> np.ndarray:
        assert all(len(notes) for notes in performances)
        return 7 * np.stack([statistics_vector(notes)[:140] for notes in performances])

    return judge(
        prompts,
        truth,
        systems,
        embed=embed,
        training=(performance(seed, take=1) for seed in range(3)),
        names=NAMES,
        valid=valid,
        seed=0,
        training_names=names[:3],
    )


def test_truth_halfway_other(judgement):
    assert judgement.systems == ["truth", "same", "halfway", "others", "silent", "other"]
    likenesses = [figure.key for figure in FIGURES if figure.key.startswith("like_")]
    assert len(likenesses) == 7
    for key in likenesses:
        found, shares = judgement.figures[key], judgement.figures[key.replace("like", "share")]
        assert found["same"] == found["truth"] and shares["same"] == shares["truth"] == (1, 1, 1)
        assert shares["other"] == (0, 0, 0)
        assert found["truth"].value > found["halfway"].value > found["others"].value > found["silent"].value == 0
        assert max(shares["others"].high, 0) < shares["halfway"].low < shares["halfway"].high < 1
        assert abs(shares["others"].value) < 0.4  # one other of each prompt, and not the mean of all
        assert all(each.low <= each.value <= each.high for each in found.values())


def test_other_is_the_mean_over_all_others(played):
    prompts, truth = played
    names = [f"{number // 2}" for number in range(COUNT)]  # two prompts of each piece
    found = judge(prompts, truth, {}, names=names, **NOTHING)
    vectors = [[statistics_vector(notes) / np.sqrt(7) for notes in side] for side in played]
    alike = [
        one @ other for i, one in enumerate(vectors[0]) for j, other in enumerate(vectors[1]) if names[i] != names[j]
    ]
    assert found.figures["like_statistics"]["other"].value == pytest.approx(np.mean(alike), rel=1e-3)


def test_figures_of_sets(judgement):
    for kind in ("statistics", "embedding"):
        found = judgement.figures[f"frechet_{kind}"]
        assert found["same"] == found["truth"] and found["silent"].low > found["halfway"].value > 0
        assert found["truth"].value > 0 and "other" not in found
    for feature in ("pitch_class", "duration", "inter_onset", "velocity", "density"):
        area, apart = judgement.figures[f"area_{feature}"], judgement.figures[f"kl_{feature}"]
        assert area["same"] == area["truth"] and area["truth"].value > 0.5 > area["silent"].value
        assert apart["truth"].value < apart["silent"].value


def test_figures_of_one_continuation(judgement):
    assert judgement.figures["valid"]["same"] == (1, 1, 1) and set(judgement.figures["valid"]) == {"same", "halfway"}
    assert judgement.figures["valid"]["halfway"].value == pytest.approx(0.5)
    assert judgement.figures["silence"]["silent"].value > 10 > judgement.figures["silence"]["truth"].value
    assert judgement.figures["loop"]["silent"] == (0, 0, 0)
    runs = judgement.runs["truth"]
    assert [judgement.piece(run) for run in runs[:3]] == ["<0>", "<1>", "<2>"]  # another take of the same composition
    assert min(run.notes for run in runs[:3]) > max(run.notes for run in runs[3:])
    assert judgement.runs["silent"][0].notes == 0 and judgement.runs["same"] == runs


def test_silence():
    notes = Notes([1000, 1500, 9000], [3000, 100, 500], [60, 61, 62], [50] * 3)
    assert longest_silence(notes, 10_000) == 5.0
    assert longest_silence(notes, 20_000) == 10.5 and longest_silence(notes[1:], 9000) == 7.4
    assert longest_silence(notes[2:], 9000) == 9.0
    assert longest_silence(NONE, 45_000) == 45.0 and longest_silence(NONE, 0) == 0.0


@pytest.mark.parametrize("period, times", [(1, 5), (3, 2), (7, 4)])
def test_loops(period: int, times: int):
    rng = np.random.default_rng(period)

    def piece(*parts: np.ndarray) -> Notes:
        pitch, gaps = np.concatenate(parts, axis=1)
        return Notes(np.cumsum(gaps), gaps, pitch, np.full(len(pitch), 60))

    def drawn(low: int, size: int) -> np.ndarray:
        return np.stack([low + rng.permutation(40)[:size], 100 + 20 * rng.permutation(40)[:size]])

    before, loop, after = drawn(21, 30), drawn(61, period), drawn(21, 30)
    looped = piece(before, *[loop] * times, after)
    assert longest_loop(looped) == period * (times - 1)
    assert longest_loop(piece(before, loop, after)) == 0
    onset = np.sort(looped.onset + rng.integers(0, 6, len(looped)))  # within a step of the grid
    assert longest_loop(dataclasses.replace(looped, onset=onset)) == period * (times - 1)
    played = dataclasses.replace(
        looped, onset=np.cumsum(np.diff(looped.onset, prepend=0) + 25 * np.arange(len(looped)))
    )
    assert longest_loop(played) < max(period * (times - 1), 2)  # the same notes, later and later
    assert longest_loop(NONE) == longest_loop(looped[:1]) == 0


def test_intervals_keep_names_together(played):
    prompts, truth = played
    alone = judge(prompts, truth, {}, names=NAMES, **NOTHING)
    thrice = judge(prompts * 3, truth * 3, {}, names=NAMES * 3, **NOTHING)
    apart = judge(prompts * 3, truth * 3, {}, names=[f"{n}" for n in range(3 * COUNT)], **NOTHING)
    width = {
        name: np.ptp(found.figures["like_statistics"]["truth"][1:])
        for name, found in (("alone", alone), ("thrice", thrice), ("apart", apart))
    }
    assert width["thrice"] == pytest.approx(width["alone"], rel=1e-6)
    assert width["apart"] == pytest.approx(width["alone"] / np.sqrt(3), rel=0.2)
    assert alone.figures["like_statistics"]["truth"].value == pytest.approx(
        thrice.figures["like_statistics"]["truth"].value
    )


def test_what_is_not_given_is_not_told(played):
    prompts, truth = (side[:3] for side in played)
    found = judge(prompts, truth, {"mine": truth}, names=NAMES[:3], **NOTHING)
    assert not {"valid", "copied", "like_embedding", "frechet_embedding"}.intersection(found.figures)
    assert not any(key.startswith(("frechet", "area", "kl")) for key in found.figures)  # no halves of two
    assert found.table() == judge(prompts, truth, {"mine": truth}, names=NAMES[:3], **NOTHING).table()
    assert "mine" in found.table() and "embeddings" not in found.table()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"names": ["a"] * 4}, "prompts of 1 pieces"),
        ({"systems": {"truth": 4}}, "truth: "),
        ({"systems": {"mine": 3}}, "mine: 3 continuations of 4 prompts"),
    ],
)
def test_bad_input(played, change: dict, complaint: str):
    prompts, truth = (side[:4] for side in played)
    systems = {name: truth[:count] for name, count in change.get("systems", {}).items()}
    with pytest.raises(BadInput, match=complaint):
        judge(prompts, truth, systems, names=change.get("names", NAMES[:4]), **NOTHING)


def test_the_page_needs_no_other_file(judgement, tmp_path):
    write_page(dataclasses.replace(judgement, names=[f"a & <{name}>" for name in NAMES]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"continuations.{kind}" for kind in ("html", "json", "csv")}
    page = (tmp_path / "continuations.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == [] and "url(" not in page and "<script" not in page
    assert page.count("<img") == 3 and "&lt;2&gt;" in page and "a &amp; &lt;001&gt;" in page
    for _, titles, rows in judgement.bands():
        for cell in (*titles, *(cell for row in rows.values() for cell in row)):
            assert f">{cell}</t" in page and cell in judgement.table()

    kept = json.loads((tmp_path / "continuations.json").read_text())
    assert kept["figures"]["silence"]["silent"] == list(judgement.figures["silence"]["silent"])
    assert kept["values"]["like_pitch_class"]["halfway"] == judgement.values["like_pitch_class"]["halfway"].tolist()
    assert kept["runs"]["truth"][1]["name"] == "<1>"
    rows = list(csv.DictReader((tmp_path / "continuations.csv").open()))
    assert {(row["figure"], row["system"]) for row in rows} == {
        (figure, system) for figure, by_system in judgement.figures.items() for system in by_system
    }
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)


def test_a_page_of_little(played, tmp_path):
    prompts, truth = (side[:2] for side in played)
    same = judge([truth[0]] * 2, [truth[0]] * 2, {}, names=NAMES[:2], **NOTHING)  # other is as good as truth
    write_page(same, tmp_path)
    assert json.loads((tmp_path / "continuations.json").read_text())["figures"]["share_velocity"]["truth"][0] is None
    write_page(judge(prompts, truth, {"mine": [NONE] * 2}, names=NAMES[:2], **NOTHING), tmp_path)
    assert "mine" in (tmp_path / "continuations.html").read_text()
