"""A job from its options to its report: checked, planned, run."""

import json
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.batch.execute import execute
from pipeline.batch.job import Job, JobSpec
from pipeline.batch.record import dependencies, is_plain, record_of
from pipeline.batch.same_input import check_input
from pipeline.engine import allocation, cluster
from pipeline.errors import RunFailed, UsageError
from pipeline.inputs.identity import planned_identities, with_whole_paths
from pipeline.inputs.source import Source
from pipeline.options import ImageJobOptions, ModelOptions, RunOptions, note_default_model
from pipeline.report.write import write_report
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import refuse_other_noise, refuse_other_run, resuming
from pipeline.shards import Plan
from pipeline.storage.filesystem import absolute, options_for
from pipeline.storage.redact import redacted

if TYPE_CHECKING:  # it imports torch
    from pipeline.stages.model_batches import ComputePlan

# Options that are found on the cluster where they are not given. Results depend on them, and at a
# resume the cluster may be another, or not have its GPUs yet.
FOUND = ("device", "dtype", "batch_size", "window")


Options = TypeVar("Options", bound=RunOptions)


def run_job(
    define: Callable[[Options], JobSpec], options: Options, *, again: Collection[int] = ()
) -> None:
    """Runs a job from its options to its report, begun or resumed.

    Args:
        define: what makes a job of its options.
        again: shards whose failed rows are done again; what is there stays until it is as good.

    Raises UsageError before work begins; RunFailed and OverErrorBudget as `execute` does.
    """
    started = time.time()
    directory = RunDirectory.at(
        absolute(options.output), options_for(options.storage_options, "output")
    )
    recorded = directory.record()
    if recorded is None:
        directory.check_free()
    resumed = None if options.overwrite else recorded
    if resumed is not None and isinstance(options, ModelOptions):
        options = _as_recorded(options, resumed["results"])
    spec = define(options)
    planned = None if resumed is None else directory.plan()
    source = spec.find_source() if planned is None else None
    note_default_model(options)
    with cluster.connected(options.address):
        _say_what_must_come(options)
        compute = spec.find_compute(None if source is None else source.rows)
        wanted = dependencies(spec, compute)
        size = _shard_size(directory, options, resumed, wanted)
        if planned is None:
            assert source is not None
            plan = cut(spec, source, compute, size)
        else:
            plan = planned
            if isinstance(spec.options, ImageJobOptions):
                plan = check_input(planned, spec.options, directory, again=again)
        resources = spec.resources(compute, plan)
        left_aside = _left_aside(spec, compute) if resumed is None else resumed.get("left_aside")
        compute = compute and replace(compute, plain=is_plain(left_aside))
        job = Job(spec, directory.location, plan, compute, resources)
        record = resumed or record_of(job, wanted, left_aside or [])
        lease = _acquire(job, directory, record, started=started, creates=resumed is None)
        if planned is None:
            # Of the same run, started a moment ago; in place of one that is cleared it may be its.
            there = None if options.overwrite else directory.plan()
            if there is not None:
                job = replace(job, plan=with_whole_paths(there, planned_identities(job.plan)))
        if job.plan is not planned:
            directory.write_plan(job.plan)
        # An actor of a run that was there before may write a part after all was cleared.
        finished = set() if resumed is None else directory.finished()
        try:
            again = {*again, *job.plan.redone}
            job = replace(job, lease=lease, again=bool(again))
            _execute(job, directory, lease, finished, again)
        except KeyboardInterrupt:
            raise RunFailed(f"interrupted; next: {resuming(str(record['command']))}") from None


def _as_recorded(options: Options, results: Mapping[str, Any]) -> Options:
    """Fills in the options that a cluster decides where they are not given, as it did at first."""
    names = [name for name in FOUND if name in type(options).model_fields]
    found = {name: results.get(name) for name in names}
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value not in (None, "auto")}
    return options.model_copy(update=found | given)


def _shard_size(
    directory: RunDirectory,
    options: RunOptions,
    resumed: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
) -> int | None:
    """Returns the size of shards, None where it is still to be found. Raises UsageError where a run
    to be resumed was begun with other options than those wanted."""
    if resumed is None:
        return options.shard_size
    # Where the size is not given it is found, so it is what was found then.
    asked = {} if options.shard_size is None else {"shard_size": options.shard_size}
    refuse_other_noise(directory.location, resumed["results"], wanted)
    refuse_other_run(directory.location, resumed["results"], {**wanted, **asked})
    return int(resumed["results"]["shard_size"])


