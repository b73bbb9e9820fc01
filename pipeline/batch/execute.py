"""Executing a job: pending shards through the stages, progress, error budget, report."""

import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

from pipeline.engine.cluster import head_answers
from pipeline.engine.dispatch import dispatch_shards
from pipeline.engine.metrics import RunMetrics
from pipeline.engine.progress import Mode, Progress, counted
from pipeline.engine.signals import stoppable
from pipeline.engine.stage import Stage
from pipeline.errors import OverErrorBudget, RunFailed, StageGaveUp
from pipeline.report.text import left_out_text, speed_text
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.failed_rows import count_by_kind
from pipeline.run_directory.layout import FORMAT, REPORT_FILE, part_name, shards_with_errors
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import resuming
from pipeline.run_directory.stats import rows_done
from pipeline.run_directory.summary import RunSummary, read_summary
from pipeline.shards import Plan
from pipeline.storage.filesystem import store_errors
from pipeline.storage.redact import redacted, redacted_line


def execute(
    directory: RunDirectory,
    plan: Plan,
    stages: Sequence[Stage],
    *,
    finished: set[int],
    again: Collection[int] = (),
    lease: Lease,
    max_error_fraction: float,
    progress: Mode,
) -> RunSummary:
    """Runs the shards that are not done yet; writes report.json when all are.

    At SIGTERM or Ctrl-C no new shard is begun; see `stoppable`.

    Args:
        finished: the shards that are done, of this run.
        again: those of them whose failed rows are done again.
        lease: on the directory, acquired.

    Returns:
        The run as its directory shows it, its report among it.

    Raises:
        RunFailed: shards failed or are missing at the end, or the run was stopped. What is done
            stays done.
        OverErrorBudget: as soon as it is sure that the budget cannot be met. Where the plan does
            not know all rows, it goes by those of the shards that are done, once a tenth is.
    """
    record = directory.record()
    assert record is not None
    next_move = f"next: {_retrying(directory) if again else resuming(record['command'])}"
    earlier = directory.report()
    finished = finished - set(again)
    pending = [shard for shard in plan.shards if shard.index not in finished]
    failures = _errors_by_kind(directory, finished)
    done = rows_done(directory, [s for s in plan.shards if s.index in finished])
    clock = Progress(
        total=plan.rows,
        done=done,
        errors=failures.total(),
        shards=len(plan.shards),
        shards_done=len(plan.shards) - len(pending),
        mode=progress,
    )
    _check_budget(clock, max_error_fraction)
    left: list[int] = []
    resumed_shards = len(plan.shards) - len(pending)
    changes = {"resumed_shards": resumed_shards} if pending and not again else {}
    with _kept_up(directory, plan, lease, earlier, changes):
        if pending:
            clock.show()
            metrics = RunMetrics(record["job"])
            work = dispatch_shards(plan, pending, stages, lease=lease)
            with closing(clock), _reasons_to_stop(directory, plan, lease, next_move), closing(work):
                for summary in work:
                    clock.add(summary | {"seconds": sum(filter(None, summary["seconds"].values()))})
                    metrics.add(summary)
                    left += [summary["shard"]] if summary["left"] else []
                    _check_budget(clock, max_error_fraction)
    _check_complete(directory, plan, next_move)
    directory.delete_leftovers()
    _check_budget(clock, max_error_fraction)
    run = read_summary(directory)
    if run.report is None:
        report = _report(run, plan, resumed_shards=resumed_shards)
        directory.write_json(REPORT_FILE, report)
        run = replace(run, report=report)
    speed = run.speed
    said = speed_text(speed.images_per_second, speed.seconds, speed.tokens_per_pass)
    clock.finish(speed.images_per_second, said)
    _print_notices(run, left, progress)
    return run


def _print_squashed(run: RunSummary) -> None:
    """Prints a line for people, on stderr, on images that hardly look like themselves any more."""
    n = run.figures.squashed
    parts = ", or --keep all where they are the upper parts" if run.job == "complete" else ""
    print(
        f"{n:,} {'image' if n == 1 else 'images'} with one side at least twice the other squashed "
        f"to squares; next: --crop center{parts}, with another --output",
        file=sys.stderr,
        flush=True,
    )


def _print_notices(run: RunSummary, left: Sequence[int], progress: Mode) -> None:
    """Prints for people what they may not expect of a run that is finished."""
    if run.skipped and progress == "text":
        print(f"left out of the input: {left_out_text(run.skipped)}", file=sys.stderr, flush=True)
    if run.figures.squashed and progress == "text":
        _print_squashed(run)
    if left and progress != "quiet":
        print(
            f"{len(left)} shards stay as they were, with more good rows than were found now; the "
            f"first is {part_name('data', left[0])}",
            file=sys.stderr,
            flush=True,
        )


