"""Images per second over the time of a run, from when each of its shards was in work."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N_BINS = 60


class Span(NamedTuple):
    """When a shard was in work, unix seconds, and its images."""

    start: float
    stop: float
    images: int


@dataclass(frozen=True)
class Throughput:
    """Images per second (60,) float64 in stretches of `bin_seconds`.

    `pauses` were left out: each as the second of the rest at which it was, and its length.
    """

    bin_seconds: float
    images_per_second: NDArray[np.float64]
    pauses: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        return self.bin_seconds * len(self.images_per_second)

    @property
    def mean(self) -> float:
        return float(self.images_per_second.mean())


def throughput(spans: Sequence[Span], *, without_pauses: bool) -> Throughput | None:
    """A shard's images count evenly over its span. None where the spans are no time at all.

    Stretches in which no shard was in work are zeros, or left out: those of a run that was
    interrupted are somebody's pauses.
    """
    pauses = _pauses(spans) if without_pauses else []
    starts, stops, images = np.array(spans, np.float64).reshape(-1, 3).T
    begin = starts.min(initial=np.inf)
    cuts = np.array([start for start, _ in pauses])
    before = np.concatenate([[0.0], np.cumsum([stop - start for start, stop in pauses])])

    def working(moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds since the beginning, pauses left out."""
        return moments - begin - before[np.searchsorted(cuts, moments, side="left")]

    starts, stops = working(starts), working(stops)
    seconds = stops.max(initial=0)
    if seconds < 1e-6:  # where only the rounding of moments is left
        return None
    edges = np.linspace(0, seconds, N_BINS + 1)
    done = np.zeros(N_BINS + 1)  # images by each edge
    for start, stop, n in zip(starts, stops, images, strict=True):
        done += n * np.clip((edges - start) / max(stop - start, 1e-9), 0, 1)
    done[0], done[-1] = 0, images.sum()  # also those of a span without length
    lengths = tuple(stop - start for start, stop in pauses)
    return Throughput(
        float(edges[1]),
        np.diff(done) / edges[1],
        tuple(zip(working(cuts).tolist(), lengths, strict=True)),
    )


def working_seconds(spans: Iterable[Span]) -> float:
    """The time in which at least one shard was in work."""
    spans = list(spans)
    if not spans:
        return 0.0
    whole = max(span.stop for span in spans) - min(span.start for span in spans)
    return whole - sum(stop - start for start, stop in _pauses(spans))


def _pauses(spans: Iterable[Span]) -> list[tuple[float, float]]:
    """The stretches between the first start and the last stop that no span covers."""
    pauses = []
    end: float | None = None
    for span in sorted(spans):
        if end is not None and span.start > end:
            pauses.append((end, span.start))
        end = span.stop if end is None else max(end, span.stop)
    return pauses
