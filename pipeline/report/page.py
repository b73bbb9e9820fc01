"""report.html: a run on one page that needs nothing but itself."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.engine.progress import duration
from pipeline.report.charts import CHART_HEIGHT, BarChart, likelihood_chart
from pipeline.report.contact_sheet import scale_of
from pipeline.report.examples import any_generated, heat_map_top
from pipeline.report.heat_map import COLORS
from pipeline.report.pictures import MAX_SAMPLES, Example
from pipeline.report.text import left_out_text, printable, rate, shortened
from pipeline.run_directory.failed_rows import ErrorKind
from pipeline.run_directory.likelihoods import TOP, NLLHistogram, to_bits
from pipeline.run_directory.record import resuming
from pipeline.run_directory.summary import RunSummary
from pipeline.storage.filesystem import join

HEADLINES = {
    "classify": "Classified images",
    "complete": "Image completions",
    "embed": "Image embeddings",
    "quantize": "Quantized images",
    "sample": "Sampled images",
    "score": "Image likelihoods",
}
TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, exact value, the value as people read it, a note."""

    name: str
    value: float
    text: str
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """The examples and how large they stand on the page.

    `single`: one picture per example. `large_cell` and `small_cell`: side of a picture in pixels on
    wide and on narrow screens. `across`: pictures side by side on a phone. `generated`: some mark
    rows with generated pixels. `shown_samples`: which completions there are, where not all.
    `nll_top`: nats of the brightest color of heat maps.
    """

    examples: Sequence[Example]
    note: str
    single: bool
    large_cell: int
    small_cell: int
    across: int
    generated: bool
    shown_samples: str
    nll_top: float | None


@dataclass(frozen=True)
class Likelihoods:
    """The section on negative log-likelihoods; `unit` names what has one."""

    nll: NLLHistogram
    unit: str
    pixels: str
    chart: BarChart


@dataclass(frozen=True)
class RenderContext:
    """What the template refers to.

    `python_output` is the run's location as a literal of Python, `sql_data` and `sql_errors` are
    the Parquet files of two of its folders as literals of SQL.
    """

    job: str
    headline: str
    status: str
    finished: bool
    origin: Sequence[str]
    created: datetime
    command: str
    resume_command: str
    tiles: Sequence[Tile]
    left_out: str
    gallery: Gallery
    likelihoods: Likelihoods | None
    errors: Sequence[ErrorKind]
    stage_seconds: Mapping[str, float]
    hosts: int
    columns: Sequence[Mapping[str, str]]
    provenance: Mapping[str, Any]
    options: Mapping[str, Any]
    python_output: str
    sql_data: str
    sql_errors: str


def report_page(summary: RunSummary, examples: Sequence[Example], *, note: str, output: str) -> str:
    """Renders the page as HTML, pictures and style sheet within.

    `note` says which examples there are, or why none; `output` is where the reader finds the run.
    """
    run = summary.run
    context = RenderContext(
        job=summary.job,
        headline=HEADLINES[summary.job],
        status=summary.status,
        finished=summary.finished,
        origin=summary.origin,
        created=datetime.fromisoformat(run["created"]).astimezone(UTC),
        command=run["command"],
        resume_command=resuming(run["command"]),
        tiles=_tiles(summary),
        left_out=left_out_text(summary.skipped),
        gallery=_gallery(summary, examples, note),
        likelihoods=_likelihoods(summary.job, summary.nll) if summary.nll else None,
        errors=summary.errors,
        stage_seconds=summary.figures.stage_seconds,
        hosts=summary.figures.hosts,
        columns=run["columns"],
        provenance=_provenance(run),
        options=run["options"],
        python_output=repr(output),
        sql_data=_sql_files(output, "data"),
        sql_errors=_sql_files(output, "errors"),
    )
    return environment().get_template(TEMPLATE).render(vars(context))


def environment() -> Environment:
    """Sets up Jinja: everything is escaped, hidden characters too; `|e` keeps those as they are."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters.update(
        data_uri=_data_uri, duration=duration, rate=rate, shortened=shortened, to_bits=to_bits
    )
    templates.globals.update(chart_height=CHART_HEIGHT, heat_map_colors=COLORS, top_nats=TOP)
    return templates


def _data_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(png).decode()


def _sql_files(output: str, folder: str) -> str:
    return "'" + join(output, folder, "*.parquet").replace("'", "''") + "'"


def _tiles(summary: RunSummary) -> list[Tile]:
    figures, speed = summary.figures, summary.speed
    share = figures.errors / max(figures.rows + figures.errors, 1)
    images, tokens = speed.images_per_second, speed.tokens_per_second
    tiles = [
        Tile("Images", figures.rows, f"{figures.rows:,}", "with a result"),
        Tile("Failed rows", figures.errors, f"{figures.errors:,}", f"{share:.1%} of all"),
        Tile("Images per second", images, rate(images), "while working"),
    ]
    if figures.tokens:
        tiles.append(Tile("Tokens per second", tokens, rate(tokens), "while working"))
    if speed.tokens_per_pass is not None:
        each = speed.tokens_per_pass
        tiles.append(Tile("Tokens per pass", each, rate(each), "of each image, on average"))
    working = speed.working_seconds
    tiles.append(Tile("Working time", working, duration(working), "a shard or more in work"))
    if speed.seconds is not None:
        wall = speed.seconds
        tiles.append(Tile("Wall time", wall, duration(wall), "with start-up"))
    if summary.nll:
        nats = summary.nll.mean
        tiles.append(Tile("Nats per pixel", nats, rate(nats), f"mean, {rate(to_bits(nats))} bits"))
    return tiles


def _gallery(summary: RunSummary, examples: Sequence[Example], note: str) -> Gallery:
    side = examples[0].pictures[0].side if examples else 1
    scale = scale_of(side)
    n_pictures = len(examples[0].pictures) if examples else 1
    samples = int(summary.run["options"].get("samples") or 1)
    return Gallery(
        examples=examples,
        note=note,
        single=n_pictures == 1,
        large_cell=side * scale,
        small_cell=side * max(1, scale * 3 // 4),
        across=n_pictures if n_pictures <= 4 else math.ceil(n_pictures / 2),
        generated=any_generated(examples),
        shown_samples=(
            f"the first {MAX_SAMPLES} of {samples} completions" if samples > MAX_SAMPLES else ""
        ),
        nll_top=heat_map_top(examples),
    )


def _likelihoods(job: str, nll: NLLHistogram) -> Likelihoods:
    completed = job == "complete"
    unit = "completion" if completed else "image"
    pixels = "generated pixels" if completed else "all pixels"
    return Likelihoods(nll, unit, pixels, likelihood_chart(nll, unit))


def _provenance(run: Mapping[str, Any]) -> dict[str, Any]:
    model, palette = run.get("model") or {}, run.get("palette") or {}
    return {
        "job": run["job"],
        "model": model.get("location"),
        "model fingerprint": model.get("fingerprint"),
        "palette": palette.get("location"),
        "palette fingerprint": palette.get("fingerprint"),
        "image size": f"{run['image_size']} x {run['image_size']}",
        "seed": run.get("seed"),
        "started": run["created"],
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
