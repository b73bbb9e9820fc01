"""Token columns to arrays and back, and what a block says of its shard."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline import rows
from pipeline.stages.blocks import (
    ShardMetadata,
    shard_metadata,
    tokens_array,
    tokens_of,
    with_seconds,
    with_shard_metadata,
)

N = 4  # positions of an image


def tokens(n_rows: int) -> np.ndarray:
    return np.arange(n_rows * N, dtype=np.uint16).reshape(n_rows, N)


def test_tokens_become_a_column_without_copying():
    given = tokens(3)
    array = tokens_array(given, N)
    assert array.type == rows.tokens_type(N)
    assert array.to_pylist() == given.tolist()
    assert array.values.buffers()[1].address == given.ctypes.data


@pytest.mark.parametrize("valid", [[True, False, True], [False, True, True], [True, True, False]])
def test_rows_without_tokens_are_null_and_move_no_other(valid):
    given = tokens(2)
    waiting = iter(given.tolist())
    expected = [next(waiting) if is_valid else None for is_valid in valid]
    assert tokens_array(given, N, valid=valid).to_pylist() == expected


def test_a_block_of_failed_rows_alone_and_one_of_no_rows():
    nothing = np.empty(0, np.uint16)
    assert tokens_array(nothing, N, valid=[False, False]).to_pylist() == [None, None]
    assert tokens_array(nothing, N, valid=[]).to_pylist() == []


def test_a_column_comes_back_as_the_array_it_was():
    whole = tokens(5)
    column = pa.chunked_array([tokens_array(whole[:2], N), tokens_array(whole[2:], N)])
    assert np.array_equal(tokens_of(column), whole)
    assert np.array_equal(tokens_of(column.slice(1, 3)), whole[1:4])  # an offset into the values


def test_good_rows_of_a_block_with_failed_ones_come_back():
    """Under a null there are N values that are nobody's."""
    given = tokens(2)
    column = tokens_array(given, N, valid=[True, False, True])
    table = pa.table({"tokens": column})
    good = table.filter(table["tokens"].is_valid())
    assert np.array_equal(tokens_of(good["tokens"]), given)


@pytest.mark.parametrize("chunks", [[], [tokens_array(np.empty(0, np.uint16), N)]])
def test_a_column_of_no_rows_keeps_its_width(chunks):
    found = tokens_of(pa.chunked_array(chunks, type=rows.tokens_type(N)))
    assert found.shape == (0, N)
    assert found.dtype == np.uint16


def test_the_shard_of_a_block_survives_what_stages_do_and_gathers_their_seconds():
    block = with_shard_metadata(
        pa.table({"row": range(7)}), ShardMetadata(3, rows=7, seconds={"read": 1.5, "decode": 0.25})
    )
    block = block.filter(pa.array([True, False] * 3 + [True])).append_column("more", [[0] * 4])
    block = with_seconds(block.take(pa.array([3, 0])).slice(1), "model", 2.5)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, block.schema) as writer:  # as it travels between actors
        writer.write_table(block)
    found = shard_metadata(pa.ipc.open_stream(stream.getvalue()).read_all())
    assert found == ShardMetadata(3, 7, {"read": 1.5, "decode": 0.25, "model": 2.5})


def test_a_block_of_a_users_dataset_stays_as_it_is():
    block = pa.table({"row": range(7)}).replace_schema_metadata({"theirs": "x"})
    assert with_seconds(block, "model", 2.5).equals(block, check_metadata=True)
