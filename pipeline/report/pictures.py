"""The pictures of report.html, with their legend."""

import base64
import math
from collections.abc import Sequence

from pipeline.report.contact_sheet import scale_of
from pipeline.report.examples import MAX_SAMPLES, Entry, Picture
from pipeline.report.heat_map import COLORS
from pipeline.report.text import html_id, html_text, rate
from pipeline.run_directory.summary import RunSummary


def pictures(record: RunSummary, entries: Sequence[Entry], shown: str) -> str:
    """The section of all entries; `shown` says which they are, or why there are none."""
    says = f'<p class="quiet">{html_text(shown)}.</p>'
    if not entries:
        return f"<section><h2>Pictures</h2>{says}</section>\n"
    first = entries[0].pictures
    side = first[0].side
    scale = scale_of(side)
    single = " single" if len(first) == 1 else ""
    legend = _legend(record, entries)
    small = side * max(1, scale * 3 // 4)
    across = len(first) if len(first) <= 4 else math.ceil(len(first) / 2)  # on a phone
    cells = f"--cell: {side * scale}px; --small: {small}px; --across: {across}"
    figures = "".join(_figure(entry) for entry in entries)
    return f"""<section>
<h2>Pictures</h2>
{says}{legend}
<div class="sheet{single}" style="{cells}">
{figures}</div>
</section>
"""


def _legend(record: RunSummary, entries: Sequence[Entry]) -> str:
    keys = ""
    shown = [picture for entry in entries for picture in entry.pictures]
    if any(picture.made_from is not None for picture in shown):
        keys += (
            '<span class="legend"><span class="key gap"></span> not given</span> '
            '<span class="legend"><span class="key made"></span> rows with pixels that the model '
            f"made</span> {_samples_left_out(record)}"
        )
    top = next((picture.heat_top for picture in shown if picture.heat_top), None)
    if top is not None:
        keys += f"Surprise: {_color_scale(COLORS, '0', f'{rate(top)} nats and more')}"
    return f'<p class="quiet">{keys}</p>' if keys else ""


def _samples_left_out(record: RunSummary) -> str:
    samples = int(record.run["options"].get("samples") or 1)
    return f"the first {MAX_SAMPLES} of {samples} completions" if samples > MAX_SAMPLES else ""


def _figure(entry: Entry) -> str:
    single = len(entry.pictures) == 1
    cells = "".join(_cell(picture, "" if single else picture.title) for picture in entry.pictures)
    says = f"<div><b>{html_text(entry.caption)}</b></div>" if entry.caption else ""
    caption = f"<figcaption>{html_id(entry.id)}{says}</figcaption>"
    return f'<figure>{caption}<div class="cells">{cells}</div></figure>\n'


def _cell(picture: Picture, title: str) -> str:
    image = ""
    if picture.png is not None:
        address = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        image = f'<img src="{address}" alt="{html_text(picture.title)}">'
    if picture.made_from is not None:
        image += f'<i style="top: {picture.made_from / picture.side:.2%}"></i>'
    return f'<div class="cell"><div class="square">{image}</div>{html_text(title)}</div>'


def _color_scale(colors: Sequence[Sequence[int]], low: str, high: str) -> str:
    """The key of a heat map."""
    shades = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colors)
    return (
        f'<span class="legend">{html_text(low)} <span class="key scale" '
        f'style="background: linear-gradient(to right, {shades})"></span> {html_text(high)}</span>'
    )
