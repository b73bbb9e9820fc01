"""Reader of Parquet: a row of a file is a row, whatever happens to the file."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs.parquet_schema import is_image, is_tokens, parquet_errors
from pipeline.readers.chunk import (
    STAGE,
    Chunk,
    ReadOptions,
    RowInput,
    failed,
    null_table,
    one_ahead,
    places,
)
from pipeline.readers.parquet_file import ParquetReader, opened
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard


def read_parquet(shard: Shard, options: ReadOptions) -> Iterator[Chunk]:
    """A row of a file is a row; its id is `file#row`, or what the id column holds."""

    def chunks() -> Iterator[Chunk]:
        for piece in shard.slices:
            yield from _read_slice(piece, options)

    return one_ahead(chunks())


class ChangedFile(Exception):
    """A file is not what it was when the run was planned."""


def _read_slice(piece: FileSlice, options: ReadOptions) -> Iterator[Chunk]:
    """The rows of a slice: all of them, whatever happened to the file."""
    row = piece.start
    try:
        with opened(piece.path, options.storage_options, stop=piece.stop) as reader:
            columns = _columns(reader.schema, options)
            first = 0
            for group in range(reader.footer.num_row_groups):
                end = first + reader.footer.row_group(group).num_rows
                part = replace(piece, start=max(row, first), stop=min(piece.stop, end))
                if part.start < part.stop:
                    yield from _read_group(reader, group, first, columns, part, options)
                    row = part.stop
                first = end
            error = RowError(STAGE, "ChangedFile", f"the file has only {first} rows now")
    except (*parquet_errors(), ChangedFile) as failure:
        error = RowError.of(STAGE, failure)
    if row < piece.stop:
        yield failed(replace(piece, start=row), error, options.passthrough)


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
    reader: ParquetReader,
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
    try:
        for at, batch in reader.batches(group, columns, start=row - first):
            start, stop = max(row, first + at), min(part.stop, first + at + batch.num_rows)
            if start < stop:
                rows = batch.slice(start - first - at, stop - start)
                for chunk in _chunks(rows, replace(part, start=start, stop=stop), options):
                    yield chunk
                    row += len(chunk.ids)
            if row == part.stop:
                return
        error = RowError(STAGE, "ChangedFile", "the row group ends early")
    except (*parquet_errors(), ChangedFile) as failure:
        error = RowError.of(STAGE, failure)
    yield failed(replace(part, start=row), error, options.passthrough)


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
