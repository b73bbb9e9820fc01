"""The figures of single shards, and what they add up to: rows, time in work, speed."""

import base64
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import part_name, shards_with_errors
from pipeline.shards import Shard
from pipeline.storage.filesystem import join
from pipeline.storage.threads import map_in_threads


def read_stats(directory: RunDirectory, shard: int) -> dict[str, Any] | None:
    """Returns the stats of a shard; None where it has none. Raises UsageError where they are no
    JSON object."""
    return directory.read_json(part_name("stats", shard))


def read_pictures(directory: RunDirectory, shard: int) -> dict[int, bytes]:
    """Returns the PNG of each row of a shard whose picture its stats keep, by row."""
    stats = read_stats(directory, shard) or {}
    return {kept["row"]: base64.b64decode(kept["png"]) for kept in stats.get("examples", ())}


def row_count(fs: AbstractFileSystem, path: str) -> int:
    """Returns the rows of a Parquet file, from its footer."""
    with fs.open(path, "rb") as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def rows_done(directory: RunDirectory, shards: Iterable[Shard]) -> int:
    """Counts the rows of finished shards, failed ones included: those that the plan does not know
    by their parts."""
    known, unknown = 0, set()
    for shard in shards:
        if shard.rows is None:
            unknown.add(shard.index)
        else:
            known += shard.rows
    parts = [part_name("data", index) for index in sorted(unknown)]
    if unknown:
        failed = shards_with_errors(directory.fs, directory.path) & unknown
        parts += [part_name("errors", index) for index in sorted(failed)]
    counted = map_in_threads(
        lambda part: row_count(directory.fs, join(directory.path, part)), parts
    )
    return known + sum(counted)


class WorkingTime:
    """The time in which at least one shard was in work: what shards share counts once.

    Spans may come in any order. Holds those that do not touch, 16 bytes each.
    """

    def __init__(self) -> None:
        self._starts, self._stops = array("d"), array("d")  # ascending

    def add(self, start: float, stop: float) -> None:
        """Adds the span of a shard, in seconds of any one clock."""
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:  # the spans that it touches become one with it
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last] = array("d", [start])
        self._stops[first:last] = array("d", [stop])

    @property
    def seconds(self) -> float:
        return sum(stop - start for start, stop in zip(self._starts, self._stops, strict=True))


@dataclass(frozen=True)
class Speed:
    """How fast a run is: the one definition of each figure, whoever shows it.

    Attributes:
        seconds: wall time with start-up, from each start of the run to the last part that it wrote,
            added up over the starts; None where only an earlier version wrote stats.
        working_seconds: time in which at least one shard was in work.
        images_per_second: images with a result, while working.
        tokens_per_second: tokens that the model sampled, while working.
        tokens_per_pass: of a sequence, drawn from each pass of the model: below 1 where passes go
            over known pixels, above 1 by windows; None where none was drawn.
    """

    seconds: float | None
    working_seconds: float
    images_per_second: float
    tokens_per_second: float
    tokens_per_pass: float | None = None

    @classmethod
    def recorded(cls, report: Mapping[str, Any]) -> "Speed | None":
        """Reads it from report.json; None where an earlier version wrote that."""
        names = [field.name for field in fields(cls)]
        found = {name: report[name] for name in names if name in report}
        return cls(**found) if names[1] in report else None


class Work:
    """Adds up the stats of shards, in any order: what they made, and in which time.

    Attributes:
        rows: those with a result.
        errors: those that failed.
        tokens: sampled by the model.
        passes: of the model, from which these were drawn, added up over the sequences.
        last: when the last shard was done, in unix seconds; None before one is.
    """

    def __init__(self) -> None:
        self.rows = self.errors = self.tokens = self.passes = 0
        self.last: float | None = None
        self._working = WorkingTime()
        self._ends: dict[float, float] = {}  # of each start of the run: its last part

    def add(self, stats: Mapping[str, Any]) -> None:
        """Adds the stats of a shard; its waiting between stages is not time in work."""
        finished = float(stats["finished"])
        self.rows += int(stats["rows"])
        self.errors += int(stats["errors"])
        self.tokens += int(stats["tokens"])
        self.passes += int(stats.get("passes", 0))  # earlier versions counted none
        self.last = finished if self.last is None else max(self.last, finished)
        self._working.add(finished - sum(filter(None, stats["seconds"].values())), finished)
        if "started" in stats:
            started = float(stats["started"])
            self._ends[started] = max(finished, self._ends.get(started, started))

    @property
    def working_seconds(self) -> float:
        return self._working.seconds

    @property
    def tokens_per_pass(self) -> float | None:
        return round(self.tokens / self.passes, 2) if self.passes else None

    @property
    def speed(self) -> Speed:
        working = self.working_seconds
        seconds = sum(end - started for started, end in self._ends.items())
        return Speed(
            seconds=round(seconds, 2) if self._ends else None,
            working_seconds=round(working, 2),
            images_per_second=round(self.rows / working, 3) if working else 0.0,
            tokens_per_second=round(self.tokens / working, 1) if working else 0.0,
            tokens_per_pass=self.tokens_per_pass,
        )
