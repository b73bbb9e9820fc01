"""How far a run is, from its directory alone: the plan, two listings and a few parts."""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.failed_rows import count_by_kind
from pipeline.run_directory.layout import shard_of, shards_with_errors, spread
from pipeline.run_directory.record import resuming
from pipeline.run_directory.stats import Speed, Work, read_stats
from pipeline.shards import sum_if_known
from pipeline.storage.filesystem import join
from pipeline.storage.threads import map_in_threads
from pipeline.storage.walk import scan_folder

SAMPLE = 256  # parts that are read at most, however many there are


@dataclass(frozen=True)
class Status:
    """How far a run is.

    `images` are those with a result, `errors` the rows that failed; `total` is the number of rows,
    which both make up in the end. `total` and `total_shards` are None where nobody knows them yet,
    `images_per_second`, `seconds_left` and `last_part` (unix seconds) before a part is there.
    `images_per_second`, `tokens_per_pass` and `seconds` are those of `Speed`; `seconds` is None
    where not all parts were read. `skipped_files` counts the files of the input left out, by
    extension. `resume` is the command that goes on, None at the end. `estimated` names the fields
    that are no counts but come from a sample of the parts.
    """

    job: str
    finished: bool
    shards: int
    total_shards: int | None
    images: int
    total: int | None
    errors: int
    errors_by_kind: Mapping[str, int]
    images_per_second: float | None
    tokens_per_pass: float | None
    seconds: float | None
    seconds_left: float | None
    last_part: float | None
    skipped_files: Mapping[str, int]
    resume: str | None
    estimated: tuple[str, ...]


def read_status(directory: RunDirectory) -> Status:
    """Reads how far a run is, finished, at work or stopped. Raises UsageError where there is
    none."""
    run = directory.require_record()
    planned = directory.planned_rows()
    done, latest = _written(directory, planned or {})
    report = directory.report()
    finished = report is not None and planned is not None and len(done) == len(planned)
    stats = _stats(directory, latest)
    work = Work()
    for found in stats:
        work.add(found)
    estimated: list[str] = []
    total = None if planned is None else sum_if_known(planned.values())
    if report is not None and finished:
        errors_by_kind = dict(report["errors_by_kind"])
        rows = total = int(report["rows"]) + int(report["errors"])
    else:
        rows, counted = _rows(planned or {}, done, stats)
        errors_by_kind, all_seen = _errors_by_kind(directory, done)
        estimated += [] if counted and all_seen else ["images"]
        estimated += [] if all_seen else ["errors", "errors_by_kind"]
    recorded = Speed.recorded(report) if report is not None and finished else None
    speed = recorded or work.speed
    sampled = recorded is None and len(done) > SAMPLE
    estimated += ["images_per_second"] if sampled else []
    left = None
    if work.working_seconds and planned is not None and not finished:
        missing = _missing(planned, done, rows) if total is None else total - rows
        left = missing * work.working_seconds / max(work.rows + work.errors, 1)
        estimated.append("seconds_left")
    errors = sum(errors_by_kind.values())
    return Status(
        job=run["job"],
        finished=finished,
        shards=len(done),
        total_shards=None if planned is None else len(planned),
        images=rows - errors,
        total=total,
        errors=errors,
        errors_by_kind=errors_by_kind,
        images_per_second=speed.images_per_second if speed.working_seconds else None,
        tokens_per_pass=speed.tokens_per_pass,
        seconds=None if sampled else speed.seconds,
        seconds_left=left,
        last_part=work.last,
        skipped_files=(report or {}).get("skipped_files", directory.skipped()),
        resume=None if finished else resuming(run["command"]),
        estimated=tuple(estimated),
    )


def _written(directory: RunDirectory, planned: Collection[int]) -> tuple[set[int], list[int]]:
    """Returns the planned shards that are done, and the latest SAMPLE of them."""
    done: set[int] = set()

    def by_age() -> Iterator[tuple[float, int]]:
        for entry in scan_folder(directory.fs, join(directory.path, "data")):
            shard = shard_of(entry.name)
            if shard is not None and shard in planned:
                done.add(shard)
                yield entry.modified, shard

    latest = heapq.nlargest(SAMPLE, by_age())
    return done, [shard for _, shard in latest]


def _stats(directory: RunDirectory, shards: Sequence[int]) -> list[dict[str, Any]]:
    """Reads the stats of those shards that have any."""
    found = map_in_threads(lambda shard: read_stats(directory, shard), shards)
    return [stats for stats in found if stats is not None]


def _rows(
    planned: Mapping[int, int | None], done: Collection[int], stats: Sequence[Mapping[str, Any]]
) -> tuple[int, bool]:
    """Returns the rows of the shards that are done, failed ones included, and whether all are
    counted: where neither plan nor stats tell, a shard counts as the mean of those with stats."""
    seen = {found["shard"]: int(found["rows"]) + int(found["errors"]) for found in stats}
    known = unknown = 0
    for shard in done:
        n = planned[shard] if planned[shard] is not None else seen.get(shard)
        known += n or 0
        unknown += n is None
    mean = sum(seen.values()) / len(seen) if seen else 0.0
    return known + round(unknown * mean), not unknown


def _errors_by_kind(directory: RunDirectory, done: set[int]) -> tuple[dict[str, int], bool]:
    """Counts the failed rows of the shards that are done by class of error, the most frequent
    first; and returns whether all were counted, not a sample."""
    shards = sorted(shards_with_errors(directory.fs, directory.path) & done)
    chosen = [shards[i] for i in spread(len(shards), SAMPLE)]
    scale = len(shards) / max(len(chosen), 1)
    kinds = count_by_kind(directory, chosen).most_common()
    return {kind: round(n * scale) for kind, n in kinds}, scale <= 1


def _missing(planned: Mapping[int, int | None], done: Collection[int], rows: int) -> float:
    """Estimates the rows to come where the plan does not count them: as many per shard as there
    were."""
    return (len(planned) - len(done)) * rows / max(len(done), 1)
