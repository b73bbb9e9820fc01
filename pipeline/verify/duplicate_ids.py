"""Ids that stand more than once in a run, found with 8 bytes of memory per id."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_COMPARED = 10_000  # hashes whose ids are compared letter by letter
_PASSES = 16  # each sorts a sixteenth of the hashes, so that they are not all in memory twice


def hashes(ids: Sequence[str]) -> NDArray[np.int64]:
    """Hashes each id (N,) to an int64 (N,), the same in this process only."""
    return np.fromiter(map(hash, ids), np.int64, len(ids))


def repeated_ids(
    parts: Sequence[NDArray[np.int64]], read: Callable[[int], Sequence[str]]
) -> Iterator[tuple[str, list[int]]]:
    """Yields each id that stands more than once, with the parts that it stands in; of very many
    only those of MAX_COMPARED hashes.

    Args:
        parts: `hashes` of the ids of each part.
        read: returns the ids themselves of a part, by its place in `parts`; called only for parts
            that hold a hash that stands more than once.
    """
    candidates = np.concatenate([np.empty(0, np.int64), *_repeated(parts)])[:MAX_COMPARED]
    if not len(candidates):
        return
    places: dict[str, Counter[int]] = {}
    for place, found in enumerate(parts):
        if not np.isin(found, candidates).any():
            continue
        ids = read(place)
        for index in np.flatnonzero(np.isin(hashes(ids), candidates)).tolist():
            places.setdefault(ids[index], Counter())[place] += 1
    for id_, counts in places.items():
        if counts.total() > 1:
            yield id_, sorted(counts.elements())


def _repeated(parts: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Yields the hashes that are there more than once."""
    for low_bits in range(_PASSES):
        chosen = [part[part & (_PASSES - 1) == low_bits] for part in parts]
        found = np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))
        yield np.unique(found[1:][found[1:] == found[:-1]])
