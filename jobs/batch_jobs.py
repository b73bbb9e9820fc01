"""The jobs that fill run directories, by the name that run.json has for them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs import classify, complete, embed, quantize, sample, score
from jobs.command import JobCommand, parse
from pipeline.errors import UsageError
from pipeline.options import RunOptions
from pipeline.storage.redact import is_redacted

BATCH_JOBS: dict[str, JobCommand] = {
    job.name: job
    for job in (
        quantize.COMMAND,
        complete.COMMAND,
        sample.COMMAND,
        embed.COMMAND,
        score.COMMAND,
        classify.COMMAND,
    )
}

if TYPE_CHECKING:
    from pipeline.run_directory.directory import RunDirectory


def recorded_job(
    directory: "RunDirectory", given: Mapping[str, Any]
) -> tuple[JobCommand, RunOptions, dict[str, Any]]:
    """Returns the job of a run directory, its options, and run.json.

    The options are those of the run, where `given` has no others. Raises UsageError where there
    is no run, it is of another version, or its options cannot be used again.
    """
    from pipeline.batch.run import FOUND
    from pipeline.run_directory.layout import RUN_FILE
    from pipeline.run_directory.record import known_job

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
            + (", or igpt retry-failed with --input" if hidden[0] == "input" else "")
        )
    options = parse(job.model, values)
    assert isinstance(options, RunOptions)
    return job, options, record
