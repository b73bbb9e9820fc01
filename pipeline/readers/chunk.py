"""What readers make of a shard: chunks of consecutive rows, good or bad."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.rows import RowError
from pipeline.shards import FileSlice

STAGE = "read"
CHUNK_BYTES = 8 << 20  # about what the images of a chunk take

# What a row holds: an encoded image, ready tokens (of any integer dtype, unchecked), or the reason
# why it has neither.
RowInput = bytes | NDArray[np.integer[Any]] | RowError


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a shard; the four fields have one element or row for each.

    `sources` says where the row lies, for error reports; `columns` are the columns passed through,
    null where a row could not be read.
    """

    ids: list[str]
    sources: list[str]
    images: list[RowInput]
    columns: pa.Table


@dataclass(frozen=True)
class ReadOptions:
    """What a reader must know beside the shard: fields of the plan, options of the input."""

    image_column: str | None  # of tokens, where that is the format
    id_column: str | None
    passthrough: pa.Schema
    storage_options: Mapping[str, Any]
    format: str


def places(part: FileSlice) -> tuple[list[str], list[str]]:
    """The ids of a table's rows, unless a column holds them, and where the rows lie."""
    rows = range(part.start, part.stop)
    return [f"{part.name}#{row}" for row in rows], [f"{part.path}#{row}" for row in rows]


def failed(part: FileSlice, error: RowError, schema: pa.Schema) -> Chunk:
    """Rows of a table that cannot be read."""
    ids, sources = places(part)
    return Chunk(ids, sources, [error] * len(ids), null_table(schema, len(ids)))


def null_table(schema: pa.Schema, rows: int) -> pa.Table:
    if len(schema) == 0:  # only a table cut down to no columns knows its number of rows
        return pa.table({"row": pa.nulls(rows)}).select([])
    return pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)


def one_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, each made by a thread while the caller has the one before."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk
