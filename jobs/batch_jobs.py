"""The jobs that fill run directories, by the name that run.json has for them."""

from collections.abc import Mapping
from typing import Any

from jobs import classify, complete, embed, quantize, sample, score
from jobs.command import parse
from pipeline.batch.definition import BatchJob
from pipeline.batch.run import FOUND
from pipeline.errors import UsageError
from pipeline.options import RunOptions
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import RUN_FILE
from pipeline.run_directory.record import known_job
from pipeline.storage.redact import is_redacted

BATCH_JOBS: dict[str, BatchJob] = {
    job.name: job
    for job in (
        quantize.JOB,
        complete.JOB,
        sample.JOB,
        embed.JOB,
        score.JOB,
        classify.JOB,
    )
}


def recorded_job(
    directory: RunDirectory, given: Mapping[str, Any]
) -> tuple[BatchJob, RunOptions, dict[str, Any]]:
    """The job of a run directory, its options, and run.json.

    The options are those of the run, where `given` has no others. Raises UsageError where there
    is no run, it is of another version, or its options cannot be used again.
    """
    record = directory.require_record()
    job = BATCH_JOBS[known_job(directory.location, record)]
    values = dict(record["options"])
    found = {name: record["results"].get(name) for name in FOUND}
    values |= {name: value for name, value in found.items() if value is not None}
    values |= {"output": directory.location, "overwrite": False, **given}
    hidden = [
        name for name, value in values.items() if isinstance(value, str) and is_redacted(value)
    ]
    if hidden:
        raise UsageError(
            f"{RUN_FILE} keeps no logins and signatures, so --{hidden[0].replace('_', '-')} "
            f"{values[hidden[0]]} leads nowhere; next: the run's own command, with its own location"
        )
    return job, parse(job.options, values), record
