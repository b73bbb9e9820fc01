"""An export of a run: its folder claimed, its parts handed out, and resumed."""

import fnmatch
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from igpt_core.model.checkpoint import load_palette
from pipeline import rows
from pipeline.engine.dispatch import dispatch_shards
from pipeline.engine.progress import Mode, Progress
from pipeline.engine.stage import Stage
from pipeline.errors import RunFailed, UsageError
from pipeline.export.formats import ARRAYS, EXPORTS, Contents
from pipeline.inputs.files import InputFile
from pipeline.inputs.parquet_schema import read_footers
from pipeline.run_directory.directory import RunDirectory, refuse_other_run, resuming
from pipeline.run_directory.layout import part_name
from pipeline.shards import FileSlice, Plan, Shard
from pipeline.storage.filesystem import exists, join, read_bytes, uri_of
from pipeline.storage.redact import redacted

FORMAT = 1
EXPORT_FILE = "export.json"
_THREADS = 32
_NEXT = "what is done is kept; next: the same command again, without --overwrite"
# What a format may own, see `Format.owned`: names in the folder, no paths.
_OWNED = re.compile(rf"images|index|part-\*\.tar|{ARRAYS.pattern}")


@dataclass(frozen=True)
class FinishedRun:
    """A run with all its parts, each a shard of `plan`; what run.json and report.json say."""

    location: str
    record: Mapping[str, Any]
    report: Mapping[str, Any]
    plan: Plan
    schema: pa.Schema

    @property
    def contents(self) -> Contents:
        return Contents.of(self.record["job"], self.schema, self.passthrough)

    @property
    def passthrough(self) -> list[str]:
        return list(self.record.get("passthrough", ()))


def find_run(location: str, options: Mapping[str, Any]) -> FinishedRun:
    """The run of a directory; reads the footers of its parts. Raises UsageError where it is none
    or not finished."""
    directory = RunDirectory.at(location, options)
    record = directory.record()
    if record is None:
        raise UsageError(f"expected a run directory with run.json, found none at {location}")
    report, indices = directory.report(), sorted(directory.finished())
    if not indices or report is None or len(indices) != report["shards"]:
        raise UsageError(
            f"expected a finished run, found {len(indices)} parts "
            f"{'and no report.json' if report is None else 'of ' + str(report['shards'])} in "
            f"{location}; next: the command that resumes it: {resuming(record['command'])}"
        )
    names = [part_name("data", index) for index in indices]
    paths = (join(directory.path, name) for name in names)
    uris = [uri_of(path, uri=directory.location, path=directory.path) for path in paths]
    files = [InputFile(uri, name) for uri, name in zip(uris, names, strict=True)]
    counted, [(_, schema), *_] = read_footers(files, options, limit=None)
    shards = tuple(
        Shard(index, (FileSlice(file.path, file.name, 0, n_rows),))
        for index, (file, n_rows) in zip(indices, counted, strict=True)
    )
    return FinishedRun(directory.location, record, report, Plan("parquet", 1, shards), schema)


def find_palette(run: FinishedRun, location: str | None, options: Mapping[str, Any]) -> str | None:
    """Where the palette lies that the run's pictures need; None where they need none.

    Raises UsageError where it is not the run's, CheckpointError where there is none.
    """
    if run.contents.picture != rows.TOKENS:
        return None
    location = location or str(run.record["palette"]["location"])
    expected = run.record["palette"]["fingerprint"]
    found = load_palette(location, storage_options=options).fingerprint
    if found != expected:
        raise UsageError(
            f"expected the palette of the run, fingerprint {expected}, found {found} in "
            f"{redacted(location)}; next: --palette with the palette or model that the run had"
        )
    return location


def claim(target: RunDirectory, run: FinishedRun, *, to: str, overwrite: bool) -> None:
    """Write export.json, or find that of an earlier command for the same export.

    Raises UsageError where the folder holds something else.
    """
    wanted = {
        "to": to,
        "run": redacted(run.location),
        **{name: run.record[name] for name in ("job", "created")},
        # Rows that failed once may have a result by now.
        **{name: run.report[name] for name in ("rows", "errors")},
    }
    with target.reached():
        recorded = _recorded(target)
        if recorded is None:
            target.check_free("an export")
        elif overwrite:
            _clear(target, recorded)
        else:
            refuse_other_run(target.location, recorded, wanted, kind="export")
            return
        owned = EXPORTS[to].owned(run.contents)
        target.write_json(EXPORT_FILE, {"format": FORMAT, **wanted, "owned": owned})


def _recorded(target: RunDirectory) -> dict[str, Any] | None:
    path = join(target.path, EXPORT_FILE)
    if not exists(target.fs, path):
        return None
    try:
        recorded = dict(json.loads(read_bytes(target.fs, path)))
        wrong = [name for name in recorded["owned"] if not _OWNED.fullmatch(name)]
    except (ValueError, KeyError, TypeError):
        recorded, wrong = {}, []
    if recorded.get("format") != FORMAT or wrong:
        raise UsageError(
            f"{target.location}/{EXPORT_FILE} is not the record of an export of format {FORMAT}; "
            "next: another --output"
        )
    return recorded


def _clear(target: RunDirectory, recorded: Mapping[str, Any]) -> None:
    """Delete what an export has written, by its names, but for its record: still an export."""
    target.fs.invalidate_cache()
    for path in target.fs.ls(target.path, detail=False):
        name = path.rstrip("/").rpartition("/")[2]
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in recorded["owned"]):
            target.fs.rm(path, recursive=True)


def pending_parts(target: RunDirectory, run: FinishedRun, *, to: str) -> list[Shard]:
    """The parts whose last file is not there."""

    def done(shard: Shard) -> bool:
        return exists(target.fs, join(target.path, EXPORTS[to].done.format(shard.index)))

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(done, run.plan.shards))
    return [shard for shard, there in zip(run.plan.shards, found, strict=True) if not there]


def export_parts(plan: Plan, pending: list[Shard], stage: Stage, *, progress: Mode) -> None:
    """Hand the pending parts out. Raises RunFailed; what is done stays done."""
    clock = Progress(
        total=plan.rows,
        done=plan.rows - sum(shard.rows for shard in pending),
        errors=0,
        shards=len(plan.shards),
        shards_done=len(plan.shards) - len(pending),
        mode=progress,
    )
    missing = {shard.index for shard in pending}
    clock.show()
    try:
        with closing(clock), closing(dispatch_shards(plan, pending, [stage])) as exported:
            for part in exported:
                missing.remove(part["shard"])
                clock.add({**part, "errors": 0, "tokens": 0})
    except RunFailed as error:
        raise RunFailed(f"{error}; {_NEXT}") from error
    clock.show(final=True)
    if missing:
        raise RunFailed(
            f"{len(missing)} of {len(pending)} parts are missing, the first is {min(missing)}; "
            f"{_NEXT}"
        )
