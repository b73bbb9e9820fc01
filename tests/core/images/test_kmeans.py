"""k-means against brute force; the start against the probabilities of its definition."""

from collections import Counter
from math import sqrt

import numpy as np
import numpy.typing as npt
import pytest

from igpt_core.images import kmeans
from igpt_core.images.kmeans import lloyd, plus_plus

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def weighted_points(n: int, *, seed: int) -> tuple[IntArray, IntArray]:
    """Points (3, n) and counts from 1 to 8 (n,)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (3, n)), rng.integers(1, 9, n)


def nearest(points: Array, centers: Array) -> npt.NDArray[np.uint16]:
    """Of points (3, N) among centers (3, K), (N,)."""
    distances = ((points[:, :, None] - centers[:, None]) ** 2).sum(axis=0)
    return distances.argmin(axis=1).astype(np.uint16)


def test_lloyd_equals_brute_force_over_points_of_weight_one() -> None:
    points, counts = weighted_points(60, seed=2)
    every = np.repeat(points, counts, axis=1).astype(np.float64)  # counts as so many points
    start = every[:, [0, 50, 100, 150, 200]]
    expected = start
    while True:
        owner = nearest(every, expected)
        moved = np.stack([every[:, owner == k].mean(axis=1) for k in range(5)], axis=1)
        if np.allclose(moved, expected, rtol=0, atol=1e-9):
            break
        expected = moved

    centers = lloyd(points, counts, start=start, nearest=lambda c: nearest(points, c))

    np.testing.assert_allclose(centers, expected, atol=1e-9)  # float64 sums in another order
    assert not np.allclose(start, expected, atol=5)


def test_a_center_without_points_moves_to_where_the_error_is() -> None:
    points = np.array([[90, 90, 200], [0, 0, 0], [0, 9, 0]])
    start = np.array([[5, 5, 5], [0, 0, 0], [5, 5, 5]], np.float64)  # two never win
    rounds = []

    def recorded(centers: Array) -> npt.NDArray[np.uint16]:
        rounds.append(centers.T.copy())
        return nearest(points, centers)

    centers = lloyd(points, np.ones(3, np.int64), start=start, nearest=recorded)

    np.testing.assert_allclose(rounds[1], [[380 / 3, 0, 3], [200, 0, 0], [90, 0, 0]])
    assert sorted(np.rint(centers.T).tolist()) == [[90, 0, 0], [90, 0, 9], [200, 0, 0]]


def test_starts_are_drawn_by_count_times_squared_distance() -> None:
    points = np.array([[0, 3, 0, 5], [0, 0, 4, 0], [0, 0, 0, 12]])
    counts = np.array([4, 1, 3, 2])
    squares = ((points[:, :, None] - points[:, None]) ** 2).sum(axis=0)
    n = 4000
    drawn: Counter[tuple[int, ...]] = Counter()
    for seed in range(n):
        starts = plus_plus(points, counts, n_centers=2, rng=np.random.default_rng(seed))
        drawn[tuple(nearest(starts, points.astype(np.float64)).tolist())] += 1

    expected = {}
    for first in range(4):
        mass = counts * squares[first]
        for second in range(4):
            if second != first:
                expected[first, second] = counts[first] / counts.sum() * mass[second] / mass.sum()
    assert sum(expected.values()) == pytest.approx(1)
    assert set(drawn) <= set(expected)  # never one point twice
    # Twelve binomial counts within 5 standard deviations: a false alarm once in 100,000 sets of
    # seeds, and these are always the same seeds.
    for pair, p in expected.items():
        assert abs(drawn[pair] - n * p) < 5 * sqrt(n * p * (1 - p)), pair


def test_starts_of_many_points_come_from_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_START_POINTS", 40)
    points, counts = weighted_points(100, seed=3)
    seen = set()
    for seed in range(50):
        starts = plus_plus(points, counts, n_centers=10, rng=np.random.default_rng(seed))
        assert len(set(map(tuple, starts.T))) == 10
        seen |= set(map(tuple, starts.T))
    # Each of the 100 is among the 40 of 100 taken in 20 of the 50 draws, and one in four of those
    # is a start: 500 starts in all.
    assert len(seen) > 80
    assert seen <= set(map(tuple, points.T.astype(np.float64)))
