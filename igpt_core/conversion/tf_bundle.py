"""TensorFlow checkpoints (format V2, "tensor bundles"), read without TensorFlow.

A checkpoint is `PREFIX.index`, a sorted table in LevelDB's format from names to where tensors lie,
and data files `PREFIX.data-00000-of-0000N` that hold their bytes. Formats: LevelDB's
doc/table_format.md, TensorFlow's tensor_bundle.proto. Nothing that a file says is believed before
it is held against the file's size; table blocks and tensors carry checksums, which are verified.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from igpt_core.errors import CheckpointError

_FOOTER_SIZE = 48
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_MAX_VARINT = 10  # bytes of a 64-bit number

# TensorFlow's numbers of dtypes (types.proto): what weights are stored in.
_FLOATS = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, as the index says; its dtype is None where that is no float."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  # bytes
    checksum: int  # masked CRC-32C
    sliced: bool  # a partitioned variable: its parts have entries of their own


@dataclass(frozen=True)
class Index:
    """The tensors of a checkpoint by name, and the number of its data files."""

    n_shards: int
    entries: dict[str, Entry]


class _Damaged(Exception):
    """A file that is not as its format demands; said without its name."""


def data_name(prefix: str, shard: int, n_shards: int) -> str:
    """Returns the name of a data file."""
    return f"{prefix}.data-{shard:05d}-of-{n_shards:05d}"


def read_index(file: Path, *, where: str) -> Index:
    """Reads which tensors a checkpoint holds; their data is not touched.

    Raises CheckpointError, which starts with `where`, for a file that is no index, or a damaged
    one.
    """
    try:
        table = file.read_bytes()
        rows = dict(_rows(table))
        header = rows.pop(b"", None)
        if header is None:
            raise _Damaged("it has no header")
        n_shards = _n_shards(header)
        entries = {}
        for key, value in rows.items():
            entry = _entry(value)
            if not entry.sliced and entry.shard >= n_shards:
                raise _Damaged(f"a tensor lies in data file {entry.shard} of {n_shards}")
            # The parts of a sliced tensor have names that are no text.
            entries[key.decode(errors="backslashreplace")] = entry
    except (OSError, _Damaged) as error:
        raise CheckpointError(f"{where}: {file.name} is damaged or cut short: {error}") from error
    return Index(n_shards, entries)


def read_tensor(name: str, entry: Entry, file: Path, *, where: str) -> Tensor:
    """Reads a tensor, in the dtype that it is stored in.

    Args:
        file: the data file `entry.shard`.

    Raises CheckpointError, which starts with `where`, for a sliced tensor, one that is no float,
    or a damaged file.
    """
    if entry.sliced:
        raise CheckpointError(f"{where}: {name} is stored in slices, which are not read")
    if entry.dtype is None:
        raise CheckpointError(f"{where}: {name} is not of a float dtype")
    try:
        if entry.size != prod(entry.shape) * entry.dtype.itemsize:
            raise _Damaged(f"{entry.size} bytes for shape {entry.shape} in {entry.dtype}")
        if entry.offset + entry.size > file.stat().st_size:  # before memory is taken for it
            raise _Damaged(f"it ends at {file.stat().st_size} of {entry.offset + entry.size} bytes")
        with open(file, "rb") as stored:
            stored.seek(entry.offset)
            content = stored.read(entry.size)
        if masked_crc32c(content) != entry.checksum:
            raise _Damaged("its checksum is wrong")
    except (OSError, _Damaged) as error:
        raise CheckpointError(
            f"{where}: {name} in {file.name} is damaged or cut short: {error}"
        ) from error
    if not entry.size:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(bytearray(content), dtype=entry.dtype).reshape(entry.shape)


def masked_crc32c(content: bytes) -> int:
    """Computes the checksum that LevelDB and TensorFlow store: CRC-32C, rotated right by 15 bits,
    plus a constant, so that bytes which hold checksums get a sound one too (leveldb/util/crc32c.h).

    Raises CheckpointError where google-crc32c is not installed.
    """
    try:
        from google_crc32c import value
    except ImportError as error:
        raise CheckpointError(
            "the checksums of TensorFlow checkpoints are verified with google-crc32c: "
            "pip install 'igpt[openai]'"
        ) from error
    crc: int = value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class _Bytes:
    """Bytes that are read from the front; reading past the end raises _Damaged."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def __bool__(self) -> bool:
        return self._at < len(self._content)

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._content):
            raise _Damaged("a length leads past the end")
        return self._content[start : self._at]

    def varint(self) -> int:
        value = 0
        for position in range(_MAX_VARINT):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                return value
        raise _Damaged("a number has no end")


