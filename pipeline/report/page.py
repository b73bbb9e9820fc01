"""report.html: a run on one page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from igpt_core.images.palette import Palette
from pipeline.engine.progress import duration
from pipeline.report.charts import likelihoods, palette_colors, speed_over_time, stage_times
from pipeline.report.examples import Entry
from pipeline.report.pictures import pictures
from pipeline.report.style import STYLE
from pipeline.report.text import html_id, html_text, rate
from pipeline.run_directory.directory import resuming
from pipeline.run_directory.likelihoods import to_bits
from pipeline.run_directory.summary import ErrorKind, RunRecord
from pipeline.storage.filesystem import join

HEADLINES = {
    "classify": "Classified images",
    "complete": "Image completions",
    "embed": "Image embeddings",
    "quantize": "Quantized images",
    "sample": "Sampled images",
    "score": "Image likelihoods",
}


def report_page(
    record: RunRecord,
    entries: Sequence[Entry],
    *,
    palette: Palette | None,
    shown: str,
    output: str,
) -> str:
    """The page in HTML, pictures and style within.

    `shown` says which pictures there are, or why none; `output` is where the reader finds the run.
    """
    sections = [
        _header(record),
        _key_figures(record),
        pictures(record, entries, shown),
        likelihoods(record) if record.nats else "",
        _errors(record, output),
        speed_over_time(record.speed) if record.speed else "",
        stage_times(record.figures),
        palette_colors(palette) if palette else "",
        _columns(record),
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
<title>{html_text(HEADLINES[record.job])} · {html_text(record.status)}</title>
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
    origin = "".join(f"{html_text(part)} · " for part in record.origin)
    return f"""<header>
<p class="status {kind}">{html_text(record.status)}</p>
<h1>{html_text(HEADLINES[record.job])}</h1>
<p class="quiet"><code>igpt {html_text(record.job)}</code> · {origin}
<time datetime="{html_text(created.isoformat())}">{shown}</time></p>
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
    if record.nats:
        nats = record.nats.mean
        tiles.append(_tile("Nats per pixel", nats, rate(nats), f"mean, {rate(to_bits(nats))} bits"))
    return f'<section class="tiles" aria-label="Key figures">{"".join(tiles)}</section>\n'


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
        f'<li>{html_id(row)}<span class="message">{html_text(message)}</span></li>'
        for row, message in kind.examples
    )
    left = kind.count - len(kind.examples)
    more = f'<p class="quiet">and {left:,} more</p>' if left else ""
    return f"""<div class="card error">
<h3>{html_text(kind.error)} · <data value="{kind.count}">{kind.count:,}</data></h3>
<p class="quiet">stage: {html_text(", ".join(kind.stages))}</p>
<ul>{items}</ul>{more}
</div>
"""


def _columns(record: RunRecord) -> str:
    lines = "".join(
        f"<tr><th scope=row><code>{html_text(column['name'])}</code></th>"
        f"<td><code>{html_text(column['type'])}</code></td><td>{html_text(column['meaning'])}</td></tr>"
        for column in record.run["columns"]
    )
    return f"""<section>
<h2>Columns</h2>
<div class="card"><table class="columns">
<thead><tr><th scope=col>name</th><th scope=col>type</th><th scope=col>meaning</th></tr></thead>
<tbody>{lines}</tbody></table></div>
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
        f"<dt>{html_text(name)}</dt><dd>{html_text(value)}</dd>"
        for name, value in values.items()
        if value is not None
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _next_steps(record: RunRecord, output: str) -> str:
    if not record.finished:
        steps = {"This goes on where the run stopped:": _shell(resuming(record.run["command"]))}
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


def _shell(command: str) -> str:
    """A command of the shell, its words kept whole where lines break."""
    return " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))


def _files(output: str, folder: str) -> str:
    """All Parquet files of a folder of the run, as a literal of SQL."""
    return "'" + join(output, folder, "*.parquet").replace("'", "''") + "'"


def _tile(name: str, value: float, shown: str, note: str = "") -> str:
    return (
        f'<div class="tile"><span>{name}</span><data value="{value!r}">{shown}</data>'
        f"<span>{html_text(note)}</span></div>"
    )
