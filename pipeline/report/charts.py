"""The sections of report.html that are charts."""

import base64
import io
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from igpt_core.images.palette import Palette
from pipeline.engine.progress import duration
from pipeline.report.bar_chart import bar_chart, ticks
from pipeline.report.text import html_id, html_text, rate
from pipeline.run_directory.likelihoods import BIN_WIDTH, N_BINS, TOP, NLLHistogram, to_bits
from pipeline.run_directory.summary import Figures, RunRecord
from pipeline.run_directory.throughput import Throughput

_MERGES = (1, 2, 4, 10, 20)  # bins to a bar: the edges stay round numbers
_MARKED_PAUSES = 20
_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"))
_COLOR_SIZE = 14  # of a palette's color, pixels


# --- nats per pixel -------------------------------------------------------------------------------


def likelihoods(record: RunRecord) -> str:
    """How the nats per pixel are spread, the likeliest images and the others. The record has
    some."""
    nats = record.nats
    assert nats is not None
    completed = record.job == "complete"
    each = "completion" if completed else "image"
    says = (
        f"Negative log-likelihood of {nats.n:,} {each}{'s' if nats.n != 1 else ''}, mean over "
        f"{'the pixels that the model made' if completed else 'all pixels'}: the lower, "
        "the likelier for the model."
    )
    if nats.counts[-1]:
        says += f" The last bar holds all above {TOP:g}."
    if nats.not_finite:
        says += f" {nats.not_finite:,} more have no finite value."
    keys = "".join(
        f'<span class="legend"><span class="key line {name}"></span> {name} '
        f'<data value="{value!r}">{value:.2f}</data> nats, {to_bits(value):.2f} bits</span> '
        for name, value in (("mean", nats.mean), ("median", nats.median))
    )
    tables = _extremes("The likeliest", nats.lowest) + _extremes("The least likely", nats.highest)
    return f"""<section>
<h2>Nats per pixel</h2>
<p class="quiet">{says}</p>
<p class="quiet">{keys}</p>
<div class="card">{_histogram(nats, each)}<p class="axis">{each}s by nats per pixel</p></div>
<div class="pair">{tables}</div>
</section>
"""


