"""An export of a run: its folder acquired, its parts dispatched, and resumed."""

import fnmatch
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from igpt_core.images.model_palette import load_palette
from pipeline import rows
from pipeline.engine.dispatch import dispatch_shards
from pipeline.engine.progress import Mode, Progress
from pipeline.engine.stage import Stage
from pipeline.errors import RunFailed, UsageError
from pipeline.export.formats import EXPORTS, OWNED
from pipeline.export.part import Contents
from pipeline.inputs.parquet_schema import read_footers
from pipeline.inputs.previous_run import part_files
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.finished import FinishedRun
from pipeline.run_directory.record import refuse_other_run
from pipeline.shards import FileSlice, Plan, Shard
from pipeline.storage.filesystem import exists, join
from pipeline.storage.redact import redacted

EXPORT_FORMAT = 1  # of export.json
EXPORT_FILE = "export.json"
_THREADS = 32
_NEXT = "what is done is kept; next: the same command again, without --overwrite"


@dataclass(frozen=True)
class ExportedRun:
    """A finished run whose parts are the shards of `plan`, and its columns by kind."""

    run: FinishedRun
    plan: Plan
    contents: Contents


def open_run(location: str, options: Mapping[str, Any]) -> ExportedRun:
    """Opens a finished run and reads the footers of its parts. Raises UsageError where it is none,
    or has no rows."""
    run = FinishedRun.open(location, options)
    counted, [(_, schema), *_] = read_footers(part_files(run), options, limit=None)
    shards = tuple(
        Shard(index, (FileSlice(file.path, file.name, 0, n_rows),))
        for index, (file, n_rows) in zip(run.parts, counted, strict=True)
    )
    contents = Contents.of(run.job, schema, run.passthrough)
    return ExportedRun(run, Plan("parquet", 1, shards), contents)


def find_palette(
    exported: ExportedRun, location: str | None, options: Mapping[str, Any]
) -> str | None:
    """Returns where the palette lies that the run's pictures need, `location` where that is given;
    None where they need none.

    Raises UsageError where it is not the run's, CheckpointError where there is none.
    """
    if exported.contents.picture != rows.TOKENS:
        return None
    location = location or str(exported.run.record["palette"]["location"])
    expected = exported.run.palette
    found = load_palette(location, storage_options=options).fingerprint
    if found != expected:
        raise UsageError(
            f"expected the palette of the run, fingerprint {expected}, found {found} in "
            f"{redacted(location)}; next: --palette with the palette or model that the run had"
        )
    return location


def acquire(target: RunDirectory, exported: ExportedRun, *, to: str, overwrite: bool) -> None:
    """Writes export.json, or finds that of an earlier command for the same export.

    Raises UsageError where the folder holds something else.
    """
    run = exported.run
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
        owned = EXPORTS[to].owned(exported.contents)
        target.write_json(EXPORT_FILE, {"format": EXPORT_FORMAT, **wanted, "owned": owned})


def _recorded(target: RunDirectory) -> dict[str, Any] | None:
    """Returns what export.json holds; None where there is none."""
    try:
        recorded = target.read_json(EXPORT_FILE)
        if recorded is None:
            return None
        wrong = [name for name in recorded["owned"] if not OWNED.fullmatch(name)]
    except (UsageError, KeyError, TypeError):
        recorded, wrong = {}, []
    if recorded.get("format") != EXPORT_FORMAT or wrong:
        raise UsageError(
            f"{target.location}/{EXPORT_FILE} is not the record of an export of format "
            f"{EXPORT_FORMAT}; next: another --output"
        )
    return recorded


def _clear(target: RunDirectory, recorded: Mapping[str, Any]) -> None:
    """Deletes what an export has written, by its names, but for its record: still an export."""
    target.fs.invalidate_cache()
    for path in target.fs.ls(target.path, detail=False):
        name = path.rstrip("/").rpartition("/")[2]
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in recorded["owned"]):
            target.fs.rm(path, recursive=True)


def pending_parts(target: RunDirectory, plan: Plan, *, to: str) -> list[Shard]:
    """Returns the parts whose last file is not there."""

    def is_done(shard: Shard) -> bool:
        return exists(target.fs, join(target.path, EXPORTS[to].done.format(shard.index)))

    with ThreadPoolExecutor(_THREADS) as pool:
        done = list(pool.map(is_done, plan.shards))
    return [shard for shard, there in zip(plan.shards, done, strict=True) if not there]


def export_parts(plan: Plan, pending: Sequence[Shard], stage: Stage, *, progress: Mode) -> None:
    """Dispatches the pending parts. Raises RunFailed; what is done stays done."""
    missing = {shard.index for shard in pending}
    clock = Progress(
        total=plan.rows,
        done=sum(shard.rows or 0 for shard in plan.shards if shard.index not in missing),
        errors=0,
        shards=len(plan.shards),
        shards_done=len(plan.shards) - len(pending),
        mode=progress,
    )
    clock.show()
    try:
        with closing(clock), closing(dispatch_shards(plan, pending, [stage])) as exported:
            for part in exported:
                missing.remove(part["shard"])
                clock.add({**part, "errors": 0})
    except RunFailed as error:
        raise RunFailed(f"{error}; {_NEXT}") from error
    clock.show(final=True)
    if missing:
        raise RunFailed(
            f"{len(missing)} of {len(pending)} parts are missing, the first is {min(missing)}; "
            f"{_NEXT}"
        )
