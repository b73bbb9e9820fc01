"""A summary of a run, finished or not: run.json, shards, figures, failed rows, likelihoods."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.failed_rows import ErrorKind, error_kinds, merged
from pipeline.run_directory.layout import PLAN_FILE, part_name
from pipeline.run_directory.likelihoods import NLLHistogram
from pipeline.run_directory.record import known_job
from pipeline.run_directory.stats import Speed, Work, read_stats, row_count
from pipeline.storage.filesystem import join
from pipeline.storage.threads import map_in_threads


@dataclass(frozen=True)
class Figures:
    """Sums over the finished shards.

    `rows` have a result, `errors` failed; `squashed` counts images far from square that were
    squashed to squares. `speed` is that of the shards with stats. `stage_seconds` add up over all
    actors.
    """

    rows: int
    errors: int
    tokens: int
    squashed: int
    speed: Speed
    stage_seconds: Mapping[str, float]
    hosts: int


@dataclass(frozen=True)
class RunSummary:
    """A run as its directory shows it.

    `run` is run.json as it was written, `report` is report.json, None where there is none. `done`
    counts the finished shards; `filled` are those of them that have results, in order. `planned` is
    the number of shards, None where the directory does not say. `nll` is None where no image has a
    likelihood. `skipped` counts the files of the input left out, by extension, and what was left
    out of those that were read.
    """

    run: Mapping[str, Any]
    report: Mapping[str, Any] | None
    done: int
    filled: Sequence[int]
    planned: int | None
    figures: Figures
    errors: tuple[ErrorKind, ...]
    nll: NLLHistogram | None
    skipped: Mapping[str, int]

    @property
    def job(self) -> str:
        """Returns the job that made it, one of `rows.JOBS`."""
        return str(self.run["job"])

    @property
    def finished(self) -> bool:
        """Returns whether all parts and the report are there."""
        return self.report is not None and self.done == self.planned

    @property
    def speed(self) -> Speed:
        """Returns that of report.json, which stays what it was when the run ended for the first
        time; before that end, that of the shards that are done."""
        recorded = Speed.recorded(self.report) if self.report and self.finished else None
        return recorded or self.figures.speed

    @property
    def origin(self) -> list[str]:
        """Lists the model, by the end of its location, how it draws, and the seed; jobs may have
        none of these."""
        model, seed = self.run.get("model"), self.run.get("seed")
        results = self.run.get("results", {})
        origin = [f"model {model['location'].rstrip('/').rpartition('/')[2]}"] if model else []
        for name, plain in (("temperature", 1.0), ("top_k", None), ("top_p", None)):
            if results.get(name, plain) not in (plain, None):
                origin.append(f"{name.replace('_', '-')} {results[name]:g}")
        return origin if seed is None else [*origin, f"seed {seed}"]

    @property
    def status(self) -> str:
        """Says in one line that it is finished, or how far it is."""
        if self.finished:
            return f"Finished: {self.planned:,} of {self.planned:,} shards"
        of = "" if self.planned is None else f" of {self.planned:,}"
        return f"Not finished: {self.done:,}{of} shards"


def read_summary(directory: RunDirectory) -> RunSummary:
    """Reads all of a run directory but its results, shard by shard: of a shard it keeps no more
    than whether it is filled.

    Raises UsageError where it is none, or of a job that this igpt does not know.
    """
    run = directory.require_record()
    known_job(directory.location, run)
    shards = sorted(directory.finished())
    report = directory.report()
    totals = _Totals()
    for part in map_in_threads(lambda shard: _read_part(directory, shard), shards):
        totals.add(part)
    return RunSummary(
        run=run,
        report=report,
        done=len(shards),
        filled=totals.filled,
        planned=_planned(directory, report),
        figures=totals.figures(),
        errors=totals.kinds,
        nll=totals.nll if totals.nll.n else None,
        skipped=directory.skipped(),
    )


def _planned(directory: RunDirectory, report: Mapping[str, Any] | None) -> int | None:
    try:
        return row_count(directory.fs, join(directory.path, PLAN_FILE))
    except FileNotFoundError:
        return None if report is None else int(report["shards"])


@dataclass(frozen=True)
class _Part:
    """A finished shard. `stats` is empty where the shard has none."""

    shard: int
    rows: int
    errors: int
    stats: Mapping[str, Any]
    kinds: Sequence[ErrorKind]


def _read_part(directory: RunDirectory, shard: int) -> _Part:
    """Reads a finished shard. Only its results must be there: what stats lack is counted."""
    stats = read_stats(directory, shard)
    if stats is None:
        kinds = error_kinds(directory, shard)
        errors = sum(kind.count for kind in kinds)
        rows = row_count(directory.fs, join(directory.path, part_name("data", shard)))
        return _Part(shard, rows, errors, {}, kinds)
    stats.pop("examples", None)  # the most of it; `read_pictures` reads the few that are shown
    kinds = error_kinds(directory, shard) if stats["errors"] else []
    return _Part(shard, int(stats["rows"]), int(stats["errors"]), stats, kinds)


class _Totals:
    """Adds finished shards up, one after the other."""

    def __init__(self) -> None:
        self.filled = array("l")
        self.kinds: tuple[ErrorKind, ...] = ()
        self.nll = NLLHistogram.empty()
        self._rows = self._errors = self._squashed = 0
        self._work = Work()
        self._stage_seconds: Counter[str] = Counter()
        self._hosts: set[str] = set()

    def add(self, part: _Part) -> None:
        self._rows += part.rows
        self._errors += part.errors
        if part.rows:
            self.filled.append(part.shard)
        if part.kinds:
            self.kinds = merged([*self.kinds, *part.kinds])
        if part.stats:
            self._work.add(part.stats)
            self._stage_seconds.update(part.stats["seconds"])
            self._hosts.add(part.stats["host"])
            self._squashed += int(part.stats.get("squashed", 0))
        if "nats" in part.stats:
            self.nll += NLLHistogram.from_json(part.stats["nats"])

    def figures(self) -> Figures:
        return Figures(
            rows=self._rows,
            errors=self._errors,
            tokens=self._work.tokens,
            squashed=self._squashed,
            speed=self._work.speed,
            stage_seconds=dict(self._stage_seconds),
            hosts=len(self._hosts),
        )
