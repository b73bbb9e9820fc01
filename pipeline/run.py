"""Executes a job: pending shards through the stages, progress, error budget, report."""

import io
import re
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pyarrow.parquet as pq
import ray

from pipeline.cluster import unheard
from pipeline.parts import part_name, shards_with_errors
from pipeline.progress import Mode, Progress
from pipeline.run_directory import REPORT_FILE, RunDirectory
from pipeline.run_record import row_count
from pipeline.shards import Plan, Shard
from pipeline.stage import Stage, StageError, chain, unpacked
from pipeline.storage import join, one_line, read_bytes

_THREADS = 32


class RunFailed(Exception):
    """The run stopped before its end (exit code 1). The message is one line."""


class OverErrorBudget(Exception):
    """More bad images than allowed (exit code 3). The message is one line."""


def execute(
    directory: RunDirectory,
    plan: Plan,
    stages: Sequence[Stage],
    *,
    max_error_fraction: float,
    progress: Mode,
) -> dict[str, Any]:
    """Run the shards that are not done yet; write report.json when all are.

    Returns:
        The content of report.json.

    Raises:
        RunFailed: a stage failed, or shards are missing at the end. What is done stays done.
        OverErrorBudget: as soon as it is sure that the budget cannot be met. Where the plan does
            not know all rows, that is at the end, or at the first bad row of a budget of 0.
    """
    finished = directory.finished()
    pending = [shard for shard in plan.shards if shard.index not in finished]
    failures = _errors_by_kind(directory, finished)
    done = _rows_done(directory, [s for s in plan.shards if s.index in finished])
    clock = Progress(
        total=plan.rows,
        done=done,
        errors=failures.total(),
        shards=len(plan.shards),
        shards_done=len(plan.shards) - len(pending),
        mode=progress,
    )
    _check_budget(clock, max_error_fraction, plan.rows)
    if pending:
        clock.show()
        with closing(clock), closing(consume(plan, pending, stages)) as summaries:
            for summary in summaries:
                clock.add(summary | {"seconds": sum(filter(None, summary["seconds"].values()))})
                _check_budget(clock, max_error_fraction, plan.rows)
    _check_complete(directory, plan)
    _check_budget(clock, max_error_fraction, clock.done)
    clock.show(final=True)
    earlier = directory.report()
    if earlier is not None and not pending:  # whose figures are those of the work
        return earlier
    report = {
        "format": 1,
        "rows": clock.done - clock.errors,
        "errors": clock.errors,
        "shards": len(plan.shards),
        "resumed_shards": len(plan.shards) - len(pending),
        "skipped_files": dict(plan.skipped),
        "seconds": round(clock.seconds, 2),
        "images_per_second": round((clock.done - done) / clock.seconds, 3),
        "tokens_per_second": round(clock.tokens / clock.seconds, 1),
        "errors_by_kind": dict(_errors_by_kind(directory, directory.finished()).most_common()),
    }
    directory.write_json(REPORT_FILE, report)
    return report


def consume(
    plan: Plan, shards: Sequence[Shard], stages: Sequence[Stage]
) -> Generator[dict[str, Any], None, None]:
    """Hand the shards out to the stages; the rows that the last of them makes, as they come.

    Raises RunFailed where a stage does.
    """
    table = plan.to_table()
    row_of = {shard.index: row for row, shard in enumerate(plan.shards)}
    blocks = [table.slice(row_of[shard.index], 1) for shard in shards]
    dataset = chain(blocks, stages)
    results: Any = iter(
        dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    try:
        while (result := unheard(next, results, None)) is not None:
            for summaries in unpacked(result):
                yield from summaries.to_pylist()
    except ray.exceptions.RayError as error:
        raise RunFailed(
            f"a stage failed: {_cause(error)}; what is done is kept; next: the same command again"
        ) from error
    finally:
        unheard(results.close)


def _cause(error: BaseException) -> str:
    """The stage's own error out of Ray's many lines around it, or else the beginning of these."""
    reported = re.findall(rf"{StageError.__name__}: (.+)", str(error))
    return reported[-1] if reported else f"{type(error).__name__}: {one_line(error)}"


def _check_budget(clock: Progress, fraction: float, total: int | None) -> None:
    """`total`: rows of the whole run; None: nobody knows yet, so that any number of bad rows may
    turn out to be few, unless none is allowed."""
    if total is None and fraction > 0:
        return
    allowed = fraction * (total or 0)
    if clock.errors > allowed:
        raise OverErrorBudget(
            f"{clock.errors} of {total or clock.done} images are bad, more than "
            f"--max-error-fraction allows ({allowed:.0f}); they are listed in errors/; next: the "
            "same command with a higher --max-error-fraction, or mend the input and add --overwrite"
        )


def _rows_done(directory: RunDirectory, shards: Sequence[Shard]) -> int:
    """Rows of finished shards, good and bad; what the plan does not know, their parts tell."""
    known = [shard.rows for shard in shards if shard.rows is not None]
    fs, output = directory.fs, directory.path
    unknown = {shard.index for shard in shards if shard.rows is None}
    parts = [part_name("data", index) for index in unknown]
    if unknown:
        bad = shards_with_errors(fs, output) & unknown
        parts += [part_name("errors", index) for index in bad]
    with ThreadPoolExecutor(_THREADS) as pool:
        counted = pool.map(lambda part: row_count(fs, join(output, part)), parts)
        return sum(known) + sum(counted)


def _check_complete(directory: RunDirectory, plan: Plan) -> None:
    missing = {shard.index for shard in plan.shards} - directory.finished()
    if missing:
        raise RunFailed(
            f"{len(missing)} of {len(plan.shards)} shards are missing, the first is "
            f"{part_name('data', min(missing))}; next: the same command again"
        )


def _errors_by_kind(directory: RunDirectory, finished: set[int]) -> Counter[str]:
    """Counts of the errors of finished shards, by class."""
    kinds: Counter[str] = Counter()
    for shard in sorted(shards_with_errors(directory.fs, directory.path) & finished):
        path = join(directory.path, part_name("errors", shard))
        table = pq.read_table(io.BytesIO(read_bytes(directory.fs, path)), columns=["error"])
        kinds.update(table["error"].to_pylist())
    return kinds
