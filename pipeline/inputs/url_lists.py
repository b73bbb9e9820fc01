"""Lists of web addresses of images: tables (Parquet, CSV, TSV, JSON lines), or lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UsageError
from pipeline.inputs.counting import counting
from pipeline.inputs.files import URL_LISTS, InputFile
from pipeline.inputs.parquet_columns import is_text, with_partitions
from pipeline.inputs.parquet_schema import Schemas, read_footers
from pipeline.inputs.text_tables import ending, read_planned
from pipeline.storage.redact import redacted


def is_text_list(name: str) -> bool:
    """Returns whether a list is one of text, that is no Parquet, by its name in the input."""
    return ending(name) in URL_LISTS


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
    texts = [file for file in files if is_text_list(file.name)]
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
        n = schema.names.count(column)
        type_ = schema.field(column).type if n == 1 else None
        if type_ is None or not is_text(type_):
            known = [field.name for field in schema if is_text(field.type)]
            found = type_ or f"{n} of that name"
            raise UsageError(
                f"expected web addresses (text) in column {column} of {redacted(file.path)}, found "
                f"{found}; next: --url-column {' or '.join(known) or 'of text'}"
            )
    return counted, schemas


def _count_texts(
    files: Sequence[InputFile], options: Mapping[str, Any], *, shown: bool
) -> tuple[list[tuple[InputFile, int]], Schemas]:
    counted: list[tuple[InputFile, int]] = []
    schemas: Schemas = []
    with counting(len(files), "lists", shown=shown) as count:
        for file in files:
            table = read_planned(file, options)
            counted.append((file, table.num_rows))
            if table.num_rows:
                schemas.append((file, with_partitions(table.schema, file.name)))
            count()
    if not schemas:
        raise UsageError(f"expected addresses, found none in {redacted(files[0].path)}")
    return counted, schemas
