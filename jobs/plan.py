"""igpt plan JOB: what a job would take, before it is run."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from pydantic import Field, create_model

from jobs.batch_jobs import BATCH_JOBS
from jobs.command import JobCommand, JobGroup, command

if TYPE_CHECKING:
    from pipeline.batch.estimate import Estimate


def run(job: JobCommand, options: Any) -> None:
    from pipeline.batch.estimate import estimate

    found = estimate(job.define, options)
    price = options.gpu_hour_price
    if options.json_lines:
        click.echo(json.dumps({"event": "plan", **_facts(found, price)}))
    else:
        click.echo("\n".join(_lines(found, price)))


def _facts(found: "Estimate", price: float | None) -> dict[str, Any]:
    return {
        "shards": found.shards,
        "shard_size": found.shard_size,
        "rows": found.rows,
        "rows_counted": found.counted,
        "skipped_files": dict(found.skipped),
        "bytes_in": found.bytes_in,
        "bytes_out": found.bytes_out,
        "trial_rows": found.trial_rows,
        "trial_errors": found.trial_errors,
        "stages": {
            speed.stage: {
                "seconds_per_row": speed.seconds,
                "rows_per_second": speed.rows_per_second,
            }
            for speed in found.speeds
        },
        "limit": found.limit.stage,
        "advice": found.advice,
        "seconds": round(found.seconds, 1),
        "working_seconds": round(found.working_seconds, 1),
        "images_per_second": round(found.images_per_second, 3),
        "tokens_per_pass": found.tokens_per_pass,
        "gpus": found.gpus,
        "gpu_hours": round(found.gpu_hours, 3),
        "price": None if price is None else round(price * found.gpu_hours, 2),
    }


def _lines(found: "Estimate", price: float | None) -> list[str]:
    from pipeline.engine.progress import counted
    from pipeline.report.text import amount, left_out_text, rate, speed_text

    about = "" if found.counted else "about "
    bad = f", {counted(found.trial_errors, 'error')}" if found.trial_errors else ""
    lines = [
        f"shards      {found.shards:,} of up to {found.shard_size:,} rows",
        f"rows        {about}{found.rows:,}",
        *([f"left out    {left_out_text(found.skipped)}"] if found.skipped else []),
        f"bytes in    about {amount(found.bytes_in)}",
        f"bytes out   about {amount(found.bytes_out)}",
        f"tried       {found.trial_rows} rows{bad}",
        "stage     ms per row  rows per second",
    ]
    for speed in found.speeds:
        mark = "  <- limits" if speed is found.limit else ""
        fast = rate(speed.rows_per_second)
        lines.append(f"  {speed.stage:10}{speed.seconds * 1000:8.2f}  {fast:>15}{mark}")
    fast = speed_text(found.images_per_second, found.seconds, found.tokens_per_pass)
    lines += [
        f"to change   {found.advice}",
        f"speed       about {fast}",
        f"GPU-hours   {found.gpu_hours:.2f} on {found.gpus} GPUs",
    ]
    if price is not None:
        lines.append(f"price       {price * found.gpu_hours:.2f}")
    return lines


def _command(job: JobCommand) -> click.Command:
    """Returns the job's options, of which --output need not be given."""
    options = create_model(
        f"Plan{job.model.__name__}",
        __base__=job.model,
        output=(
            str,
            Field("", description="the run directory of the job; nothing is written there"),
        ),
        gpu_hour_price=(
            float | None,
            Field(None, ge=0, description="price of one GPU for one hour; adds that of the job"),
        ),
    )
    what = "--count 1000" if job.name == "sample" else "--input photos/"
    return command(
        job.name,
        options,
        partial(run, job),
        help=f"Plan igpt {job.name} by a short trial; writes nothing.",
        example=f"igpt plan {job.name} {what}",
    )


COMMAND = JobGroup(
    "plan",
    commands=[_command(job) for job in BATCH_JOBS.values()],
    help="Say what a job would take: shards, bytes, time, GPU-hours, and what limits it.",
    short_help="Say what a job would take, by a short trial.",
    epilog="Example: igpt plan complete --input photos/ --samples 4",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
