"""How far work on images is, on the last line of a terminal."""

import sys
import threading
import time
from collections.abc import Iterator

_SECONDS = 1.0  # until a line is shown, and from one to the next
_WIDTH = 20


class ProgressLine:
    """A line of how much of the work is done, which is removed in the end.

    It is shown where stderr is a terminal, from one second on, by a thread: a pass of a large model
    may take as long.
    """

    def __init__(self, doing: str, n_images: int) -> None:
        """`doing` is the line's first word."""
        self._doing, self._n_images, self._share = doing, n_images, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def move(self, share: float) -> None:
        """Lets it say from now on how much is done, from 0 to 1."""
        self._share = share

    def __enter__(self) -> "ProgressLine":
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
            bar = "#" * int(_WIDTH * self._share)
            seconds = time.monotonic() - begun
            done = f"{self._share:.0%} of {self._n_images} images, {seconds:.0f} s"
            shown = f"{self._doing} [{bar:.<{_WIDTH}}] {done}"
            print(f"\r{shown}", end="", file=sys.stderr, flush=True)
        if shown:
            print(f"\r{' ' * len(shown)}\r", end="", file=sys.stderr, flush=True)


def batches_of(n_rows: int, size: int, *, doing: str) -> Iterator[slice]:
    """Yields the rows of each batch of `size`, the last of which may have fewer, and shows on a
    `ProgressLine` how far they are."""
    with ProgressLine(doing, n_rows) as line:
        for first in range(0, n_rows, size):
            line.move(first / n_rows)
            yield slice(first, min(first + size, n_rows))
