"""What every command shares: one line and exit code 2 for bad input, and progress on terminals and in logs."""

import argparse
import errno
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from absl import logging
from tqdm import tqdm

from piano_jax import BadInput


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, as every other complaint of a command is."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see python -m {self.prog} --help)")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exits with what `main` returns; bad input, a full disk and Ctrl-C end in one line and no stack trace."""
    logging.set_verbosity(logging.FATAL)  # Orbax logs, with their stack, the errors that it raises as well
    try:
        sys.exit(main())
    except BadInput as error:
        message, code = str(error), 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise
        message, code = f"{error.filename or 'output'}: {error.strerror}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def progress(
    items: Iterable, total: int | None, unit: str, done: int = 0, note: Callable[[], str] = str, every: float = 10.0
) -> Iterator:
    """Yields `items`, with a bar of rate and time left on a terminal, or a plain line every `every` seconds elsewhere.

    `done` of the `total` were done before; `note()` is what else to say.
    """
    if sys.stderr.isatty():
        with tqdm(items, total=total, initial=done, unit=f" {unit}", smoothing=0.05) as bar:
            for item in bar:
                yield item
                bar.set_postfix_str(note(), refresh=False)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every:
            rate, last = count / (now - start), now
            left = f", {(total - done - count) / rate:.0f} s left" if total else ""
            reached = f"{done + count:,}/{total:,}" if total else f"{done + count:,}"
            print(f"{reached} {unit}, {rate:.1f} {unit}/s{left}  {note()}".rstrip(), file=sys.stderr, flush=True)
