"""Processes that may crash, hang or run out of memory at the cost of one item, and whose results keep their order."""

import contextlib
import multiprocessing
import queue
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Generic, TypeVar

Key, Item, Result = TypeVar("Key"), TypeVar("Item"), TypeVar("Result")

SECONDS, MEMORY = 10.0, 1 << 30  # what an item may take: seconds, bytes
BATCH_ITEMS, BATCH_BYTES = 32, 1 << 20  # what a worker is sent at a time
# A server that has imported what workers need starts one in milliseconds by forking: it has no threads, and no jax.
PRELOAD = ["piano_jax.data.journal", "piano_jax.data.pieces", "piano_jax.data.sources"]
CONTEXT = multiprocessing.get_context("forkserver")


class Lost(str):
    """In place of an item's result: why there is none."""


class Workers(Generic[Item, Result]):
    """`count` processes that call `function`, which they get by pickle. A context, at whose end they end.

    An item may take `seconds`, and MEMORY.

    Raises:
        RuntimeError: a process cannot start.
    """

    def __init__(self, function: Callable[[Item], Result], count: int, seconds: float = SECONDS):
        self._function, self._count, self._seconds = function, count, seconds
        self._all: list[_Worker] = []
        self._threads = ThreadPoolExecutor(count)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        CONTEXT.set_forkserver_preload(PRELOAD)

    def __enter__(self) -> "Workers[Item, Result]":
        for _ in range(self._count):
            self._all.append(_Worker(self._function, self._seconds))
            self._idle.put(self._all[-1])
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.close()
        self._threads.shutdown(cancel_futures=True)

    def map(
        self, items: Iterable[tuple[Key, Item]], size: Callable[[Item], int] = len
    ) -> Iterator[tuple[Key, Result | Lost]]:
        """Each item's key and result, in the order of the items, of which few batches for each worker are held."""
        waiting: deque[tuple[list[Key], Future]] = deque()
        for batch in _batches(items, size):
            keys, contents = zip(*batch, strict=True)
            waiting.append((keys, self._threads.submit(self._run, contents)))
            if len(waiting) > 2 * self._count:
                yield from _in_order(*waiting.popleft())
        while waiting:
            yield from _in_order(*waiting.popleft())

    def _run(self, batch: tuple[Item, ...]) -> list[Result | Lost]:
        worker = self._idle.get()
        try:
            return worker.run(batch)
        finally:
            self._idle.put(worker)


def _batches(items: Iterable[tuple[Key, Item]], size: Callable[[Item], int]) -> Iterator[list[tuple[Key, Item]]]:
    batch, room = [], BATCH_BYTES
    for key, item in items:
        batch.append((key, item))
        room -= size(item)
        if room <= 0 or len(batch) == BATCH_ITEMS:
            yield batch
            batch, room = [], BATCH_BYTES
    if batch:
        yield batch


def _in_order(keys: tuple[Key, ...], future: Future) -> Iterator[tuple[Key, Result]]:
    yield from zip(keys, future.result(), strict=True)


class _Worker(Generic[Item, Result]):
    """The parent's side of one process, which is started anew whenever it dies."""

    def __init__(self, function: Callable[[Item], Result], seconds: float):
        self._function, self._seconds, self._closing = function, seconds, False
        self._start()

    def _start(self) -> None:
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs, self._function, self._seconds), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("worker processes end as they start") from error

    def run(self, batch: tuple[Item, ...]) -> list[Result | Lost]:
        results: list[Result | Lost] = []
        while len(results) < len(batch):
            try:
                self._connection.send(batch[len(results) :])
                while len(results) < len(batch):
                    results.append(self._connection.recv())
            except (EOFError, OSError):
                if self._closing:
                    raise
                self._process.join()
                self._connection.close()
                results.append(_cause(self._process.exitcode, self._seconds))  # of the first item not answered for
                self._start()
        return results

    def close(self) -> None:
        self._closing = True
        self._process.kill()
        self._process.join()


def _cause(code: int | None, seconds: float) -> Lost:
    if code == -signal.SIGALRM:
        return Lost(f"takes longer than {seconds:g} seconds to read")
    name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
    return Lost(f"the reader died of it ({name})")


def _serve(connection: Connection, function: Callable[[Item], Result], seconds: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even inside C++ that never returns
    _limit_memory()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        connection.send(None)
        while True:
            for item in connection.recv():
                signal.setitimer(signal.ITIMER_REAL, seconds)
                try:
                    result = function(item)
                except MemoryError:
                    result = Lost(f"takes more than {MEMORY >> 30} GiB of memory to read")
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.send(result)


def _limit_memory() -> None:
    """Address space, which is what can be limited, to MEMORY beyond what is mapped and not used."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (status := Path("/proc/self/statm")).exists():
        mapped, used = (int(pages) * resource.getpagesize() for pages in status.read_text().split()[:2])
        resource.setrlimit(resource.RLIMIT_AS, (mapped - used + MEMORY,) * 2)
