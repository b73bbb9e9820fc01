"""Shards: deterministic slices of the input, and the plan that holds them."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.errors import UsageError


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Rows `start` to `stop` of a file (None: to its end, nobody has counted them): its path or
    URI, and the name that ids are made from."""

    path: str
    name: str
    start: int
    stop: int | None


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows that become the part `index` of the output."""

    index: int
    slices: tuple[FileSlice, ...]

    @property
    def rows(self) -> int | None:
        """None where that shows only when the shard is read."""
        return sum_if_known(None if s.stop is None else s.stop - s.start for s in self.slices)


def sum_if_known(counts: Iterable[int | None]) -> int | None:
    """The sum; None where one of them is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


_SLICE_FIELDS = [
    pa.field("path", pa.string()),
    pa.field("name", pa.string()),
    pa.field("start", pa.int64()),
    pa.field("stop", pa.int64()),
]
PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("rows", pa.int32()),
        pa.field("slices", pa.list_(pa.struct(_SLICE_FIELDS))),
    ]
)
_PLAN_KEY = b"igpt_plan"


@dataclass(frozen=True)
class Plan:
    """An input cut into shards, and what was found out about it on the way.

    `passthrough` holds the input's columns that go into the results, with their Hub features;
    `skipped` counts the files left out, by extension.
    """

    format: str
    shard_size: int
    shards: tuple[Shard, ...]
    image_column: str | None = None
    id_column: str | None = None
    passthrough: pa.Schema = field(default_factory=lambda: pa.schema([]))
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        """None where that shows only when all shards are read."""
        return sum_if_known(shard.rows for shard in self.shards)

    def to_table(self) -> pa.Table:
        """One row a shard (PLAN_SCHEMA); the rest of the plan lies in the schema's metadata."""
        rest = {
            "format": self.format,
            "shard_size": self.shard_size,
            "image_column": self.image_column,
            "id_column": self.id_column,
            "skipped": dict(self.skipped),
            "passthrough": base64.b64encode(self.passthrough.serialize()).decode(),
        }
        pieces = [piece for shard in self.shards for piece in shard.slices]
        columns = [pa.array([getattr(p, f.name) for p in pieces], f.type) for f in _SLICE_FIELDS]
        offsets = [0]
        for shard in self.shards:
            offsets.append(offsets[-1] + len(shard.slices))
        table = pa.table(
            [
                pa.array([shard.index for shard in self.shards], pa.int32()),
                pa.array([shard.rows for shard in self.shards], pa.int32()),
                pa.ListArray.from_arrays(
                    pa.array(offsets, pa.int32()),
                    pa.StructArray.from_arrays(columns, fields=_SLICE_FIELDS),
                ),
            ],
            schema=PLAN_SCHEMA,
        )
        return table.replace_schema_metadata({_PLAN_KEY: json.dumps(rest)})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Plan":
        """The plan that `to_table` wrote. Raises UsageError for any other table."""
        raw = (table.schema.metadata or {}).get(_PLAN_KEY)
        if raw is None:
            raise UsageError("expected the plan of a run, found a table without one; start anew")
        rest = json.loads(raw)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(rest.pop("passthrough"))))
        return cls(shards=tuple(shards_in(table)), passthrough=schema, **rest)


def shards_in(table: pa.Table) -> Iterator[Shard]:
    """The shards in rows of a plan's table: all of them, or a block of a few."""
    for batch in table.select(["shard", "slices"]).to_batches():
        for index, slices in zip(batch[0].to_pylist(), batch[1], strict=True):
            fields = [column.to_pylist() for column in slices.values.flatten()]
            yield Shard(index, tuple(map(FileSlice, *fields)))
