"""report.html: a run on one page that needs nothing but itself."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from pipeline.contact_sheet import scale_of
from pipeline.labels import duration, printable, rate, shortened
from pipeline.report_style import STYLE
from pipeline.run_record import ErrorKind, RunRecord
from pipeline.sheet_rows import MAX_SAMPLES, Entry, Picture
from pipeline.storage import join

HEADLINES = {
    "classify": "Classified images",
    "complete": "Image completions",
    "quantize": "Quantized images",
}
_LABEL_LENGTH = 60


def report_page(record: RunRecord, entries: Sequence[Entry], *, shown: str, output: str) -> str:
    """The page in HTML, pictures and style within.

    `shown` says which pictures there are, or why none; `output` is where the reader finds the run.
    """
    sections = [
        _header(record),
        _key_figures(record),
        _pictures(record, entries, shown),
        _errors(record, output),
        _stage_times(record),
        _what_was_run(record),
        _next_steps(record, output),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_text(HEADLINES[record.job])} · {_text(record.status)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(sections)}</main>
</body>
</html>
"""


# --- from the top of the page down ----------------------------------------------------------------


def _header(record: RunRecord) -> str:
    run = record.run
    kind = "done" if record.finished else "partial"
    created = datetime.fromisoformat(run["created"]).astimezone(UTC)
    shown = f"{created.day} {created:%B %Y, %H:%M} UTC"
    origin = "".join(f"{_text(part)} · " for part in record.origin)
    return f"""<header>
<p class="status {kind}">{_text(record.status)}</p>
<h1>{_text(HEADLINES[record.job])}</h1>
<p class="quiet"><code>igpt {_text(record.job)}</code> · {origin}
<time datetime="{_text(created.isoformat())}">{shown}</time></p>
<pre class="command">{_shell(run["command"])}</pre>
</header>
"""


def _key_figures(record: RunRecord) -> str:
    figures = record.figures
    share = figures.errors / max(figures.rows + figures.errors, 1)
    pauses = "" if figures.in_one_run else "without pauses"
    tiles = [
        _tile("Images", figures.rows, f"{figures.rows:,}", "with a result"),
        _tile("Errors", figures.errors, f"{figures.errors:,}", f"{share:.1%} of all"),
        _tile("Images per second", figures.images_per_second, rate(figures.images_per_second)),
        _tile("Tokens per second", figures.tokens_per_second, rate(figures.tokens_per_second)),
        _tile("Wall time", figures.seconds, duration(figures.seconds), pauses),
    ]
    if not figures.tokens:
        del tiles[3]
    return f'<section class="tiles" aria-label="Key figures">{"".join(tiles)}</section>\n'


def _pictures(record: RunRecord, entries: Sequence[Entry], shown: str) -> str:
    says = f'<p class="quiet">{_text(shown)}.</p>'
    if not entries:
        return f"<section><h2>Pictures</h2>{says}</section>\n"
    pictures = entries[0].pictures
    side = pictures[0].side
    scale = scale_of(side)
    single = " single" if len(pictures) == 1 else ""
    legend = ""
    if any(picture.made_from is not None for picture in pictures):
        legend = (
            '<p class="quiet"><span class="legend"><span class="key gap"></span> not given</span>'
            '<span class="legend"><span class="key made"></span> rows that the model made</span>'
            f"{_samples_left_out(record)}</p>"
        )
    cells = f"--cell: {side * scale}px; --small: {side * max(1, scale * 3 // 4)}px"
    figures = "".join(_figure(entry) for entry in entries)
    return f"""<section>
<h2>Pictures</h2>
{says}{legend}
<div class="sheet{single}" style="{cells}">
{figures}</div>
</section>
"""


def _samples_left_out(record: RunRecord) -> str:
    samples = int(record.run["options"].get("samples") or 1)
    return f"the first {MAX_SAMPLES} of {samples} completions" if samples > MAX_SAMPLES else ""


def _figure(entry: Entry) -> str:
    single = len(entry.pictures) == 1
    cells = "".join(_cell(picture, "" if single else picture.title) for picture in entry.pictures)
    says = f"<div><b>{_text(entry.caption)}</b></div>" if entry.caption else ""
    caption = f"<figcaption>{_id(entry.id)}{says}</figcaption>"
    return f'<figure>{caption}<div class="cells">{cells}</div></figure>\n'


