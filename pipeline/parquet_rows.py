"""Reader of Parquet: a row of a file is a row, whatever happens to the file."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.chunks import (
    CHUNK_BYTES,
    STAGE,
    Chunk,
    ReadOptions,
    RowInput,
    failed,
    null_table,
    one_ahead,
    places,
)
from pipeline.footers import PARQUET_ERRORS, is_image, is_tokens
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage import is_local, open_location

_CHUNK_ROWS = 256
_SMALL_GROUP = 32 << 20
_PARQUET_BUFFER = 4 << 20  # of a column of a larger row group; the size of a request


def read_parquet(shard: Shard, options: ReadOptions) -> Iterator[Chunk]:
    """A row of a file is a row; its id is `file#row`, or what the id column holds."""

    def chunks() -> Iterator[Chunk]:
        for piece in shard.slices:
            yield from _read_slice(piece, options)

    return one_ahead(chunks())


class ChangedFile(Exception):
    """A file is not what it was when the run was planned."""


_UNREADABLE = (*PARQUET_ERRORS, ChangedFile)


def _read_slice(piece: FileSlice, options: ReadOptions) -> Iterator[Chunk]:
    """The rows of a slice: all of them, whatever happened to the file."""
    row = piece.start
    try:
        fs, path = open_location(piece.path, options.storage_options)
        # Arrow asks for large blocks itself; a cache in between would fetch them once a column.
        with open(path, "rb") if is_local(fs) else fs.open(path, "rb", cache_type="none") as file:
            parquet = _open_parquet(file)
            columns = _columns(parquet.schema_arrow, options)
            first = 0
            for group in range(parquet.num_row_groups):
                end = first + parquet.metadata.row_group(group).num_rows
                part = replace(piece, start=max(row, first), stop=min(piece.stop, end))
                if part.start < part.stop:
                    yield from _read_group(parquet, group, first, columns, part, options)
                    row = part.stop
                first = end
            error = RowError(STAGE, "ChangedFile", f"the file has only {first} rows now")
    except _UNREADABLE as failure:
        error = RowError.of(STAGE, failure)
    if row < piece.stop:
        yield failed(replace(piece, start=row), error, options.passthrough)


def _open_parquet(file: Any) -> pq.ParquetFile:
    """The file, read a row group at once (few requests) where all are small, else in pieces."""
    footer = pq.read_metadata(file)
    sizes = (footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    return pq.ParquetFile(
        file,
        metadata=footer,
        pre_buffer=max(sizes, default=0) <= _SMALL_GROUP,
        buffer_size=_PARQUET_BUFFER,
        page_checksum_verification=True,
    )


def _columns(schema: pa.Schema, options: ReadOptions) -> list[str]:
    wanted = [options.image_column, options.id_column, *options.passthrough.names]
    columns = list(dict.fromkeys(name for name in wanted if name is not None))
    absent = [name for name in columns if name not in schema.names]
    if absent:
        raise ChangedFile(f"column {absent[0]} is not in the file now")
    of_kind = is_tokens if options.format == "tokens" else is_image
    if not of_kind(schema.field(options.image_column).type):
        raise ChangedFile(f"column {options.image_column} does not hold what it did")
    return columns


def _read_group(
    parquet: pq.ParquetFile,
    group: int,
    first: int,
    columns: list[str],
    part: FileSlice,
    options: ReadOptions,
) -> Iterator[Chunk]:
    """The rows `part`, which lie in one row group, whose first row is `first` in the file.

    From a damaged page on, a row group cannot be read further: those rows are the failed ones.
    """
    row = part.start
    size = _chunk_rows(parquet.metadata.row_group(group))
    try:
        for at, batch in _batches(parquet, group, columns, size):
            start, stop = max(row, first + at), min(part.stop, first + at + batch.num_rows)
            if start < stop:
                rows = batch.slice(start - first - at, stop - start)
                for chunk in _chunks(rows, replace(part, start=start, stop=stop), options):
                    yield chunk
                    row += len(chunk.ids)
            if row == part.stop:
                return
        error = RowError(STAGE, "ChangedFile", "the row group ends early")
    except _UNREADABLE as failure:
        error = RowError.of(STAGE, failure)
    yield failed(replace(part, start=row), error, options.passthrough)


def _chunk_rows(group: pq.RowGroupMetaData) -> int:
    """Rows that make a chunk of about CHUNK_BYTES.

    Not from the columns' own sizes: where a footer is damaged, pyarrow ends the process over
    RowGroupMetaData.column.
    """
    rows: int = CHUNK_BYTES * group.num_rows // max(group.total_byte_size, 1)
    return max(1, min(_CHUNK_ROWS, rows))


def _batches(
    parquet: pq.ParquetFile, group: int, columns: list[str], size: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of a row group, each with its first row; raises at the very row that cannot be
    read: where a batch fails, all rows come once more, one by one."""
    at = 0
    try:
        for batch in parquet.iter_batches(
            size, row_groups=[group], columns=columns, use_threads=False
        ):
            yield at, batch
            at += batch.num_rows
    except _UNREADABLE:
        if size == 1:
            raise
        yield from _batches(parquet, group, columns, 1)


