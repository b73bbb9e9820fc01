"""Reader of lists of web addresses: a row is the image that its address gives."""

from collections.abc import Iterator

from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.inputs.text_tables import read_table
from pipeline.inputs.url_lists import is_text_list
from pipeline.readers.fetch import THREADS, Fetch
from pipeline.readers.input_rows import (
    STAGE,
    InputRows,
    ReadOptions,
    RowContent,
    failed_rows,
    prefetch,
)
from pipeline.readers.parquet import (
    ChangedFile,
    check_columns,
    input_rows,
    read_parquet,
    row_error,
)
from pipeline.readers.read_ahead import read_ahead
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard


def read_urls(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Reads the image at the address of each row of a list; its id is `file#row`, or what the id
    column holds. An address that fails is a row with its error.

    Raises what is the place's: that the list cannot be read (see `read_parquet`), or that no
    address of the shard was answered at all, unless it is the last try.
    """
    fetch = Fetch(options)
    for found in prefetch(_lists(shard, options)):
        yield from _with_images(found, fetch, options)
    fetch.check(shard)


def _lists(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Yields the rows of a shard with the addresses (UTF-8) in place of images."""
    for file in shard.slices:
        if is_text_list(file.name):
            yield from _read_text(file, options, shard)
        else:
            yield from read_parquet(Shard(shard.index, (file,), shard.tries), options)


def _read_text(file: FileSlice, options: ReadOptions, shard: Shard) -> Iterator[InputRows]:
    """Yields the rows of a slice of text: all of them, whatever happened to the file."""
    row, stop = file.start, file.stop
    assert stop is not None  # planning has counted them
    try:
        table = read_table(file.path, file.name, file.identity, options.storage_options)
        check_columns(table.schema, file, options)
        for batch in table.slice(row, stop - row).combine_chunks().to_batches():
            for found in input_rows(batch, file, range(row, row + batch.num_rows), options):
                yield found
                row += len(found.ids)
        error = RowError(STAGE, "ChangedFile", f"the file has only {table.num_rows} rows now")
    except parquet_errors(ChangedFile) as failure:
        error = row_error(failure, shard, file, options)
    if row < stop:
        yield failed_rows(file, range(row, stop), error, options.passthrough)


def _with_images(rows: InputRows, fetch: Fetch, options: ReadOptions) -> Iterator[InputRows]:
    def image(index: int) -> RowContent:
        address = rows.images[index]
        if rows.ids[index] in options.kept:
            return b""
        return fetch(address.decode()) if isinstance(address, bytes) else address

    some = read_ahead(
        range(len(rows.ids)),
        image,
        size_of=lambda _: None,
        most_bytes=options.max_image_bytes,
        threads=THREADS,
    )
    for each in some:
        first, n = each[0][0], len(each)
        part = slice(first, first + n)
        yield InputRows(
            rows.ids[part],
            rows.sources[part],
            [content for _, content in each],
            rows.columns.slice(first, n),
        )
