"""What a reader makes of a shard: consecutive rows, good or failed, a few megabytes at a time."""

from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.rows import RowError
from pipeline.shards import FileSlice
from pipeline.storage.redact import redacted_location

STAGE = "read"
MAX_IMAGE_BYTES = 256 << 20  # of an encoded image, unless options say otherwise
READ_BYTES = 8 << 20  # about what the images of rows that are read together take

# What a row holds: an encoded image, ready tokens (of any integer dtype, unchecked), or the reason
# why it has neither.
RowContent = bytes | NDArray[np.integer[Any]] | RowError


@dataclass(frozen=True)
class InputRows:
    """Consecutive rows of a shard; each field has one element or row for each.

    `sources` says where the row lies, for error reports, without logins and signatures; `columns`
    are the columns passed through, null where a row could not be read.
    """

    ids: list[str]
    sources: list[str]
    images: list[RowContent]
    columns: pa.Table


@dataclass(frozen=True)
class ReadOptions:
    """What a reader must know beside the shard: fields of the plan, options of the input."""

    image_column: str | None  # of tokens, where that is the format
    id_column: str | None
    passthrough: pa.Schema
    storage_options: Mapping[str, Any]
    format: str
    kept: Container[str] = ()  # ids of rows whose images nobody wants
    max_image_bytes: int = MAX_IMAGE_BYTES

    def refused(self, size: int | None) -> RowError | None:
        """Returns the error of an image of so many encoded bytes, where these are too many."""
        if size is None or size <= self.max_image_bytes:
            return None
        message = f"expected at most {self.max_image_bytes:,} bytes (--max-image-bytes), found"
        return RowError(STAGE, "ImageTooLarge", f"{message} {size:,}")


def places(file: FileSlice, row_range: range) -> tuple[list[str], list[str]]:
    """Returns the ids of a table's rows, unless a column holds them, and where the rows lie."""
    ids = [f"{file.name}#{row}" for row in row_range]
    where = redacted_location(file.path)
    return ids, [f"{where}#{row}" for row in row_range]


def failed_rows(file: FileSlice, row_range: range, error: RowError, schema: pa.Schema) -> InputRows:
    """Returns rows of a table that cannot be read, each with the same error."""
    ids, sources = places(file, row_range)
    return InputRows(ids, sources, [error] * len(ids), null_table(schema, len(ids)))


def null_table(schema: pa.Schema, rows: int) -> pa.Table:
    """Makes a table of so many rows whose values are all null."""
    if len(schema) == 0:  # only a table cut down to no columns knows its number of rows
        return pa.table({"row": pa.nulls(rows)}).select([])
    return pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)


def prefetch(reading: Iterator[InputRows]) -> Iterator[InputRows]:
    """Yields the same, each read by a thread while the caller works on the one before."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, reading, None)
        while (found := coming.result()) is not None:
            coming = pool.submit(next, reading, None)
            yield found
