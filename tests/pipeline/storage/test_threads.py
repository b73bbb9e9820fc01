"""Calls in threads: in order, no further ahead than what is held, and as they raise."""

import threading
import time

import pytest

from pipeline.storage import threads
from pipeline.storage.threads import map_in_threads


def test_results_come_in_the_order_of_the_items():
    def late(item: int) -> int:
        time.sleep(0.002 * (item % 5 == 0))
        return item**2

    assert list(map_in_threads(late, range(500))) == [item**2 for item in range(500)]
    assert list(map_in_threads(late, [])) == []


def test_no_more_items_are_taken_than_results_are_held():
    taken = []

    def items():
        for item in range(10_000):
            taken.append(item)
            yield item

    results = map_in_threads(lambda item: item, items())
    for n in range(3):
        assert next(results) == n
    assert len(taken) <= threads._AHEAD + 4
    results.close()
    assert len(taken) <= threads._AHEAD + 4


def test_calls_run_side_by_side():
    """Each waits for the other: one after the other they would never meet."""
    meeting = threading.Barrier(2)
    assert list(map_in_threads(lambda _: meeting.wait(timeout=20) >= 0, range(2))) == [True, True]


def test_what_a_call_raises_is_raised_in_its_place():
    found = map_in_threads(lambda item: 1 // (3 - item), range(6))
    assert [next(found) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
