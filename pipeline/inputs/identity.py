"""What has become of an input's files since they were planned."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.inputs.files import InputFile
from pipeline.shards import FileSlice, Plan, Shard


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
    return Changes(changed, tuple(file.path for file in new), tuple(gone))


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


def with_identities(plan: Plan, identities: Mapping[str, str | None]) -> Plan:
    """Returns the plan with other identities of some files, by their paths; the same plan where
    there are none. Of such a tar the last slice goes to its end, wherever that lies now: there may
    be more in it than in one that was cut."""
    if not identities:
        return plan

    def now(each: FileSlice) -> FileSlice:
        if each.path not in identities:
            return each
        to_end = plan.format == "webdataset" and each.end_byte is None
        stop = None if to_end else each.stop
        return replace(each, identity=identities[each.path], stop=stop)

    def updated(shard: Shard) -> Shard:
        return replace(shard, slices=tuple(map(now, shard.slices)))

    empty = {path: identities.get(path, then) for path, then in plan.empty.items()}
    return replace(plan, shards=tuple(map(updated, plan.shards)), empty=empty)
