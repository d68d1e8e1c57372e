"""Many hosts: how they meet, that they mean the same run, and how all of them learn that one is told to stop."""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import jax
from jax._src.clusters import ClusterEnv  # the only way to ask JAX where it would go before it goes there
from jax.experimental import multihost_utils

from piano_jax import BadInput

PLACE = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = 20  # seconds without a sign of life, after which a host is given up and the job ends


def join(run: str, timeout: int) -> None:
    """Joins the cluster that this process is one of, if it is; before anything touches a backend.

    The cluster is JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what JAX finds by itself (Cloud
    TPU, GKE, Slurm, Open MPI). `run` is a line that says what is to be computed, and on what data.

    Raises:
        BadInput: a host does not appear within `timeout` seconds, or means another run.
    """
    place = {name: os.environ.get(name, "") for name in PLACE}
    if any(place.values()):
        address, *numbers = place.values()
        if not (":" in address and all(map(str.isdigit, numbers)) and int(numbers[1]) < int(numbers[0])):
            raise BadInput(f"{' '.join(f'{name}={value}' for name, value in place.items())}: no place in a cluster")
        (count, index), local = map(int, numbers), None
    else:
        address, count, index, local = ClusterEnv.auto_detect_unset_distributed_params(*(None,) * 5, timeout)
    if address is None or count in (None, 1):
        return
    roll_call(address, count, index, run, timeout)
    waits = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": 60}
    jax.distributed.initialize(address, count, index, local, **waits)


def roll_call(address: str, count: int, index: int, run: str, timeout: int) -> None:
    """Returns when all hosts are there and mean the same run.

    Host 0 hears them on the coordinator's port, which JAX takes next; JAX's own wait ends in a stack trace that tells
    neither who is missing nor what differs. Raises BadInput on every host.
    """
    deadline = time.monotonic() + timeout
    host, _, port = address.rpartition(":")
    verdict = _hear(int(port), count, run, deadline) if index == 0 else _report(host, int(port), index, run, deadline)
    if verdict is None:
        raise BadInput(f"host 0 of {count}: not there after {timeout} s, at {address}")
    if verdict:
        raise BadInput(verdict)


def _hear(port: int, count: int, run: str, deadline: float) -> str:
    """Host 0's part: hears the others, and tells them the verdict, which is empty where all is well."""
    runs, calls = {0: run}, []
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(socket.create_server(("", port), backlog=count, reuse_port=True))
        start = time.monotonic()
        while len(runs) < count and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            with contextlib.suppress(OSError):
                call = open_sockets.enter_context(listener.accept()[0])
                call.settimeout(10)
                index, _, theirs = call.makefile(encoding="utf-8").readline().rstrip("\n").partition(" ")
                runs[int(index)] = theirs
                calls.append(call)
        absent = ", ".join(str(index) for index in range(count) if index not in runs)
        others = [index for index in sorted(runs) if runs[index] != run]
        verdict = ""
        if absent:
            verdict = f"host {absent} of {count}: not there after {time.monotonic() - start:.0f} s"
        elif others:
            verdict = f"host {others[0]} of {count}: has {_difference(run, runs[others[0]])}"
        for call in calls:
            with contextlib.suppress(OSError):
                call.sendall(f"{verdict}\n".encode())
    return verdict


def _report(host: str, port: int, index: int, run: str, deadline: float) -> str | None:
    """The others' part: says who this is, and returns what host 0 says, or None where it is not there."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as call:
            call.sendall(f"{index} {run}\n".encode())
            call.settimeout(max(deadline - time.monotonic(), 0) + 10)
            answer = call.makefile(encoding="utf-8").readline()
            if answer:
                return answer.rstrip("\n")
        time.sleep(0.2)
    return None


def _difference(mine: str, theirs: str) -> str:
    """The first words in which two runs differ."""
    pairs = zip(mine.split(), theirs.split(), strict=False)
    return next((f"{other}, host 0 {one}" for one, other in pairs if one != other), "another config")


@contextlib.contextmanager
def leaving_on_errors() -> Iterator[None]:
    """Ends this process at once where an error occurs and others are there: Python's own end would wait for them."""
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        code = {BadInput: 2, KeyboardInterrupt: 130}.get(type(error), 1)
        if not isinstance(error, (BadInput, KeyboardInterrupt, jax.errors.JaxRuntimeError)):
            traceback.print_exc()
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print(f"error: host {jax.process_index()} of {jax.process_count()}: {reason}", file=sys.stderr, flush=True)
        os._exit(code)


@contextlib.contextmanager
def told_to_stop() -> Iterator[Callable[[int], bool]]:
    """Asks before each step, on every host, whether the run is to be saved and ended: where any host got SIGTERM.

    Hosts learn of it a step or two later, all before the same step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point  # JAX has the signal
        return
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    try:
        yield lambda _: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)
