"""A part that is there already, and the rows of it that stay where others are done again."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from pipeline import rows
from pipeline.rows import RowError
from pipeline.run_directory.layout import parquet_file, part_name
from pipeline.storage.filesystem import join, read_bytes

# Stands in a block for the error of a row whose result is in the part already.
KEPT = RowError("kept", "Kept", "the result is in the part already")


def ids_in_part(fs: AbstractFileSystem, output: str, shard: int) -> frozenset[str]:
    """Returns the ids of the good rows of a shard; none where it is not done yet."""
    content = _read(fs, output, "data", shard)
    if content is None:
        return frozenset()
    return frozenset(pq.read_table(io.BytesIO(content), columns=[rows.ID])[rows.ID].to_pylist())


@dataclass(frozen=True)
class EarlierPart:
    """The results of a shard that is done, and its stats, {} where there are none."""

    results: pa.Table
    stats: Mapping[str, Any]

    @classmethod
    def read(
        cls, fs: AbstractFileSystem, output: str, shard: int, schema: pa.Schema
    ) -> "EarlierPart | None":
        """Reads it; None where the shard is not done."""
        content = _read(fs, output, "data", shard)
        if content is None:
            return None
        table = parquet_file(content).read()
        stats = json.loads(_read(fs, output, "stats", shard) or "{}")
        return cls(pa.table([table[name] for name in schema.names], schema=schema), stats)

    def kept_count(self, name: str, block: pa.Table) -> int:
        """Returns what the stats count of the rows that a block keeps: `tokens` that the model
        sampled for them, its `passes`, `squashed` images."""
        return int(self.stats.get(name, 0)) if _is_kept(block).any() else 0

    def merged(self, block: pa.Table, results: pa.Table) -> pa.Table:
        """Puts the rows of this part that a block keeps among its new results, in the order of the
        block."""
        is_good, is_kept = pc.is_null(block[rows.ERROR_STAGE]).to_numpy(), _is_kept(block)
        earlier = pc.index_in(block[rows.ROW_ID], self.results[rows.ID].combine_chunks()).to_numpy()
        place = np.where(is_good, self.results.num_rows + np.cumsum(is_good) - 1, earlier)
        chosen = place[is_good | is_kept].astype(np.int64)
        return pa.concat_tables([self.results, results]).take(pa.array(chosen))

    def is_as_good(self, block: pa.Table, merged: pa.Table) -> bool:
        """Tells whether merged rows may take the place of this part: where the block keeps rows, if
        none is missing; where all are done again, if there are as many."""
        if not _is_kept(block).any():
            return bool(merged.num_rows >= self.results.num_rows)
        there = pc.is_in(self.results[rows.ID], merged[rows.ID].combine_chunks())
        return bool(pc.all(there).as_py())

    def figures(self, block: pa.Table, merged: pa.Table) -> dict[str, Any]:
        """Returns what stays of the stats: when and where the shard was done, in how many seconds,
        and the pictures of rows that the block keeps, by their places among the merged ones."""
        kept = {name: v for name, v in self.stats.items() if name not in _COUNTED}
        if not kept.get("examples") or not _is_kept(block).any():
            kept.pop("examples", None)
        else:
            there = [self.results[rows.ID][each["row"]] for each in kept["examples"]]
            place = pc.index_in(pa.array(there, pa.string()), merged[rows.ID].combine_chunks())
            kept["examples"] = [
                {**each, "row": row}
                for each, row in zip(kept["examples"], place.to_pylist(), strict=True)
            ]
        return kept


_COUNTED = {
    "rows",
    "errors",
    "tokens",
    "bytes",
    "nats",
    "squashed",
}  # what the merged part has of its own


def _is_kept(block: pa.Table) -> NDArray[np.bool_]:
    is_kept = pc.fill_null(pc.equal(block[rows.ERROR_STAGE], KEPT.stage), False)
    return np.asarray(is_kept, bool)


def _read(fs: AbstractFileSystem, output: str, folder: str, shard: int) -> bytes | None:
    try:
        return read_bytes(fs, join(output, part_name(folder, shard)))
    except FileNotFoundError:
        return None
