"""Executes a job: pending shards through the stages, progress, error budget, report."""

import io
import logging
import re
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.cluster import unheard
from pipeline.layout import REPORT_FILE, part_name, shards_with_errors
from pipeline.lease import Lease
from pipeline.metrics import RunMetrics
from pipeline.progress import Mode, Progress
from pipeline.run_directory import RunDirectory
from pipeline.run_record import row_count
from pipeline.shards import Plan, Shard
from pipeline.stage import NOT_BEGUN, Parcel, Stage, StageError, chain, unpacked
from pipeline.stopping import stoppable
from pipeline.storage import join, one_line, read_bytes

_THREADS = 32
# Shards that fail one after the other, none between them done; rounds that end with dead processes
# and bring nothing. A disk is full then, a store is gone or a model broken: to go on is lost work.
_HOPELESS_SHARDS = 16
_HOPELESS_DEATHS = 4
# Shards that Ray has at a time: the driver holds some 13 KB for each (benchmarks/scale.py). Between
# two rounds the actors start anew, which is little beside 20,000 shards.
_ROUND = 20_000
_NAMED = 10  # shards that failed
_RAY_ERRORS = (ray.exceptions.RayError, ExecutionTimeoutError)
_NEXT = "what is done is kept; next: the same command again"

_log = logging.getLogger(__name__)


class RunFailed(Exception):
    """The run stopped before its end (exit code 1). The message is one line."""


class OverErrorBudget(Exception):
    """More bad images than allowed (exit code 3). The message is one line."""


def execute(
    directory: RunDirectory,
    plan: Plan,
    stages: Sequence[Stage],
    *,
    lease: Lease,
    max_error_fraction: float,
    progress: Mode,
) -> dict[str, Any]:
    """Run the shards that are not done yet; write report.json when all are.

    At SIGTERM or Ctrl-C no new shard is begun; see `stoppable`.

    Args:
        lease: on the directory, taken.

    Returns:
        The content of report.json.

    Raises:
        RunFailed: shards failed or are missing at the end, or the run was stopped. What is done
            stays done.
        OverErrorBudget: as soon as it is sure that the budget cannot be met. Where the plan does
            not know all rows, it goes by those of the shards that are done, once a tenth is.
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
    _check_budget(clock, max_error_fraction)
    if pending:
        clock.show()
        metrics = RunMetrics((directory.record() or {}).get("job", ""))
        work = consume(plan, pending, stages, lease=lease)
        with closing(clock), _given_way(directory, plan, lease), closing(work):
            for summary in work:
                clock.add(summary | {"seconds": sum(filter(None, summary["seconds"].values()))})
                metrics.add(summary)
                _check_budget(clock, max_error_fraction)
    _check_complete(directory, plan)
    _check_budget(clock, max_error_fraction)
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


@contextmanager
def _given_way(directory: RunDirectory, plan: Plan, lease: Lease) -> Iterator[None]:
    """What a run that was told to stop, or that another has replaced, ends with."""
    with stoppable(lease.stop) as stopped:
        try:
            yield
        except (KeyboardInterrupt, RunFailed):
            if not stopped.is_set() and lease.may_write():
                raise
    done = len(directory.finished() & {shard.index for shard in plan.shards})
    if stopped.is_set() and done < len(plan.shards):
        raise RunFailed(
            f"interrupted: {done} of {len(plan.shards)} shards are done and kept; "
            f"next: {directory.resuming()}"
        )
    if not lease.may_write():
        raise RunFailed(
            f"another run, started later, has taken over {directory.location}; this one gives way"
        )


def consume(
    plan: Plan,
    shards: Sequence[Shard],
    stages: Sequence[Stage],
    *,
    lease: Lease | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Hand the shards out to the stages; the rows that the last of them makes, as they come.

    A shard that a stage cannot do is left out and the others go on; at the end it is tried once
    more. Where processes have died more often than Ray brings them back, what is left is handed out
    anew, the shards that may be the reason last and in the end one by one.

    Args:
        lease: where it says so, no shard is begun any more, and the rest is left out.

    Raises RunFailed at the end where shards failed, and as soon as it looks hopeless, or a stage
    says that it is.
    """
    table = plan.to_table()
    row_of = {shard.index: row for row, shard in enumerate(plan.shards)}
    failures: dict[int, str] = {}
    indices = [shard.index for shard in shards]
    rounds = deque(indices[at : at + _ROUND] for at in range(0, len(indices), _ROUND))
    deaths = in_a_row = 0
    any_back = tried_again = False
    while rounds and (lease is None or lease.may_begin()):
        order = rounds.popleft()
        back: set[int] = set()
        blocks = {index: table.slice(row_of[index], 1) for index in order}
        try:
            with closing(_round(blocks, stages, lease)) as parcels:
                for parcel in parcels:
                    back.add(parcel.shard)
                    if parcel.block is not None:
                        any_back, deaths, in_a_row = True, 0, 0
                        yield from parcel.block.to_pylist()
                    elif parcel.ends_run:
                        raise RunFailed(str(parcel.failure))
                    elif parcel.failure != NOT_BEGUN:
                        in_a_row += 1
                        failures[parcel.shard] = str(parcel.failure)
                        _log.warning("shard %d: %s", parcel.shard, parcel.failure)
                    if in_a_row == _HOPELESS_SHARDS:
                        how = " in a row, so the rest was not tried"
                        raise _failed(failures, len(shards), how)
        except _RAY_ERRORS as error:
            reported = _reported(error)
            deaths += not back
            if (reported and not any_back) or deaths == _HOPELESS_DEATHS:
                cause = reported or f"processes died, {_begin(error)}"
                raise RunFailed(f"a stage failed: {cause}; {_NEXT}") from error
            if left := _suspects_last(order, back):
                _log.warning("%d shards are handed out anew: %s", len(left), _begin(error))
            if len(left) == 1 and not back:
                failures[left[0]] = f"a process that died each time: {_begin(error)}"
            elif back:
                rounds.extend([left] if left else [])
            else:
                half = len(left) // 2
                rounds.extend([left[:half], left[half:]])
        if failures and not rounds and not tried_again:
            tried_again = True  # on another node, at another time
            rounds.append(sorted(failures))
            failures.clear()
    if failures:
        raise _failed(failures, len(shards))


