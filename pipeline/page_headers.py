"""Headers of Parquet pages: how large a page is, and how many rows it begins."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.thrift import Struct, ThriftError, Truncated, inner, integer, read_struct

# Nearly all headers fit the first; Parquet's readers give up beyond the last.
_HEADER_BYTES = (512, 64 << 10, 16 << 20)
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_RLE = 3
_DICTIONARY_ENCODINGS = {2, 8}
_PAGE_BYTES = 256 << 20  # of a page opened here to count its rows
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


@dataclass(frozen=True)
class Leaf:
    """A column that holds values: `column` is the one of the table that it belongs to, the levels
    are how often a value can be absent and be repeated on the way to it."""

    column: int
    max_definition: int
    max_repetition: int


@dataclass(frozen=True)
class PageHeader:
    """`size` is that of header and page, `begin` where the page goes on after its header."""

    begin: int
    size: int
    fields: Struct

    @property
    def is_dictionary(self) -> bool:
        return integer(self.fields, 1) == _DICTIONARY

    def rows(self, leaf: Leaf) -> int | None:
        """The rows of a data page. None where only its repetition levels say so; see
        `count_rows`. Raises ThriftError for a page of another kind."""
        kind = integer(self.fields, 1)
        if kind not in (_DATA, _DATA_V2):
            raise ThriftError(f"a page of kind {kind} among those of data")
        head = inner(self.fields, 5 if kind == _DATA else 8)
        if leaf.max_repetition == 0:  # a value a row
            return _count(head, 1)
        return None if kind == _DATA else _count(head, 3)

    @property
    def uses_dictionary(self) -> bool:
        """Whether the values of a data page are numbers in its column's dictionary."""
        struct, field = (5, 2) if integer(self.fields, 1) == _DATA else (8, 4)
        return integer(inner(self.fields, struct), field) in _DICTIONARY_ENCODINGS


def _count(struct: Struct, field: int) -> int:
    count = integer(struct, field)
    if not 0 <= count < 1 << 31:
        raise ThriftError(f"{count} rows in a page")
    return count


def read_header(file: Any, offset: int, end: int) -> PageHeader:
    """The header at `offset` of a file, of a page that ends at `end` at the latest. Raises
    ThriftError where there is none."""
    for limit in _HEADER_BYTES:
        file.seek(offset)
        head = file.read(min(limit, end - offset))
        try:
            fields, length = read_struct(head)
            break
        except Truncated:
            if len(head) < limit:
                raise
    else:
        raise ThriftError("a header without end")
    size = integer(fields, 3)
    if size < 0 or offset + length + size > end:
        raise ThriftError("a page that leaves its column")
    return PageHeader(offset + length, length + size, fields)


def count_rows(file: Any, header: PageHeader, leaf: Leaf, codec: int) -> int:
    """The rows of a data page of version 1 of a repeated column: of its repetition levels, each
    zero begins a row. Raises ThriftError where it begins within a row, or cannot be opened."""
    size = integer(header.fields, 2)
    if not 0 <= size <= _PAGE_BYTES or integer(inner(header.fields, 5), 4) != _RLE:
        raise ThriftError("a page that is not opened here")
    file.seek(header.begin)
    page = file.read(integer(header.fields, 3))
    if codec:
        if codec not in _CODECS:
            raise ThriftError(f"unknown codec {codec}")
        try:
            page = pa.Codec(_CODECS[codec]).decompress(page, size, asbytes=True)
        except (OSError, pa.ArrowException) as error:
            raise ThriftError("a page that cannot be decompressed") from error
    length = int.from_bytes(page[:4], "little")
    count = _count(inner(header.fields, 5), 1)
    return _zeros(page[4 : 4 + length], count, leaf.max_repetition.bit_length())


def _zeros(levels: bytes, count: int, width: int) -> int:
    """How many of `count` levels are zero, the first among them; they stand in Parquet's hybrid of
    runs and packed bits, `width` bits each."""
    found = at = have = 0
    while have < count:
        head, at = _varint(levels, at)
        size = (head >> 1) * width if head & 1 else (width + 7) // 8
        piece = levels[at : at + size]
        n = min((head >> 1) * 8 if head & 1 else head >> 1, count - have)
        if not n or len(piece) < size:
            raise ThriftError("levels that end early")
        if head & 1:
            bits = np.unpackbits(np.frombuffer(piece, np.uint8), bitorder="little")
            is_zero = bits.reshape(-1, width)[:n].max(axis=1) == 0
            first, zeros = bool(is_zero[0]), int(np.count_nonzero(is_zero))
        else:
            first = not any(piece)
            zeros = n * first
        if have == 0 and not first:
            raise ThriftError("a page that begins within a row")
        found, at, have = found + zeros, at + size, have + n
    return found


def _varint(payload: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(payload) and shift < 35:
        byte = payload[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ThriftError("levels that end early")
