"""Stopping a run by a signal: no shard is begun any more, those in hand are ended for a while."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.storage.filesystem import store_errors
from pipeline.storage.redact import redacted_line

# For the shards in hand. Slurm and Kubernetes kill 30 seconds after the signal, and Ray takes some
# to end.
GRACE_SECONDS = 20.0
_LOOK_SECONDS = 0.5  # between two looks at the clock and at Ray

_log = logging.getLogger(__name__)


@contextmanager
def stoppable(
    stop: Callable[[], None], works: Callable[[], bool], *, grace: float = GRACE_SECONDS
) -> Iterator[threading.Event]:
    """Handles signals within it: the first SIGTERM or Ctrl-C calls `stop`, and sets the event that
    is yielded.

    Another one, or the end of the grace, raises KeyboardInterrupt in the main thread; so does a
    signal that the processes at work were sent, too, as schedulers do: once `works` says that they
    are gone, there is nothing to wait for. Outside the main thread, which alone may handle signals,
    nothing changes.
    """
    asked, over = threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    awake = threading.Event()

    def handle(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        awake.set()

    def call_stop() -> None:
        try:
            stop()
        except store_errors() as error:
            _log.warning(
                "told to stop, but the output is out of reach, so shards are still begun; the run "
                "ends %.0f seconds after the signal, or at once at a second one (%s: %s)",
                *(grace, type(error).__name__, redacted_line(error)),
            )

    def watch() -> None:
        awake.wait()
        if over.is_set():
            return
        # Beside the clock: a store that is out of reach takes its time.
        threading.Thread(target=call_stop, daemon=True).start()
        ends = time.monotonic() + grace
        while not over.wait(_LOOK_SECONDS):
            if time.monotonic() > ends or not works():
                os.kill(os.getpid(), signal.SIGINT)
                return

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield asked
    finally:
        over.set()
        awake.set()
        for number, handler in before.items():
            signal.signal(number, handler)