def _histogram(nats: NLLHistogram, each: str) -> str:
    """Bars of as many bins as suit the number of values, from the first that holds any to the
    last."""
    filled = np.flatnonzero(nats.counts)
    wanted = max(10, 2 * math.cbrt(nats.n))  # the rule of Rice
    merge = next(
        (m for m in _MERGES if (filled[-1] - filled[0] + 1) / m <= min(wanted, 80)), _MERGES[-1]
    )
    first = filled[0] // merge * merge
    stop = min(-(-(filled[-1] + 1) // merge) * merge, N_BINS - 1)
    bars = nats.counts[first:stop].reshape(-1, merge).sum(axis=1).tolist()
    edges = [(first + i * merge) * BIN_WIDTH for i in range(len(bars) + 1)]
    names = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
    if nats.counts[-1]:
        bars.append(int(nats.counts[-1]))
        names.append(f"{TOP:g} and more")
    width = len(bars) * merge * BIN_WIDTH

    def at(value: float) -> float:
        return min(max((value - edges[0]) / width, 0.0), 1.0)

    return bar_chart(
        bars,
        titles=[f"{name} nats: {count:,}" for name, count in zip(names, bars, strict=True)],
        x_labels=[(at(v), f"{v:.4g}") for v in ticks(edges[0], edges[-1], 8)],
        marks=[
            (at(value), name, f"{name} {value:.2f}")
            for name, value in (("mean", nats.mean), ("median", nats.median))
        ],
        least_step=1,
        says=(
            f"Histogram of {nats.n:,} {each}s: nats per pixel from {nats.lowest[0][1]:.2f} to "
            f"{nats.highest[0][1]:.2f}, mean {nats.mean:.2f}, median {nats.median:.2f}"
        ),
    )


def _extremes(title: str, found: Sequence[tuple[str, float]]) -> str:
    lines = "".join(
        f"<tr><th scope=row>{html_id(id_)}</th>"
        f"<td>{value:.2f}</td><td>{to_bits(value):.2f}</td></tr>"
        for id_, value in found
    )
    return f"""<div class="card"><table class="numbers"><caption>{title}</caption>
<thead><tr><th scope=col>id</th><th scope=col>nats</th><th scope=col>bits</th></tr></thead>
<tbody>{lines}</tbody></table></div>
"""


# --- time -----------------------------------------------------------------------------------------


def speed_over_time(speed: Throughput) -> str:
    """Images per second from the first shard to the last."""
    rates = speed.images_per_second
    unit, name = next(((u, n) for u, n in _UNITS if speed.seconds >= 2 * u), (1, "seconds"))
    long = [pause for pause in speed.pauses if pause[1] >= speed.bin_seconds]
    marked = sorted(long, key=lambda pause: -pause[1])[:_MARKED_PAUSES]
    out = ""
    if marked:
        total = duration(sum(length for _, length in speed.pauses))
        out = f" So are pauses, together {total}: dotted lines mark where."
    chart = bar_chart(
        rates.tolist(),
        titles=[
            f"{duration(i * speed.bin_seconds)} to {duration((i + 1) * speed.bin_seconds)}: "
            f"{rate(value)} images per second"
            for i, value in enumerate(rates)
        ],
        x_labels=[
            (value * unit / speed.seconds, f"{value:g}")
            for value in ticks(0, speed.seconds / unit, 8)
        ],
        marks=[
            (at / speed.seconds, "pause", f"a pause of {duration(length)}") for at, length in marked
        ],
        level=speed.mean,
        says=(
            f"Images per second over {duration(speed.seconds)}: mean {rate(speed.mean)}, "
            f"lowest {rate(rates.min())}, highest {rate(rates.max())}"
        ),
    )
    return f"""<section>
<h2>Images per second</h2>
<p class="quiet">The images of a shard, failed ones too, count evenly over the time in which it was
in work. What came before the first shard, such as the start of actors, is left out.{out}</p>
<p class="quiet"><span class="legend"><span class="key line level"></span> mean
{rate(speed.mean)}</span></p>
<div class="card">{chart}<p class="axis">{name} in work</p></div>
</section>
"""


def stage_times(figures: Figures) -> str:
    """The working time of each stage."""
    seconds = figures.stage_seconds
    longest = max(seconds.values(), default=0.0)
    if not longest:
        return ""
    bars = "".join(
        f"<b>{html_text(stage)}</b>"
        f'<div class="track"><div style="width: {spent / longest:.1%}"></div></div>'
        f'<span><data value="{spent!r}">{duration(spent)}</data> '
        f"· {spent / sum(seconds.values()):.0%}</span>"
        for stage, spent in seconds.items()
    )
    hosts = f"{figures.hosts:,} machine{'s' if figures.hosts != 1 else ''}"
    return f"""<section>
<h2>Time by stage</h2>
<p class="quiet">Working time, summed over all actors on {hosts}.</p>
<div class="card bars">{bars}</div>
</section>
"""


# --- colors --------------------------------------------------------------------------------------


def palette_colors(palette: Palette) -> str:
    """All colors of a palette in the order of their tokens."""
    n = len(palette)
    across = 2 ** round(math.log2(math.sqrt(2 * n)))  # about twice as wide as high
    pixels = np.zeros((math.ceil(n / across) * across, 4), np.uint8)
    pixels[:n, :3], pixels[:n, 3] = palette.decode(np.arange(n)), 255
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(-1, across, 4)).save(buffer, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f"""<section>
<h2>Palette</h2>
<p class="quiet">{n:,} color{"s" if n != 1 else ""}, line by line in the order of the tokens ·
fingerprint <code>{palette.fingerprint}</code></p>
<div class="card"><img class="swatch" src="{address}" style="width: {across * _COLOR_SIZE}px"
 alt="the {n:,} colors of the palette"></div>
</section>
"""
