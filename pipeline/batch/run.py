"""A job from its options to its report: checked, acquired, planned, run."""

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pipeline.batch.definition import Batch, BatchJob
from pipeline.batch.execute import execute
from pipeline.batch.job import Job, allotment_for
from pipeline.batch.record import dependencies, record_of
from pipeline.engine import cluster
from pipeline.errors import RunFailed, UsageError
from pipeline.options import ModelOptions, RunOptions
from pipeline.report.write import write_report
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import refuse_other_run, resuming
from pipeline.storage.filesystem import absolute, options_for
from pipeline.storage.redact import redacted

# Options that are found on the cluster where they are not given. Results depend on them, and at a
# resume the cluster may be another, or not have its GPUs yet.
FOUND = ("device", "dtype", "batch_size")


def run_job(kind: BatchJob, options: RunOptions, *, again: Collection[int] = ()) -> None:
    """The job from its options to its report: begun, or gone on with.

    Args:
        again: shards that are invalidated, once all is checked, and so are done again.

    Raises UsageError before work begins; RunFailed and OverErrorBudget as `execute` does.
    """
    directory = RunDirectory.at(
        absolute(options.output), options_for(options.storage_options, "output")
    )
    recorded = directory.record()
    if recorded is None:
        directory.check_free()
    begins = recorded is None or options.overwrite
    plan = None if begins else directory.plan()
    source = kind.find_source(options) if plan is None else None
    if recorded is not None and not begins and isinstance(options, ModelOptions):
        found = {name: recorded["results"].get(name) for name in FOUND}
        given = {name: getattr(options, name) for name in FOUND}
        given = {name: value for name, value in given.items() if value not in (None, "auto")}
        options = options.model_copy(update=found | given)
    definition = kind.define(options)
    with cluster.connected(options.address):
        _say_what_must_come(options)
        batch = Batch.of(definition, options)
        wanted = dependencies(kind.name, options, definition, batch)
        size = options.shard_size
        if recorded is not None and not begins:
            # Where the size of shards is not given it is found, so it is what was found then.
            wanted |= {} if size is None else {"shard_size": size}
            refuse_other_run(directory.location, recorded["results"], wanted)
            size = recorded["results"]["shard_size"]
        if source is not None:
            quantizer = definition.quantizer
            source.check_tokens(
                image_size=quantizer.image_size, palette=quantizer.palette.fingerprint
            )
            # Where rows are not counted, each file is a shard by itself, whatever the size.
            plan = source.cut(size or batch.shard_size(definition, source.rows or 0))
        assert plan is not None
        resources = allotment_for(options, batch)
        job = Job(kind.name, options, definition, directory.location, plan, batch, resources)
        record = record_of(job, wanted) if recorded is None or options.overwrite else recorded
        job = replace(job, lease=_acquire(job, directory, record, begins=begins))
        if source is not None:
            # Of the same run, started a moment ago; in place of one that is cleared it may be its.
            there = None if options.overwrite else directory.plan()
            job = job if there is None else replace(job, plan=there)
            directory.write_plan(job.plan)
        directory.invalidate(again)
        try:
            _execute(job, directory)
        except KeyboardInterrupt:
            raise RunFailed(f"interrupted; next: {resuming(str(record['command']))}") from None


def _acquire(
    job: Job, directory: RunDirectory, record: Mapping[str, Any], *, begins: bool
) -> Lease:
    """The lease on the directory, which belongs to this run from now on. Raises UsageError where
    another run was faster."""
    options = options_for(job.options.storage_options, "output")
    lease = Lease(directory.location, options, str(record.get("run")))
    if job.options.overwrite and directory.record() is not None:
        lease.acquire()  # actors of the run that was there write nothing from now on
        directory.clear()
    if begins:
        directory.create(record)
    _check_run(directory, lease)
    lease.acquire()  # also from one that cleared at the same time, and was refused in `create`
    _check_run(directory, lease)
    if not lease.may_write():
        raise _taken(directory)
    return lease


def _check_run(directory: RunDirectory, lease: Lease) -> None:
    if str((directory.record() or {}).get("run")) != lease.run:
        raise _taken(directory)


def _taken(directory: RunDirectory) -> UsageError:
    return UsageError(
        f"another run took {directory.location} just now; next: wait for its end, or another "
        "--output"
    )


def _say_what_must_come(options: RunOptions) -> None:
    """Where more GPUs are asked for than there are, people learn why nothing happens yet."""
    if not isinstance(options, ModelOptions) or options.device != "cuda":
        return
    asked, there = options.model_actors or 0, cluster.gpus()
    if asked > there and cluster.may_grow(options.address) and options.progress == "text":
        print(
            f"the cluster has {there} of {asked} GPUs: its autoscaler has to bring the others",
            file=sys.stderr,
            flush=True,
        )


def _execute(job: Job, directory: RunDirectory) -> None:
    """Run the stages, write the report, say where it lies."""
    options, lease = job.options, job.lease
    assert lease is not None
    try:
        report = execute(
            directory,
            job.plan,
            job.definition.stages(job),
            lease=lease,
            max_error_fraction=options.max_error_fraction,
            progress=options.progress,
        )
    finally:
        lease.end()
    write_report(
        job.output,
        storage_options=options_for(options.storage_options, "output"),
        palette=job.definition.quantizer.palette,
    )
    if options.json_lines:
        print(json.dumps({"event": "done", "output": redacted(job.output), **report}), flush=True)
    else:
        print(redacted(f"{job.output}/report.html"), flush=True)
