"""Stopping a run by a signal: no shard is begun any more, those in hand are ended for a while."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.storage.filesystem import store_errors
from pipeline.storage.redact import redacted_line

GRACE_SECONDS = 60.0  # for the shards in hand; schedulers kill after about as long

_log = logging.getLogger(__name__)


@contextmanager
def stoppable(
    stop: Callable[[], None], *, grace: float = GRACE_SECONDS
) -> Iterator[threading.Event]:
    """Handles signals within it: the first SIGTERM or Ctrl-C calls `stop`, and sets the event that
    is yielded.

    Another one, or the end of the grace, raises KeyboardInterrupt in the main thread. Outside the
    main thread, which alone may handle signals, nothing changes.
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
        if not over.wait(grace):
            os.kill(os.getpid(), signal.SIGINT)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield asked
    finally:
        over.set()
        awake.set()
        for number, handler in before.items():
            signal.signal(number, handler)
