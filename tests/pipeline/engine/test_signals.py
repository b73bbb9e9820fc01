"""Signals to a run: the first ends it in order, the second at once, and so does the clock."""

import logging
import os
import signal
import threading
import time

import pytest

from pipeline.engine.signals import stoppable


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def there() -> bool:
    return True


def test_the_first_signal_asks_and_does_not_interrupt():
    called = threading.Event()
    with stoppable(called.set, there) as asked:
        assert not asked.is_set()
        send()
        assert called.wait(5)
        assert asked.is_set()
    assert asked.is_set()


def ended_by(stop, *signals: int, works=there, **settings: float) -> None:
    """Within `stoppable`: the signals, each after `stop` was called, and then a long work."""
    called = threading.Event()

    def stop_and_say() -> None:
        called.set()
        stop()

    with stoppable(stop_and_say, works, **settings):
        for number in signals:
            send(number)
            assert called.wait(5)
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_interrupts(number):
    with pytest.raises(KeyboardInterrupt):
        ended_by(lambda: None, signal.SIGTERM, number)


def test_a_signal_that_the_processes_at_work_were_sent_too_interrupts():
    """Past bug: it took the whole grace, and then the head of Ray's cluster was to blame."""
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ended_by(lambda: None, signal.SIGTERM, works=lambda: False)
    assert time.monotonic() - begun < 4  # it would have worked for five


def test_the_end_of_the_grace_interrupts_even_where_stopping_fails(monkeypatch, caplog):
    """Past bug: then the thread died with a traceback."""
    died = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    caplog.set_level(
        logging.WARNING, logger="pipeline.engine.signals"
    )  # whatever Ray has set in here

    def fail() -> None:
        raise OSError("no route\nto host")

    with pytest.raises(KeyboardInterrupt):
        ended_by(fail, signal.SIGTERM, grace=0.2)
    assert not died
    (line,) = caplog.messages
    assert line.startswith("told to stop, but the output is out of reach")
    assert line.endswith("(OSError: no route to host)")


def test_without_a_signal_nothing_is_called_and_the_handlers_come_back():
    called = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with stoppable(called.set, there) as asked:
        pass
    assert not asked.is_set()
    assert not called.is_set()
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_signals_are_left_alone():
    found = []

    def run() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with stoppable(lambda: None, there) as asked:
            found.extend([asked.is_set(), signal.getsignal(signal.SIGTERM) == before])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False, True]
