"""Token columns to arrays and back, the clock of a stage, the rows of a shard."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline import rows
from pipeline.stages.blocks import by_shard, tokens_array, tokens_of, with_seconds

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


def test_a_block_of_bad_rows_alone_and_one_of_no_rows():
    nothing = np.empty(0, np.uint16)
    assert tokens_array(nothing, N, valid=[False, False]).to_pylist() == [None, None]
    assert tokens_array(nothing, N, valid=[]).to_pylist() == []


def test_a_column_comes_back_as_the_array_it_was():
    whole = tokens(5)
    pieces = pa.chunked_array([tokens_array(whole[:2], N), tokens_array(whole[2:], N)])
    assert np.array_equal(tokens_of(pieces), whole)
    assert np.array_equal(tokens_of(pieces.slice(1, 3)), whole[1:4])  # an offset into the values


def test_good_rows_of_a_block_with_bad_ones_come_back():
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


def test_the_seconds_of_a_stage_add_up():
    block = with_seconds(pa.table({"row": range(7)}), "model", 2.5)
    # float32 keeps seven digits
    assert sum(block[rows.seconds_column("model")].to_pylist()) == pytest.approx(2.5, rel=1e-6)
    assert with_seconds(block.slice(0, 0), "write", 2.5).num_rows == 0


def test_short_shards_that_came_together_are_cut_apart():
    block = pa.table({rows.SHARD: pa.array([4, 4, 2, 7, 7, 7], pa.int32()), "row": range(6)})
    cut = [(part[rows.SHARD].to_pylist(), part["row"].to_pylist()) for part in by_shard(block)]
    assert cut == [([4, 4], [0, 1]), ([2], [2]), ([7, 7, 7], [3, 4, 5])]


def test_a_shard_by_itself_stays_whole():
    block = pa.table({rows.SHARD: pa.array([3, 3], pa.int32())})
    assert [part.num_rows for part in by_shard(block)] == [2]
