"""What a run directory says about itself, finished or not: run.json, shards, figures, errors."""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import UsageError
from pipeline.rows import JOBS
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import PLAN_FILE, REPORT_FILE, RUN_FILE, part_name
from pipeline.run_directory.likelihoods import NLLHistogram
from pipeline.run_directory.throughput import Span, Throughput, throughput, working_seconds
from pipeline.storage.filesystem import exists, join, read_bytes

EXAMPLES = 5
_THREADS = 32


@dataclass(frozen=True)
class ErrorKind:
    """Rows that failed with one class of error: how many, and the first ones as (id, message)."""

    error: str
    stages: tuple[str, ...]
    count: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figures:
    """Sums over the finished shards.

    `rows` have a result, `errors` have none; both count in the speeds. `seconds` is the wall time
    of the run; where it was interrupted, the time in which at least one shard was in work.
    `stage_seconds` add up over all actors.
    """

    rows: int
    errors: int
    tokens: int
    seconds: float
    in_one_run: bool
    images_per_second: float
    tokens_per_second: float
    stage_seconds: Mapping[str, float]
    hosts: int


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory shows it.

    `run` is run.json as it was written. `parts` are the paths of the finished shards' results, in
    order; `filled_parts` those that hold rows. `planned` is the number of shards, None where
    the directory does not say. `examples` are pictures of a few rows, PNG by part and row, where
    the results hold no images. `speed` is None where nothing was timed, `nats` where no image
    has a likelihood.
    """

    run: Mapping[str, Any]
    parts: tuple[str, ...]
    filled_parts: tuple[str, ...]
    planned: int | None
    finished: bool
    examples: Mapping[str, Mapping[int, bytes]]
    figures: Figures
    errors: tuple[ErrorKind, ...]
    speed: Throughput | None
    nats: NLLHistogram | None

    @property
    def job(self) -> str:
        return str(self.run["job"])

    @property
    def origin(self) -> list[str]:
        """The model by the last part of its location, and the seed; jobs may have neither."""
        model, seed = self.run.get("model"), self.run.get("seed")
        origin = [f"model {model['location'].rstrip('/').rpartition('/')[2]}"] if model else []
        return origin if seed is None else [*origin, f"seed {seed}"]

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


def read_record(directory: RunDirectory) -> RunRecord:
    """Reads all of a run directory but its results. Raises UsageError where it is none."""
    run = directory.record()
    if run is None:
        raise UsageError(
            f"expected a run directory, found no {RUN_FILE} in {directory.location}; check the path"
        )
    if run["job"] not in JOBS:
        raise UsageError(
            f"{directory.location} is a run of {run['job']}, this igpt knows {', '.join(JOBS)}; "
            "next: the version of igpt that wrote it"
        )
    shards = sorted(directory.finished())
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(lambda shard: _read_part(directory, shard), shards))
    report = _read_json(directory, REPORT_FILE)
    planned = _planned(directory, report)
    finished = report is not None and len(parts) == planned
    figures = _figures(parts, report if finished else None)
    spans = [_span(part) for part in parts if part.stats]
    nats = NLLHistogram.sum(
        NLLHistogram.from_json(part.stats["nats"]) for part in parts if "nats" in part.stats
    )
    return RunRecord(
        run=run,
        parts=tuple(part.path for part in parts),
        filled_parts=tuple(part.path for part in parts if part.rows),
        planned=planned,
        finished=finished,
        examples={part.path: _examples(part) for part in parts if "examples" in part.stats},
        figures=figures,
        errors=_merged(kind for part in parts for kind in part.errors),
        speed=throughput(spans, without_pauses=not figures.in_one_run),
        nats=nats if nats.n else None,
    )


def _read_json(directory: RunDirectory, name: str) -> dict[str, Any] | None:
    path = join(directory.path, name)
    try:
        return dict(json.loads(read_bytes(directory.fs, path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UsageError(f"expected a JSON object in {path}, found other text: {error}") from error


def _planned(directory: RunDirectory, report: Mapping[str, Any] | None) -> int | None:
    path = join(directory.path, PLAN_FILE)
    if exists(directory.fs, path):
        return row_count(directory.fs, path)  # one row a shard
    return None if report is None else int(report["shards"])


def row_count(fs: AbstractFileSystem, path: str) -> int:
    """Rows of a Parquet file, from its footer."""
    with fs.open(path, "rb") as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def _read_part(directory: RunDirectory, shard: int) -> _Part:
    """A finished shard. Only its results must be there: what stats/ lacks is counted."""
    path = join(directory.path, part_name("data", shard))
    stats = _read_json(directory, part_name("stats", shard))
    kinds: Sequence[ErrorKind] = ()
    if stats is None or stats["errors"]:
        kinds = _read_errors(directory.fs, join(directory.path, part_name("errors", shard)))
    if stats is None:
        failed = sum(kind.count for kind in kinds)
        return _Part(path, row_count(directory.fs, path), failed, {}, kinds)
    return _Part(path, int(stats["rows"]), int(stats["errors"]), stats, kinds)


def _examples(part: _Part) -> dict[int, bytes]:
    return {found["row"]: base64.b64decode(found["png"]) for found in part.stats["examples"]}


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
    timed = [part for part in parts if part.stats]
    stages: Counter[str] = Counter()
    for part in timed:
        stages.update(part.stats["seconds"])
    tokens = sum(int(part.stats["tokens"]) for part in timed)
    in_one_run = report is not None and not report["resumed_shards"]
    if report is not None and in_one_run:
        seconds = float(report["seconds"])
    else:
        seconds = working_seconds(_span(part) for part in timed)
    images = sum(part.rows + part.failed for part in timed)
    return Figures(
        rows=sum(part.rows for part in parts),
        errors=sum(part.failed for part in parts),
        tokens=tokens,
        seconds=seconds,
        in_one_run=in_one_run,
        images_per_second=images / seconds if seconds else 0.0,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        stage_seconds=dict(stages),
        hosts=len({part.stats["host"] for part in timed}),
    )


def _span(part: _Part) -> Span:
    """A shard's images and when it was in work, its waiting between stages left out."""
    finished = float(part.stats["finished"])
    spent = sum(part.stats["seconds"].values())
    return Span(finished - spent, finished, part.rows + part.failed)
