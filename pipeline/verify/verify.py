"""The checks of a run directory: whether it holds what a finished run must."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from igpt_core.errors import CheckpointError
from igpt_core.images.model_palette import load_palette
from igpt_core.model.checkpoint import model_fingerprint
from pipeline.errors import UsageError
from pipeline.inputs.identity import changes, planned_identities
from pipeline.inputs.source import list_input
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import (
    FOLDERS,
    PLAN_FILE,
    REPORT_FILE,
    parquet_file,
    part_name,
    shards_with_errors,
)
from pipeline.shards import Plan
from pipeline.storage.atomic import is_temporary
from pipeline.storage.filesystem import join, read_bytes, store_errors
from pipeline.storage.redact import is_redacted, redacted, redacted_error, redacted_line
from pipeline.verify.duplicate_ids import MAX_COMPARED, repeated_ids
from pipeline.verify.part import ExpectedSchema, PartFacts, check_part, damage, unique_ids

_THREADS = 8
_KILLED = (
    "of a writer that was killed or is at work; next: the same command again, which deletes it"
)
_RECORDED = ("job", "options", "results", "columns", "passthrough", "palette", "image_size")


@dataclass(frozen=True)
class Check:
    """A check of a run. `ok` is None where it could not be made; `found` says in one line what was
    checked, or what is wrong; `where` names every place that is wrong."""

    name: str
    ok: bool | None
    found: str
    where: tuple[str, ...] = ()


def verify(
    directory: RunDirectory,
    record: Mapping[str, Any],
    *,
    input_options: Mapping[str, Any],
    model_options: Mapping[str, Any],
) -> Iterator[Check]:
    """Yields the checks of a run as they are made; reads everything of it, and lists its input.

    Args:
        record: what run.json holds.
        input_options: fsspec options of where its input lies.
        model_options: the same of model and palette.
    """
    lacking = [key for key in _RECORDED if key not in record]
    yield _check("record", f"igpt {record.get('job')}", [f"run.json: no {k}" for k in lacking])
    plan, found = _plan(directory, record)
    yield found
    if lacking or plan is None:
        return
    done = directory.finished()
    with_errors = shards_with_errors(directory.fs, directory.path)
    planned = {shard.index for shard in plan.shards}
    gaps = [part_name("data", shard) for shard in sorted(planned - done)]
    yield _check("gaps", f"all of {len(planned)} parts are there", gaps)
    yield _check("extra files", "none", _extra(directory, planned))
    schema = ExpectedSchema(record["columns"], plan.passthrough)
    shards = [shard for shard in plan.shards if shard.index in done]
    with ThreadPoolExecutor(_THREADS) as pool:
        facts = list(
            pool.map(
                lambda shard: check_part(
                    directory,
                    shard.index,
                    run=str(record.get("run")),
                    planned=shard.rows,
                    has_errors=shard.index in with_errors,
                    schema=schema,
                ),
                shards,
            )
        )
    n_rows, n_errors = sum(f.rows for f in facts), sum(f.errors for f in facts)
    passed = {
        "readable": f"{len(facts)} parts in full, with checksums",
        "schema": f"{len(record['columns'])} columns, the same in all parts",
        "rows": f"{n_rows} rows and {n_errors} errors, as planned",
        "stats": "as many rows and errors as there are, none of another run",
    }
    for name, text in passed.items():
        yield _check(name, text, _problems(facts, name))
    indices = [shard.index for shard in shards]
    yield _ids(facts, indices, lambda i: unique_ids(directory, i, has_errors=i in with_errors))
    yield _report(directory, facts, shards=len(planned))
    if "input" in record["results"]:
        yield _input(plan, record["results"]["input"], input_options)
    yield from _fingerprints(record, model_options)


def _check(name: str, passed: str, problems: Sequence[str]) -> Check:
    if problems:
        return Check(name, False, f"{len(problems)} found", tuple(problems))
    return Check(name, True, passed)


def _problems(facts: Iterable[PartFacts], check: str) -> list[str]:
    return [p.text for part in facts for p in part.problems if p.check == check]


def _plan(directory: RunDirectory, record: Mapping[str, Any]) -> tuple[Plan | None, Check]:
    try:
        content = read_bytes(directory.fs, join(directory.path, PLAN_FILE))
        plan = Plan.from_table(parquet_file(content).read())
    except damage() as error:
        text = f"{PLAN_FILE}: {redacted_error(error, length=120)}"
        return None, Check("plan", False, "not readable", (text,))
    wrong = []
    if [shard.index for shard in plan.shards] != list(range(len(plan.shards))):
        wrong.append(f"{PLAN_FILE}: the shards are not numbered from 0 to {len(plan.shards) - 1}")
    facts = {
        "shard_size": (plan.shard_size, record.get("results", {}).get("shard_size")),
        "passthrough": (list(plan.passthrough.names), record.get("passthrough")),
    }
    wrong += [
        f"{PLAN_FILE}: {name} {planned}, in run.json {recorded}"
        for name, (planned, recorded) in facts.items()
        if planned != recorded
    ]
    counted = "rows unknown before reading" if plan.rows is None else f"{plan.rows} rows"
    return plan, _check("plan", f"{len(plan.shards)} shards, {counted}", wrong)


def _extra(directory: RunDirectory, planned: set[int]) -> list[str]:
    """Finds files that no shard of the plan has, and temporary ones of a writer that was killed."""
    extra = [name for name in _names(directory, "") if is_temporary(name)]
    for folder in FOLDERS:
        expected = {part_name(folder, shard) for shard in planned}
        extra += sorted({f"{folder}/{n}" for n in _names(directory, folder)} - expected)
    return [f"{name}, {_KILLED}" if is_temporary(name) else name for name in extra]


def _names(directory: RunDirectory, folder: str) -> list[str]:
    directory.fs.invalidate_cache()
    try:
        paths = directory.fs.ls(join(directory.path, folder).rstrip("/"), detail=False)
    except FileNotFoundError:
        return []
    return [path.rstrip("/").rpartition("/")[2] for path in paths]


def _ids(
    facts: Sequence[PartFacts], shards: Sequence[int], read: Callable[[int], Sequence[str]]
) -> Check:
    problems = _problems(facts, "ids")
    parts = [part.hashes for part in facts]
    for id_, places in repeated_ids(parts, lambda place: read(shards[place])):
        names = dict.fromkeys(part_name("data", shards[place]) for place in places)
        problems.append(f"{id_!r}: {len(places)} times, in {' and '.join(names)}")
    if len(problems) >= MAX_COMPARED:
        problems.append("and more")
    return _check("ids", f"{sum(map(len, parts))} ids, each there once", problems)


def _report(directory: RunDirectory, facts: Sequence[PartFacts], *, shards: int) -> Check:
    try:
        report = directory.report()
    except damage() as error:
        return _check("report", "", [f"{REPORT_FILE}: {redacted_line(error)}"])
    if report is None:
        return _check("report", "", [f"{REPORT_FILE} is not there: the run did not end"])
    counted = {
        "rows": sum(part.rows for part in facts),
        "errors": sum(part.errors for part in facts),
        "shards": shards,
        "errors_by_kind": dict(sum((part.kinds for part in facts), Counter[str]())),
    }
    wrong = [
        f"{REPORT_FILE}: {name} {report.get(name)}, counted {n}"
        for name, n in counted.items()
        if report.get(name) != n
    ]
    return _check("report", "counts as in the parts", wrong)


def _input(plan: Plan, location: str, options: Mapping[str, Any]) -> Check:
    """Compares the files of the input with those that were planned; that one is gone, or that there
    are others, is not wrong."""
    if is_redacted(location):
        return Check("input", None, f"not checked: run.json does not keep all of {location}")
    try:
        found = changes(plan, list_input(location, format=plan.format, storage_options=options))
    except UsageError as error:
        return Check("input", None, f"not checked: {redacted_line(error)}")
    planned = planned_identities(plan)
    if not any(planned.values()):
        return Check("input", None, "not checked: the plan knows no sizes and times of its files")
    if len(found.gone) == len(planned):
        return Check("input", None, f"not checked: nothing is left of {location}")
    wrong = [
        f"{redacted(path)}: {now}, planned with {then}"
        for path, (then, now) in found.changed.items()
    ]
    others = {"gone": len(found.gone), "new": len(found.new)}
    text = "".join(f", {count} {what}" for what, count in others.items() if count)
    there = len(planned) - len(found.gone)
    return _check("input", f"{there} files as they were planned{text}", wrong)


def _fingerprints(record: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[Check]:
    find: dict[str, Callable[[str], str]] = {
        "model": lambda location: model_fingerprint(location, options),
        "palette": lambda location: load_palette(location, storage_options=options).fingerprint,
    }
    for name, of in find.items():
        recorded = record.get(name)
        if recorded is not None:
            yield _fingerprint(name, recorded["location"], recorded["fingerprint"], of)


def _not_loaded() -> tuple[type[Exception], ...]:
    """Returns what a model or palette raises that is out of reach or damaged."""
    return (*store_errors(), CheckpointError, UsageError)


def _fingerprint(name: str, location: str, recorded: str, of: Callable[[str], str]) -> Check:
    if is_redacted(location):
        return Check(name, None, f"not checked: run.json does not keep all of {location}")
    try:
        found = of(location)
    except _not_loaded() as error:
        return Check(name, None, f"not checked: {redacted_line(error)}")
    wrong = [f"{location}: {found}, in run.json {recorded}"] if found != recorded else []
    return _check(name, f"fingerprint {recorded}", wrong)
