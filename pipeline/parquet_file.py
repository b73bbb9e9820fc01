"""A Parquet file read forwards: the next shard goes on in the row group where the last one stopped.

pyarrow has no way to skip pages, so a shard late in a row group costs all rows before it. A process
gets shards in the order of their rows: with the file kept open between two of them it reads a group
of a million rows once, not once for each of its thousand shards.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.chunks import CHUNK_BYTES
from pipeline.footers import PARQUET_ERRORS
from pipeline.storage import STORE_ERRORS, is_local, open_location

_CHUNK_ROWS = 256
_SMALL_GROUP = 32 << 20
_PARQUET_BUFFER = 4 << 20  # of a column of a larger row group; the size of a request


class ParquetReader:
    """A Parquet file and the place in it up to which the row group in work has been read.

    Row groups are read at once (few requests) where all are small, else in pieces.
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
                buffer_size=_PARQUET_BUFFER,
                page_checksum_verification=True,
            )
        except BaseException:
            self.close()
            raise
        self.schema: pa.Schema = self._parquet.schema_arrow
        self._place: tuple[int, tuple[str, ...]] | None = None
        self._last: tuple[int, pa.RecordBatch] | None = None
        self._rest: Iterator[tuple[int, pa.RecordBatch]] = iter(())

    def close(self) -> None:
        self._file.close()

    def is_of(self, uri: str, options: Mapping[str, Any]) -> bool:
        """Whether this is the file there, as it is now."""
        if self._location != (uri, options):
            return False
        try:
            self._fs.invalidate_cache()
            return bool(self._fs.info(self._path) == self._status)
        except STORE_ERRORS:
            return False

    def batches(
        self, group: int, columns: Sequence[str], *, start: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of a row group, each with the number of its first row in the group, among them
        every one that holds the row `start` or a later one. Raises at the very row that cannot be
        read."""
        place = group, tuple(columns)
        before = 0 if self._last is None else self._last[0]
        if self._place != place or start < before:
            size = _chunk_rows(self.footer.row_group(group))
            self._place, self._last = place, None
            self._rest = _batches(self._parquet, group, columns, size)
        if self._last is not None:
            yield self._last
        try:
            for batch in self._rest:
                self._last = batch
                yield batch
        except PARQUET_ERRORS:
            self._place = None
            raise


def _open(fs: AbstractFileSystem, path: str) -> Any:
    if is_local(fs):
        return open(path, "rb")
    # Arrow asks for large blocks itself; a cache in between would fetch them once a column.
    return fs.open(path, "rb", cache_type="none")


def _chunk_rows(group: pq.RowGroupMetaData) -> int:
    """Rows that make a chunk of about CHUNK_BYTES.

    Not from the columns' own sizes: where a footer is damaged, pyarrow ends the process over
    RowGroupMetaData.column.
    """
    rows: int = CHUNK_BYTES * group.num_rows // max(group.total_byte_size, 1)
    return max(1, min(_CHUNK_ROWS, rows))


def _batches(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str], size: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """All batches of a row group, each with its first row: where a batch fails, all rows come once
    more, one by one."""
    at = 0
    try:
        for batch in parquet.iter_batches(
            size, row_groups=[group], columns=list(columns), use_threads=False
        ):
            yield at, batch
            at += batch.num_rows
    except PARQUET_ERRORS:
        if size == 1:
            raise
        yield from _batches(parquet, group, columns, 1)


# The file that a process read last, where rows of it are left.
_left: deque[ParquetReader] = deque(maxlen=1)


@contextmanager
def opened(uri: str, options: Mapping[str, Any], *, stop: int) -> Iterator[ParquetReader]:
    """A Parquet file of which rows up to `stop` will be read: open already, if this process read
    earlier rows of it last. Kept open afterwards, unless there was an error or no row is left."""
    reader = None
    while _left:
        candidate = _left.pop()
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
        _left.append(reader)
    else:
        reader.close()
