"""Weighted k-means of pixel values: a start by k-means++, then Lloyd's algorithm.

Points are columns: (3, N) integers in 0..255; each counts as many times as `counts` (N,) says.
Sums stay below 2**53: they are exact, and so the result is the same on every machine.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_START_POINTS = 1 << 17  # k-means++ is linear in these times the number of centers

IntArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]


def plus_plus(
    points: IntArray, counts: IntArray, *, n_centers: int, rng: np.random.Generator
) -> DoubleArray:
    """Chooses starting centers (3, n_centers) by k-means++ (Arthur and Vassilvitskii, 2007).

    Each is a point drawn in proportion to its count times its squared distance from those
    before. Of more than _START_POINTS points a random choice of so many takes part.
    """
    if len(counts) > _START_POINTS:
        chosen = np.sort(rng.choice(len(counts), _START_POINTS, replace=False))
        points, counts = points[:, chosen], counts[chosen]
    distance = np.full(len(counts), np.iinfo(np.int64).max)
    mass = np.cumsum(counts)
    picks = np.empty(n_centers, np.int64)
    for i in range(n_centers):
        picks[i] = np.searchsorted(mass, rng.integers(mass[-1]), side="right")
        offset = points - points[:, picks[i], None]
        distance = np.minimum(distance, (offset * offset).sum(axis=0))
        mass = np.cumsum(counts * distance)
    return points[:, picks].astype(np.float64)


def lloyd(
    points: IntArray,
    counts: IntArray,
    *,
    start: DoubleArray,
    nearest: Callable[[DoubleArray], npt.NDArray[np.uint16]],
) -> DoubleArray:
    """Moves centers `start` (3, K) by Lloyd's algorithm; returns centers (3, K) in 0..255.

    It ends when a round lowers the error by less than 5e-5 of itself, or after 100 rounds.

    Args:
        nearest: of centers (3, K), the index of the nearest for each of the points, (N,).
    """
    centers = start
    n_centers = start.shape[1]
    previous = np.inf
    for _ in range(100):
        owner = nearest(centers)
        errors = counts * ((points - centers[:, owner]) ** 2).sum(axis=0)
        mass = np.bincount(owner, counts, n_centers)
        sums = np.stack([np.bincount(owner, counts * channel, n_centers) for channel in points])
        centers = sums / np.maximum(mass, 1)
        # A center without points moves to a point with one of the largest errors.
        empty = np.flatnonzero(mass == 0)
        centers[:, empty] = points[:, np.argsort(-errors, kind="stable")[: len(empty)]]
        error = float(errors.sum())
        if len(empty) == 0 and error >= (1 - 5e-5) * previous:
            break
        previous = error
    return centers
