"""Where the pages of a Parquet row group begin, in rows and in bytes.

The writer's offset index says so, where it left one. In a local file the pages' headers do; in an
object store each of them would cost a request, so there a column without an index counts as one
long page.
"""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.page_headers import Leaf, count_rows, read_header
from pipeline.thrift import Struct, ThriftError, inner, integer, read_struct, structs

_INDEX_BYTES = 16 << 20
# A header costs here what Arrow takes to decode about so many bytes of pages.
_WALK_BYTES, _WALK_PAGES = 4 << 10, 1000
_REPEATED = 2

_Places = tuple[Sequence[int], Sequence[int], int]  # rows, offsets, plain


@dataclass(frozen=True)
class Pages:
    """A leaf's pages in a row group: from `begin` to `end` in the file lie its dictionary, if there
    is one, and its data pages, whose first rows and places are `rows` and `offsets`. From the page
    `plain` on none needs the dictionary."""

    leaf: Leaf
    chunk: Struct
    begin: int
    end: int
    rows: Sequence[int]
    offsets: Sequence[int]
    plain: int

    def holding(self, row: int) -> int:
        """The number of the page that holds a row."""
        return bisect_right(self.rows, row) - 1

    def needs_dictionary(self, number: int) -> bool:
        """Whether there is a dictionary, and a page from `number` on that may need it."""
        return number < self.plain and self.begin < self.offsets[0]


def leaves(footer: Struct) -> list[Leaf]:
    """The leaves of a footer's schema, in the order of the columns of its row groups. Raises
    ThriftError where the schema is no tree."""
    elements = structs(footer, 2)
    # Of each group that is open: children left to come, and the levels down to it.
    open_: list[list[int]] = [[integer(elements[0], 5), 0, 0]] if elements else []
    found: list[Leaf] = []
    column = -1
    for element in elements[1:]:
        while open_ and open_[-1][0] == 0:
            open_.pop()
        if not open_:
            raise ThriftError("elements after the end of the schema")
        column += len(open_) == 1
        open_[-1][0] -= 1
        kind = integer(element, 3)
        definition = open_[-1][1] + (kind != 0)
        repetition = open_[-1][2] + (kind == _REPEATED)
        if 5 in element and integer(element, 5) > 0:
            open_.append([integer(element, 5), definition, repetition])
        else:
            found.append(Leaf(column, definition, repetition))
    if any(left for left, *_ in open_):
        raise ThriftError("a schema that ends early")
    return found


def find_pages(
    file: Any, wanted: Sequence[tuple[Leaf, Struct]], *, n_rows: int, limit: int, walk: bool
) -> list[Pages]:
    """The pages of the wanted leaves, each given with its ColumnChunk, of a group of `n_rows`; the
    footer begins at `limit`. Raises ThriftError where the file is not what its footer says."""
    spans = [_span(chunk, limit) for _, chunk in wanted]
    indexes = _read_indexes(file, [chunk for _, chunk in wanted], limit)
    found = []
    for (leaf, chunk), span, index in zip(wanted, spans, indexes, strict=True):
        places = None
        if index is not None:
            places = _of_index(index, span, n_rows)
        elif walk:
            places = _walk(file, leaf, span, n_rows)
        rows, offsets, plain = places or ([0], [span[0]], 1)
        found.append(Pages(leaf, chunk, *span, rows, offsets, plain))
    return found


def _span(chunk: Struct, limit: int) -> tuple[int, int]:
    """Where a column chunk begins and ends."""
    column = inner(chunk, 3)
    if chunk.keys() & {1, 8, 9}:
        raise ThriftError("a column that is encrypted or lies in another file")
    begin = integer(column, 9)
    if 11 in column and 0 < integer(column, 11) < begin:
        begin = integer(column, 11)
    end = begin + integer(column, 7)
    if not 4 <= begin <= end <= limit:
        raise ThriftError("a column that leaves its file")
    return begin, end


def _read_indexes(file: Any, chunks: Sequence[Struct], limit: int) -> list[list[Struct] | None]:
    """The offset index of each chunk that has one, by one request: those of a group lie
    together."""
    ranges = [
        (integer(chunk, 4), integer(chunk, 4) + integer(chunk, 5)) if 4 in chunk else None
        for chunk in chunks
    ]
    there = [place for place in ranges if place is not None]
    if not there:
        return [None] * len(chunks)
    begin, end = min(start for start, _ in there), max(stop for _, stop in there)
    if not 0 <= begin <= end <= limit or end - begin > _INDEX_BYTES:
        raise ThriftError("indexes far apart, or outside their file")
    file.seek(begin)
    payload = file.read(end - begin)
    return [
        None if place is None else structs(read_struct(payload, place[0] - begin)[0], 1)
        for place in ranges
    ]


def _of_index(index: Sequence[Struct], span: tuple[int, int], n_rows: int) -> _Places:
    """It does not tell how pages are encoded."""
    rows = [integer(place, 3) for place in index]
    offsets = [integer(place, 1) for place in index]
    ends = [offset + integer(place, 2) for offset, place in zip(offsets, index, strict=True)]
    if not index or rows[0] != 0 or offsets[0] < span[0] or ends[-1] != span[1]:
        raise ThriftError("an index of other pages")
    ascend = all(a <= b for a, b in zip(rows, [*rows[1:], n_rows], strict=True))
    if ends[:-1] != offsets[1:] or not ascend:
        raise ThriftError("an index that is out of order")
    return rows, offsets, len(rows)


def _walk(file: Any, leaf: Leaf, span: tuple[int, int], n_rows: int) -> _Places | None:
    """The same from the headers of all pages, which must add up to the group's rows. None where
    headers do not tell rows, or where pages are so small that decoding them is no slower."""
    rows, offsets = array("q"), array("q")
    at, end = span
    row = plain = 0
    while at < end:
        header = read_header(file, at, end)
        if not (header.is_dictionary and at == span[0]):
            count = header.rows(leaf)
            if count is None:
                return None
            rows.append(row)
            offsets.append(at)
            row += count
            plain = len(rows) if header.uses_dictionary else plain
        at += header.size
        if len(rows) > _WALK_PAGES + (at - span[0]) // _WALK_BYTES:
            return None
    if row != n_rows:
        raise ThriftError(f"{row} rows in a group of {n_rows}")
    return (rows, offsets, plain) if rows else None


def check_page(file: Any, pages: Pages, number: int, *, n_rows: int) -> None:
    """Raises ThriftError unless the page and the dictionary lie where they were said to, the page
    with as many rows. An index is a second account of the file, and no checksum covers it."""
    if number == 0:
        return
    row, offset = pages.rows[number], pages.offsets[number]
    is_last = number == len(pages.rows) - 1
    next_row = n_rows if is_last else pages.rows[number + 1]
    next_offset = pages.end if is_last else pages.offsets[number + 1]
    header = read_header(file, offset, pages.end)
    rows = header.rows(pages.leaf)
    if rows is None:
        rows = count_rows(file, header, pages.leaf, integer(inner(pages.chunk, 3), 4))
    if (rows, header.size) != (next_row - row, next_offset - offset):
        raise ThriftError("an index of other pages")
    if pages.needs_dictionary(number):
        dictionary = read_header(file, pages.begin, pages.offsets[0])
        if not dictionary.is_dictionary or pages.begin + dictionary.size != pages.offsets[0]:
            raise ThriftError("a column that begins with something else than its dictionary")
