"""Calls in threads, for what waits for a store: results in order, a few at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

THREADS = 32
_AHEAD = 4 * THREADS  # results that are held until they are asked for

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields the result of each item, in the order of the items; raises what a call raises.

    Holds a few results, however many items there are: `Executor.map` submits them all at once.
    """
    left = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        begun = deque(pool.submit(call, item) for item in islice(left, _AHEAD))
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(call, item) for item in islice(left, 1))
            yield result
