"""igpt status: how far a run is."""

import dataclasses
import json
import time
from typing import TYPE_CHECKING

import click
from pydantic import Field

from jobs.command import command
from pipeline.options import Options, StorageOptions

if TYPE_CHECKING:
    from pipeline.run_directory.status import Status


class StatusOptions(StorageOptions, Options):
    output: str = Field(description="run directory, local or a URI")
    json_lines: bool = Field(False, alias="json", description="one JSON object")


def run(options: StatusOptions) -> None:
    from pipeline.run_directory.directory import RunDirectory
    from pipeline.run_directory.status import read_status
    from pipeline.storage.filesystem import absolute, options_for
    from pipeline.storage.redact import redacted

    location = absolute(options.output)
    directory = RunDirectory.at(location, options_for(options.storage_options, "output"))
    status = read_status(directory)
    if options.json_lines:
        click.echo(
            json.dumps({"output": redacted(directory.location), **dataclasses.asdict(status)})
        )
    else:
        for name, text in _lines(status, redacted(directory.location)).items():
            click.echo(f"{name:8} {text}")


def _lines(status: "Status", location: str) -> dict[str, str]:
    """Returns the lines by their headings; `about` stands before estimates."""
    from pipeline.engine.progress import counted, duration
    from pipeline.report.text import left_out_text, speed_text
    from pipeline.run_directory.status import SAMPLE

    def figure(name: str, value: float | int | None) -> str:
        about = "about " if name in status.estimated else ""
        return "unknown" if value is None else f"{about}{value:,}"

    state = "finished" if status.finished else "not finished"
    of = "" if status.finished else f" of {figure('total', status.total)}"
    errors = "about " * ("errors" in status.estimated) + counted(status.errors, "error")
    lines = {
        "run": f"{location}: {status.job}, {state}",
        "shards": f"{status.shards:,} of {figure('total_shards', status.total_shards)} done",
        "images": f"{figure('images', status.images)}{of}, {errors}",
    }
    if status.errors_by_kind:
        kinds = status.errors_by_kind.items()
        lines["errors"] = ", ".join(f"{kind} {figure('errors', n)}" for kind, n in kinds)
    if status.skipped_files:
        lines["left out"] = left_out_text(status.skipped_files)
    if status.images_per_second is not None:
        sampled = "images_per_second" in status.estimated
        latest = f", of the latest {SAMPLE} parts" if sampled else ""
        speed = speed_text(status.images_per_second, status.seconds, status.tokens_per_pass)
        lines["speed"] = speed + latest
    if status.last_part is not None:
        ago = max(time.time() - status.last_part, 0)
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.last_part))
        lines["last"] = f"part {duration(ago)} ago, {moment}"
    if status.seconds_left is not None:
        lines["left"] = f"about {duration(status.seconds_left)} at that speed"
    if status.resume is not None:
        lines["resume"] = status.resume
    return lines


COMMAND = command(
    "status",
    StatusOptions,
    run,
    argument="output",
    help="Say how far the run OUTPUT is, from its directory alone; quick, also where it is huge.",
    example="igpt status s3://bucket/completions",
)
