"""The losses of a training run as an SVG."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.report.charts import ticks

_WIDTH, _HEIGHT = 640, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 36, 16, 44
_TRAINING, _HELD_OUT, _QUIET, _GRID = "#98a2b3", "#3b6cf6", "#667085", "#e4e7ec"


class Point(NamedTuple):
    """Nats per pixel at a step: the mean of training since the point before, and held out."""

    step: int
    training: float
    held_out: float


def draw_loss_curve(points: Sequence[Point]) -> str:
    """Draws both losses, nats per pixel over steps, as the text of an SVG; one point at least."""
    last = max(points[-1].step, 1)
    losses = [loss for _, *pair in points for loss in pair]
    low, high = min(losses), max(losses)
    margin = max(high - low, 0.02) * 0.05
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        return _TOP + (high - loss) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def line(color: str, values: Sequence[float]) -> str:
        at = [f"{x(p.step):.1f},{y(value):.1f}" for p, value in zip(points, values, strict=True)]
        dots = "".join(
            f'<circle cx="{place.partition(",")[0]}" cy="{place.partition(",")[2]}" r="2.5" '
            f'fill="{color}"/>'
            for place in at
        )
        return f'<polyline points="{" ".join(at)}" fill="none" stroke="{color}"/>{dots}'

    def text(left: float, top: float, words: str, anchor: str, color: str = _QUIET) -> str:
        where = f'x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" fill="{color}"'
        return f"<text {where}>{words}</text>"

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        *(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="{_GRID}"/>' + text(_LEFT - 8, y(value) + 4, f"{value:.4g}", "end")
            for value in ticks(low, high, 5)
        ),
        *(text(x(step), bottom + 18, f"{step:,.0f}", "middle") for step in ticks(0, last, 6)),
        text((_LEFT + right) / 2, bottom + 36, "steps", "middle"),
        line(_TRAINING, [point.training for point in points]),
        line(_HELD_OUT, [point.held_out for point in points]),
        text(_LEFT, 20, "nats per pixel", "start"),
        text(right - 110, 20, "training", "end", _TRAINING),
        text(right, 20, f"held out {points[-1].held_out:.4f}", "end", _HELD_OUT),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )
