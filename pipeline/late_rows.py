"""A row group from late pages on, as a Parquet file of its own, since pyarrow cannot skip pages.

Of each wanted column it has the dictionary and the pages from the one that holds a given row to the
last. They are read where they lie; only a footer is made here.
"""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.joined_file import JoinedFile
from pipeline.page_headers import Leaf
from pipeline.page_places import Pages, check_page, find_pages, leaves
from pipeline.thrift import (
    BOOL,
    I32,
    I64,
    LIST,
    STRUCT,
    Struct,
    ThriftError,
    inner,
    integer,
    read_struct,
    structs,
    varint,
    write_struct,
)

_MAGIC = b"PAR1"
_DATA_V2, _PLAIN, _RLE_DICTIONARY = 3, 0, 8
# Of a column's description: its statistics, places of its bloom filter and of index pages.
_LEFT_OUT = {10, 12, 13, 14, 15, 16, 17}


@dataclass(frozen=True)
class LateRows:
    """`file` holds the wanted columns, each from a row of its own on: `first`, counted in the row
    group that it was made of. Rows before `valid` are there to be counted, with wrong values.
    `skipped` is the share of the columns' bytes that is left out."""

    file: JoinedFile
    first: list[int]
    valid: int
    skipped: float


class GroupPages:
    """Where the pages of some columns, given by their numbers, lie in a row group of a file.

    `walk` allows a small read of the file for each page. Raises ThriftError where the file is not
    one of which parts can be read, OSError where it cannot be read.
    """

    def __init__(
        self, file: Any, footer_bytes: int, group: int, columns: Sequence[int], *, walk: bool
    ) -> None:
        limit = file.seek(0, io.SEEK_END) - footer_bytes - 8
        if limit < len(_MAGIC):
            raise ThriftError("a file shorter than its footer")
        file.seek(limit)
        self._footer = read_struct(file.read(footer_bytes))[0]
        groups, described = structs(self._footer, 4), leaves(self._footer)
        if group >= len(groups) or 8 in self._footer:
            raise ThriftError("a footer that is encrypted, or of another file")
        self._file, self._group, self._columns = file, groups[group], columns
        self._rows = integer(self._group, 3)
        self._chunks = structs(self._group, 1)
        wanted = [i for i, leaf in enumerate(described) if leaf.column in columns]
        there = {described[i].column for i in wanted}
        if len(described) != len(self._chunks) or len(there) < len(columns):
            raise ThriftError("a footer whose columns are not those of its schema")
        found = find_pages(
            file,
            [(described[i], self._chunks[i]) for i in wanted],
            n_rows=self._rows,
            limit=limit,
            walk=walk,
        )
        self._pages = dict(zip(wanted, found, strict=True))
        self._size = sum(pages.end - pages.begin for pages in found)

    def from_row(self, row: int, *, whole: Collection[int]) -> LateRows:
        """The file of the pages from the ones on that hold `row`; of the columns `whole` it has
        all pages."""
        numbers, first = self._begin(row, whole)
        joined = JoinedFile(self._file)
        joined.append(_MAGIC)
        chunks = list(self._chunks)
        valid = skipped = 0
        for i, pages in self._pages.items():
            number = numbers[i]
            check_page(self._file, pages, number, n_rows=self._rows)
            at = first[pages.leaf.column]
            chunks[i] = _late_chunk(joined, pages, number, at=at, n_rows=self._rows)
            valid = max(valid, pages.rows[number])
            skipped += pages.offsets[number] - pages.offsets[0]
        joined.append(self._footer_of(chunks))
        firsts = [first[column] for column in self._columns]
        return LateRows(joined, firsts, valid, skipped / max(1, self._size))

    def _begin(self, row: int, whole: Collection[int]) -> tuple[dict[int, int], dict[int, int]]:
        """The number of each leaf's first page, and the first row of each column."""
        numbers: dict[int, int] = {}
        first: dict[int, int] = {}
        for column in self._columns:
            own = {i: pages for i, pages in self._pages.items() if pages.leaf.column == column}
            apart = column not in whole and _can_begin_apart([x.leaf for x in own.values()])
            numbers |= {i: pages.holding(row) if apart else 0 for i, pages in own.items()}
            first[column] = min(pages.rows[numbers[i]] for i, pages in own.items())
        return numbers, first

    def _footer_of(self, chunks: list[Struct]) -> bytes:
        """A footer with one row group. It promises all rows: a column ends with its pages."""
        group = {key: value for key, value in self._group.items() if key not in (5, 6, 7)}
        group[1] = (LIST, (STRUCT, chunks))
        footer = write_struct({**self._footer, 4: (LIST, (STRUCT, [group]))})
        return footer + len(footer).to_bytes(4, "little") + _MAGIC


def _can_begin_apart(own: Sequence[Leaf]) -> bool:
    """Whether the leaves of a column may begin at different rows: nulls stand before the later
    ones, so each must be able to be null, and have a value a row."""
    return len(own) == 1 or all(x.max_definition and not x.max_repetition for x in own)


def _late_chunk(joined: JoinedFile, pages: Pages, number: int, *, at: int, n_rows: int) -> Struct:
    """Appends a leaf's pages from `number` on, after nulls for the rows from `at` up to them, and
    gives the ColumnChunk that describes them."""
    begin = joined.size
    column = {k: value for k, value in inner(pages.chunk, 3).items() if k not in {*_LEFT_OUT, 11}}
    has_dictionary = pages.needs_dictionary(number)
    if has_dictionary:
        joined.append_range(pages.begin, pages.offsets[0])
        column[11] = (I64, begin)
    column[9] = (I64, joined.size)
    missing = pages.rows[number] - at
    if missing:
        joined.append(_nulls(missing, _RLE_DICTIONARY if has_dictionary else _PLAIN))
    joined.append_range(pages.offsets[number], pages.end)
    if number and not pages.leaf.max_repetition:  # else nobody has counted: too many do no harm
        column[5] = (I64, n_rows - at)
    column[7] = (I64, joined.size - begin)
    return {2: (I64, begin), 3: (STRUCT, dict(sorted(column.items())))}


def _nulls(count: int, encoding: int) -> bytes:
    """A data page of so many nulls. Of version 2, whose levels are never compressed."""
    levels = varint(count << 1) + b"\0"
    head: Struct = {
        1: (I32, count),
        2: (I32, count),
        3: (I32, count),
        4: (I32, encoding),
        5: (I32, len(levels)),
        6: (I32, 0),
        7: (BOOL, False),
    }
    size = (I32, len(levels))
    return write_struct({1: (I32, _DATA_V2), 2: size, 3: size, 8: (STRUCT, head)}) + levels
