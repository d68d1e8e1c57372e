"""The command, from folders of MIDI to p-values, and its page as a listener has it, in headless Chromium."""

import json
import re
import shutil
import time
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from piano_jax import BadInput, study
from piano_jax.evaluation.ballots import checksum
from piano_jax.inference.audio import loudness
from piano_jax.inference.tone import play_tone
from piano_jax.music import Notes, read_midi, write_midi
from piano_jax.music.performances import performance

NAMES = ("walrus", "zebra", "okapi")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
# Root has no sandbox, and a closed network no services of Google's.
FLAGS = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
disable-component-update disable-sync disable-dev-shm-usage mute-audio window-size=1000,900"""


def between(notes: Notes, first: int, last: int) -> Notes:
    kept = (notes.onset >= first) & (notes.onset < last)
    return Notes(notes.onset[kept], notes.duration[kept], notes.pitch[kept], notes.velocity[kept])


@pytest.fixture
def folders(tmp_path) -> Path:
    """Four prompts of two seconds, and three systems that go on for more than one: each piece, another, another."""
    pieces = [performance(seed) for seed in range(4)]
    for number, piece in enumerate(pieces):
        prompt = between(piece, 0, 2000)
        for folder, system in enumerate(("prompts", *NAMES)):
            (tmp_path / system).mkdir(exist_ok=True)
            new = between(pieces[(number + folder - 1) % 4], 2000, 3500) if folder else Notes([], [], [], [])
            columns = [
                (getattr(prompt, name), getattr(new, name)) for name in ("onset", "duration", "pitch", "velocity")
            ]
            write_midi(Notes(*map(np.concatenate, columns)), tmp_path / system / f"{number:03d}.mid")
    return tmp_path


def make(folders: Path, *more: str, systems=NAMES, out: str = "out", **changes) -> Path:
    options = {"prompts": folders / "prompts", "out": folders / out, "prompt-seconds": 2, "seconds": 1.2, "pairs": 2}
    words = [f"--{name}={value}" for name, value in (options | changes).items()]
    study.main(["make", *words, *(f"--system={name}={folders / name}" for name in systems), *more])
    return folders / out


def data_of(out: Path) -> dict:
    page = (out / "listen/index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="study">(.*)</script>', page)[1])


def test_what_make_leaves(folders, capsys):
    out = make(folders)
    key, data = json.loads((out / "key.json").read_text()), data_of(out)
    assert "out/listen: 6 pairs" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"key.json", "listen"}
    assert [*key["systems"]] == [*NAMES] and key["study"] == data["id"] and len(key["pairs"]) == len(data["pairs"]) == 6
    files = {str(path.relative_to(out / "listen")) for path in (out / "listen").rglob("*.*")}
    assert files == {"index.html"} | {side["audio"] for pair in data["pairs"] for side in pair["sides"]}
    for pair, told in zip(data["pairs"], key["pairs"], strict=True):
        levels = []
        for name, side in zip("AB", pair["sides"], strict=True):
            played = between(read_midi(folders / told[name] / f"{told['prompt']}.mid"), 0, 3200)
            with wave.open(str(out / "listen" / side["audio"])) as file:
                assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 22_050, 2)
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_767
            levels.append(loudness(samples, 22_050))
            # What is seen and heard on each side is what the key says.
            assert side["notes"][2::4] == played.pitch[played.onset >= 2000].tolist()
            assert np.corrcoef(samples[:60_000], play_tone(played)[:60_000])[0, 1] > 0.98
            assert 2 < len(samples) / 22_050 <= pair["end"] + 0.01 < 4 and np.abs(samples).max() < 0.91
            assert min(side["notes"][::4]) * 0.02 >= 1.98 and max(side["notes"][1::4]) * 0.02 <= 3.2
        assert np.isclose(*levels, rtol=0.01) and max(pair["prompt"][::4]) * 0.02 < 2


def test_nothing_that_listeners_get_tells_the_systems(folders):
    out, renamed = make(folders), {"walrus": "okapi", "okapi": "walrus"}
    names = [name.encode() for name in (*NAMES, str(folders))]
    for path in (out / "listen").rglob("*.*"):
        assert not any(name in path.read_bytes() or name in path.name.encode() for name in names)
    # Under other names the listeners' folder is the same, to the byte but for the study's own.
    for one, other in renamed.items():
        (folders / one).rename(folders / f"{other}.new")
    for name in renamed:
        (folders / f"{name}.new").rename(folders / name)
    other = make(folders, out="other", systems=[renamed.get(name, name) for name in NAMES])
    first, second = data_of(out), data_of(other)
    for path in (out / "listen/audio").iterdir():
        assert path.read_bytes() == (other / "listen/audio" / path.name).read_bytes()
    assert first.pop("id") != second.pop("id") and first == second
    # The same seed draws other sides for other music, so that nobody can draw them again without it.
    drawn, notes = set(), read_midi(folders / "okapi/000.mid")
    for softer in range(6):
        write_midi(Notes(notes.onset, notes.duration, notes.pitch, notes.velocity - softer), folders / "okapi/000.mid")
        pairs = json.loads((make(folders, out=f"again{softer}") / "key.json").read_text())["pairs"]
        drawn.add(tuple((pair["prompt"], pair["A"], pair["B"]) for pair in pairs))
    assert len(drawn) == 6


def test_a_soundfont_plays(folders):
    pytest.importorskip("tinysoundfont")
    from tests.test_generate import soundfont

    (folders / "tone.sf2").write_bytes(soundfont())
    out = make(folders, pairs=1, soundfont=folders / "tone.sf2")
    for path in (out / "listen/audio").iterdir():
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_767
        assert 4 < len(samples) / 22_050 < 5.3 and 0.02 < loudness(samples, 22_050) < 0.08


def test_score_prints_the_exact_p(folders, capsys):
    out = make(folders, systems=NAMES[:2], pairs=4)
    key = json.loads((out / "key.json").read_text())
    files = []
    for listener in range(46):  # the first system is preferred 38 : 6, with two ties
        pair = key["pairs"][listener % 4]
        best = "A" if (pair["A"] == NAMES[0]) == (listener < 38) else "B"
        body = {"study": key["study"], "listener": str(listener)}
        body["answers"] = [{"pair": pair["pair"], "choice": best if listener < 44 else "tie"}]
        files.append(folders / f"{listener}.json")
        files[-1].write_text(json.dumps(body | {"checksum": checksum(body)}))
    capsys.readouterr()
    study.main(["score", "--key", str(out / "key.json"), *map(str, files)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "listeners: 46; answers: 46"
    assert re.fullmatch(r"walrus : zebra +38 : 6  ties 2  p = 9.43e-7", lines[1])
    (folders / "edited.json").write_text(re.sub('"choice": "."', '"choice": "tie"', files[0].read_text()))
    with pytest.raises(BadInput, match=r"edited\.json: edited since"):
        study.main(["score", "--key", str(out / "key.json"), str(folders / "edited.json")])


def test_bad_input_is_one_line(folders):
    def refused(message: str, *more: str, **changes) -> None:
        with pytest.raises(BadInput, match=message) as error:
            make(folders, *more, **changes)
        assert "\n" not in str(error.value) and not list(folders.glob("*out*"))

    refused("a study compares two systems", systems=NAMES[:1])
    refused("of different names", f"--system=zebra={folders / 'zebra'}")
    refused("--system: NAME=FOLDER, not zebra", "--system", "zebra")
    refused("--pairs: must be positive", pairs=0)
    refused("--seconds: must be positive", seconds=-1)
    refused("5 pairs of every two systems need as many prompts, and there are 4", pairs=5)
    refused("walrus/000.mid: nothing comes after the first 3.5 s|another prompt", **{"prompt-seconds": 3.5})
    refused("absent: no such file", prompts=folders / "absent")
    refused("a SoundFont needs TinySoundFont|absent.sf2: No such file", soundfont="absent.sf2")
    okapi = folders / "okapi"
    shutil.copy(folders / "prompts/002.mid", okapi)
    refused("okapi/002.mid: nothing comes after the first 2 s, which are the prompt")
    shutil.copy(folders / "walrus/001.mid", okapi / "002.mid")
    refused("okapi/002.mid: opens with another prompt: .*prompts/002.mid")
    (okapi / "002.mid").write_bytes(b"MThd")
    refused("okapi/002.mid: .*MIDI")
    (okapi / "002.mid").rename(okapi / "009.mid")
    refused("okapi: no 002.mid, which .*prompts has$")
    for path in okapi.iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    refused("okapi: no 000.mid, .*; they have no name in common")
    shutil.rmtree(okapi)
    okapi.mkdir()
    refused("okapi: no .mid or .midi file")


@pytest.fixture
def browser(tmp_path):
    """Starts headless Chromium, which keeps what it downloads in `downloads`."""
    if not BROWSER or not DRIVER:
        pytest.skip("Chromium and its driver are not on this machine")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS.split(), f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def test_a_listener_answers_in_a_browser(folders, browser, capsys):
    """Three pairs, one by keyboard alone, with a reload in between; then the export is counted."""
    out = make(folders, pairs=1)
    page = (out / "listen/index.html").as_uri()

    def one(selector: str):
        return browser.find_element("css selector", selector)

    def status() -> str:
        return one("section:not([hidden]) .status").text

    def press(keys: str) -> None:
        browser.switch_to.active_element.send_keys(keys)

    def until(holds, what: str) -> None:
        limit = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < limit, f"never: {what}; {one('#status').text}"
            time.sleep(0.05)

    def hurry() -> None:
        browser.execute_script(
            "document.querySelectorAll('audio').forEach((a) => (a.defaultPlaybackRate = a.playbackRate = 4))"
        )

    def picture(side: int) -> str:
        return browser.execute_script(f"return document.querySelectorAll('canvas')[{side}].toDataURL()")

    def title() -> str:
        return one("#pair-title").text

    browser.get(page)
    hurry()
    assert one("#intro").is_displayed() and "3 pairs" in one("#many").text
    one("#begin").click()
    assert title() == "Pair 1 of 3" and not one("#intro").is_displayed()

    # By hand: both sides are played, of which a picture follows; before that there is nothing to choose.
    plays, choices = (browser.find_elements("css selector", s) for s in (".play", "input[name=choice]"))
    until(lambda: len({picture(0), picture(1)}) == 2, "two pictures")
    before = picture(0)
    for side in (0, 1):
        assert not any(choice.is_enabled() for choice in choices)
        plays[side].click()
        until(lambda side=side: "has ended" in status() or choices[side].is_enabled(), f"side {side} was heard")
        until(lambda side=side: "Play" in plays[side].text, "the end")
    assert picture(0) != before
    choices[0].click()
    assert status() == "You prefer A. Saved."
    one("#next").click()
    assert title() == "Pair 2 of 3"

    browser.refresh()
    hurry()
    assert title() == "Pair 2 of 3" and one("progress").get_attribute("value") == "1"

    # By keyboard.
    press("a")
    assert "Not heard yet: A and B" in status()
    press("2")
    press("1")  # which pauses the other
    assert browser.execute_script("return [...document.querySelectorAll('audio')].map((a) => a.paused)") == [
        False,
        True,
    ]
    until(lambda: "Not heard yet: B." in status() or "A has ended" in status(), "A")
    press("2")
    until(lambda: one("input[value=B]").is_enabled(), "B")
    press("b")
    assert one("input[value=B]").is_selected() and status() == "You prefer B. Saved."
    press("p")
    assert title() == "Pair 1 of 3" and one("input[value=A]").is_selected()
    press("nn")
    assert title() == "Pair 3 of 3"

    # On a phone: nothing is wider than the screen, nothing too small for a thumb.
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    buttons = browser.find_elements("css selector", "#pair button, .choice")
    assert len(buttons) == 9 and min(button.size["height"] for button in buttons) >= 44
    assert min(button.rect["x"] for button in buttons) >= 0
    for side in (0, 1):
        plays[side] = browser.find_elements("css selector", ".play")[side]
        plays[side].click()
        until(lambda side=side: "Play" in plays[side].text, "the end")
    until(lambda: one("input[value=tie]").is_enabled(), "the third pair was heard")
    one("input[value=tie]").click()
    press("n")
    assert one("#answered").text == "You answered 3 of 3 pairs." and not one("#missing").is_displayed()
    press("e")
    until(lambda: list((folders / "downloads").glob("*.json")), "a file")
    [export] = (folders / "downloads").glob("*.json")
    answers = json.loads(export.read_text())["answers"]
    assert answers == [{"pair": 1, "choice": "A"}, {"pair": 2, "choice": "B"}, {"pair": 3, "choice": "tie"}]
    assert json.loads(one("#text").get_attribute("value")) == json.loads(export.read_text())
    assert not browser.get_log("browser")

    capsys.readouterr()
    study.main(["score", "--key", str(out / "key.json"), str(export)])
    lines = capsys.readouterr().out.splitlines()
    pairs = json.loads((out / "key.json").read_text())["pairs"]
    assert lines[0] == "listeners: 1; answers: 3" and len(lines) == 5
    won = [pairs[0]["A"], pairs[1]["B"]]
    for line in lines[1:4]:
        first, second, wins, losses, ties = re.match(r"(\w+) : (\w+) +(\d+) : (\d+)  ties (\d+)  p = 1$", line).groups()
        [number] = [n for n, pair in enumerate(pairs) if {pair["A"], pair["B"]} == {first, second}]
        expected = Counter([won[number]] if number < 2 else ["tie"])
        assert [int(n) for n in (wins, losses, ties)] == [expected[name] for name in (first, second, "tie")]
