"""What passes between the stages of a chain: a shard's block, or why it has none."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class ShardResult:
    """A shard between two stages: its block, or why it has none.

    `failure` is one line: a stage could not do this shard, on the node with this id. The stages
    after it pass it on, so that the others go on, unless it `ends_run`. NOT_BEGUN stands for a
    shard that was left to a later run.
    """

    shard: int
    block: pa.Table | None = None
    failure: str | None = None
    ends_run: bool = False
    node: str | None = None


NOT_BEGUN = "not begun"

# Between stages a shard is one row: Ray demands a number of rows for the batches of a stage with
# GPUs, puts short blocks together until they have it, and cuts what has more.
_SERIALIZED = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("block", pa.large_binary()),  # an Arrow stream
        pa.field("failure", pa.string()),
        pa.field("ends_run", pa.bool_()),
        pa.field("node", pa.string()),
    ]
)


def serialize(results: Iterable[ShardResult]) -> pa.Table:
    """Makes a table of one row per result."""
    rows = [
        {
            "shard": result.shard,
            "block": None if result.block is None else _stream(result.block),
            "failure": result.failure,
            "ends_run": result.ends_run,
            "node": result.node,
        }
        for result in results
    ]
    return pa.Table.from_pylist(rows, schema=_SERIALIZED)


def _stream(block: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def deserialize(table: pa.Table) -> Iterator[ShardResult]:
    """Yields the results that `serialize` made rows of; their blocks are not copied."""
    for shard, stream, *failure in zip(*(table[name] for name in _SERIALIZED.names), strict=True):
        block = pa.ipc.open_stream(stream.as_buffer()).read_all() if stream.is_valid else None
        yield ShardResult(shard.as_py(), block, *(value.as_py() for value in failure))
