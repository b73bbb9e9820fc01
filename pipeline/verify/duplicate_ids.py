"""Ids that stand more than once in a run, found in 8 bytes an id."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MOST = 10_000  # ids that are compared letter by letter
_PIECES = 16  # in which hashes are sorted, so that they are not all there twice


def hashes(ids: Sequence[str]) -> NDArray[np.int64]:
    """A hash of each id, which holds in this process only."""
    return np.fromiter(map(hash, ids), np.int64, len(ids))


def repeated_ids(
    parts: Sequence[NDArray[np.int64]], read: Callable[[int], Sequence[str]]
) -> Iterator[tuple[str, list[int]]]:
    """Each id that stands more than once, with the parts that it stands in, for up to MOST ids.

    Args:
        parts: `hashes` of the ids of each part.
        read: the ids themselves of a part, by its place in `parts`; only asked for those parts
            that hold the hash of another id.
    """
    suspects = np.concatenate([np.empty(0, np.int64), *_equal(parts)])[:MOST]
    if not len(suspects):
        return
    places: dict[str, Counter[int]] = {}
    for place, found in enumerate(parts):
        if not np.isin(found, suspects).any():
            continue
        ids = read(place)
        for index in np.flatnonzero(np.isin(hashes(ids), suspects)):
            places.setdefault(ids[index], Counter())[place] += 1
    for id_, counts in places.items():
        if counts.total() > 1:
            yield id_, sorted(counts.elements())


def _equal(parts: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """The hashes that are there more than once."""
    for piece in range(_PIECES):
        chosen = [part[part & (_PIECES - 1) == piece] for part in parts]
        found = np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))
        yield np.unique(found[1:][found[1:] == found[:-1]])
