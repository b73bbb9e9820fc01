"""Reader of Parquet: a row of a file is a row, whatever happens to the file."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs.parquet_columns import (
    is_image,
    is_samples,
    is_text,
    is_tokens,
    partition_values,
)
from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.readers.faults import refuse_place
from pipeline.readers.input_rows import (
    STAGE,
    InputRows,
    ReadOptions,
    RowContent,
    failed_rows,
    null_table,
    places,
    prefetch,
)
from pipeline.readers.parquet_file import ParquetReader, open_parquet
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage.filesystem import open_location


def read_parquet(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Reads a row of a file as a row; its id is `file#row`, or what the id column holds. Where each
    row of a file holds several samples, each sample is a row, with `#` and its place in that row
    behind the id. Raises what may be the fault of the place; see `refuse_place`."""

    def read() -> Iterator[InputRows]:
        for file in shard.slices:
            if file.samples is None:
                yield from _read_slice(file, options, shard)
            else:
                yield from _read_samples(file, file.samples, options, shard)

    return prefetch(read())


class ChangedFile(Exception):
    """A file is not what it was when the run was planned."""


def _read_samples(
    file: FileSlice, n: int, options: ReadOptions, shard: Shard
) -> Iterator[InputRows]:
    """Yields the rows of a slice that counts samples, `n` of each row of the file; the slice may
    begin and end within such a row."""
    assert file.stop is not None
    whole = replace(file, start=file.start // n, stop=-(-file.stop // n))
    first = whole.start * n
    for found in _read_slice(whole, options, shard):
        stop = first + len(found.ids) * n
        wanted = range(max(file.start, first) - first, min(file.stop, stop) - first)
        at = [divmod(i, n) for i in wanted]
        taken = found.columns.take(pa.array([row for row, _ in at], pa.int64()))
        yield InputRows(
            [f"{found.ids[row]}#{sample}" for row, sample in at],
            [found.sources[row] for row, _ in at],
            [_one_of(found.images[row], sample) for row, sample in at],
            taken if taken.column_names else null_table(options.passthrough, len(at)),
        )
        first = stop


def _one_of(samples: RowContent, index: int) -> RowContent:
    """Returns one of the samples of a row, or why the row has none."""
    return samples[index] if isinstance(samples, np.ndarray) else samples


def _read_slice(file: FileSlice, options: ReadOptions, shard: Shard) -> Iterator[InputRows]:
    """Yields the rows of a slice: all of them, whatever happened to the file."""
    row, stop = file.start, file.stop
    assert stop is not None  # planning has counted the rows of Parquet files
    try:
        with open_parquet(file.path, options.storage_options, stop=stop) as reader:
            columns = check_columns(reader.schema, file, options)
            first = 0
            for group in range(reader.footer.num_row_groups):
                end = first + reader.footer.row_group(group).num_rows
                row_range = range(max(row, first), min(stop, end))
                if row_range:
                    yield from _read_group(
                        reader,
                        group,
                        first=first,
                        columns=columns,
                        file=file,
                        row_range=row_range,
                        options=options,
                        shard=shard,
                    )
                    row = row_range.stop
                first = end
            error = RowError(STAGE, "ChangedFile", f"the file has only {first} rows now")
    except parquet_errors(ChangedFile) as failure:
        error = row_error(failure, shard, file, options)
    if row < stop:
        yield failed_rows(file, range(row, stop), error, options.passthrough)


def row_error(failure: Exception, shard: Shard, file: FileSlice, options: ReadOptions) -> RowError:
    """Returns the error of the rows of a file that cannot be read, or raises the fault."""
    refuse_place(failure, shard, file, *open_location(file.path, options.storage_options))
    return RowError.of(STAGE, failure)


def check_columns(schema: pa.Schema, file: FileSlice, options: ReadOptions) -> list[str]:
    """Returns the columns to read. Raises ChangedFile where the file lacks one now."""
    wanted = [options.image_column, options.id_column, *options.passthrough.names]
    in_folders = partition_values(file.name).keys() - set(schema.names)
    columns = [name for name in dict.fromkeys(wanted) if name not in (None, *in_folders)]
    absent = [name for name in columns if name not in schema.names]
    if absent:
        raise ChangedFile(f"column {absent[0]} is not in the file now")
    of_kind = {"tokens": is_tokens, "urls": is_text}.get(options.format, is_image)
    of_kind = of_kind if file.samples is None else is_samples
    if not of_kind(schema.field(options.image_column).type):
        raise ChangedFile(f"column {options.image_column} does not hold what it did")
    return columns


def _read_group(
    reader: ParquetReader,
    group: int,
    *,
    first: int,
    columns: list[str],
    file: FileSlice,
    row_range: range,
    options: ReadOptions,
    shard: Shard,
) -> Iterator[InputRows]:
    """Yields rows of a file that lie in one row group, whose first row is `first` in the file.

    From a damaged page on, a row group cannot be read further: those rows are the failed ones.
    """
    row = row_range.start
    try:
        for at, batch in reader.read_group(group, columns, start=row - first):
            start, stop = max(row, first + at), min(row_range.stop, first + at + batch.num_rows)
            if start < stop:
                wanted = batch.slice(start - first - at, stop - start)
                for found in input_rows(wanted, file, range(start, stop), options):
                    yield found
                    row += len(found.ids)
            if row == row_range.stop:
                return
        error = RowError(STAGE, "ChangedFile", "the row group ends early")
    except parquet_errors(ChangedFile) as failure:
        error = row_error(failure, shard, file, options)
    yield failed_rows(file, range(row, row_range.stop), error, options.passthrough)


def input_rows(
    batch: pa.RecordBatch, file: FileSlice, row_range: range, options: ReadOptions
) -> Iterator[InputRows]:
    """Yields the rows that were read as `batch`: together, or where a value is invalid (text that
    is not UTF-8, which no reader of the results would accept) one by one."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as failure:
        if batch.num_rows == 1:
            error = RowError.of(STAGE, failure)
            yield failed_rows(file, row_range, error, options.passthrough)
            return
        for i in range(batch.num_rows):
            yield from input_rows(batch.slice(i, 1), file, row_range[i : i + 1], options)
        return
    schema = options.passthrough
    for name, value in partition_values(file.name).items():
        if name not in batch.schema.names:
            batch = batch.append_column(name, pa.array([value] * batch.num_rows, pa.string()))
    found = [(batch.column(field.name), field.type) for field in schema]
    arrays = [array if array.type == type_ else array.cast(type_) for array, type_ in found]
    ids, sources = places(file, row_range)
    images = _contents(batch.column(options.image_column), file, options)
    if options.id_column is not None:
        for index, key in enumerate(batch.column(options.id_column).cast(pa.string()).to_pylist()):
            if key is None:
                images[index] = RowError(
                    STAGE, "MissingId", f"column {options.id_column} is null in this row"
                )
            else:
                ids[index] = key
    columns = pa.table(arrays, schema=schema) if arrays else null_table(schema, batch.num_rows)
    yield InputRows(ids, sources, images, columns)


def _contents(column: pa.Array, file: FileSlice, options: ReadOptions) -> list[RowContent]:
    """Returns what each row of the file holds."""
    if file.samples is not None:
        return [_samples(row.values, file.samples) for row in column]
    read = {"tokens": _tokens, "urls": _addresses}.get(options.format, _images)
    return read(column)


def _samples(lists: pa.FixedSizeListArray | None, n: int) -> RowContent:
    """Returns the samples of a row as one array (n, T), or why there are none."""
    found = 0 if lists is None else len(lists) - lists.null_count
    if lists is None or found != n or len(lists) != n or lists.flatten().null_count:
        return RowError(
            STAGE, "BadTokens", f"expected {n} samples without nulls, found {found} in this row"
        )
    return lists.flatten().to_numpy().reshape(n, -1)  # type: ignore[no-any-return]


def _images(column: pa.Array) -> list[RowContent]:
    """Returns the bytes of each image of a column, or why there are none."""
    is_struct = pa.types.is_struct(column.type)
    found = (pc.struct_field(column, "bytes") if is_struct else column).to_pylist()
    return [image or _no_image(column[index]) for index, image in enumerate(found)]


def _addresses(column: pa.Array) -> list[RowContent]:
    """Returns the text of each row (UTF-8), or why there is none."""
    none = RowError(STAGE, "BadAddress", "expected an address, found none in this row")
    found = (None if text is None else text.strip() for text in column.to_pylist())
    return [text.encode() if text else none for text in found]


def _no_image(value: pa.Scalar) -> RowError:
    path = value.as_py().get("path") if pa.types.is_struct(value.type) and value.is_valid else None
    where = f", only the path {path}: expected the image itself" if path else ""
    return RowError(STAGE, "EmptyImage", f"the image column holds no bytes in this row{where}")


def _tokens(column: pa.Array) -> list[RowContent]:
    """Returns the lists of a column as arrays of its own integer type, or why there is none."""
    flat = pc.list_flatten(column)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    found: list[RowContent] = list(np.split(pc.fill_null(flat, 0).to_numpy(), ends[:-1]))
    for index in np.flatnonzero(column.is_null()):
        found[index] = RowError(STAGE, "BadTokens", "expected tokens, found null in this row")
    # A null within a row.
    for at in np.flatnonzero(flat.is_null()):
        found[int(np.searchsorted(ends, at, side="right"))] = RowError(
            STAGE, "BadTokens", "expected tokens, found null as one of them"
        )
    return found
