"""The error that every reader of checkpoints raises, and a phrase of its messages."""

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A model folder that cannot be read or written; the message is one line."""


def one_of(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
