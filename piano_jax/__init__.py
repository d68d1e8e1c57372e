"""Foundation models of piano performance in JAX: tokens, shards, one transformer, one training loop."""

from typing import Any


class BadInput(ValueError):
    """Something the user can mend. The message is a line that names the culprit; commands print it and exit with 2."""


def write_whole(path: Any, data: bytes) -> None:
    """Writes a file, by pathlib's or epath's Path, that takes its name only when it is whole."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data)
    temporary.replace(path)
