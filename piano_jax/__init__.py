"""Foundation models of piano performance in JAX: tokens, shards, one transformer, one training loop."""


class BadInput(ValueError):
    """Something the user can mend. The message is a line that names the culprit; commands print it and exit with 2."""
