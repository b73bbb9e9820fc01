"""Structs of Thrift's compact protocol: read, written again, refused where they are hostile."""

import io
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import thrift
from pipeline.thrift import ThriftError, Truncated, read_struct, varint, write_struct


def footer_of(**options):
    file = io.BytesIO()
    frame = pa.table({f"column {i}": [[i, None], []] for i in range(20)})
    pq.write_table(frame, file, row_group_size=1, **options)
    size = pq.read_metadata(file).serialized_size
    return file.getvalue()[-8 - size : -8]


@pytest.mark.parametrize("options", [{}, {"write_page_index": True, "write_statistics": False}])
def test_a_footer_is_written_as_it_was_read(options):
    footer = footer_of(**options)
    struct, end = read_struct(footer)
    assert end == len(footer)
    assert struct[3] == (thrift.I64, 2)
    assert len(thrift.structs(struct, 4)) == 2
    assert write_struct(struct) == footer


def random_value(random, type_, depth):
    bits = int(random.integers(1, 63))
    if type_ == thrift.BOOL:
        return bool(random.integers(2))
    if type_ == thrift.BYTE:
        return int(random.integers(256))
    if type_ in (thrift.I16, thrift.I32, thrift.I64):
        return int(random.integers(-(1 << bits), 1 << bits))
    if type_ in (thrift.DOUBLE, thrift.UUID):
        return random.bytes(8 if type_ == thrift.DOUBLE else 16)
    if type_ == thrift.BINARY:
        return random.bytes(int(random.integers(200)))
    if type_ == thrift.STRUCT:
        return random_struct(random, depth - 1)
    inner, other = random_types(random, depth, 2)
    n = int(random.integers(20))
    if type_ == thrift.MAP:
        if n == 0:
            return 0, 0, []
        pairs = [(random_value(random, inner, depth - 1), n) for _ in range(n)]
        return inner, thrift.I32, pairs
    return other, [random_value(random, other, depth - 1) for _ in range(n)]


def random_types(random, depth, n):
    types = [t for t in range(1, 14) if t != 2 and (depth > 0 or t not in (9, 10, 11, 12))]
    return [int(t) for t in random.choice(types, n)]


def random_struct(random, depth):
    fields = random.choice(1000, int(random.integers(6)), replace=False)
    types = random_types(random, depth, len(fields))
    return {
        int(field): (type_, random_value(random, type_, depth))
        for field, type_ in zip(fields, types, strict=True)
    }


def test_any_struct_is_read_as_it_was_written():
    seen = set()
    for seed in range(300):
        struct = random_struct(np.random.default_rng(seed), 3)
        payload = write_struct(struct)
        assert read_struct(b"before" + payload + b"after", 6) == (struct, 6 + len(payload))
        seen |= {type_ for type_, _ in struct.values()}
    assert seen == set(range(1, 14)) - {2}


def test_a_struct_that_ends_early_is_told_from_a_wrong_one():
    footer = footer_of()
    for end in range(0, len(footer), 101):
        with pytest.raises(Truncated):
            read_struct(footer[:end])


LARGE = varint(1 << 40)
HOSTILE = {
    "long text": b"\x18" + LARGE + b"x" * 100,
    "long list": b"\x19\xf6" + LARGE + b"\0" * 100,
    "long list of structs": b"\x19\xfc" + LARGE + b"\0" * 100,
    "long map": b"\x1b" + LARGE + b"\x55" + b"\0" * 100,
    "long list of lists": b"\x19\xf9" + LARGE + (b"\xf9" + LARGE) * 100,
    "list of nothing": b"\x19\xf0" + varint(100) + b"\0" * 200,
    "deep structs": b"\x1c" * 100_000,
    "deep lists": b"\x19" + b"\x19" * 100_000,
    "deep maps": b"\x1b" + b"\x01\xbb" * 100_000,
    "number without end": b"\x16" + b"\xff" * 100_000,
    "unknown type": b"\x1f\0",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_take_neither_memory_nor_the_process(case):
    tracemalloc.start()
    try:
        with pytest.raises(ThriftError):
            read_struct(HOSTILE[case])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_random_bytes_give_a_struct_or_an_error():
    read = 0
    for seed in range(3000):
        try:
            read_struct(np.random.default_rng(seed).bytes(60))
            read += 1
        except ThriftError:
            pass
    assert 0 < read < 3000


def test_fields_are_of_the_type_asked_for():
    struct = {1: (thrift.BINARY, b"x"), 2: (thrift.BOOL, True), 3: (thrift.LIST, (thrift.I32, [1]))}
    for field in (1, 2, 3, 4):
        for get in (thrift.integer, thrift.inner, thrift.structs):
            with pytest.raises(ThriftError):
                get(struct, field)
