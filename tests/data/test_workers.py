"""Workers, here with `eval` for a function, which dies of what it is given."""

import gc
import multiprocessing
import time

import pytest

from piano_jax.data.workers import Lost, Workers

DEADLY = {
    "__import__('os').abort()": "SIGABRT",
    "__import__('os').kill(__import__('os').getpid(), 11)": "SIGSEGV",
    "__import__('os')._exit(3)": "exit code 3",
    "bytes(1 << 31)": "takes more than 1 GiB of memory",
    "__import__('time').sleep(60)": "takes longer than 0.5 seconds",
    "sum(range(10**12))": "takes longer than 0.5 seconds",
    "(" * 1000: "exit code 1",
}


@pytest.mark.parametrize("count", [1, 3])
def test_what_dies_costs_itself_only(count, capfd):
    items = [f"{number} * {number}" for number in range(300)]
    for place, deadly in zip((0, 3, 4, 57, 58, 200, 299), DEADLY, strict=True):
        items[place] = deadly
    with Workers(eval, count, seconds=0.5) as workers:
        found = list(workers.map(enumerate(items)))
    assert [key for key, _ in found] == list(range(300))
    for (number, result), item in zip(found, items, strict=True):
        if item in DEADLY:
            assert isinstance(result, Lost) and DEADLY[item] in result, item
        else:
            assert result == number * number


def test_few_items_are_held():
    taken = 0

    def items():
        nonlocal taken
        for number in range(2000):
            taken = number
            yield number, str(number)

    with Workers(eval, 2) as workers:
        for number, result in workers.map(items()):
            assert result == number and taken - number <= 6 * 32
        gc.collect()


def test_large_items_and_results_pass():
    with Workers(eval, 2) as workers:
        found = list(workers.map((n, f"bytes({n} * 5_000_000) + b'{'x' * 5_000_000}'") for n in range(6)))
    assert [len(result) for _, result in found] == [(n + 1) * 5_000_000 for n in range(6)]


def test_processes_end_with_the_context():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers(eval, 2) as workers:
        for number, _ in workers.map((n, "1" if n < 64 else "__import__('time').sleep(9)") for n in range(200)):
            if number == 40:
                raise KeyboardInterrupt
    assert time.monotonic() - started < 5 and not multiprocessing.active_children()
