"""The figures of single shards: their stats, their rows, and when they were in work."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import part_name, shards_with_errors
from pipeline.shards import Shard
from pipeline.storage.filesystem import join

_THREADS = 32


def read_stats(directory: RunDirectory, shard: int) -> dict[str, Any] | None:
    """Returns the stats of a shard; None where it has none. Raises UsageError where they are no
    JSON object."""
    return directory.read_json(part_name("stats", shard))


def row_count(fs: AbstractFileSystem, path: str) -> int:
    """Returns the rows of a Parquet file, from its footer."""
    with fs.open(path, "rb") as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def rows_done(directory: RunDirectory, shards: Iterable[Shard]) -> int:
    """Counts the rows of finished shards, failed ones included: those that the plan does not know
    by their parts."""
    shards = list(shards)
    unknown = {shard.index for shard in shards if shard.rows is None}
    parts = [part_name("data", index) for index in unknown]
    if unknown:
        failed = shards_with_errors(directory.fs, directory.path) & unknown
        parts += [part_name("errors", index) for index in failed]
    with ThreadPoolExecutor(_THREADS) as pool:
        counted = pool.map(lambda part: row_count(directory.fs, join(directory.path, part)), parts)
        return sum(shard.rows or 0 for shard in shards) + sum(counted)


class Span(NamedTuple):
    """When a shard was in work, in unix seconds, and its rows, failed ones included."""

    start: float
    stop: float
    rows: int

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> "Span":
        """Reads it from the stats of a shard; its waiting between stages is left out."""
        finished, spent = float(stats["finished"]), sum(stats["seconds"].values())
        return cls(finished - spent, finished, int(stats["rows"]) + int(stats["errors"]))


def working_seconds(spans: Iterable[Span]) -> float:
    """Returns the time in which at least one shard was in work: what spans share counts once."""
    seconds, end = 0.0, float("-inf")
    for span in sorted(spans):
        seconds += max(span.stop - max(span.start, end), 0.0)
        end = max(end, span.stop)
    return seconds
