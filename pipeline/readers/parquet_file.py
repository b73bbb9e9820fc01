"""A Parquet file read forwards: the next shard goes on in the row group where the last one stopped.

A process gets shards in the order of their rows: with the file kept open between two of them it
reads a group of a million rows once, not once for each of its thousand shards. A shard that a
process begins with, late in such a group, reads the group from its start and drops the rows before.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.inputs.parquet_schema import INT96_UNIT, parquet_errors
from pipeline.readers.input_rows import READ_BYTES
from pipeline.storage.filesystem import is_local, open_location, store_errors

_MOST_ROWS = 256  # that are read together
_SMALL_GROUP = 32 << 20
_BUFFER_BYTES = 4 << 20  # of a column of a larger row group; the size of a request

_Batches = Iterator[tuple[int, pa.RecordBatch]]  # each with its first row in the row group


class ParquetReader:
    """An open Parquet file, and the place up to which the row group in work has been read.

    Row groups are read at once (few requests) where all are small, else a buffer at a time.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self._location = uri, dict(options)  # a filesystem would differ from thread to thread
        self._fs, self._path = open_location(uri, options)
        self._status = self._fs.info(self._path)
        self._file = _open(self._fs, self._path)
        try:
            self.footer = pq.read_metadata(self._file)
            n_groups = self.footer.num_row_groups
            sizes = (self.footer.row_group(group).total_byte_size for group in range(n_groups))
            self._parquet = pq.ParquetFile(
                self._file,
                metadata=self.footer,
                pre_buffer=max(sizes, default=0) <= _SMALL_GROUP,
                buffer_size=_BUFFER_BYTES,
                page_checksum_verification=True,
                coerce_int96_timestamp_unit=INT96_UNIT,
            )
        except BaseException:
            self.close()
            raise
        self.schema: pa.Schema = self._parquet.schema_arrow
        self._group_in_work: tuple[int, list[str]] | None = None  # and its columns
        self._last: tuple[int, pa.RecordBatch] | None = None
        self._coming: _Batches = iter(())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def is_of(self, uri: str, options: Mapping[str, Any]) -> bool:
        """Returns whether this is the file there, as it is now."""
        if self._location != (uri, options):
            return False
        try:
            self._fs.invalidate_cache()
            return bool(self._fs.info(self._path) == self._status)
        except store_errors():
            return False

    def read_group(self, group: int, columns: Sequence[str], *, start: int) -> _Batches:
        """Yields rows of a row group, each batch with the number of its first row in the group:
        those from `start` on, and maybe earlier ones.

        Goes on where it is, unless that is behind `start`. Raises at the very row that cannot be
        read: before that, rows may come twice.
        """
        wanted = group, list(columns)
        if self._group_in_work != wanted or (self._last is not None and self._last[0] > start):
            size = _rows_together(self.footer.row_group(group))
            self._group_in_work, self._last = wanted, None
            self._coming = _read_batches(self._parquet, *wanted, size)
        try:
            if self._last is not None:
                yield self._last
            for batch in self._coming:
                self._last = batch
                yield batch
        except parquet_errors():
            self._group_in_work = None
            raise


def _read_batches(parquet: pq.ParquetFile, group: int, columns: list[str], size: int) -> _Batches:
    """Yields a row group from its start; where that fails, once more from its start, row by row."""
    at = 0
    try:
        for batch in parquet.iter_batches(
            size, row_groups=[group], columns=columns, use_threads=False
        ):
            yield at, batch
            at += batch.num_rows
    except parquet_errors():
        if size == 1:
            raise
        yield from _read_batches(parquet, group, columns, 1)


def _open(fs: AbstractFileSystem, path: str) -> Any:
    if is_local(fs):
        return open(path, "rb")
    # Arrow asks for large blocks itself; a cache in between would fetch them once a column.
    return fs.open(path, "rb", cache_type="none")


def _rows_together(group: pq.RowGroupMetaData) -> int:
    """Returns the number of rows that take about READ_BYTES.

    Not from the columns' own sizes: where a footer is damaged, pyarrow ends the process over
    RowGroupMetaData.column.
    """
    rows: int = READ_BYTES * group.num_rows // max(group.total_byte_size, 1)
    return max(1, min(_MOST_ROWS, rows))


# The file that a process read last, where rows of it are left.
_open_reader: deque[ParquetReader] = deque(maxlen=1)


@contextmanager
def open_parquet(uri: str, options: Mapping[str, Any], *, stop: int) -> Iterator[ParquetReader]:
    """Opens a Parquet file of which rows up to `stop` will be read, unless this process read
    earlier rows of it last: then it is open already. Leaves it open, unless there was an error or
    no row is left."""
    reader = None
    while _open_reader:
        candidate = _open_reader.pop()
        if reader is None and candidate.is_of(uri, options):
            reader = candidate
        else:
            candidate.close()
    reader = reader or ParquetReader(uri, options)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    if stop < reader.footer.num_rows:
        _open_reader.append(reader)
    else:
        reader.close()
