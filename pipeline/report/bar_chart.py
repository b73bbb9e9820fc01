"""A bar chart as inline SVG.

Positions across are shares of the width, heights are pixels: letters keep their size on any screen.
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

_HEIGHT = 160  # of the bars, pixels
_ROOM = 24  # below them, for the labels

Mark = tuple[float, str, str]  # where across, its class in the style sheet, what it is


def bar_chart(
    heights: Sequence[float],
    *,
    titles: Sequence[str],
    x_labels: Sequence[tuple[float, str]],
    marks: Sequence[Mark] = (),
    level: float | None = None,
    least_step: float = 0.0,
    says: str,
) -> str:
    """Bars side by side, with a scale at their left.

    Args:
        heights: of the bars, not negative.
        titles: of each bar, for who points at it.
        x_labels: texts below the axis, each with its place across, 0 to 1.
        marks: vertical lines.
        level: a horizontal line.
        least_step: of the scale, such as 1 for counts.
        says: the chart in words, for who does not see it.
    """
    step = nice_step(max(max(heights) / 3, least_step))
    top = step * max(1, math.ceil(max(heights) / step - 1e-9))

    def y(value: float) -> str:
        return f"{_HEIGHT * (1 - value / top):.2f}"

    width = 100 / len(heights)
    drawn = [
        f'<g class="grid"><line x1="0" x2="100%" y1="{y(value)}" y2="{y(value)}"/>'
        f'<text x="-8" y="{y(value)}" dy=".35em">{value:,.10g}</text></g>'
        for value in np.arange(round(top / step) + 1) * step
    ]
    drawn += [
        f'<rect x="{i * width:.4f}%" width="{width:.4f}%" y="{y(height)}" '
        f'height="{_HEIGHT * height / top:.2f}"><title>{escape(title)}</title></rect>'
        for i, (height, title) in enumerate(zip(heights, titles, strict=True))
        if height
    ]
    if level is not None:
        drawn.append(f'<line class="level" x1="0" x2="100%" y1="{y(level)}" y2="{y(level)}"/>')
    drawn += [
        f'<line class="{kind}" x1="{at:.2%}" x2="{at:.2%}" y1="0" y2="{_HEIGHT}">'
        f"<title>{escape(title)}</title></line>"
        for at, kind, title in marks
    ]
    drawn += [
        f'<text class="{_anchor(at)}" x="{at:.2%}" y="{_HEIGHT + 18}">{escape(label)}</text>'
        for at, label in x_labels
    ]
    return (
        f'<svg class="chart" role="img" aria-label="{escape(says)}" width="100%" '
        f'height="{_HEIGHT + _ROOM}">{"".join(drawn)}</svg>'
    )


def _anchor(at: float) -> str:
    """Labels at the ends of an axis do not stand out beyond it."""
    return "first" if at < 0.02 else "last" if at > 0.98 else "middle"


def nice_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-9))


def ticks(start: float, stop: float, n: int) -> list[float]:
    """At most n + 1 round numbers from start to stop."""
    step = nice_step((stop - start) / n)
    first, last = math.ceil(start / step - 1e-9), math.floor(stop / step + 1e-9)
    return [i * step for i in range(first, last + 1)]
