"""A Parquet file read forwards: the next shard goes on in the row group where the last one stopped.

A process gets shards in the order of their rows: with the file kept open between two of them it
reads a group of a million rows once, not once for each of its thousand shards. A shard far from
what the process has read begins at the pages that hold its first row.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.late_rows import GroupPages, LateRows
from pipeline.readers.chunk import CHUNK_BYTES
from pipeline.readers.row_batches import Strand, row_batches
from pipeline.storage.filesystem import is_local, open_location, store_errors
from pipeline.thrift import ThriftError

_CHUNK_ROWS = 256
_SMALL_GROUP = 32 << 20
_PARQUET_BUFFER = 4 << 20  # of a column of a larger row group; the size of a request
# To skip pages the footer must be read in Python, which is slower than Arrow by about so much.
_FOOTER_COST = 128

_Place = tuple[int, tuple[str, ...]]  # a row group, and columns


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
            pre_buffer = max(sizes, default=0) <= _SMALL_GROUP
            self._parquet = _parquet(self._file, self.footer, pre_buffer=pre_buffer)
        except BaseException:
            self.close()
            raise
        self.schema: pa.Schema = self._parquet.schema_arrow
        self._place: _Place | None = None
        self._last: tuple[int, pa.RecordBatch] | None = None
        self._rest: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._pages: tuple[_Place, GroupPages | None] | None = None

    def close(self) -> None:
        self._file.close()

    def is_of(self, uri: str, options: Mapping[str, Any]) -> bool:
        """Whether this is the file there, as it is now."""
        if self._location != (uri, options):
            return False
        try:
            self._fs.invalidate_cache()
            return bool(self._fs.info(self._path) == self._status)
        except store_errors():
            return False

    def batches(
        self, group: int, columns: Sequence[str], *, start: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of a row group, each with the number of its first row in the group, among them
        every one that holds the row `start` or a later one. Raises at the very row that cannot be
        read."""
        place = group, tuple(columns)
        is_new = self._go_to(place, start)
        before = True
        try:
            if self._last is not None:
                before = _end(self._last) <= start
                yield self._last
            for batch in self._rest:
                self._last = batch
                before = _end(batch) <= start
                yield batch
            return
        except parquet_errors():
            self._place = None
            # What lies between two shards must not matter to the second: another process that gets
            # it may begin later.
            if is_new or not before:
                raise
        yield from self.batches(group, columns, start=start)

    def _go_to(self, place: _Place, start: int) -> bool:
        """Makes `_last` and `_rest` lead to the row `start`; on from where they are, unless that is
        impossible or the longer way. Whether they are new."""
        at = 0 if self._last is None else self._last[0]
        goes_on = self._place == place and at <= start
        at = at if goes_on else 0
        group = self.footer.row_group(place[0])
        late = self._late_rows(place, start) if self._is_far(group, start - at) else None
        if late is not None and late.skipped <= at / group.num_rows:
            late = None  # it would read again more than it skips
        if goes_on and late is None:
            return False
        size = _chunk_rows(group)
        self._place, self._last = place, None
        if late is None:
            self._rest = row_batches([Strand(self._parquet, *place, 0)], 0, size)
        else:
            self._rest = row_batches(_strands(late, place[1]), late.valid, size)
        return True

    def _is_far(self, group: pq.RowGroupMetaData, rows: int) -> bool:
        """Whether so many rows of a group take longer to read than their pages to be skipped."""
        least = max(_SMALL_GROUP, _FOOTER_COST * self.footer.serialized_size)
        return bool(rows * group.total_byte_size > least * group.num_rows)

    def _late_rows(self, place: _Place, start: int) -> LateRows | None:
        """What holds the rows of a group from `start` on, and not all before; None where the file
        does not lend itself to that: encrypted, damaged, made in a way that is not foreseen."""
        if self._pages is None or self._pages[0] != place:
            self._pages = place, self._group_pages(place)
        pages, whole = self._pages[1], _dictionaries(self.schema)
        try:
            return None if pages is None else pages.from_row(start, whole=whole)
        except ThriftError:
            return None

    def _group_pages(self, place: _Place) -> GroupPages | None:
        group, columns = place
        names = self.schema.names
        if any("." in name for name in names) or len(set(names)) < len(names):
            return None  # pyarrow would read more columns than those named
        numbers = [names.index(name) for name in columns]
        size = self.footer.serialized_size
        try:
            return GroupPages(self._file, size, group, numbers, walk=is_local(self._fs))
        except ThriftError:
            return None


def _dictionaries(schema: pa.Schema) -> set[int]:
    """Columns whose dictionaries grow from batch to batch: begun elsewhere, they would hold the
    same values under other numbers."""
    return {i for i, type_ in enumerate(schema.types) if _has_dictionary(type_)}


def _has_dictionary(type_: pa.DataType) -> bool:
    if isinstance(type_, pa.BaseExtensionType):
        return _has_dictionary(type_.storage_type)
    inner = (type_.field(i).type for i in range(type_.num_fields))
    return pa.types.is_dictionary(type_) or any(map(_has_dictionary, inner))


def _strands(late: LateRows, columns: Sequence[str]) -> list[Strand]:
    """Readers of late rows: one for all columns that begin at the same row."""
    footer = pq.read_metadata(late.file)
    found: dict[int, list[str]] = {}
    for name, first in zip(columns, late.first, strict=True):
        found.setdefault(first, []).append(name)
    return [
        Strand(_parquet(late.file, footer, pre_buffer=False), 0, names, first)
        for first, names in found.items()
    ]


def _parquet(file: Any, footer: pq.FileMetaData, *, pre_buffer: bool) -> pq.ParquetFile:
    return pq.ParquetFile(
        file,
        metadata=footer,
        pre_buffer=pre_buffer,
        buffer_size=_PARQUET_BUFFER,
        page_checksum_verification=True,
    )


def _end(batch: tuple[int, pa.RecordBatch]) -> int:
    return batch[0] + int(batch[1].num_rows)


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
