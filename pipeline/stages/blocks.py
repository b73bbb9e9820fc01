"""Blocks between stages: token columns to arrays and back, and which shard a block holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import rows

_SHARD_KEY = b"igpt_shard"


@dataclass(frozen=True)
class ShardMetadata:
    """What a block says of its shard, in the metadata of its schema: Arrow keeps that where rows
    are filtered and columns added.

    Attributes:
        index: of the shard.
        rows: that the whole shard has, failed ones included.
        seconds: that each stage has spent on it so far.
        squashed: images far from square that were squashed to squares.
    """

    index: int
    rows: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    squashed: int = 0


def with_shard_metadata(block: pa.Table, shard: ShardMetadata) -> pa.Table:
    """Returns the block with this metadata in place of any other."""
    return block.replace_schema_metadata({_SHARD_KEY: json.dumps(asdict(shard))})


def shard_metadata(block: pa.Table) -> ShardMetadata:
    """Reads the metadata of a block. Raises KeyError for one of a user's dataset, without any."""
    return ShardMetadata(**json.loads((block.schema.metadata or {})[_SHARD_KEY]))


def with_seconds(block: pa.Table, stage: str, seconds: float) -> pa.Table:
    """Notes the seconds that a stage spent on a block; one of a user's dataset stays as it is."""
    if _SHARD_KEY not in (block.schema.metadata or {}):
        return block
    shard = shard_metadata(block)
    return with_shard_metadata(block, replace(shard, seconds={**shard.seconds, stage: seconds}))


def tokens_array(
    tokens: NDArray[np.uint16], n_positions: int, *, valid: Sequence[bool] | None = None
) -> pa.FixedSizeListArray:
    """Makes a column of `tokens_type(n_positions)`, without copying where every row is valid.

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
    """Views a column of tokens without nulls as (rows, n_positions) uint16, read-only."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows, so no chunk
        return np.empty((0, column.type.list_size), np.uint16)
    return array.flatten().to_numpy().reshape(-1, column.type.list_size)  # type: ignore[no-any-return]


def bits_of(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Returns (rows, n) bool of a column of fixed-size lists of bool without nulls."""
    flat = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return flat.astype(bool).reshape(-1, column.type.list_size)  # type: ignore[no-any-return]


def in_place(results: pa.Array, valid: NDArray[np.bool_]) -> pa.Array:
    """Spreads the results of the good rows over a column of all rows, null for the others."""
    return results.take(pa.array(np.cumsum(valid) - 1, mask=~valid))


def score_arrays(nll: NDArray[np.float32]) -> dict[str, pa.Array]:
    """Makes the columns `nll` and `bits_per_pixel` of nats per pixel (N,)."""
    bits = (nll.astype(np.float64) / np.log(2)).astype(np.float32)
    return {rows.NLL: pa.array(nll), rows.BITS_PER_PIXEL: pa.array(bits)}
