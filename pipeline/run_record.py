"""What a run directory says about itself, finished or not: run.json, shards, figures, errors."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.rows import JOBS
from pipeline.storage import UsageError, exists, join, list_files, read_bytes

FORMAT = 1
EXAMPLES = 5
_THREADS = 32
_PART = re.compile(r"/part-\d+\.parquet$")


@dataclass(frozen=True)
class ErrorKind:
    """Rows that failed with one class of error: how many, and the first ones as (id, message)."""

    error: str
    stages: tuple[str, ...]
    count: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figures:
    """Sums over the finished shards, and speeds.

    `rows` counts failed rows too. `seconds` is the wall time of the last run where all shards are
    finished, else the time in which at least one shard was in work; the speeds are those of that
    time. `stage_seconds` add up over all actors.
    """

    rows: int
    errors: int
    tokens: int
    seconds: float
    images_per_second: float
    tokens_per_second: float
    stage_seconds: Mapping[str, float]
    hosts: int
    resumed_shards: int


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory shows it.

    `run` is run.json as it was written. `parts` are the paths of the finished shards' results, in
    order; `filled_parts` those that may hold rows. `planned` is the number of shards, None where
    the directory does not say.
    """

    run: Mapping[str, Any]
    parts: tuple[str, ...]
    filled_parts: tuple[str, ...]
    planned: int | None
    finished: bool
    figures: Figures
    errors: tuple[ErrorKind, ...]

    @property
    def job(self) -> str:
        return str(self.run["job"])

    @property
    def status(self) -> str:
        """One line: finished, or how far it is."""
        if self.finished:
            return f"Finished: {self.planned:,} of {self.planned:,} shards"
        of = "" if self.planned is None else f" of {self.planned:,}"
        return f"Not finished: {len(self.parts):,}{of} shards"


@dataclass(frozen=True)
class _Part:
    path: str
    rows: int
    failed: int
    stats: Mapping[str, Any]
    errors: Sequence[ErrorKind]


def read_record(fs: AbstractFileSystem, root: str) -> RunRecord:
    """Reads all of a run directory but its results. Raises UsageError where `root` is none."""
    run = _read_json(fs, join(root, "run.json"))
    if run is None:
        raise UsageError(f"expected a run directory at {root}, found no run.json; check the path")
    if run.get("format") != FORMAT or run.get("job") not in JOBS:
        raise UsageError(
            f"expected a run of {' or '.join(JOBS)} in format {FORMAT} at {root}, found "
            f"{run.get('job')} in format {run.get('format')}; use the version that wrote it"
        )
    paths = [path for path in list_files(fs, join(root, "data")) if _PART.search(path)]
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(lambda path: _read_part(fs, root, path), paths))
    report = _read_json(fs, join(root, "report.json"))
    planned = _planned(fs, root, report)
    finished = report is not None and len(parts) == planned
    return RunRecord(
        run=run,
        parts=tuple(paths),
        filled_parts=tuple(part.path for part in parts if part.rows > part.failed),
        planned=planned,
        finished=finished,
        figures=_figures(parts, report if finished else None),
        errors=_merged(kind for part in parts for kind in part.errors),
    )


def _read_json(fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    try:
        raw = read_bytes(fs, path)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise UsageError(f"expected JSON in {path}, found other text: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"expected a JSON object in {path}, found {type(value).__name__}")
    return value


def _planned(fs: AbstractFileSystem, root: str, report: Mapping[str, Any] | None) -> int | None:
    path = join(root, "plan.parquet")
    if exists(fs, path):
        with fs.open(path, "rb") as file:
            return int(pq.ParquetFile(file).metadata.num_rows)  # one row a shard
    return None if report is None else int(report["shards"])


def _read_part(fs: AbstractFileSystem, root: str, path: str) -> _Part:
    """A finished shard. Only its results must exist; where stats/ lacks it, they are counted."""
    name = path.rpartition("/")[2].removesuffix(".parquet")
    stats = _read_json(fs, join(root, "stats", f"{name}.json"))
    kinds: Sequence[ErrorKind] = ()
    # An attempt that was killed may have left errors that its successor did not meet.
    if stats is None or stats["errors"]:
        kinds = _read_errors(fs, join(root, "errors", f"{name}.parquet"))
    if stats is not None:
        return _Part(path, int(stats["rows"]), int(stats["errors"]), stats, kinds)
    failed = sum(kind.count for kind in kinds)
    with fs.open(path, "rb") as file:
        return _Part(path, pq.ParquetFile(file).metadata.num_rows + failed, failed, {}, kinds)


def _read_errors(fs: AbstractFileSystem, path: str) -> Sequence[ErrorKind]:
    try:
        raw = read_bytes(fs, path)
    except FileNotFoundError:
        return ()
    table = pq.read_table(io.BytesIO(raw), columns=["id", "stage", "error", "message"])
    return [_kind(error, table) for error in pc.unique(table["error"]).to_pylist()]


def _kind(error: str, table: pa.Table) -> ErrorKind:
    rows = table.filter(pc.equal(table["error"], error))
    first = rows.slice(0, EXAMPLES)
    return ErrorKind(
        error,
        tuple(pc.unique(rows["stage"]).to_pylist()),
        rows.num_rows,
        tuple(zip(first["id"].to_pylist(), first["message"].to_pylist(), strict=True)),
    )


def _merged(kinds: Iterable[ErrorKind]) -> tuple[ErrorKind, ...]:
    """One ErrorKind a class, the most frequent first."""
    merged: dict[str, ErrorKind] = {}
    for kind in kinds:
        known = merged.get(kind.error, ErrorKind(kind.error, (), 0, ()))
        merged[kind.error] = ErrorKind(
            kind.error,
            tuple(dict.fromkeys(known.stages + kind.stages)),
            known.count + kind.count,
            (known.examples + kind.examples)[:EXAMPLES],
        )
    return tuple(sorted(merged.values(), key=lambda kind: (-kind.count, kind.error)))


def _figures(parts: Sequence[_Part], report: Mapping[str, Any] | None) -> Figures:
    stats = [part.stats for part in parts]
    stages: Counter[str] = Counter()
    for shard in stats:
        stages.update(shard.get("seconds", {}))
    rows = sum(part.rows for part in parts)
    tokens = sum(int(shard.get("tokens", 0)) for shard in stats)
    if report is None:
        seconds = _covered([(s["started"], s["finished"]) for s in stats if s])
        timed = sum(part.rows for part in parts if part.stats)
        per_second = (timed / seconds, tokens / seconds) if seconds else (0.0, 0.0)
    else:
        seconds = float(report["seconds"])
        per_second = (float(report["images_per_second"]), float(report["tokens_per_second"]))
    return Figures(
        rows=rows,
        errors=sum(part.failed for part in parts),
        tokens=tokens,
        seconds=seconds,
        images_per_second=per_second[0],
        tokens_per_second=per_second[1],
        stage_seconds=dict(stages),
        hosts=len({shard["host"] for shard in stats if shard}),
        resumed_shards=int(report.get("resumed_shards", 0)) if report else 0,
    )


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of time spans: pauses between an interrupted run and the next are out."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
