"""How far the counting of an input's rows is, said to people who wait for it."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 10.0  # between two lines


@contextmanager
def counting(total: int, what: str, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Yields what is to be called after each of `total` files. Every ten seconds a line on stderr
    says how many were counted so far, where it is to be shown: in a store some hundred samples or
    files a second are, and nothing else is heard of a job before they all are."""
    over, counted = threading.Event(), [0]

    def count() -> None:
        counted[0] += 1

    def show() -> None:
        while not over.wait(_SECONDS):
            print(f"planning: rows of {counted[0]:,} of {total:,} {what} counted", file=sys.stderr)

    if shown:
        threading.Thread(target=show, daemon=True).start()
    try:
        yield count
    finally:
        over.set()
