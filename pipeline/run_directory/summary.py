"""A summary of a run, finished or not: run.json, shards, figures, failed rows, likelihoods."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.failed_rows import ErrorKind, error_kinds, merged
from pipeline.run_directory.layout import part_name
from pipeline.run_directory.likelihoods import NLLHistogram
from pipeline.run_directory.record import known_job
from pipeline.run_directory.stats import Span, read_stats, row_count, working_seconds
from pipeline.storage.filesystem import join

_THREADS = 32


@dataclass(frozen=True)
class Figures:
    """Sums over the finished shards.

    `rows` have a result, `errors` failed; both count in the speeds. `seconds` is the wall time of
    the run; where it was interrupted, the time in which at least one shard was in work.
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
class RunSummary:
    """A run as its directory shows it.

    `run` is run.json as it was written. `parts` are the paths of the finished shards' results, in
    order; `filled_parts` those that hold rows. `planned` is the number of shards, None where
    the directory does not say. `examples` are pictures of a few rows, PNG by part and row, where
    the results hold no images. `nll` is None where no image has a likelihood.
    """

    run: Mapping[str, Any]
    parts: tuple[str, ...]
    filled_parts: tuple[str, ...]
    planned: int | None
    finished: bool
    examples: Mapping[str, Mapping[int, bytes]]
    figures: Figures
    errors: tuple[ErrorKind, ...]
    nll: NLLHistogram | None

    @property
    def job(self) -> str:
        """Returns the job that made it, one of `rows.JOBS`."""
        return str(self.run["job"])

    @property
    def origin(self) -> list[str]:
        """Lists the model, by the end of its location, and the seed; jobs may have neither."""
        model, seed = self.run.get("model"), self.run.get("seed")
        origin = [f"model {model['location'].rstrip('/').rpartition('/')[2]}"] if model else []
        return origin if seed is None else [*origin, f"seed {seed}"]

    @property
    def status(self) -> str:
        """Says in one line that it is finished, or how far it is."""
        if self.finished:
            return f"Finished: {self.planned:,} of {self.planned:,} shards"
        of = "" if self.planned is None else f" of {self.planned:,}"
        return f"Not finished: {len(self.parts):,}{of} shards"


@dataclass(frozen=True)
class _Part:
    """A finished shard. `stats` is empty where the shard has none."""

    path: str
    rows: int
    errors: int
    stats: Mapping[str, Any]
    kinds: Sequence[ErrorKind]


def read_summary(directory: RunDirectory) -> RunSummary:
    """Reads all of a run directory but its results. Raises UsageError where it is none, or of a job
    that this igpt does not know."""
    run = directory.require_record()
    known_job(directory.location, run)
    shards = sorted(directory.finished())
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(lambda shard: _read_part(directory, shard), shards))
    report = directory.report()
    planned = _planned(directory, report)
    finished = report is not None and len(parts) == planned
    nll = NLLHistogram.sum(
        NLLHistogram.from_json(part.stats["nats"]) for part in parts if "nats" in part.stats
    )
    return RunSummary(
        run=run,
        parts=tuple(part.path for part in parts),
        filled_parts=tuple(part.path for part in parts if part.rows),
        planned=planned,
        finished=finished,
        examples={part.path: _examples(part) for part in parts if "examples" in part.stats},
        figures=_figures(parts, report if finished else None),
        errors=merged(kind for part in parts for kind in part.kinds),
        nll=nll if nll.n else None,
    )


def _planned(directory: RunDirectory, report: Mapping[str, Any] | None) -> int | None:
    planned = directory.planned_rows()
    if planned is not None:
        return len(planned)
    return None if report is None else int(report["shards"])


def _read_part(directory: RunDirectory, shard: int) -> _Part:
    """Reads a finished shard. Only its results must be there: what stats lack is counted."""
    path = join(directory.path, part_name("data", shard))
    stats = read_stats(directory, shard)
    if stats is None:
        kinds = error_kinds(directory, shard)
        errors = sum(kind.count for kind in kinds)
        return _Part(path, row_count(directory.fs, path), errors, {}, kinds)
    kinds = error_kinds(directory, shard) if stats["errors"] else []
    return _Part(path, int(stats["rows"]), int(stats["errors"]), stats, kinds)


def _examples(part: _Part) -> dict[int, bytes]:
    """Returns the PNG of each example of a part, by its row."""
    return {found["row"]: base64.b64decode(found["png"]) for found in part.stats["examples"]}


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
        seconds = working_seconds(Span.of(part.stats) for part in timed)
    images = sum(part.rows + part.errors for part in timed)
    return Figures(
        rows=sum(part.rows for part in parts),
        errors=sum(part.errors for part in parts),
        tokens=tokens,
        seconds=seconds,
        in_one_run=in_one_run,
        images_per_second=images / seconds if seconds else 0.0,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        stage_seconds=dict(stages),
        hosts=len({part.stats["host"] for part in timed}),
    )
