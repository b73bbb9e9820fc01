"""Batches of a row group whose columns are read from different rows on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.parquet_schema import parquet_errors


@dataclass(frozen=True)
class Strand:
    """Columns that are read together; the first row that `parquet` has of them in its row group
    `group` is the row `first` of the whole row group."""

    parquet: pq.ParquetFile
    group: int
    columns: Sequence[str]
    first: int

    def batches(self, size: int) -> Iterator[pa.RecordBatch]:
        return iter(
            self.parquet.iter_batches(
                size, row_groups=[self.group], columns=list(self.columns), use_threads=False
            )
        )


def row_batches(
    strands: Sequence[Strand], start: int, size: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """All rows from `start` on, in batches that end at multiples of `size`, each with its first
    row: where a batch fails, all rows come once more, one by one."""
    cursors = [_Cursor(strand.batches(size), strand.first) for strand in strands]
    at = start
    try:
        while True:
            stop = at - at % size + size
            parts = [cursor.take(at, stop) for cursor in cursors]
            rows = min(0 if part is None else part.num_rows for part in parts)
            if rows:
                yield at, _side_by_side([part.slice(0, rows) for part in parts if part is not None])
            at += rows
            if at < stop:
                return
    except parquet_errors():
        if size == 1:
            raise
        yield from row_batches(strands, start, 1)


class _Cursor:
    """A strand's rows, taken forwards."""

    def __init__(self, batches: Iterator[pa.RecordBatch], at: int) -> None:
        self._batches = batches
        self._held: pa.RecordBatch | None = None
        self._end = at  # the row after the batch in hand

    def take(self, start: int, stop: int) -> pa.RecordBatch | None:
        """The rows from `start` to `stop`, fewer at the end, None after it."""
        pieces: list[pa.RecordBatch] = []
        while start < stop:
            if self._held is not None and start < self._end:
                first = self._end - self._held.num_rows
                end = min(stop, self._end)
                pieces.append(self._held.slice(start - first, end - start))
                start = end
            elif (following := next(self._batches, None)) is not None:
                self._held = following
                self._end += following.num_rows
            else:
                break
        return pa.concat_batches(pieces) if len(pieces) > 1 else next(iter(pieces), None)


def _side_by_side(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of the columns of all parts."""
    if len(parts) == 1:
        return parts[0]
    columns = [column for part in parts for column in part.columns]
    return pa.RecordBatch.from_arrays(
        columns, schema=pa.schema([field for part in parts for field in part.schema])
    )