def _rows(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields key and value of each row of a table, in order."""
    if len(table) < _FOOTER_SIZE or table[-len(_MAGIC) :] != _MAGIC:
        raise _Damaged("it does not end like a TensorFlow index")
    footer = _Bytes(table[-_FOOTER_SIZE:])
    _handle(footer)  # of a block of statistics, which TensorFlow leaves empty
    last = b""
    for _, place in _block_rows(table, *_handle(footer)):
        for key, value in _block_rows(table, *_handle(_Bytes(place))):
            if last and key <= last:
                raise _Damaged("its names are out of order")
            last = key
            yield key, value


def _handle(content: _Bytes) -> tuple[int, int]:
    """Reads offset and size of a block."""
    return content.varint(), content.varint()


def _block_rows(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the rows of a block. Behind them come the restart points, for jumps, and their number;
    behind the block its kind (a byte) and its checksum."""
    end = offset + size
    if end + 5 > len(table) - _FOOTER_SIZE:
        raise _Damaged("a block lies beyond the end")
    if masked_crc32c(table[offset : end + 1]) != int.from_bytes(table[end + 1 : end + 5], "little"):
        raise _Damaged("the checksum of a block is wrong")
    if table[end] != 0:
        raise _Damaged(f"a block is compressed (kind {table[end]}), as TensorFlow never writes it")
    n_restarts = int.from_bytes(table[max(offset, end - 4) : end], "little")
    if size < 4 or 4 * n_restarts + 4 > size:
        raise _Damaged("a block has no room for its restart points")
    rows = _Bytes(table[offset : end - 4 - 4 * n_restarts])
    key = b""
    while rows:
        shared, n_new, n_value = rows.varint(), rows.varint(), rows.varint()
        if shared > len(key):
            raise _Damaged("a name begins like a longer one before it")
        key = key[:shared] + rows.take(n_new)
        yield key, rows.take(n_value)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field of a protobuf message."""
    content = _Bytes(message)
    while content:
        key = content.varint()
        if key & 7 == 0:
            yield key >> 3, content.varint()
        elif key & 7 == 1:
            yield key >> 3, int.from_bytes(content.take(8), "little")
        elif key & 7 == 2:
            yield key >> 3, content.take(content.varint())
        elif key & 7 == 5:
            yield key >> 3, int.from_bytes(content.take(4), "little")
        else:
            raise _Damaged(f"a field of unknown kind {key & 7}")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _Damaged("text in place of a number")
    return value


def _text(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _Damaged("a number in place of a message")
    return value


def _n_shards(header: bytes) -> int:
    """Reads num_shards = 1 of a BundleHeaderProto, in which endianness = 2 (0: little)."""
    fields = dict(_fields(header))
    if fields.get(2, 0) != 0:
        raise _Damaged("its data is big-endian, which is not read")
    return _number(fields.get(1, 0))


def _entry(message: bytes) -> Entry:
    """Reads a BundleEntryProto: dtype = 1, shape = 2, shard_id = 3, offset = 4, size = 5,
    crc32c = 6, slices = 7."""
    fields = dict(_fields(message))
    numbers = [_number(fields.get(number, 0)) for number in (1, 3, 4, 5, 6)]
    dtype, shard, offset, size, checksum = numbers
    shape = _shape(_text(fields.get(2, b"")))
    return Entry(_FLOATS.get(dtype), shape, shard, offset, size, checksum, sliced=7 in fields)


def _shape(message: bytes) -> tuple[int, ...]:
    """Reads a TensorShapeProto: dim = 2, repeated, each with size = 1."""
    dims = [_text(value) for number, value in _fields(message) if number == 2]
    return tuple(_number(dict(_fields(dim)).get(1, 0)) for dim in dims)
