"""Blocks between stages: token columns to arrays and back, the clock, the rows of a shard."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import rows


def tokens_array(
    tokens: NDArray[np.uint16], n_positions: int, *, valid: Sequence[bool] | None = None
) -> pa.FixedSizeListArray:
    """A column of `tokens_type(n_positions)`, without copying where every row is valid.

    Args:
        tokens: flat, n_positions for each valid row.
        valid: false for the rows that have none (null); all are valid where None.
    """
    kind = rows.tokens_type(n_positions)
    if valid is None or all(valid):
        return pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), type=kind)
    mask = np.asarray(valid)
    filled = np.zeros((len(mask), n_positions), np.uint16)
    filled[mask] = tokens.reshape(-1, n_positions)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(filled.reshape(-1)), type=kind, mask=pa.array(~mask)
    )


def tokens_of(column: pa.ChunkedArray) -> NDArray[np.uint16]:
    """(rows, n_positions) uint16, read-only, of a column of tokens without nulls."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows, so no chunk
        return np.empty((0, column.type.list_size), np.uint16)
    return array.flatten().to_numpy().reshape(-1, column.type.list_size)  # type: ignore[no-any-return]


def bits_of(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(rows, n) bool of a column of fixed-size lists of bool without nulls."""
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return flat.astype(bool).reshape(-1, column.type.list_size)  # type: ignore[no-any-return]


def score_arrays(nll: NDArray[np.float32]) -> dict[str, pa.Array]:
    """The columns that say how likely images are, of their nats per pixel (N,)."""
    bits = (nll.astype(np.float64) / np.log(2)).astype(np.float32)
    return {rows.NLL: pa.array(nll), rows.BITS_PER_PIXEL: pa.array(bits)}


def with_seconds(block: pa.Table, stage: str, seconds: float) -> pa.Table:
    """The block with each row's share of the seconds that a stage spent on it."""
    share = np.full(block.num_rows, seconds / max(block.num_rows, 1), np.float32)
    return block.append_column(rows.seconds_column(stage), pa.array(share))


def by_shard(block: pa.Table) -> Iterator[pa.Table]:
    """The block cut into runs of rows of one shard: Ray may put two short shards together."""
    shards = block[rows.SHARD].to_numpy()
    edges = np.flatnonzero(np.diff(shards)) + 1
    for start, stop in zip([0, *edges], [*edges, len(shards)], strict=True):
        yield block.slice(start, stop - start)
