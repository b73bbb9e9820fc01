"""Lays out the charts of report.html; the template draws them as inline SVG.

Positions across are shares of the width, heights are pixels: letters keep their size on any screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.run_directory.likelihoods import BIN_WIDTH, N_BINS, TOP, NLLHistogram

CHART_HEIGHT = 160  # of the bars, pixels
_BINS_PER_BAR = (1, 2, 4, 10, 20)  # the edges stay round numbers


class Bar(NamedTuple):
    """A bar: its left edge and width as shares, its top edge and height in pixels."""

    left: float
    width: float
    top: float
    height: float
    title: str


@dataclass(frozen=True)
class BarChart:
    """Bars side by side.

    `grid`: horizontal lines as (pixels from the top, text at the left). `marks`: vertical lines as
    (share of the width, class in the style sheet, title). `labels`: texts below as (share of the
    width, text). `description`: the chart in words, for screen readers.
    """

    bars: Sequence[Bar]
    grid: Sequence[tuple[float, str]]
    marks: Sequence[tuple[float, str, str]]
    labels: Sequence[tuple[float, str]]
    description: str


def likelihood_chart(nll: NLLHistogram, unit: str) -> BarChart:
    """Lays out a histogram of nats per pixel; `unit` names what is counted, such as image.

    A bar holds as many bins as suit the number of values; bars run from the first bin that holds
    any to the last. There must be a value.
    """
    filled = np.flatnonzero(nll.counts)
    wanted = min(max(10, 2 * math.cbrt(nll.n)), 80)  # bars, by the rule of Rice
    merge = next(
        (m for m in _BINS_PER_BAR if (filled[-1] - filled[0] + 1) / m <= wanted), _BINS_PER_BAR[-1]
    )
    first = int(filled[0]) // merge * merge
    stop = min(-(-(int(filled[-1]) + 1) // merge) * merge, N_BINS - 1)
    counts = nll.counts[first:stop].reshape(-1, merge).sum(axis=1).tolist()
    edges = [(first + i * merge) * BIN_WIDTH for i in range(len(counts) + 1)]
    names = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
    if nll.counts[-1]:
        counts.append(int(nll.counts[-1]))
        names.append(f"{TOP:g} and more")
    width = len(counts) * merge * BIN_WIDTH

    def at(value: float) -> float:
        return min(max((value - edges[0]) / width, 0.0), 1.0)

    step = nice_step(max(max(counts) / 3, 1))
    top = step * math.ceil(max(counts) / step - 1e-9)
    heights = [CHART_HEIGHT * count / top for count in counts]
    lines = np.arange(round(top / step) + 1) * step
    return BarChart(
        bars=[
            Bar(i / len(counts), 1 / len(counts), CHART_HEIGHT - height, height, title)
            for i, height in enumerate(heights)
            for title in [f"{names[i]} nats: {counts[i]:,}"]
            if height
        ],
        grid=[(CHART_HEIGHT * (1 - value / top), f"{value:,.10g}") for value in lines],
        marks=[
            (at(value), name, f"{name} {value:.2f}")
            for name, value in (("mean", nll.mean), ("median", nll.median))
        ],
        labels=[(at(value), f"{value:.4g}") for value in ticks(edges[0], edges[-1], 8)],
        description=(
            f"Histogram of {nll.n:,} {unit}s: nats per pixel, mean {nll.mean:.2f}, "
            f"median {nll.median:.2f}"
        ),
    )


def nice_step(least: float) -> float:
    """Finds the smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-9))


def ticks(start: float, stop: float, n: int) -> list[float]:
    """Lists at most n + 1 round numbers from start to stop."""
    step = nice_step((stop - start) / n)
    first, last = math.ceil(start / step - 1e-9), math.floor(stop / step + 1e-9)
    return [i * step for i in range(first, last + 1)]
