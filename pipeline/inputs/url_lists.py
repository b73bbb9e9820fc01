"""Lists of web addresses of images: tables (Parquet, CSV, TSV), or text with one in each line."""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from pipeline.errors import UsageError
from pipeline.inputs.counting import counting
from pipeline.inputs.files import URL_LISTS, InputFile
from pipeline.inputs.parquet_columns import is_text, with_partitions
from pipeline.inputs.parquet_schema import Schemas, parquet_errors, read_footers
from pipeline.storage.file_identity import size_in
from pipeline.storage.filesystem import open_location, read_bytes
from pipeline.storage.redact import redacted, redacted_line

# CSV cannot be read from its middle: each reader holds all of a list, in several times its bytes.
_MOST_BYTES = 256 << 20
_TEXT_COLUMN = "url"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def is_text_list(path: str) -> bool:
    """Returns whether a list is one of text, that is no Parquet."""
    return _ending(path) in URL_LISTS


def count_addresses(
    files: Sequence[InputFile],
    options: Mapping[str, Any],
    column: str,
    *,
    limit: int | None,
    shown: bool,
) -> tuple[list[tuple[InputFile, int]], Schemas]:
    """Counts the rows of lists, and finds their schemas, as `read_footers` does. Raises UsageError,
    also where `column` does not hold text in each."""
    texts = [file for file in files if is_text_list(file.path)]
    if texts and len(texts) < len(files):
        raise UsageError(
            f"expected lists of addresses that are all Parquet or all text, found {len(texts)} of "
            f"{len(files)} files of text, the first is {redacted(texts[0].path)}; run one job each"
        )
    if texts:
        counted, schemas = _count_texts(texts, options, shown=shown)
    else:
        counted, schemas = read_footers(files, options, limit=limit, shown=shown)
    for file, schema in schemas:
        type_ = schema.field(column).type if column in schema.names else None
        if type_ is None or not is_text(type_):
            known = [field.name for field in schema if is_text(field.type)]
            raise UsageError(
                f"expected web addresses (text) in column {column} of {redacted(file.path)}, found "
                f"{type_ or 'no such column'}; next: --url-column {' or '.join(known) or 'of text'}"
            )
    return counted, schemas


def _count_texts(
    files: Sequence[InputFile], options: Mapping[str, Any], *, shown: bool
) -> tuple[list[tuple[InputFile, int]], Schemas]:
    counted: list[tuple[InputFile, int]] = []
    schemas: Schemas = []
    with counting(len(files), "lists", shown=shown) as count:
        for file in files:
            size = size_in(file.identity) or 0
            if size > _MOST_BYTES:
                raise UsageError(
                    f"expected a list of at most {_MOST_BYTES >> 20} MiB, found {size >> 20} MiB "
                    f"at {redacted(file.path)}; next: write it as Parquet, of any size"
                )
            try:
                table = read_list(file.path, file.identity, options)
            except parquet_errors() as error:
                raise UsageError(
                    f"cannot read the list {redacted(file.path)}: {redacted_line(error)}; repair "
                    "it or leave it out"
                ) from error
            counted.append((file, table.num_rows))
            if table.num_rows:
                schemas.append((file, with_partitions(table.schema, file.name)))
            count()
    if not schemas:
        raise UsageError(f"expected addresses, found none in {redacted(files[0].path)}")
    return counted, schemas


def read_list(path: str, identity: str | None, options: Mapping[str, Any]) -> pa.Table:
    """Reads a list of text: CSV or TSV with a header, whose types are found from all of its rows,
    or lines without any, as a column `url`. The last one that was read is kept.

    Args:
        identity: of its content, as `FileSlice` has it.
        options: fsspec options of the input.

    Raises `parquet_errors`.
    """
    return _read_list(path, identity, _Options(options))


class _Options(dict[str, Any]):
    """Options that a cache can hold on to: the same in all calls of a process."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self)))


@lru_cache(maxsize=1)
def _read_list(path: str, identity: str | None, options: _Options) -> pa.Table:
    content = read_bytes(*open_location(path, options))
    ending = _ending(path)
    if ending not in _DELIMITERS:
        text = content.decode("utf-8-sig", errors="replace")
        lines = [line.strip() for line in text.split("\n")]
        return pa.table({_TEXT_COLUMN: pa.array([line for line in lines if line], pa.string())})
    if not content:
        return pa.table({_TEXT_COLUMN: pa.array([], pa.string())})
    return pa_csv.read_csv(
        BytesIO(content),
        # Types are found from the first block alone.
        read_options=pa_csv.ReadOptions(block_size=len(content) + 1),
        parse_options=pa_csv.ParseOptions(delimiter=_DELIMITERS[ending], newlines_in_values=True),
    )


def _ending(path: str) -> str:
    return os.path.splitext(path.partition("?")[0])[1].lower()
