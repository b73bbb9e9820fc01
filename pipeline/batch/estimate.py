"""What a job would take: its shards and bytes, and its time by a short trial on the cluster."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pipeline.batch.job import Job, JobSpec
from pipeline.batch.run import cut
from pipeline.engine import allocation, cluster
from pipeline.engine.dispatch import dispatch_shards
from pipeline.inputs.source import Source
from pipeline.options import RunOptions, note_default_model
from pipeline.run_directory.layout import spread
from pipeline.run_directory.stats import Work
from pipeline.shards import Plan, Shard
from pipeline.stages.write_parts import STAGES
from pipeline.storage.filesystem import open_location, options_for

Options = TypeVar("Options", bound=RunOptions)

NOWHERE = "memory://igpt-plan"  # parts of the trial lie in an actor's memory and go with it
_MOST_SIZED = 256
_THREADS = 32
_TRIAL_ROWS = 128  # of a shard, of jobs without a model
_TRIALS_PER_ACTOR = 3  # the first of an actor is slower than those that follow
# By stage.
_ADVICE = {
    "read": "more --cpu-actors, or a faster or nearer input",
    "decode": "more --cpu-actors, or --resize fast for JPEGs",
    "model": "more GPUs, or on CPUs more cores; a larger --batch-size where memory allows",
    "write": "more --cpu-actors, of which every fourth brings a writer",
    "all CPUs": "more CPUs: the stages on CPUs together take all of them",
}


@dataclass(frozen=True)
class StageSpeed:
    """Seconds that a row takes in a stage, and how many actors work there at once."""

    stage: str
    seconds: float
    actors: float

    @property
    def rows_per_second(self) -> float:
        return self.actors / self.seconds


@dataclass(frozen=True)
class Estimate:
    """A job before it is run. Rows, and what depends on them, are about so where `counted` is
    false: the input does not say how many it has. `skipped` counts its files left out, by
    extension. `startup_seconds` are those of the trial: what it took beside the work;
    `tokens_per_pass` is as of `Speed`."""

    shards: int
    shard_size: int
    rows: int
    counted: bool
    skipped: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    trial_rows: int
    trial_errors: int
    speeds: tuple[StageSpeed, ...]
    gpus: int
    startup_seconds: float
    tokens_per_pass: float | None

    @property
    def limit(self) -> StageSpeed:
        """Returns the slowest stage; of two that the same actors work at, the longer one."""
        return min(self.speeds, key=lambda speed: (speed.rows_per_second, -speed.seconds))

    @property
    def advice(self) -> str:
        """Says what to change so that the slowest stage is faster."""
        return _ADVICE[self.limit.stage]

    @property
    def images_per_second(self) -> float:
        """Estimates the images with a result, while working."""
        good = 1 - self.trial_errors / max(self.trial_rows, 1)
        return good * self.limit.rows_per_second

    @property
    def working_seconds(self) -> float:
        """Estimates the time in which shards are in work."""
        return self.rows / self.limit.rows_per_second

    @property
    def seconds(self) -> float:
        """Estimates the wall time, with start-up."""
        return self.startup_seconds + self.working_seconds

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.working_seconds / 3600


def estimate(define: Callable[[Options], JobSpec], options: Options) -> Estimate:
    """Plans the job and tries it on a few rows. Writes nothing. Raises UsageError; RunFailed where
    a stage fails."""
    begun = time.perf_counter()
    spec = define(options)
    source = spec.find_source()
    note_default_model(options)
    with cluster.connected(options.address):
        compute = spec.find_compute(source.rows)
        plan = cut(spec, source, compute, options.shard_size)
        resources = spec.resources(compute, plan)
        job = Job(spec, NOWHERE, plan, compute, resources)
        actors = job.resources.reading.actors if compute is None else job.resources.model.actors
        size = _TRIAL_ROWS if compute is None else compute.images
        if source.rows is None:  # of compressed tars: the first, which a limit counts
            limit = size * actors * _TRIALS_PER_ACTOR
            first = define(options.model_copy(update={"limit": limit}))
            trial = first.find_source().cut(size)
        else:
            trial = _trial_plan(source, size, actors)
        tried = list(dispatch_shards(trial, trial.shards, spec.stages(replace(job, plan=trial))))
        work = Work()
        for part in tried:
            work.add(part)
        startup = max(time.perf_counter() - begun - work.working_seconds, 0.0)
        return _estimate(job, source, trial, tried, startup, work.tokens_per_pass)


def _trial_plan(source: Source, size: int, actors: int) -> Plan:
    """Shards of one model batch each, evenly spread over the input, a few for each actor."""
    plan = source.cut(size)
    chosen = [plan.shards[i] for i in spread(len(plan.shards), actors * _TRIALS_PER_ACTOR)]
    return replace(
        plan, shards=tuple(_first_rows(i, shard, size) for i, shard in enumerate(chosen))
    )


def _first_rows(index: int, shard: Shard, n: int) -> Shard:
    """Returns a shard of the first rows of one: of a tar that is not cut, which is one shard."""
    if (shard.rows or 0) <= n:
        return Shard(index, shard.slices)
    (tar,) = shard.slices
    return Shard(index, (replace(tar, stop=tar.start + n),))


def _estimate(
    job: Job,
    source: Source,
    trial: Plan,
    tried: Sequence[Mapping[str, Any]],
    startup: float,
    tokens_per_pass: float | None,
) -> Estimate:
    options = job.spec.options
    input_options = options_for(options.storage_options, "input")
    size = _input_bytes([file.path for file, _ in source.files if file.path], input_options)
    trial_rows = sum(part["rows"] + part["errors"] for part in tried)
    rows = source.rows
    if rows is None:
        read = _input_bytes({p.path for shard in trial.shards for p in shard.slices}, input_options)
        rows = round(trial_rows * size / max(read, 1))
    good = max(sum(part["rows"] for part in tried), 1)
    per_row = sum(part["bytes"] for part in tried) / good
    share_good = good / max(trial_rows, 1)
    on_gpus = job.compute is not None and job.compute.device == "cuda"
    return Estimate(
        shards=len(job.plan.shards),
        shard_size=job.plan.shard_size,
        rows=rows,
        counted=source.rows is not None,
        skipped=source.skipped,
        bytes_in=size,
        bytes_out=round(per_row * rows * share_good),
        trial_rows=trial_rows,
        trial_errors=sum(part["errors"] for part in tried),
        speeds=tuple(_speeds(job.resources, tried, on_gpus=on_gpus, cpus=allocation.cpus())),
        gpus=job.resources.model.actors if on_gpus else 0,
        startup_seconds=startup,
        tokens_per_pass=tokens_per_pass,
    )


def _speeds(
    resources: allocation.ResourcePlan,
    tried: Sequence[Mapping[str, Any]],
    *,
    on_gpus: bool,
    cpus: int,
) -> Iterable[StageSpeed]:
    """Yields how fast each stage is, and the CPUs that all stages without a GPU share.

    Of a stage's trials the median counts: the first of an actor warms up.
    """
    actors = {
        "read": resources.reading.actors,
        "decode": resources.reading.actors,
        "model": resources.model.actors,
        "write": resources.writing.actors,
    }
    seconds = {}
    for stage in STAGES:
        spent = [
            part["seconds"][stage] / (part["rows"] + part["errors"])
            for part in tried
            if part["seconds"][stage] is not None
        ]
        if spent:
            seconds[stage] = max(statistics.median(spent), 1e-9)
    together = ["read", "decode", *(["write"] if resources.writing.joins else [])]
    by_readers = sum(seconds.get(stage, 0) for stage in together)
    for stage, each in seconds.items():
        # The same actors do these: each gets its part of their time.
        share = each / by_readers if stage in together else 1
        yield StageSpeed(stage, each, actors[stage] * share)
    on_cpus = sum(each for stage, each in seconds.items() if not (on_gpus and stage == "model"))
    yield StageSpeed("all CPUs", on_cpus, cpus)


def _input_bytes(paths: Iterable[str], options: Mapping[str, Any]) -> int:
    """Returns the bytes of files; of many, an estimate from some of them."""
    paths = list(paths)
    chosen = [paths[i] for i in spread(len(paths), _MOST_SIZED)]

    def size(path: str) -> int:
        fs, inner = open_location(path, options)
        return int(fs.info(inner)["size"] or 0) if fs.exists(inner) else 0

    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(size, chosen))
    return round(sum(sizes) / len(sizes) * len(paths)) if sizes else 0
