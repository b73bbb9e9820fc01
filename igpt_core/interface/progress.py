"""How far a loop over batches is, on the last line of a terminal."""

import sys
import threading
import time
from collections.abc import Iterator

_SECONDS = 1.0  # until a line is shown, and from one to the next
_WIDTH = 20


def batches_of(n_rows: int, size: int, *, doing: str) -> Iterator[slice]:
    """Yields the rows of each batch of `size`; the last may have fewer.

    Where stderr is a terminal, a line there says how many rows are done, from one second on, and
    is removed in the end. `doing` is its first word.
    """
    with _Line(doing, n_rows) as line:
        for first in range(0, n_rows, size):
            line.n_done = first
            yield slice(first, min(first + size, n_rows))


class _Line:
    """The line, which a thread writes: a batch may take minutes."""

    def __init__(self, doing: str, n_rows: int) -> None:
        self._doing, self._n_rows, self.n_done = doing, n_rows, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "_Line":
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        begun, shown = time.monotonic(), ""
        while not self._over.wait(_SECONDS):
            bar = "#" * (_WIDTH * self.n_done // self._n_rows)
            seconds = time.monotonic() - begun
            counts = f"{self.n_done} of {self._n_rows} images, {seconds:.0f} s"
            shown = f"{self._doing} [{bar:.<{_WIDTH}}] {counts}"
            print(f"\r{shown}", end="", file=sys.stderr, flush=True)
        if shown:
            print(f"\r{' ' * len(shown)}\r", end="", file=sys.stderr, flush=True)
