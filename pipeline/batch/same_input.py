"""Whether the input of a run that is resumed is still the one that was planned."""

import sys
from collections.abc import Collection, Mapping, Sequence

from pipeline.errors import UsageError
from pipeline.inputs.identity import changes, repaired, shards_of, with_whole_paths
from pipeline.inputs.source import list_input
from pipeline.options import ImageJobOptions
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.failed_rows import failed_files
from pipeline.shards import Plan
from pipeline.storage.filesystem import options_for
from pipeline.storage.redact import redacted_location


def check_input(
    plan: Plan, options: ImageJobOptions, directory: RunDirectory, *, again: Collection[int] = ()
) -> Plan:
    """Lists the input of a run once more and compares it with the plan, file by file. Prints a line
    for people on files that are new, and one on those that are gone.

    Args:
        directory: of the run.
        again: shards that are done once more, for their failed rows. Where there are some, a file
            may have been repaired that a failed row comes from, or that was not read yet.

    Returns:
        The plan, with repaired files as they are now.

    Raises UsageError where another file has changed, where all is gone that is still to be read,
    or where the input or the run is out of reach.
    """
    input_options = options_for(options.storage_options, "input")
    with directory.reached():
        unfinished = {shard.index for shard in plan.shards} - directory.finished()
    pending = unfinished | set(again)
    try:
        files = list_input(options.input, format=plan.format, storage_options=input_options)
    except UsageError:
        if pending:
            raise
        return plan
    plan = with_whole_paths(plan, [file.path for file in files])
    found = changes(plan, files)
    readers = shards_of(plan, found.changed)
    sources = failed_files(directory, again) if found.changed else set()
    failed = {path for path in readers if redacted_location(path) in sources}
    # Not those without shards: metadata, whose columns images that are done have, too.
    not_read_yet = {path for path, of in readers.items() if again and of and of <= unfinished}
    is_repaired = failed | not_read_yet
    _refuse_changed({path: of for path, of in found.changed.items() if path not in is_repaired})
    notices = _gone_notice(plan, found.gone, pending)
    if found.new:
        notices.append(
            f"new in the input since the run was planned, so no part of it: {_named(found.new)}; "
            "next: another --output, or --overwrite to start anew"
        )
    for notice in notices if options.progress != "quiet" else ():
        print(notice, file=sys.stderr, flush=True)
    return repaired(plan, [file for file in files if file.path in is_repaired], input_options)


def _refuse_changed(changed: Mapping[str, tuple[str, str]]) -> None:
    if changed:
        then, now = next(iter(changed.values()))
        raise UsageError(
            "expected the input that the run was planned with, found it changed: "
            f"{_named(list(changed))} ({then} then, {now} now); next: put back what was there, "
            "igpt retry-failed where failed images were repaired, --overwrite to start anew, or "
            "another --output"
        )


def _gone_notice(plan: Plan, gone: Sequence[str], pending: set[int]) -> list[str]:
    """Says which of the files that are gone are still to be read. Raises UsageError where all of
    those are."""
    wanted = {s.path for shard in plan.shards if shard.index in pending for s in shard.slices}
    missing = [path for path in gone if path in wanted]
    if not missing:
        return []
    if len(missing) == len(wanted):
        raise UsageError(
            "expected the input that the run was planned with, found all gone that is still to be "
            f"read: {_named(missing)}; next: bring it back (is its disk mounted?), then the same "
            "command again"
        )
    then = "its shards will fail" if plan.format == "webdataset" else "its rows will be error rows"
    return [f"gone from the input, and still to be read: {_named(missing)}; {then}"]


def _named(paths: Sequence[str]) -> str:
    """Counts files and names the first."""
    first = redacted_location(paths[0])
    return first if len(paths) == 1 else f"{len(paths)} files, the first is {first}"
