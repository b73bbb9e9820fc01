"""A run directory as the input of the next job: recognized, checked, its results found."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UsageError
from pipeline.inputs.files import InputFile
from pipeline.rows import TOKENS
from pipeline.run_directory.directory import resuming
from pipeline.run_directory.layout import FORMAT, REPORT_FILE, RUN_FILE
from pipeline.storage.filesystem import open_location, read_bytes, store_errors
from pipeline.storage.redact import redacted_line

_DATA = re.compile(r"data/part-\d{6,}\.parquet")


@dataclass(frozen=True)
class RunInput:
    """A finished run whose results are an input.

    `files` are its results; `passthrough` the columns that it had from its own input; `palette`
    the fingerprint of the palette of its tokens; `has_tokens`: the job wrote a column of them.
    """

    job: str
    files: list[InputFile]
    passthrough: list[str]
    palette: str
    has_tokens: bool

    def check_tokens(self, text: str) -> None:
        """Raises UsageError where the run made no tokens."""
        if not self.has_tokens:
            raise UsageError(
                f"expected a run with tokens (of quantize, complete or sample) at {text}, found "
                f"one of {self.job}; next: the run or the images that it was made of"
            )


def find_run(files: Sequence[InputFile], text: str, options: Mapping[str, Any]) -> RunInput | None:
    """The run directory that an input is, going by its files; None where it is none.

    Raises UsageError where it is not finished, of a later version, or only a part of the input.
    """
    found = [(file, file.name.rpartition("/")[0]) for file in files if _is_run_file(file.name)]
    records = [(file, folder, _record(file, options)) for file, folder in found]
    runs = [(file, folder, record) for file, folder, record in records if record is not None]
    if not runs:
        return None
    file, folder, record = runs[0]
    if len(runs) > 1 or folder:
        where = file.path.removesuffix(f"/{RUN_FILE}")
        raise UsageError(
            f"expected one run directory or none as --input, found {len(runs)} within {text}; "
            f"next: --input {where}, one job for each"
        )
    if record["format"] != FORMAT:
        raise UsageError(
            f"{text} is a run of format {record['format']}, this igpt reads format {FORMAT}; "
            "next: the version of igpt that wrote it"
        )
    report = next((file for file in files if file.name == REPORT_FILE), None)
    parts = [file for file in files if _DATA.fullmatch(file.name)]
    shards = _load(report, options).get("shards") if report is not None else None
    if shards != len(parts):
        of = "" if shards is None else f" of {shards}"
        raise UsageError(
            f"expected a finished run at {text}, found {len(parts)}{of} parts"
            f"{' and no ' + REPORT_FILE if report is None else ''}; next: the command that "
            f"resumes it: {resuming(record['command'])}"
        )
    passthrough = list(record.get("passthrough", []))
    columns = [column["name"] for column in record["columns"]]
    return RunInput(
        job=record["job"],
        files=parts,
        passthrough=passthrough,
        palette=record["palette"]["fingerprint"],
        has_tokens=TOKENS in columns and TOKENS not in passthrough,
    )


def _is_run_file(name: str) -> bool:
    return name == RUN_FILE or name.endswith(f"/{RUN_FILE}")


def _record(file: InputFile, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What run.json holds; None where somebody else's file has that name."""
    record = _load(file, options)
    return record if {"format", "job", "command", "columns", "palette"} <= record.keys() else None


def _load(file: InputFile, options: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none in it."""
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
