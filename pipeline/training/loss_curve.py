"""The losses of a training run as an SVG."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.report.charts import ticks

_WIDTH, _HEIGHT = 640, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 36, 16, 44
_TRAINING, _HELD_OUT, _QUIET, _GRID = "#98a2b3", "#3b6cf6", "#667085", "#e4e7ec"


class Point(NamedTuple):
    """Nats per pixel at a step: the mean of training since the point before, where it is known, and
    held out."""

    step: int
    training: float | None
    held_out: float

    @classmethod
    def read(cls, fields: Sequence[str]) -> "Point":
        """Reads a line of a CSV."""
        step, training, held_out = fields
        return cls(int(step), float(training) if training else None, float(held_out))


def draw_loss_curve(points: Sequence[Point]) -> str:
    """Draws both losses, nats per pixel over steps, as the text of an SVG; one point at least."""
    last = max(points[-1].step, 1)
    of_training = [(p.step, p.training) for p in points if p.training is not None]
    held_out = [(p.step, p.held_out) for p in points]
    losses = [loss for _, loss in (*of_training, *held_out) if math.isfinite(loss)] or [0.0]
    low, high = min(losses), max(losses)
    margin = max(high - low, 0.02) * 0.05
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return _LEFT + step / last * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        return _TOP + (high - loss) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def line(color: str, curve: Sequence[tuple[int, float]]) -> str:
        at = [(f"{x(step):.1f}", f"{y(loss):.1f}") for step, loss in curve if math.isfinite(loss)]
        dots = "".join(f'<circle cx="{cx}" cy="{cy}" r="2.5" fill="{color}"/>' for cx, cy in at)
        places = " ".join(map(",".join, at))
        return f'<polyline points="{places}" fill="none" stroke="{color}"/>{dots}'

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
        line(_TRAINING, of_training),
        line(_HELD_OUT, held_out),
        text(_LEFT, 20, "nats per pixel", "start"),
        text(right - 110, 20, "training", "end", _TRAINING),
        text(right, 20, f"held out {points[-1].held_out:.4f}", "end", _HELD_OUT),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )
