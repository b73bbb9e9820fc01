"""Structs of Thrift's compact protocol, in which Parquet writes what stands around its pages.

A struct is a dict from field id to (type, value), so that one that was read can be changed and
written again, unknown fields included. By type the values are: BOOL bool, BYTE to I64 int, DOUBLE
and UUID their bytes, BINARY bytes, LIST and SET (type of the elements, list), MAP (type of the
keys, of the values, list of pairs), STRUCT dict.
"""

from collections.abc import Callable
from typing import Any

BOOL, _FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = range(1, 14)

Struct = dict[int, tuple[int, Any]]

_FIXED = {DOUBLE: 8, UUID: 16}
# Parquet nests its structs six deep. The bound keeps a file from ending the process by recursion.
_DEPTH = 24
_VARINT_BITS = 70


class ThriftError(Exception):
    """Bytes that are no struct, or not the one expected."""


class Truncated(ThriftError):
    """The struct goes on after the bytes given."""


def read_struct(payload: bytes, start: int = 0) -> tuple[Struct, int]:
    """The struct that begins at `start`, and the place after it.

    No length is believed before the bytes are there, so what is held never grows beyond a constant
    for each byte given. Raises ThriftError.
    """
    reader = _Reader(payload, start)
    return reader.struct(_DEPTH), reader.at


class _Reader:
    def __init__(self, payload: bytes, at: int) -> None:
        self._payload = payload
        self.at = at

    def struct(self, depth: int) -> Struct:
        if depth == 0:
            raise ThriftError("nested too deep")
        found: Struct = {}
        field = 0
        while head := self._byte():
            delta, type_ = head >> 4, head & 15
            field = field + delta if delta else self._signed()
            value = type_ == BOOL if type_ <= _FALSE else self._value(type_, depth)
            found[field] = (BOOL if type_ == _FALSE else type_, value)
        return found

    def _value(self, type_: int, depth: int) -> Any:
        if type_ in (I16, I32, I64):
            return self._signed()
        if type_ == BINARY:
            return self._bytes(self._varint())
        if type_ == STRUCT:
            return self.struct(depth - 1)
        if type_ in (LIST, SET):
            return self._list(depth - 1)
        if type_ == BYTE:
            return self._byte()
        if type_ in (BOOL, _FALSE):  # as an element; as a field its type is its value
            return self._byte() == BOOL
        if type_ in _FIXED:
            return self._bytes(_FIXED[type_])
        if type_ == MAP:
            return self._map(depth - 1)
        raise ThriftError(f"unknown type {type_}")

    def _list(self, depth: int) -> tuple[int, list[Any]]:
        head = self._byte()
        size, type_ = head >> 4, head & 15
        size = self._size(self._varint() if size == 15 else size, depth)
        return type_, [self._value(type_, depth) for _ in range(size)]

    def _map(self, depth: int) -> tuple[int, int, list[tuple[Any, Any]]]:
        size = self._size(self._varint(), depth)
        types = self._byte() if size else 0
        key, value = types >> 4, types & 15
        pairs = [(self._value(key, depth), self._value(value, depth)) for _ in range(size)]
        return key, value, pairs

    def _size(self, size: int, depth: int) -> int:
        """The number of elements, each of which takes a byte at least."""
        if depth == 0:
            raise ThriftError("nested too deep")
        if size > len(self._payload) - self.at:
            raise Truncated(f"{size} elements")
        return size

    def _byte(self) -> int:
        if self.at >= len(self._payload):
            raise Truncated("no end of the struct")
        self.at += 1
        return self._payload[self.at - 1]

    def _bytes(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._payload):
            raise Truncated(f"{size} bytes")
        self.at, start = end, self.at
        return self._payload[start:end]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift >= _VARINT_BITS:
                raise ThriftError("a number without end")
        return value | byte << shift

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def varint(value: int) -> bytes:
    """A number from 0 up in 7 bits a byte, the low ones first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_struct(struct: Struct) -> bytes:
    """The bytes of a struct, its fields in the order of the dict."""
    out = bytearray()
    _put_struct(out, struct)
    return bytes(out)


def _signed(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _put_struct(out: bytearray, struct: Struct) -> None:
    before = 0
    for field, (type_, value) in struct.items():
        code = _FALSE if type_ == BOOL and not value else type_
        if 0 < field - before <= 15:
            out.append((field - before) << 4 | code)
        else:
            out.append(code)
            out += _signed(field)
        before = field
        if type_ != BOOL:
            _put(out, type_, value)
    out.append(0)


def _put_list(out: bytearray, value: tuple[int, list[Any]]) -> None:
    type_, elements = value
    if len(elements) < 15:
        out.append(len(elements) << 4 | type_)
    else:
        out.append(0xF0 | type_)
        out += varint(len(elements))
    for element in elements:
        _put(out, type_, element)


def _put_map(out: bytearray, value: tuple[int, int, list[tuple[Any, Any]]]) -> None:
    key_type, value_type, pairs = value
    out += varint(len(pairs))
    if pairs:
        out.append(key_type << 4 | value_type)
    for key, element in pairs:
        _put(out, key_type, key)
        _put(out, value_type, element)


def _put_binary(out: bytearray, value: bytes) -> None:
    out += varint(len(value))
    out += value


_PUT: dict[int, Callable[[bytearray, Any], None]] = {
    STRUCT: _put_struct,
    LIST: _put_list,
    SET: _put_list,
    MAP: _put_map,
    BINARY: _put_binary,
}


def _put(out: bytearray, type_: int, value: Any) -> None:
    if type_ in _PUT:
        _PUT[type_](out, value)
    elif type_ in (BOOL, _FALSE):
        out.append(BOOL if value else _FALSE)
    elif type_ == BYTE:
        out.append(value)
    elif type_ in _FIXED:
        out += value
    else:
        out += _signed(value)


def integer(struct: Struct, field: int) -> int:
    """A whole number of a struct. Raises ThriftError where there is none."""
    value = _of_type(struct, field, int)
    if isinstance(value, bool):
        raise ThriftError(f"field {field} holds no number")
    return int(value)


def structs(struct: Struct, field: int) -> list[Struct]:
    """A list of structs in a struct. Raises ThriftError where there is none."""
    value = _of_type(struct, field, tuple)
    if len(value) != 2 or value[0] != STRUCT:
        raise ThriftError(f"field {field} holds no structs")
    return list(value[1])


def inner(struct: Struct, field: int) -> Struct:
    """A struct in a struct. Raises ThriftError where there is none."""
    return dict(_of_type(struct, field, dict))


def _of_type(struct: Struct, field: int, kind: type) -> Any:
    value = struct.get(field, (0, None))[1]
    if not isinstance(value, kind):
        raise ThriftError(f"field {field} is missing or of another type")
    return value
