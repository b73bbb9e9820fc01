"""igpt report: the report of a run directory once more."""

import json

import click

from igpt_core.checkpoint import load_palette
from pipeline.report import write_report
from pipeline.run_directory import RunDirectory
from pipeline.storage import UsageError, absolute


@click.command("report", short_help="Write report.html and the contact sheet of a run again.")
@click.argument("output", metavar="OUT")
@click.option("--palette", help="palette (.npy) or model folder [default: the run's]")
@click.option("--storage-options", metavar="JSON", help="fsspec options of OUT")
def report(output: str, palette: str | None, storage_options: str | None) -> None:
    """Write report.html, contact_sheet.png and README.md of the run directory OUT again.

    Example: igpt report out/photos
    """
    options = json.loads(storage_options) if storage_options else {}
    location = absolute(output)
    record = RunDirectory.at(location, options).record()
    if record is None:
        raise UsageError(f"expected a run directory with run.json, found none at {output}")
    write_report(
        location,
        storage_options=options,
        palette=load_palette(palette or record["palette"]["location"]),
    )
    click.echo(f"{location}/report.html")