def cut(spec: JobSpec, source: Source, compute: "ComputePlan | None", size: int | None) -> Plan:
    """Cuts an input into a plan; a size of None is that which suits the job and the cluster.

    Raises UsageError where the input holds tokens that are not of the job's palette.
    """
    quantizer = spec.quantizer
    source.check_tokens(image_size=quantizer.image_size, palette=quantizer.palette.fingerprint)
    # Where rows are not counted, each file is a shard by itself, whatever the size.
    plan = source.cut(size or spec.shard_size(compute, source.rows or 0))
    if spec.options.progress != "quiet":
        source.print_broken_names()
    if spec.options.progress == "text":
        source.print_large_groups(plan.shard_size)
    return plan


def _acquire(
    job: Job, directory: RunDirectory, record: Mapping[str, Any], *, started: float, creates: bool
) -> Lease:
    """Acquires the lease on the directory, which belongs to this run from now on. Raises
    UsageError where another run was faster."""
    storage_options = options_for(job.spec.options.storage_options, "output")
    run = str(record.get("run"))
    lease = Lease(directory.location, storage_options, run, started=started)
    if job.spec.options.overwrite and directory.record() is not None:
        lease.acquire()  # actors of the run that was there write nothing from now on
        directory.clear()
    if creates:
        directory.create(record)
    _check_run(directory, lease)
    lease.acquire()  # also from one that cleared at the same time, and was refused in `create`
    _check_run(directory, lease)
    if not lease.may_write():
        raise _superseded(directory)
    return lease


def _check_run(directory: RunDirectory, lease: Lease) -> None:
    if str((directory.record() or {}).get("run")) != lease.run:
        raise _superseded(directory)


def _superseded(directory: RunDirectory) -> UsageError:
    return UsageError(
        f"another run has just taken over {directory.location}; next: wait for its end, or another "
        "--output"
    )


def _say_what_must_come(options: RunOptions) -> None:
    """Prints that GPUs have to come, where more are asked for than there are."""
    if not isinstance(options, ModelOptions) or options.device != "cuda":
        return
    asked, there = options.model_actors or 0, allocation.gpus()
    if asked > there and allocation.may_grow(options.address) and options.progress == "text":
        print(
            f"the cluster has {there} of {asked} GPUs: its autoscaler has to bring the others",
            file=sys.stderr,
            flush=True,
        )


def _left_aside(spec: JobSpec, compute: "ComputePlan | None") -> list[str]:
    """Returns what a GPU of the cluster does not do in its fastest way since that computes other
    results there, or fails, and says it."""
    if not spec.generates or compute is None or compute.device != "cuda" or spec.model is None:
        return []
    from pipeline.engine.gpu import ask_gpu  # it imports torch

    progress = spec.options.progress
    try:
        found = ask_gpu(compute.try_fast_ways, spec.model.config.head_size, progress=progress)
    except RunFailed as error:
        if error.__cause__ is None:  # no GPU came
            raise
        # A kernel may break the context of its process.
        found = [f"all that is fast: {error}"]
    if found and compute.kv_cache_dtype:
        raise RunFailed(
            f"expected a GPU that samples with --kv-cache-dtype {compute.kv_cache_dtype}, found "
            f"one that must sample plainly, without {found[0]}; next: --kv-cache-dtype auto"
        )
    if progress == "text":
        for what in found:
            print(f"the GPU works without {what}", file=sys.stderr, flush=True)
    return found


def _execute(
    job: Job,
    directory: RunDirectory,
    lease: Lease,
    finished: set[int],
    again: Collection[int],
) -> None:
    """Runs the stages, writes the report, and says where it lies."""
    options = job.spec.options
    try:
        summary = execute(
            directory,
            job.plan,
            job.spec.stages(job),
            finished=finished,
            again=again,
            lease=lease,
            max_error_fraction=options.max_error_fraction,
            progress=options.progress,
        )
        if job.plan.redone:
            directory.write_plan(replace(job.plan, redone=()))
    finally:
        lease.end()
    write_report(
        job.output,
        storage_options=options_for(options.storage_options, "output"),
        palette=job.spec.quantizer.palette,
        summary=summary,
    )
    if options.json_lines:
        done = {"event": "done", "output": redacted(job.output), **(summary.report or {})}
        print(json.dumps(done), flush=True)
    else:
        print(redacted(f"{job.output}/report.html"), flush=True)
