"""Hosts that meet, or say who is missing; one that dies ends the job; told to stop, all save the same step."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from piano_jax import BadInput
from piano_jax.learning.checkpoints import find
from piano_jax.learning.cluster import join, roll_call
from tests.learning.runs import ROOT, launch, losses, run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def call(runs: dict[int, str], count: int, timeout: int) -> dict[int, str]:
    """What each of these hosts learns from a roll call of `count`."""
    address, said = f"127.0.0.1:{free_port()}", {}

    def one(index: int) -> None:
        try:
            roll_call(address, count, index, runs[index], timeout)
            said[index] = ""
        except BadInput as error:
            said[index] = str(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in runs]
    for thread in reversed(threads):  # the first host is the last to come
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_hosts_that_mean_the_same_run_meet():
    assert call(dict.fromkeys(range(4), "seed=0 data=a"), 4, 20) == dict.fromkeys(range(4), "")


def test_a_host_that_means_another_run_is_named_on_every_host():
    said = call({0: "seed=0 data=a", 1: "seed=0 data=b", 2: "seed=0 data=a"}, 3, 20)
    assert said == dict.fromkeys(range(3), "host 1 of 3: has data=b, host 0 data=a")


@pytest.mark.parametrize(("present", "said"), [((0, 2), "host 1, 3 of 4: not there"), ((1,), "host 0 of 4: not there")])
def test_a_host_that_never_appears_is_named(present, said):
    assert all(line.startswith(said) for line in call(dict.fromkeys(present, "same"), 4, 2).values())


@pytest.mark.parametrize("place", [("localhost:1", "two", "0"), ("localhost:1", "2", "2"), ("", "2", "1")])
def test_no_place_in_a_cluster(monkeypatch, place):
    for name, value in zip(("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), place, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="no place in a cluster"):
        join("run", 1)


@contextlib.contextmanager
def cluster(count: int, config_file: Path, data: Path, workdir: Path, *overrides: str) -> Iterator[subprocess.Popen]:
    """A run on several hosts, of which none is left when the test is over."""
    train = [sys.executable, "-m", "piano_jax.train", f"--config={config_file}", f"--workdir={workdir}"]
    words = [f"--config.{override}" for override in (f"data.path={data}", *overrides)]
    environment = os.environ | {"XLA_FLAGS": ""}
    process = subprocess.Popen(
        ["launch/local_cluster.sh", str(count), "--", *train, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        for host in hosts(workdir).values():
            os.kill(host, signal.SIGKILL)


def when_at(workdir: Path, step: int, process: subprocess.Popen) -> None:
    """Returns when a step has been logged."""
    while not (workdir / "metrics.jsonl").exists() or max(losses(workdir), default=0) < step:
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.01)


def hosts(workdir: Path) -> dict[str, int]:
    """The processes that run in a folder, by what their environment says of their place."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words, places = ((entry / name).read_text().split("\0") for name in ("cmdline", "environ"))
            if "python" in words[0] and f"--workdir={workdir}" in words:
                found |= {place: int(entry.name) for place in places if place.startswith("JAX_PROCESS_ID=")}
    return found


def test_two_hosts_told_to_stop_save_the_same_step_and_one_goes_on(config_file, config, data, tmp_path):
    config.steps = 30
    run(config, tmp_path / "alone")
    two = tmp_path / "two"
    with cluster(2, config_file, data, two, "steps=30", "checkpoint.every=100") as process:
        when_at(two, 3, process)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    assert process.returncode == 0, said
    stopped = int(find(str(two)).name)
    assert 4 <= stopped < 30 and f"stopped by SIGTERM: step {stopped} is saved" in said
    assert max(losses(two)) == stopped - 1
    config.checkpoint.every = 100
    run(config, two)
    ours, alone = losses(two), losses(tmp_path / "alone")
    assert ours.keys() == alone.keys()
    np.testing.assert_allclose(list(ours.values()), list(alone.values()), rtol=1e-5)


def test_a_host_that_dies_ends_the_job_with_an_error(config_file, data, tmp_path):
    endless = "steps=100000", "evaluation.every=0", "checkpoint.every=100000"
    with cluster(2, config_file, data, tmp_path, *endless) as process:
        when_at(tmp_path, 3, process)
        os.kill(hosts(tmp_path)["JAX_PROCESS_ID=1"], signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and "error: process 1 of 2" in said, said


def test_told_to_stop_a_run_saves_that_very_step_and_goes_on_to_the_bit(config_file, data, tmp_path):
    overrides = "steps=40", "evaluation.every=10", "checkpoint.every=1000"
    assert launch(config_file, data, tmp_path / "alone", *overrides).wait() == 0
    process = launch(config_file, data, tmp_path / "told", *overrides)
    when_at(tmp_path / "told", 7, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, process.stderr.read()
    stopped = int(find(str(tmp_path / "told")).name)
    assert stopped == max(losses(tmp_path / "told")) + 1 < 40
    assert launch(config_file, data, tmp_path / "told", *overrides).wait() == 0
    assert losses(tmp_path / "told") == losses(tmp_path / "alone")
