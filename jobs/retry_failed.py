"""igpt retry-failed: the failed rows of a run, once more."""

import json

import click
from pydantic import Field

from jobs.command import command
from pipeline.options import RayOptions, StorageOptions


class RetryOptions(RayOptions, StorageOptions):
    output: str = Field(description="run directory, local or a URI")
    input: str | None = Field(
        None, description="the run's, where that has a login or signature, which no run keeps"
    )
    max_image_bytes: int | None = Field(
        None, ge=1, description="larger encoded images are error rows; else the run's"
    )
    address: str | None = Field(None, description="Ray head, host:6379; else the run's")
    cpu_actors: int | None = Field(None, ge=1, description="actors that read; else the run's")
    model_actors: int | None = Field(None, ge=1, description="model actors; else the run's")
    max_error_fraction: float | None = Field(
        None, ge=0, le=1, description="abort when more of the rows fail; else the run's"
    )


def run(options: RetryOptions) -> None:
    from jobs.batch_jobs import recorded_job
    from pipeline.batch.run import run_job
    from pipeline.run_directory.directory import RunDirectory
    from pipeline.run_directory.failed_rows import count_by_kind
    from pipeline.run_directory.layout import shards_with_errors
    from pipeline.storage.filesystem import absolute, options_for
    from pipeline.storage.redact import redacted

    directory = RunDirectory.at(
        absolute(options.output), options_for(options.storage_options, "output")
    )
    ours = {"quiet": options.quiet, "debug": options.debug, "json_lines": options.json_lines}
    given = options.model_dump(exclude={"output", *ours}, exclude_none=True)
    job, recorded, _ = recorded_job(directory, given | ours)
    where, plan = redacted(directory.location), directory.plan()
    failed = shards_with_errors(directory.fs, directory.path)
    before = count_by_kind(directory, failed).total()
    report = directory.report()
    is_stale = report is not None and report["errors"] != before  # a retry was killed at its end
    if failed or is_stale or (plan is not None and plan.redone):
        run_job(job.define, recorded, again=failed)
    if failed and options.progress == "text":
        after = count_by_kind(directory, failed).total()
        click.echo(f"failed rows done again: {before}; of these shards' rows fail now: {after}")
    elif not failed and options.json_lines:
        click.echo(json.dumps({"event": "done", "output": where, "retried": 0}))
    elif not failed and not options.quiet:
        click.echo(f"{where}: no row has failed, nothing to retry")


COMMAND = command(
    "retry-failed",
    RetryOptions,
    run,
    argument="output",
    help="Do the failed rows of the run OUTPUT again; what is done stays, and stays as it is.",
    example="igpt retry-failed out/photos --max-error-fraction 0.01",
)
