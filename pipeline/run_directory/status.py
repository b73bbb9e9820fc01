"""How far a run is, from its directory alone: the plan, two listings and a few parts."""

import datetime
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.failed_rows import count_by_kind
from pipeline.run_directory.layout import shard_of, shards_with_errors, spread
from pipeline.run_directory.record import resuming
from pipeline.run_directory.stats import Span, read_stats, working_seconds
from pipeline.shards import sum_if_known
from pipeline.storage.filesystem import join

SAMPLE = 256  # parts that are read at most, however many there are
_THREADS = 32


@dataclass(frozen=True)
class Status:
    """How far a run is.

    `images` are those of finished shards, failed ones included. `total` and `total_shards` are None
    where nobody knows them yet, `images_per_second`, `seconds_left` and `last_part` (unix
    seconds) before a part is there. `resume` is the command that goes on, None at the end.
    `estimated` names the fields that are no counts but come from a sample of the parts.
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
    seconds_left: float | None
    last_part: float | None
    resume: str | None
    estimated: tuple[str, ...]


def read_status(directory: RunDirectory) -> Status:
    """Reads how far a run is, finished, at work or stopped. Raises UsageError where there is
    none."""
    run = directory.require_record()
    planned = directory.planned_rows()
    written = _by_age(directory)
    done = [shard for shard in written if shard in planned] if planned is not None else []
    report = directory.report()
    finished = report is not None and planned is not None and len(done) == len(planned)
    stats = _stats(directory, done[-SAMPLE:])
    estimated: list[str] = []
    total = None if planned is None else sum_if_known(planned.values())
    if report is not None and finished:
        errors_by_kind = dict(report["errors_by_kind"])
        images = total = int(report["rows"]) + int(report["errors"])
    else:
        images, counted = _images(planned or {}, done, stats)
        errors_by_kind, all_seen = _errors_by_kind(directory, set(done))
        estimated += [] if counted else ["images"]
        estimated += [] if all_seen else ["errors", "errors_by_kind"]
    spans = [Span.of(found) for found in stats]
    speed = _speed(spans)
    if report is not None and finished and not report["resumed_shards"]:
        speed = float(report["images_per_second"])
    elif len(done) > SAMPLE:
        estimated.append("images_per_second")
    left = None
    if speed and planned is not None and not finished:
        share = None if total is None else total - images
        left = (share if share is not None else _missing(planned, done, images)) / speed
        estimated.append("seconds_left")
    return Status(
        job=run["job"],
        finished=finished,
        shards=len(done),
        total_shards=None if planned is None else len(planned),
        images=images,
        total=total,
        errors=sum(errors_by_kind.values()),
        errors_by_kind=errors_by_kind,
        images_per_second=speed,
        seconds_left=left,
        last_part=max((span.stop for span in spans), default=None),
        resume=None if finished else resuming(run["command"]),
        estimated=tuple(estimated),
    )


def _by_age(directory: RunDirectory) -> list[int]:
    """Returns the shards that are done, the latest last."""
    directory.fs.invalidate_cache()
    try:
        entries = directory.fs.ls(join(directory.path, "data"), detail=True)
    except FileNotFoundError:
        return []
    found = [(_modified(entry), shard_of(entry["name"])) for entry in entries]
    return [shard for _, shard in sorted((t, s) for t, s in found if s is not None)]


def _modified(entry: Mapping[str, Any]) -> float:
    """Returns unix seconds; 0 on a filesystem whose listings do not tell."""
    for name in ("mtime", "LastModified", "last_modified"):
        moment = entry.get(name)
        if isinstance(moment, datetime.datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return 0.0


def _stats(directory: RunDirectory, shards: Sequence[int]) -> list[dict[str, Any]]:
    """Reads the stats of those shards that have any."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda shard: read_stats(directory, shard), shards)
        return [stats for stats in found if stats is not None]


def _images(
    planned: Mapping[int, int | None], done: Sequence[int], stats: Sequence[Mapping[str, Any]]
) -> tuple[int, bool]:
    """Returns the rows of the shards that are done, and whether all are counted: where neither plan
    nor stats tell, a shard counts as the mean of those with stats."""
    seen = {found["shard"]: Span.of(found).rows for found in stats}
    rows = [planned[shard] if planned[shard] is not None else seen.get(shard) for shard in done]
    known = [n for n in rows if n is not None]
    unknown = len(rows) - len(known)
    mean = sum(seen.values()) / len(seen) if seen else 0.0
    return sum(known) + round(unknown * mean), not unknown


def _errors_by_kind(directory: RunDirectory, done: set[int]) -> tuple[dict[str, int], bool]:
    """Counts the failed rows of the shards that are done by class of error, the most frequent
    first; and returns whether all were counted, not a sample."""
    shards = sorted(shards_with_errors(directory.fs, directory.path) & done)
    chosen = [shards[i] for i in spread(len(shards), SAMPLE)]
    scale = len(shards) / max(len(chosen), 1)
    kinds = count_by_kind(directory, chosen).most_common()
    return {kind: round(n * scale) for kind, n in kinds}, scale <= 1


def _speed(spans: Sequence[Span]) -> float | None:
    """Returns images per second while any shard was in work; None where no time is known."""
    seconds = working_seconds(spans)
    return sum(span.rows for span in spans) / seconds if seconds > 0 else None


def _missing(planned: Mapping[int, int | None], done: Sequence[int], images: int) -> float:
    """Estimates the images to come where the plan does not count them: as many per shard as there
    were."""
    return (len(planned) - len(done)) * images / max(len(done), 1)