def _round(
    blocks: Mapping[int, pa.Table], stages: Sequence[Stage], lease: Lease | None
) -> Generator[Parcel, None, None]:
    """The blocks through the stages once, as Ray does it. Raises RayError."""
    dataset = chain(blocks, stages, lease=lease)
    results: Any = iter(
        dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    try:
        while (result := unheard(next, results, None)) is not None:
            yield from unpacked(result)
    finally:
        with suppress(*_RAY_ERRORS):  # of processes that are not needed any more
            unheard(results.close)


def _suspects_last(order: Sequence[int], back: Collection[int]) -> list[int]:
    """What did not come back, in order, but at the end what was handed out before the last that
    did: one of those may be what processes die of."""
    last = max((place for place, index in enumerate(order) if index in back), default=-1)
    suspects = [index for index in order[: last + 1] if index not in back]
    return [*order[last + 1 :], *suspects]


def _failed(failures: Mapping[int, str], n: int, how: str = "") -> RunFailed:
    index, reason = next(iter(failures.items()))
    named = ", ".join(map(str, sorted(failures)[:_NAMED]))
    more = ", ..." if len(failures) > _NAMED else ""
    return RunFailed(
        f"{len(failures)} of {n} shards failed{how}: {named}{more}; {index} because of {reason}; "
        f"{_NEXT}"
    )


def _reported(error: BaseException) -> str | None:
    """The stage's own error out of Ray's many lines around it."""
    found = re.findall(rf"{StageError.__name__}: (.+)", str(error))
    return found[-1] if found else None


def _begin(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _check_budget(clock: Progress, fraction: float) -> None:
    """Raises OverErrorBudget. While nobody knows how many images there are, any number of bad ones
    may turn out to be few, unless none is allowed."""
    expected = clock.expected
    if expected is None and fraction > 0:
        return
    allowed = fraction * (expected or 0)
    if clock.errors > allowed:
        raise OverErrorBudget(
            f"{clock.errors} of {expected or clock.done:.0f} images are bad, more than "
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

    def look(shard: int) -> list[str]:
        path = join(directory.path, part_name("errors", shard))
        table = pq.read_table(io.BytesIO(read_bytes(directory.fs, path)), columns=["error"])
        return table["error"].to_pylist()  # type: ignore[no-any-return]

    shards = sorted(shards_with_errors(directory.fs, directory.path) & finished)
    with ThreadPoolExecutor(_THREADS) as pool:
        return Counter(kind for kinds in pool.map(look, shards) for kind in kinds)