def _report(summary: RunSummary, plan: Plan, *, resumed_shards: int) -> dict[str, Any]:
    """Makes the content of report.json. A run that had one keeps its speed."""
    return {
        "format": FORMAT,
        "rows": summary.figures.rows,
        "errors": summary.figures.errors,
        "shards": len(plan.shards),
        "resumed_shards": resumed_shards,
        "skipped_files": dict(summary.skipped),
        **asdict(summary.speed),
        "errors_by_kind": {kind.error: kind.count for kind in summary.errors},
    }


def _retrying(directory: RunDirectory) -> str:
    return shlex.join(["igpt", "retry-failed", redacted(directory.location)])


@contextmanager
def _kept_up(
    directory: RunDirectory,
    plan: Plan,
    lease: Lease,
    report: Mapping[str, Any] | None,
    changes: Mapping[str, Any],
) -> Iterator[None]:
    """Brings the counts of a report up to date in the end, however that comes: the run was finished
    before, and is so all the time. Its speed stays that of the work."""
    try:
        yield
    finally:
        if report is not None and not _is_superseded(lease):
            by_kind = _errors_by_kind(directory, directory.finished())
            order = sorted(by_kind.items(), key=lambda kind: (-kind[1], kind[0]))
            counts = {
                "rows": rows_done(directory, plan.shards) - by_kind.total(),
                "errors": by_kind.total(),
                "errors_by_kind": dict(order),
            }
            now = {**report, **counts, **changes}
            if now != report:
                directory.write_json(REPORT_FILE, now)


@contextmanager
def _reasons_to_stop(
    directory: RunDirectory, plan: Plan, lease: Lease, next_move: str
) -> Iterator[None]:
    """Ends a run that was told to stop, or that another one has superseded, with that reason."""
    with stoppable(lease.stop, head_answers) as stopped:
        try:
            yield
        except KeyboardInterrupt:
            if not stopped.is_set() and not _is_superseded(lease):
                raise
        except StageGaveUp:  # it says itself what to do
            raise
        except RunFailed as error:
            if not stopped.is_set() and not _is_superseded(lease):
                raise RunFailed(f"{error}; what is done is kept; {next_move}") from error
    if stopped.is_set():
        _check_all_done(directory, plan, next_move)
    if _is_superseded(lease):
        raise RunFailed(
            f"another run, started later, has taken over {directory.location}; this one is "
            "superseded"
        )


def _is_superseded(lease: Lease) -> bool:
    """Tells whether the run directory is another run's; where nobody can tell, it is not: the
    run's own failure comes first."""
    try:
        return not lease.may_write()
    except store_errors():
        return False


def _check_all_done(directory: RunDirectory, plan: Plan, next_move: str) -> None:
    """Raises RunFailed where the run was told to stop before all was done."""
    try:
        done = len(directory.finished() & {shard.index for shard in plan.shards})
    except store_errors() as error:
        raise RunFailed(
            f"interrupted, and {directory.location} is out of reach: {redacted_line(error)}; what "
            f"is done is kept; {next_move}"
        ) from error
    if done < len(plan.shards):
        raise RunFailed(
            f"interrupted: {done} of {len(plan.shards)} shards are done and kept; {next_move}"
        )


def _check_budget(clock: Progress, fraction: float) -> None:
    """Raises OverErrorBudget. While nobody knows how many rows there are, any number of failed ones
    may turn out to be few, unless none is allowed."""
    expected = clock.expected
    if expected is None and fraction > 0:
        return
    allowed = fraction * (expected or 0)
    if clock.errors > allowed:
        raise OverErrorBudget(
            f"{counted(clock.errors, 'error')} in {expected or clock.done:.0f} rows, more than "
            f"--max-error-fraction allows ({allowed:.0f}); they are listed in errors/; next: the "
            "same command with a higher --max-error-fraction and without --overwrite, or repair "
            "the images and do them again with igpt retry-failed"
        )


def _check_complete(directory: RunDirectory, plan: Plan, next_move: str) -> None:
    missing = {shard.index for shard in plan.shards} - directory.finished()
    if missing:
        raise RunFailed(
            f"{len(missing)} of {len(plan.shards)} shards are missing, the first is "
            f"{part_name('data', min(missing))}; {next_move}"
        )


def _errors_by_kind(directory: RunDirectory, finished: set[int]) -> Counter[str]:
    """Counts the failed rows of finished shards by class of error."""
    with_errors = shards_with_errors(directory.fs, directory.path)
    return count_by_kind(directory, with_errors & finished)
