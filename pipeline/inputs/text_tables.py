"""Tables of text: CSV, TSV, JSON lines, and plain lines; read whole, as they cannot be read from
their middle."""

import os
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.inputs.files import InputFile
from pipeline.inputs.parquet_schema import INT96_UNIT, parquet_errors
from pipeline.storage.file_identity import size_in
from pipeline.storage.filesystem import open_location, read_bytes
from pipeline.storage.redact import redacted, redacted_line

LINES_COLUMN = "url"  # of plain lines
# Each process that reads one holds all of it, in several times its bytes.
_MOST_BYTES = 256 << 20
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def ending(name: str) -> str:
    """Returns the extension of a file, by its name in the input, in lower case with its dot."""
    return os.path.splitext(name)[1].lower()


def read_planned(file: InputFile, options: Mapping[str, Any]) -> pa.Table:
    """Reads a table of text, or Parquet, while a run is planned. Raises UsageError."""
    size = size_in(file.identity) or 0
    if size > _MOST_BYTES:
        raise UsageError(
            f"expected a table of at most {_MOST_BYTES >> 20} MiB, as it is read whole, found "
            f"{size >> 20} MiB at {redacted(file.path)}; next: cut it, or write a list of "
            "addresses as Parquet, of any size"
        )
    try:
        return read_table(file.path, file.name, file.identity, options)
    except parquet_errors() as error:
        raise UsageError(
            f"cannot read {redacted(file.path)}: {redacted_line(error)}; repair it or leave it out"
        ) from error


def read_table(path: str, name: str, identity: str | None, options: Mapping[str, Any]) -> pa.Table:
    """Reads CSV or TSV with a header, JSON lines, or Parquet; the types of text are found from all
    of its rows. Plain lines are a column `url`, without the empty ones. The last one is
    kept.

    Args:
        path, name, identity: as `FileSlice` has them.
        options: fsspec options of the input.

    Raises `parquet_errors`.
    """
    return _read_table(path, ending(name), identity, Options(options))


class Options(dict[str, Any]):
    """Options that a cache can hold on to."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self)))


@lru_cache(maxsize=1)
def _read_table(path: str, kind: str, identity: str | None, options: Options) -> pa.Table:
    content = read_bytes(*open_location(path, options))
    if kind in (".parquet", ".parq", ".pq"):
        return pq.read_table(BytesIO(content), coerce_int96_timestamp_unit=INT96_UNIT)
    if not content.strip():
        return pa.table({LINES_COLUMN: pa.array([], pa.string())})
    content += b"\n"  # a header alone is no CSV without it
    block_size = len(content) + 1  # types are found from the first block alone
    if kind == ".jsonl":
        return pa_json.read_json(
            BytesIO(content), read_options=pa_json.ReadOptions(block_size=block_size)
        )
    if kind in _DELIMITERS:
        return pa_csv.read_csv(
            BytesIO(content),
            read_options=pa_csv.ReadOptions(block_size=block_size),
            parse_options=pa_csv.ParseOptions(delimiter=_DELIMITERS[kind], newlines_in_values=True),
        )
    text = content.decode("utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.split("\n")]
    return pa.table({LINES_COLUMN: pa.array([line for line in lines if line], pa.string())})
