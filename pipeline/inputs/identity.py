"""What has become of an input's files since they were planned."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import UsageError
from pipeline.inputs.files import InputFile
from pipeline.inputs.image_metadata import has_metadata
from pipeline.inputs.tar_index import Samples
from pipeline.inputs.webdataset_schema import samples_in
from pipeline.shards import FileSlice, Plan
from pipeline.storage.redact import redacted, redacted_location


@dataclass(frozen=True)
class Changes:
    """How the files of an input differ from those of its plan.

    Attributes:
        changed: the identities of a file, then and now, by its path; in the order of the plan.
        new: paths of files that would be in the plan, had they been there.
        gone: paths of files of the plan that are not there.
    """

    changed: Mapping[str, tuple[str, str]]
    new: tuple[str, ...]
    gone: tuple[str, ...]


def changes(plan: Plan, files: Iterable[InputFile]) -> Changes:
    """Compares the files of a plan with those that `list_input` finds now.

    A plan that knows of no identity (of an earlier igpt, or of a store that tells nothing) differs
    in nothing.
    """
    planned = planned_identities(plan)
    if not any(planned.values()):
        return Changes({}, (), ())
    there = {file.path: file for file in files}
    changed: dict[str, tuple[str, str]] = {}
    for path, then in planned.items():
        now = there[path].identity if path in there else None
        if then is not None and now is not None and now != then:
            changed[path] = (then, now)
    new = [file for path, file in there.items() if path not in planned]
    if plan.limit is not None and (plan.rows is None or plan.rows >= plan.limit):
        # Behind the rows that a limit takes there may always have been more files.
        last = max(each.name for shard in plan.shards for each in shard.slices)
        new = [file for file in new if file.name < last]
    gone = (path for path in planned if path not in there and path not in plan.empty)
    if has_metadata(plan.passthrough):
        changed |= {p: (str(of), "gone") for p, of in plan.empty.items() if p not in there}
    return Changes(changed, tuple(file.path for file in new), tuple(gone))


def with_whole_paths(plan: Plan, paths: Iterable[str]) -> Plan:
    """Returns a plan that was written down with the paths of its files as they are now: logins and
    signatures were left out of it, and the latter change from day to day."""
    now = {redacted_location(path): path for path in paths}
    return plan.with_paths(lambda path: now.get(redacted_location(path), path))


def planned_identities(plan: Plan) -> dict[str, str | None]:
    """Returns the identity of each file of a plan by its path."""
    found = dict(plan.empty)
    return found | {each.path: each.identity for shard in plan.shards for each in shard.slices}


def shards_of(plan: Plan, paths: Collection[str]) -> dict[str, set[int]]:
    """Returns the shards that read each of these files."""
    found: dict[str, set[int]] = {path: set() for path in paths}
    for shard in plan.shards:
        for each in shard.slices:
            if each.path in found:
                found[each.path].add(shard.index)
    return found


def repaired(plan: Plan, files: Collection[InputFile], options: Mapping[str, Any]) -> Plan:
    """Returns the plan with files as they are now, in place of those of which rows have failed. Of
    tables and tars any row may be another: the shards that read them are to be done again.

    Args:
        files: of the plan, with their identities now; the same plan where there are none.
        options: fsspec options of the input.

    Raises UsageError for a tar that cannot be cut as it was.
    """
    if not files:
        return plan
    now = {file.path: file for file in files}
    tars = files if plan.format == "webdataset" else ()
    starts = {file.path: (samples_in(file, options) or Samples(0, None)).starts for file in tars}

    def updated(each: FileSlice) -> FileSlice:
        if each.path not in now:
            return each
        each = replace(each, identity=now[each.path].identity)
        return _recut(each, starts[each.path], plan.limit) if each.path in starts else each

    shards = [replace(shard, slices=tuple(map(updated, shard.slices))) for shard in plan.shards]
    of_many_rows = plan.format != "images"
    changed = {new.index for old, new in zip(plan.shards, shards, strict=True) if old != new}
    redone = tuple(sorted({*plan.redone, *changed})) if of_many_rows else plan.redone
    empty = {path: now[path].identity if path in now else i for path, i in plan.empty.items()}
    return replace(plan, shards=tuple(shards), empty=empty, redone=redone)


def _recut(each: FileSlice, starts: Sequence[int] | None, limit: int | None) -> FileSlice:
    """Returns the slice of a tar with the bytes that its samples have now. One that went to the end
    of the tar goes there again: there may be more in it than in a tar that was cut short."""
    to_end = each.end_byte is None
    stop = None if to_end and limit is None else each.stop
    if each.first_byte is None:
        return replace(each, stop=stop)
    last = each.start if to_end else each.stop
    if starts is None or (last and last >= len(starts)):
        raise UsageError(
            f"expected the tar {redacted(each.path)} to hold the samples that were planned, found "
            "others; next: --overwrite to start anew, or another --output"
        )
    first_byte = starts[each.start] if each.start else 0
    end_byte = None if to_end or each.stop is None else starts[each.stop]
    return replace(each, stop=stop, first_byte=first_byte, end_byte=end_byte)