def _cell(picture: Picture, title: str) -> str:
    image = ""
    if picture.png is not None:
        address = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        image = f'<img src="{address}" alt="{_text(picture.title)}">'
    if picture.made_from is not None:
        image += f'<i style="top: {picture.made_from / picture.side:.2%}"></i>'
    return f'<div class="cell"><div class="square">{image}</div>{_text(title)}</div>'


def _errors(record: RunRecord, output: str) -> str:
    if not record.errors:
        return ""
    cards = "".join(_error(kind) for kind in record.errors)
    query = f"SELECT id, source, error, message FROM {_files(output, 'errors')};"
    return f"""<section>
<h2>Errors</h2>
<p class="quiet">Rows without a result, by kind.</p>
{cards}<p class="quiet">All of them, with DuckDB:</p>
<pre class="command card">{escape(query)}</pre>
</section>
"""


def _error(kind: ErrorKind) -> str:
    items = "".join(
        f'<li>{_id(row)}<span class="message">{_text(message)}</span></li>'
        for row, message in kind.examples
    )
    left = kind.count - len(kind.examples)
    more = f'<p class="quiet">and {left:,} more</p>' if left else ""
    return f"""<div class="card error">
<h3>{_text(kind.error)} · <data value="{kind.count}">{kind.count:,}</data></h3>
<p class="quiet">stage: {_text(", ".join(kind.stages))}</p>
<ul>{items}</ul>{more}
</div>
"""


def _stage_times(record: RunRecord) -> str:
    seconds = record.figures.stage_seconds
    longest = max(seconds.values(), default=0.0)
    if not longest:
        return ""
    bars = "".join(
        f'<b>{_text(stage)}</b><div class="track"><div style="width: {spent / longest:.1%}"></div>'
        f'</div><span><data value="{spent!r}">{duration(spent)}</data> '
        f"· {spent / sum(seconds.values()):.0%}</span>"
        for stage, spent in seconds.items()
    )
    hosts = f"{record.figures.hosts:,} machine{'s' if record.figures.hosts != 1 else ''}"
    return f"""<section>
<h2>Time by stage</h2>
<p class="quiet">Working time, summed over all actors on {hosts}.</p>
<div class="card bars">{bars}</div>
</section>
"""


def _what_was_run(record: RunRecord) -> str:
    run = record.run
    model, palette = run.get("model") or {}, run.get("palette") or {}
    told = {
        "job": record.job,
        "model": model.get("location"),
        "model fingerprint": model.get("fingerprint"),
        "palette": palette.get("location"),
        "palette fingerprint": palette.get("fingerprint"),
        "image size": f"{run['image_size']} x {run['image_size']}",
        "seed": run.get("seed"),
        "started": run["created"],
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
    return f"""<section>
<h2>What was run</h2>
<div class="card">{_listed(told)}
<details><summary>All options</summary>{_listed(run["options"])}</details></div>
</section>
"""


def _listed(values: Mapping[str, Any]) -> str:
    pairs = (
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>"
        for name, value in values.items()
        if value is not None
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _next_steps(record: RunRecord, output: str) -> str:
    if not record.finished:
        steps = {"The same command goes on where the run stopped:": _shell(record.run["command"])}
    else:
        python = "from datasets import load_dataset\n\n"
        python += f'rows = load_dataset({output!r}, split="train")'
        query = f"SELECT * FROM {_files(output, 'data')} LIMIT 10;"
        steps = {"In Python:": escape(python), "With DuckDB:": escape(query)}
    shown = "".join(
        f'<p class="quiet">{says}</p><pre class="command card">{command}</pre>'
        for says, command in steps.items()
    )
    return f"<section>\n<h2>Next</h2>\n{shown}</section>\n"


# --- pieces ---------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """Anything as text of the page, also within quotes."""
    return escape(printable(str(value)))


def _shell(command: str) -> str:
    """A command of the shell, its words kept whole where lines break."""
    return " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))


def _files(output: str, folder: str) -> str:
    """All Parquet files of a folder of the run, as a literal of SQL."""
    return "'" + join(output, folder, "*.parquet").replace("'", "''") + "'"


def _id(text: str) -> str:
    """An id, a long one cut in the middle and whole when pointed at."""
    return f'<span class="id" title="{_text(text)}">{_text(shortened(text, _LABEL_LENGTH))}</span>'


def _tile(name: str, value: float, shown: str, note: str = "") -> str:
    return (
        f'<div class="tile"><span>{name}</span><data value="{value!r}">{shown}</data>'
        f"<span>{_text(note)}</span></div>"
    )