def _chunks(batch: pa.RecordBatch, part: FileSlice, options: ReadOptions) -> Iterator[Chunk]:
    """The rows `part`, which were read as `batch`: one chunk, or where a value is invalid (text
    that is not UTF-8, which no reader of the results would accept) one chunk a row."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as failure:
        if batch.num_rows == 1:
            yield failed(part, RowError.of(STAGE, failure), options.passthrough)
            return
        for offset in range(batch.num_rows):
            row = part.start + offset
            yield from _chunks(
                batch.slice(offset, 1), replace(part, start=row, stop=row + 1), options
            )
        return
    schema = options.passthrough
    given = [(batch.column(field.name), field.type) for field in schema]
    arrays = [array if array.type == type_ else array.cast(type_) for array, type_ in given]
    ids, sources = places(part)
    find = _tokens if options.format == "tokens" else _images
    images = find(batch.column(options.image_column))
    if options.id_column is not None:
        for index, key in enumerate(batch.column(options.id_column).cast(pa.string()).to_pylist()):
            if key is None:
                images[index] = RowError(
                    STAGE, "MissingId", f"column {options.id_column} is null in this row"
                )
            else:
                ids[index] = key
    columns = pa.table(arrays, schema=schema) if arrays else null_table(schema, batch.num_rows)
    yield Chunk(ids, sources, images, columns)


def _images(column: pa.Array) -> list[RowInput]:
    is_struct = pa.types.is_struct(column.type)
    found = (pc.struct_field(column, "bytes") if is_struct else column).to_pylist()
    return [image or _no_image(column[index]) for index, image in enumerate(found)]


def _no_image(value: pa.Scalar) -> RowError:
    path = value.as_py().get("path") if pa.types.is_struct(value.type) and value.is_valid else None
    where = f", only the path {path}: expected the image itself" if path else ""
    return RowError(STAGE, "EmptyImage", f"the image column holds no bytes in this row{where}")


def _tokens(column: pa.Array) -> list[RowInput]:
    """The lists of a column as arrays of its own integer type."""
    flat = pc.list_flatten(column)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    found: list[RowInput] = list(np.split(pc.fill_null(flat, 0).to_numpy(), ends[:-1]))
    for index in np.flatnonzero(column.is_null()):
        found[index] = RowError(STAGE, "BadTokens", "expected tokens, found null in this row")
    # A null within a row.
    for at in np.flatnonzero(flat.is_null()):
        found[int(np.searchsorted(ends, at, side="right"))] = RowError(
            STAGE, "BadTokens", "expected tokens, found null as one of them"
        )
    return found
