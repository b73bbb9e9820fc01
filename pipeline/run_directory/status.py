"""How far a run is, from its directory alone: the plan, two listings and a few parts."""

import datetime
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.run_directory.directory import RunDirectory, resuming
from pipeline.run_directory.layout import (
    PLAN_FILE,
    RUN_FILE,
    part_name,
    shard_of,
    shards_with_errors,
    spread,
)
from pipeline.run_directory.throughput import Span, working_seconds
from pipeline.storage.filesystem import exists, join, read_bytes

SAMPLE = 256  # parts that are looked into at most, however many there are
_THREADS = 32


@dataclass(frozen=True)
class Status:
    """How far a run is.

    `images` are those of finished shards, bad ones included. `total` and `total_shards` are None
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
    """The status of a run, finished, at work or stopped. Raises UsageError where there is none."""
    run = directory.record()
    if run is None:
        raise UsageError(
            f"expected a run directory, found no {RUN_FILE} in {directory.location}; check the path"
        )
    planned = _planned_rows(directory)
    written = _by_age(directory)
    done = [shard for shard in written if shard in planned] if planned is not None else []
    report = directory.report()
    finished = report is not None and planned is not None and len(done) == len(planned)
    stats = _looked_into(done[-SAMPLE:], lambda shard: _stats(directory, shard))
    estimated: list[str] = []
    total = None
    if planned is not None and None not in planned.values():
        total = sum(planned.values())  # type: ignore[arg-type]
    if report is not None and finished:
        errors_by_kind = dict(report["errors_by_kind"])
        images = total = int(report["rows"]) + int(report["errors"])
    else:
        images, counted = _images(planned or {}, done, stats)
        errors_by_kind, all_seen = _errors_by_kind(directory, set(done))
        estimated += [] if counted else ["images"]
        estimated += [] if all_seen else ["errors", "errors_by_kind"]
    spans = [
        Span(s["finished"] - sum(s["seconds"].values()), s["finished"], s["rows"] + s["errors"])
        for s in stats
    ]
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


def _planned_rows(directory: RunDirectory) -> dict[int, int | None] | None:
    """The rows of each planned shard, without the list of what it reads; None without a plan."""
    path = join(directory.path, PLAN_FILE)
    if not exists(directory.fs, path):
        return None
    with directory.fs.open(path, "rb") as file:
        table = pq.read_table(file, columns=["shard", "rows"])
    return dict(zip(table["shard"].to_pylist(), table["rows"].to_pylist(), strict=True))


def _by_age(directory: RunDirectory) -> list[int]:
    """The shards that are done, the latest last."""
    directory.fs.invalidate_cache()
    try:
        entries = directory.fs.ls(join(directory.path, "data"), detail=True)
    except FileNotFoundError:
        return []
    found = [(_modified(entry), shard_of(entry["name"])) for entry in entries]
    return [shard for _, shard in sorted((t, s) for t, s in found if s is not None)]


def _modified(entry: Mapping[str, Any]) -> float:
    """Unix seconds; 0 on a filesystem whose listings do not tell."""
    for name in ("mtime", "LastModified", "last_modified"):
        moment = entry.get(name)
        if isinstance(moment, datetime.datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return 0.0


Found = TypeVar("Found")


def _looked_into(shards: Sequence[int], look: Callable[[int], Found | None]) -> list[Found]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return [found for found in pool.map(look, shards) if found is not None]


def _stats(directory: RunDirectory, shard: int) -> dict[str, Any] | None:
    try:
        path = join(directory.path, part_name("stats", shard))
        return dict(json.loads(read_bytes(directory.fs, path)))
    except FileNotFoundError:
        return None


def _images(
    planned: Mapping[int, int | None], done: Sequence[int], stats: Sequence[Mapping[str, Any]]
) -> tuple[int, bool]:
    """The rows of the shards that are done, and whether they are counted: what neither the plan
    nor the stats tell is as many as there are in a part with stats."""
    seen = {s["shard"]: s["rows"] + s["errors"] for s in stats}
    rows = [planned[shard] if planned[shard] is not None else seen.get(shard) for shard in done]
    known = [n for n in rows if n is not None]
    unknown = len(rows) - len(known)
    mean = sum(seen.values()) / len(seen) if seen else 0.0
    return sum(known) + round(unknown * mean), not unknown


def _errors_by_kind(directory: RunDirectory, done: set[int]) -> tuple[dict[str, int], bool]:
    """Bad rows of the shards that are done by class of error, the most frequent first, and
    whether all were counted."""
    shards = sorted(shards_with_errors(directory.fs, directory.path) & done)

    def look(shard: int) -> list[str]:
        path = join(directory.path, part_name("errors", shard))
        table = pq.read_table(io.BytesIO(read_bytes(directory.fs, path)), columns=["error"])
        return table["error"].to_pylist()  # type: ignore[no-any-return]

    chosen = [shards[i] for i in spread(len(shards), SAMPLE)]
    kinds = Counter(kind for found in _looked_into(chosen, look) for kind in found)
    scale = len(shards) / max(len(chosen), 1)
    return {kind: round(n * scale) for kind, n in kinds.most_common()}, scale <= 1


def _speed(spans: Iterable[Span]) -> float | None:
    spans = list(spans)
    seconds = working_seconds(spans)
    return sum(span.images for span in spans) / seconds if seconds > 0 else None


def _missing(planned: Mapping[int, int | None], done: Sequence[int], images: int) -> float:
    """Images to come where the plan does not count them: as many a shard as there were."""
    return (len(planned) - len(done)) * images / max(len(done), 1)
