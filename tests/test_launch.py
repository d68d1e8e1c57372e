"""The scripts of launch/: what they would run, and, on this machine and on fake ones, that they do."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = ["local_cluster.sh", "tpu_vm.sh", "multislice.sh", "xpk.sh", "slurm_gpu.sh", "worker.sh"]
AWKWARD = ["--workdir", "/mnt/it's a run", "--config.data.path=a;b $HOME *", 'say "é"']
TPU = ["--name", "piano", "--zone", "us-west4-a", "--type", "v5litepod-16"]
XPK = ["--cluster", "c", "--name", "n", "--type", "v6e-256", "--image", "i/j"]


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """A folder, first on PATH, of commands that must not be called unless a test replaces them."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("gcloud", "xpk", "srun", "scontrol", "kubectl", "curl", "sudo"):
        write_tool(folder / name, f'echo "{name} was called" >&2; exit 97')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return folder


def write_tool(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def launch(script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess:
    command = [ROOT / "launch" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


@contextmanager
def running(command: list) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()  # or else a test that fails would wait for it
            raise


def dry_run(script: str, *arguments: str, train: list[str] = AWKWARD) -> list[list[str]]:
    """The commands that a dry run prints, as the words that a shell would read."""
    done = launch(script, *arguments, "--dry-run", "--", *train)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [shlex.split(line, comments=True) for line in done.stdout.splitlines()]
    return [words for words in lines if words]


def remote(commands: list[list[str]]) -> list[str]:
    """What a dry run would run on hosts."""
    return [word.removeprefix("--command=") for words in commands for word in words if word.startswith("--command=")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, tools):
    done = launch(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ") and f"launch/{script}" in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("script", "arguments", "culprit"),
    [
        ("local_cluster.sh", [], "number of processes"),
        ("local_cluster.sh", ["0", "--", "true"], "0: not a number of processes"),
        ("local_cluster.sh", ["four", "--", "true"], "four"),
        ("local_cluster.sh", ["2"], "after --"),
        ("local_cluster.sh", ["2", "--devices", "two", "--", "true"], "--devices two"),
        ("local_cluster.sh", ["2", "true"], "unknown argument true"),
        ("tpu_vm.sh", ["--zone", "z", "--type", "v5p-8", "--", "a"], "--name is missing"),
        ("tpu_vm.sh", [*TPU, "--type", "v9-8", "--", "a"], "--type v9-8"),
        ("tpu_vm.sh", [*TPU, "--name", "Piano Roll", "--", "a"], "--name Piano Roll"),
        ("tpu_vm.sh", [*TPU, "--nfs", "10.0.0.2", "--", "a"], "--nfs 10.0.0.2"),
        ("tpu_vm.sh", [*TPU, "--slices", "0", "--", "a"], "--slices 0"),
        ("tpu_vm.sh", [*TPU, "--zone"], "--zone wants a value"),
        ("tpu_vm.sh", [*TPU, "--zone", "--", "a"], "--zone wants a value"),
        ("tpu_vm.sh", [*TPU, "--zne=z", "--", "a"], "unknown argument --zne=z"),
        ("tpu_vm.sh", [*TPU, "--spot=no", "--", "a"], "unknown argument --spot=no"),
        ("tpu_vm.sh", TPU, "after --"),
        ("multislice.sh", [*TPU, "--", "--slices", "2"], "--slices is missing"),
        ("xpk.sh", [*XPK[2:], "--", "a"], "--cluster is missing"),
        ("xpk.sh", XPK, "after --"),
        ("slurm_gpu.sh", [], "after --"),
        ("slurm_gpu.sh", ["--", "a"], "sbatch"),
        ("worker.sh", [], "verbs"),
        ("worker.sh", ["walk"], "walk"),
        ("worker.sh", ["run"], "wants a command"),
    ],
)
def test_bad_input_is_one_line(script, arguments, culprit, tools):
    done = launch(script, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and culprit in done.stderr


def test_dry_run_of_a_local_cluster(tools, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--one --two")
    commands = dry_run("local_cluster.sh", "4")
    variables = [dict(word.split("=", 1) for word in words[1 : -len(AWKWARD)]) for words in commands]
    assert all(words[0] == "env" and words[-len(AWKWARD) :] == AWKWARD for words in commands)
    assert [v["JAX_PROCESS_ID"] for v in variables] == ["0", "1", "2", "3"]
    assert {v["JAX_NUM_PROCESSES"] for v in variables} == {"4"}
    assert len({v["JAX_COORDINATOR_ADDRESS"] for v in variables}) == 1
    flags = {v["XLA_FLAGS"] for v in variables}
    assert flags == {"--one --two --xla_force_host_platform_device_count=2"}
    [three] = dry_run("local_cluster.sh", "1", "--devices=3")
    assert "XLA_FLAGS=--one --two --xla_force_host_platform_device_count=3" in three
    many = dry_run("local_cluster.sh", "16")
    assert all("XLA_FLAGS=--one --two --xla_force_host_platform_device_count=1" in words for words in many)


@pytest.mark.parametrize(
    ("script", "options", "nodes"),
    [
        ("tpu_vm.sh", [], ["--node-id=piano"]),
        ("tpu_vm.sh", ["--slices=2"], ["--node-count=2", "--node-prefix=piano"]),
        ("multislice.sh", ["--slices", "2"], ["--node-count=2", "--node-prefix=piano"]),
    ],
)
def test_dry_run_of_tpus(script, options, nodes, tools):
    commands = dry_run(script, *TPU, *options, "--project", "p", "--nfs", "10.0.0.2:/piano")
    resources = [words for words in commands if words[:4] == ["gcloud", "compute", "tpus", "queued-resources"]]
    order = [words[4] for words in resources]
    assert order == ["describe", "create", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert all("piano" in words[5:7] or "piano:" in words[5:7] for words in resources)
    assert all("--zone=us-west4-a" in words and "--project=p" in words for words in resources)
    create = resources[1][8:]
    assert create == ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", *nodes]
    install, start, follow, status = remote(commands)
    for words, all_hosts in zip(resources[2:7], [True, True, True, False, False], strict=True):
        which = "all" if all_hosts else "0"
        assert f"--node={which}" in words and f"--worker={which}" in words
    assert shlex.split(start)[:5] == [
        "piano_jax/launch/worker.sh",
        "start",
        ".venv/bin/python",
        "-m",
        "piano_jax.train",
    ]
    assert shlex.split(start)[5:] == AWKWARD
    assert install.endswith("worker.sh install 10.0.0.2:/piano")
    assert (follow, status) == ("piano_jax/launch/worker.sh follow", "piano_jax/launch/worker.sh status")


@pytest.mark.parametrize(
    ("type_", "version"),
    [("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v5p-64", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e")],
)
def test_the_software_follows_from_the_type(type_, version, tools):
    [create] = [words for words in dry_run("tpu_vm.sh", *TPU, "--type", type_, "--spot") if "create" in words]
    assert f"--runtime-version={version}" in create and "--spot" in create
    [create] = [
        words for words in dry_run("tpu_vm.sh", *TPU, "--type", "v4-8", "--version", "new") if "create" in words
    ]
    assert "--runtime-version=new" in create and "--spot" not in create


def test_dry_run_of_xpk(tools):
    [words] = dry_run("xpk.sh", *XPK, "--slices", "2", "--storage", "piano")
    assert words[:3] == ["xpk", "workload", "create"]
    expected = {"--cluster=c", "--workload=n", "--tpu-type=v6e-256", "--docker-image=i/j", "--num-slices=2"}
    assert expected | {"--storage=piano"} <= set(words)
    [command] = remote([words])
    assert shlex.split(command) == ["exec", "launch/worker.sh", "run", "python", "-m", "piano_jax.train", *AWKWARD]


def test_dry_run_under_slurm(tools):
    install, train, requeue = dry_run("slurm_gpu.sh")
    assert install[1:4] == ["-m", "pip", "install"] and install[-1] == "jax[cuda13]"
    assert train[0] == "srun" and train[-7 - len(AWKWARD) + 2 :] == [
        "launch/worker.sh", "run", ".venv/bin/python", "-m", "piano_jax.train", *AWKWARD
    ]  # fmt: skip
    assert requeue[:2] == ["scontrol", "requeue"]
    head = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", (ROOT / "launch/slurm_gpu.sh").read_text(), re.M))
    assert "requeue" in head and head["signal"].startswith("TERM@")
    assert head["ntasks-per-node"] == head["gpus-per-node"]


@pytest.mark.parametrize(("returned", "queued_again"), [(143, True), (0, False), (2, False)])
def test_slurm_queues_again_what_was_stopped(returned, queued_again, tools, tmp_path, monkeypatch):
    venv = tmp_path / "repository"
    (venv / "launch").mkdir(parents=True)
    text = (ROOT / "launch/environment.sh").read_text()
    (venv / "launch/environment.sh").write_text(text + "\nenvironment() { :; }\n")  # installs nothing
    (venv / ".venv/bin").mkdir(parents=True)
    write_tool(venv / ".venv/bin/python", "exit 0")
    spool = tmp_path / "slurm_script"  # where Slurm runs it from
    spool.write_text((ROOT / "launch/slurm_gpu.sh").read_text())
    write_tool(tools / "srun", f"exit {returned}")
    write_tool(tools / "scontrol", f'echo "$@" >"{tmp_path}/scontrol"')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(venv))
    done = subprocess.run(["bash", spool, "--", "--workdir", "w"], capture_output=True, text=True, timeout=30)
    assert done.returncode == returned
    assert (tmp_path / "scontrol").exists() == queued_again
    if queued_again:
        assert (tmp_path / "scontrol").read_text() == "requeue 7\n"


def test_gke():
    job_set = yaml.safe_load((ROOT / "launch/gke.yaml").read_text())
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = job_set["spec"]
    [replicated] = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert job["parallelism"] * chips == prod(map(int, topology.split("x")))
    assert job["completions"] == job["parallelism"] and job["backoffLimit"] == 0
    # A pod that was told to stop must not count as done, and bad input must not be tried again.
    assert container["command"] == ["launch/worker.sh", "run", "python", "-m", "piano_jax.train"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert spec["failurePolicy"]["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert spec["failurePolicy"]["maxRestarts"] > 10
    arguments = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    assert int(arguments["config.mesh.replica"]) == replicated["replicas"]
    assert (ROOT / arguments["config"].partition(":")[0]).exists()
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert Path(mounts["share"]) in Path(arguments["workdir"]).parents


MEMBER = """
import os
import jax
from jax.experimental import multihost_utils
place = [int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], *place)
import numpy as np
"""


def test_a_local_cluster_is_one_jax_cluster():
    program = MEMBER + (
        "seen = multihost_utils.process_allgather(np.array(jax.process_index()))\n"
        "print(jax.process_index(), jax.local_device_count(), jax.device_count(), seen.tolist())\n"
    )
    done = launch("local_cluster.sh", "3", "--devices", "2", "--", sys.executable, "-c", program, timeout=120)
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if re.fullmatch(r"\[\d\] \d \d \d \[.*\]", line)]
    assert sorted(lines) == [f"[{i}] {i} 2 6 [0, 1, 2]" for i in range(3)]


def test_one_killed_process_ends_a_local_cluster():
    program = MEMBER + (
        "try:\n"
        "    multihost_utils.process_allgather(np.array(0))\n"
        "    if jax.process_index() == 1: os.kill(os.getpid(), 9)\n"
        "    while True: multihost_utils.process_allgather(np.array(0))\n"
        "except ValueError:\n"
        "    print('noticed')\n"
        "    os._exit(1)\n"
    )
    done = launch("local_cluster.sh", "3", "--devices", "1", "--", sys.executable, "-c", program, timeout=60)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == "error: process 1 of 3 ended with exit code 137\n"
    assert {"[0] noticed", "[2] noticed"} <= set(done.stdout.splitlines())


def test_what_does_not_notice_is_killed_with_all_that_it_started():
    program = "((JAX_PROCESS_ID)) || exit 7; sleep 300 & wait"
    done = launch("local_cluster.sh", "3", "--", "bash", "-c", program)  # ends when all that holds its pipes has ended
    assert done.returncode == 7
    first, second = done.stderr.splitlines()
    assert first == "error: process 0 of 3 ended with exit code 7"
    assert second == "error: processes 1 2 have not noticed, and are killed"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_reach_every_process_of_a_local_cluster(sent, code):
    program = (
        "import signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.5)\n    print('saved', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: print('interrupted'), sys.exit(130)\n"
    )
    command = [ROOT / "launch/local_cluster.sh", "3", "--", sys.executable, "-c", program]
    with running(command) as process:
        ready = {process.stdout.readline() for _ in range(3)}
        assert ready == {f"[{i}] ready\n" for i in range(3)}
        process.send_signal(sent)
        left = process.stdout.read()
        assert process.wait(timeout=30) == code
    word = "saved" if sent == signal.SIGTERM else "interrupted"
    assert sorted(left.splitlines()) == [f"[{i}] {word}" for i in range(3)]


@pytest.mark.parametrize(("tell", "ends_with", "code"), [(True, 0, 143), (True, 5, 5), (False, 0, 0), (False, 5, 5)])
def test_a_worker_says_whether_it_was_stopped(tell, ends_with, code):
    program = f"trap 'exit {ends_with}' TERM; echo ready; {'sleep 60 & wait' if tell else f'exit {ends_with}'}"
    command = [ROOT / "launch/worker.sh", "run", "bash", "-c", program]
    with running(command) as process:
        assert process.stdout.readline() == "ready\n"
        if tell:
            process.terminate()
        assert process.wait(timeout=30) == code


GCLOUD = """
import json, os, shutil, subprocess, sys
from pathlib import Path

cloud, words = Path(os.environ["CLOUD"]), sys.argv[1:]
state, nodes, hosts = cloud / "state", cloud / "nodes", [cloud / "host0", cloud / "host1"]
options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
with (cloud / "calls").open("a") as calls:
    print(json.dumps(words), file=calls)
if words[2] == "tpu-vm":
    print(nodes.read_text())
    sys.exit()
verb = words[3]
if verb == "create":
    state.write_text("ACTIVE")
    nodes.write_text("READY READY")
    for host in hosts:
        host.mkdir()
elif not state.exists():
    sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
elif verb == "describe":
    print(state.read_text())
elif verb == "delete":
    state.unlink()
    for host in hosts:
        shutil.rmtree(host)
elif state.read_text() != "ACTIVE" or "PREEMPTED" in nodes.read_text():
    sys.exit("ERROR: (gcloud) the TPU is in state PREEMPTED")
elif verb == "scp":
    for host in hosts:
        shutil.copy(words[4], host)
elif verb == "ssh":
    chosen = hosts if options["worker"] == "all" else hosts[:1]
    if "follow" in options["command"] and (cloud / "bad-connection").exists():
        (cloud / "bad-connection").unlink()
        sys.exit(1)
    running = []
    for host in chosen:
        place = {"cwd": host, "env": os.environ | {"HOME": str(host)}}
        running.append(subprocess.Popen(options["command"], shell=True, **place))
    sys.exit(max(process.wait() for process in running))
"""

# Stands for training: goes on from the last step that was saved, to step 6, but stays at step 3 if it comes by.
TRAIN = """
import os, signal, sys, time
from pathlib import Path

cloud, host = Path(os.environ["CLOUD"]), Path(os.environ["HOME"]).name
saved, events = cloud / f"saved-{host}", (cloud / f"events-{host}").open("a")
step = int(saved.read_text()) if saved.exists() else 0
def save(*_):
    saved.write_text(str(step))
    print("saved", step, file=events, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("started at", step, sys.argv[1:], file=events, flush=True)
print("step", step, flush=True)
if sys.argv[1].startswith("fail="):
    print("error: as it was told")
    sys.exit(int(sys.argv[1][5:]))
while step < 6:
    step += 1
    time.sleep(0.2)
    while step == 3:
        (cloud / f"waits-{host}").touch()
        time.sleep(0.1)
print("finished", file=events, flush=True)
"""


@pytest.fixture
def cloud(tools, tmp_path, monkeypatch) -> Path:
    """A cloud of two hosts a slice in a folder: `gcloud` that acts on it, and hosts on which nothing is installed."""
    folder = tmp_path / "cloud"
    folder.mkdir()
    (folder / "gcloud.py").write_text(GCLOUD)
    (folder / "train.py").write_text(TRAIN)
    write_tool(tools / "gcloud", f'exec "{sys.executable}" "{folder}/gcloud.py" "$@"')
    write_tool(folder / "python", f'shift 2; exec "{sys.executable}" "{folder}/train.py" "$@"')
    uv = f'[[ $1 != venv ]] || {{ mkdir -p .venv/bin; cp "{folder}/python" .venv/bin/python; }}'
    write_tool(folder / "uv", uv)
    write_tool(tools / "curl", f"echo 'mkdir -p ~/.local/bin && cp \"{folder}/uv\" ~/.local/bin/uv'")
    monkeypatch.setenv("CLOUD", str(folder))
    return folder


def calls(cloud: Path, verb: str) -> list[list[str]]:
    lines = [json.loads(line) for line in (cloud / "calls").read_text().splitlines()]
    return [words for words in lines if words[3] == verb]


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def wait_for_training(cloud: Path) -> None:
    wait_for(lambda: (cloud / "waits-host0").exists() and (cloud / "waits-host1").exists())


@pytest.mark.parametrize(("file", "says"), [("state", "SUSPENDED"), ("nodes", "READY PREEMPTED")])
def test_a_preempted_slice_is_requested_again_and_training_goes_on(file, says, cloud):
    (cloud / "bad-connection").touch()
    command = [ROOT / "launch/tpu_vm.sh", *TPU, "--poll", "0", "--", "--workdir", "it's one"]
    with running(command) as process:
        wait_for_training(cloud)
        wait_for(lambda: not (cloud / "bad-connection").exists())
        (cloud / file).write_text(says)
        for host in ("host0", "host1"):
            os.kill(int((cloud / host / "piano_jax/runs/worker/id").read_text()), signal.SIGTERM)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert len(calls(cloud, "create")) == 2 and len(calls(cloud, "delete")) == 1
    assert calls(cloud, "create")[0] == calls(cloud, "create")[1]
    for host in ("host0", "host1"):
        begun, saved, again, end = (cloud / f"events-{host}").read_text().splitlines()
        assert begun == """started at 0 ['--workdir', "it's one"]"""
        assert saved == "saved 3" and again == begun.replace("0", "3") and end == "finished"
    assert "step 0" in output and "step 3" in output and "finished" in output


@pytest.mark.parametrize("code", [1, 2])
def test_what_fails_on_a_whole_slice_is_not_tried_again(cloud, code):
    done = launch("tpu_vm.sh", *TPU, "--poll", "0", "--", f"fail={code}")
    assert done.returncode == code and "error: as it was told" in done.stdout
    assert len(calls(cloud, "create")) == 1 and not calls(cloud, "delete")
    assert (cloud / "events-host0").read_text().count("started") == 1


def test_interrupted_every_host_saves_and_the_slice_stays(cloud):
    command = [ROOT / "launch/tpu_vm.sh", *TPU, "--poll", "0", "--", "a"]
    with running(command) as process:
        wait_for_training(cloud)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert all("saved" in (cloud / f"events-{host}").read_text() for host in ("host0", "host1"))
    assert (cloud / "host0/piano_jax/runs/worker/exit").read_text() == "stopped\n"
    assert (cloud / "state").read_text() == "ACTIVE" and not calls(cloud, "delete")
