"""Model batches of a run computed again, in this process, and compared bit by bit."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from igpt_core.errors import CheckpointError
from pipeline import rows
from pipeline.batch.job import Job, JobSpec
from pipeline.batch.record import dependencies, is_plain
from pipeline.engine.allocation import ResourcePlan
from pipeline.engine.stage import Resources, Stage
from pipeline.errors import UsageError
from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.options import RunOptions
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import parquet_bytes, parquet_file, part_name
from pipeline.run_directory.record import differences
from pipeline.shards import Plan, Shard
from pipeline.stages.sampling import by_length
from pipeline.stages.write_parts import WriteParts
from pipeline.storage.filesystem import join, read_bytes, store_errors
from pipeline.storage.redact import redacted_line

Options = TypeVar("Options", bound=RunOptions)

_HERE = ResourcePlan(Resources(), Resources(), Resources())


@dataclass(frozen=True)
class Replayed:
    """A model batch that was computed again: its part, its rows, and what differs, each with the
    name of the part."""

    part: str
    rows: int
    differing: tuple[str, ...]


class NotReplayed(Exception):
    """Raised where nothing can be computed again: the input or the model is not that of the run, or
    out of reach. The message is one line."""


def replay(
    define: Callable[[Options], JobSpec],
    options: Options,
    *,
    directory: RunDirectory,
    record: Mapping[str, Any],
    n_batches: int,
    seed: int,
) -> Iterator[Replayed]:
    """Computes model batches of a run again; where it has no model, whole shards.

    Args:
        define, options: what makes the job of the run, and its options.
        record: run.json.
        n_batches: how many, of random shards; fewer where there are no more.
        seed: of the choice.

    Raises UsageError where the run computed on a GPU and there is none, NotReplayed.
    """
    recorded = record["results"]
    if recorded.get("device") == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "expected a GPU, on which the run computed and to which its bits belong, found none; "
            "next: the same command on such a machine, or without --replay"
        )
    job = _job(define, options, directory, record)
    read, *model, write = map(_built, job.spec.stages(job))
    assert isinstance(write, WriteParts)
    chance = random.Random(seed)
    done = sorted(directory.finished() & {shard.index for shard in job.plan.shards})
    chosen = chance.sample(done, min(n_batches, len(done)))
    by_index = {shard.index: shard for shard in job.plan.shards}
    left = n_batches
    for place, index in enumerate(chosen):
        stored = _read_part(directory, index)
        block = _read_shard(read, job.plan, by_index[index])
        good = block.filter(pc.is_null(block[rows.ERROR_STAGE]))
        wrong = _other_rows(index, stored, block)
        if wrong:  # and so other batches
            yield Replayed(part_name("data", index), 0, (wrong,))
            left -= 1
            continue
        batches = _batches(good, None if job.compute is None else job.compute.images)
        wanted = -(-left // (len(chosen) - place))
        for batch in chance.sample(batches, min(wanted, len(batches))):
            left -= 1
            computed = good.take(pa.array(batch))
            for stage in model:
                computed = stage(computed)
            differing = _differing(write.results(computed), stored.results.take(pa.array(batch)))
            where = part_name("data", index)
            yield Replayed(where, len(batch), tuple(f"{where}: {text}" for text in differing))


def _built(stage: Stage) -> Any:
    """Builds a stage, as an actor does once."""
    cls: Any = stage.cls
    return cls(**stage.arguments)


def _job(
    define: Callable[[Options], JobSpec],
    options: Options,
    directory: RunDirectory,
    record: Mapping[str, Any],
) -> Job:
    """Makes the job as it was, without a cluster."""
    recorded = record["results"]
    plan = directory.plan()
    assert plan is not None  # that is verified first
    try:
        spec = define(options)
    except (UsageError, CheckpointError) as error:
        raise NotReplayed(redacted_line(error)) from error
    compute = spec.compute_plan(recorded["device"], recorded["dtype"], plan.rows)
    compute = compute and replace(compute, plain=is_plain(record.get("left_aside")))
    other = differences(recorded, dependencies(spec, compute))
    if other:
        raise NotReplayed(f"expected what the run was made with, found other: {'; '.join(other)}")
    return Job(spec, directory.location, plan, compute, _HERE)


@dataclass(frozen=True)
class _Stored:
    results: pa.Table
    errors: pa.Table


def _read_part(directory: RunDirectory, shard: int) -> _Stored:
    path = join(directory.path, part_name("data", shard))
    try:
        results = parquet_file(read_bytes(directory.fs, path)).read()
        errors = directory.read(part_name("errors", shard))
        if errors is None:
            return _Stored(results, rows.ERRORS.empty_table())
        return _Stored(results, parquet_file(errors).read())
    except parquet_errors() as error:
        raise NotReplayed(
            f"cannot read {part_name('data', shard)}: {redacted_line(error)}"
        ) from error


def _not_read() -> tuple[type[Exception], ...]:
    """Returns what reading the input raises where it is out of reach or another one."""
    return (*store_errors(), RuntimeError)


def _read_shard(read: Any, plan: Plan, shard: Shard) -> pa.Table:
    try:
        return read(replace(plan, shards=(shard,)).to_table())
    except _not_read() as error:
        raise NotReplayed(f"cannot read the input: {redacted_line(error)}") from error


def _other_rows(shard: int, stored: _Stored, block: pa.Table) -> str | None:
    """Says how the rows that are read now, failed ones included, differ from those of the part."""
    failed = block.filter(pc.is_valid(block[rows.ERROR_STAGE]))
    good = block.filter(pc.is_null(block[rows.ERROR_STAGE]))[rows.ROW_ID].to_pylist()
    columns = (rows.ROW_ID, rows.ERROR_STAGE, rows.ERROR_CLASS)
    found = []
    if failed.num_rows:  # rows that cannot fail have no columns for it
        found = list(zip(*(failed[name].to_pylist() for name in columns), strict=True))
    names = ("id", "stage", "error")
    recorded = list(zip(*(stored.errors[name].to_pylist() for name in names), strict=True))
    if found != recorded:
        new = next((error for error in found if error not in recorded), None)
        gone = next((error for error in recorded if error not in found), None)
        texts = [f"{new[0]} fails now ({new[2]})" if new else ""]
        texts += [f"{gone[0]} failed then ({gone[2]})" if gone else ""]
        text = " and ".join(filter(None, texts)) or "they come in another order"
        return f"{part_name('errors', shard)}: expected {len(recorded)} failed rows: {text}"
    if good != stored.results[rows.ID].to_pylist():
        return f"{part_name('data', shard)}: the ids are not those of the input"
    return None


def _batches(good: pa.Table, images: int | None) -> list[NDArray[np.intp]]:
    """Returns the rows of each model batch, as the stages form them; all rows without a model."""
    n = good.num_rows
    order = np.arange(n)
    if rows.PROMPT_LENGTH in good.column_names:
        order = by_length(good[rows.PROMPT_LENGTH].to_numpy())
    size = images or max(n, 1)
    return [order[start : start + size] for start in range(0, n, size)]


def _differing(computed: pa.Table, stored: pa.Table) -> list[str]:
    """Says what differs in each column. Parquet's bytes are compared: they tell -0.0 from 0.0."""
    texts = []
    for name in computed.column_names:
        pair = [
            _alone(table, name, computed.schema.field(name).type) for table in (computed, stored)
        ]
        if parquet_bytes(pair[0]) == parquet_bytes(pair[1]):
            continue
        ids = stored[rows.ID].to_pylist()
        single = ([parquet_bytes(table.slice(i, 1)) for i in range(len(ids))] for table in pair)
        other = [id_ for id_, a, b in zip(ids, *single, strict=True) if a != b]
        texts.append(f"column {name} is another in {len(other)} of {len(ids)} rows, {other[0]!r}")
    return texts


def _alone(table: pa.Table, name: str, type_: pa.DataType) -> pa.Table:
    """Returns a column as a table, cast to a type: those of lists differ in names of elements."""
    return pa.table({name: table[name].cast(type_).combine_chunks()})
