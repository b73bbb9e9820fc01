"""igpt report: the report of a run directory once more."""

import click
from pydantic import Field

from jobs.command import command
from pipeline.options import Options, StorageOptions


class ReportOptions(StorageOptions, Options):
    output: str = Field(description="run directory")
    palette: str | None = Field(None, description="palette (.npy) or model folder; else the run's")


def run(options: ReportOptions) -> None:
    from igpt_core.images.model_palette import load_palette
    from pipeline.report.write import write_report
    from pipeline.run_directory.directory import RunDirectory
    from pipeline.storage.filesystem import absolute, options_for
    from pipeline.storage.redact import redacted

    location = absolute(options.output)
    output_options = options_for(options.storage_options, "output")
    record = RunDirectory.at(location, output_options).require_record()
    palette = load_palette(
        options.palette or record["palette"]["location"],
        options_for(options.storage_options, "model"),
    )
    write_report(location, palette=palette, storage_options=output_options)
    click.echo(redacted(f"{location}/report.html"))


COMMAND = command(
    "report",
    ReportOptions,
    run,
    argument="output",
    help="Write the report and the contact sheet of the run OUTPUT again.",
    example="igpt report out/photos",
)
