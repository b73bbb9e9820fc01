"""A run directory as the input of the next job: recognized among the files of the input."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UsageError
from pipeline.inputs.files import InputFile
from pipeline.run_directory.finished import FinishedRun
from pipeline.run_directory.layout import REPORT_FILE, RUN_FILE, part_name, shard_of
from pipeline.storage.filesystem import open_location, read_bytes, store_errors
from pipeline.storage.redact import redacted_line


def find_run(
    files: Sequence[InputFile], text: str, options: Mapping[str, Any]
) -> FinishedRun | None:
    """Returns the run that an input is, going by its files alone; None where it is none.

    Raises UsageError where the run is only a part of the input, or as `FinishedRun.checked` does.
    """
    found = [(file, _load(file, options)) for file in files if _is_run_file(file.name)]
    runs = [(file, record) for file, record in found if _is_record(record)]
    if not runs:
        return None
    file, record = runs[0]
    if len(runs) > 1 or file.name != RUN_FILE:
        where = file.path.removesuffix(f"/{RUN_FILE}")
        raise UsageError(
            f"expected one run directory or none as --input, found {len(runs)} within {text}; "
            f"next: --input {where}, one job for each"
        )
    report = next((_load(file, options) for file in files if file.name == REPORT_FILE), None)
    return FinishedRun.checked(text, record, report, _parts(files))


def part_files(run: FinishedRun, listed: Sequence[InputFile] = ()) -> list[InputFile]:
    """Returns the parts of a run's results as files of an input, with the identities that the
    files `listed` of the run have."""
    identities = {file.path: file.identity for file in listed}
    return [
        InputFile(uri, part_name("data", shard), identities.get(uri))
        for shard, uri in run.parts.items()
    ]


def without_other_files(files: Sequence[InputFile]) -> Sequence[InputFile]:
    """Leaves out what is no part of results, where the files look like those of a run."""
    if not any(file.name == RUN_FILE for file in files):
        return files
    parts = set(_parts(files).values())
    return [file for file in files if file.path in parts] or files


def _is_run_file(name: str) -> bool:
    return name == RUN_FILE or name.endswith(f"/{RUN_FILE}")


def _is_record(content: Mapping[str, Any]) -> bool:
    """Returns whether a file called run.json is ours, not somebody else's."""
    return {"format", "job", "command", "columns", "palette"} <= content.keys()


def _parts(files: Sequence[InputFile]) -> dict[int, str]:
    """Returns the parts of results among the files of a run: their paths or URIs by shard."""
    shards = ((shard_of(file.name), file) for file in files)
    return {
        shard: file.path
        for shard, file in shards
        if shard is not None and file.name == part_name("data", shard)
    }


def _load(file: InputFile, options: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the JSON object in a file; {} where it holds none."""
    fs, path = open_location(file.path, options)
    try:
        content = json.loads(read_bytes(fs, path))
    except ValueError:
        return {}
    except store_errors() as error:
        raise UsageError(
            f"cannot read {file.path}: {redacted_line(error)}; check your rights and "
            "--storage-options"
        ) from error
    return content if isinstance(content, dict) else {}
