"""Shards: deterministic slices of the input, and the plan that holds them."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain

import pyarrow as pa

from pipeline.errors import UsageError


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Rows `start` to `stop` of a file: its path or URI, and the name that ids are made from.

    `stop` is None where nobody has counted the rows: then it is to the end of the file. `identity`
    is what the filesystem told of its content when it was planned: size and mtime, or ETag; None
    where it tells nothing.

    Of a tar that can be cut, the members of the rows are those that begin at the bytes `first_byte`
    to `end_byte` (None: to its end, where an error of the tar itself is the last row).

    Where `samples` is given each row of the file holds so many pictures, and each of them is a row
    here: `start` and `stop` count those.
    """

    path: str
    name: str
    start: int
    stop: int | None
    identity: str | None = None
    first_byte: int | None = None
    end_byte: int | None = None
    samples: int | None = None

    @property
    def row_numbers(self) -> range:
        """Lists the rows, which must have been counted."""
        assert self.stop is not None
        return range(self.start, self.stop)


class Tries(StrEnum):
    """Whether a shard that fails is tried again in this run; decides what a fault is that may be
    gone then, such as a busy store.

    At the last try it is the row's own, unless it is that of all rows of the shard; where others
    are done by now (LAST_AMONG_DONE) the store works, and it is the row's own in any case.
    """

    MORE = "more"
    LAST = "last"
    LAST_AMONG_DONE = "last among done"


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows that become the part `index` of the output."""

    index: int
    slices: tuple[FileSlice, ...]
    tries: Tries = Tries.MORE

    @property
    def rows(self) -> int | None:
        """Counts the rows; None where only reading the shard shows how many there are."""
        return sum_if_known(None if s.stop is None else s.stop - s.start for s in self.slices)


def sum_if_known(counts: Iterable[int | None]) -> int | None:
    """Returns the sum; None where one of the counts is unknown."""
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
    pa.field("identity", pa.string()),
    pa.field("first_byte", pa.int64()),
    pa.field("end_byte", pa.int64()),
    pa.field("samples", pa.int64()),
]
PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("rows", pa.int32()),
        pa.field("slices", pa.list_(pa.struct(_SLICE_FIELDS))),
    ]
)
_PLAN_KEY = b"igpt_plan"
_TRIES_KEY = b"igpt_tries"


@dataclass(frozen=True)
class Plan:
    """An input cut into shards, and what planning found out about it.

    `passthrough` holds the input's columns that go into the results, with their Hub features;
    `skipped` counts the files left out, by extension. `limit` is the number of rows that were
    asked for, None for all; `empty` holds the files without rows, their identities by path;
    `redone` lists the shards of files that were repaired, of which all rows are still to be done
    again.
    """

    format: str
    shard_size: int
    shards: tuple[Shard, ...]
    image_column: str | None = None
    id_column: str | None = None
    passthrough: pa.Schema = field(default_factory=lambda: pa.schema([]))
    skipped: Mapping[str, int] = field(default_factory=dict)
    limit: int | None = None
    empty: Mapping[str, str | None] = field(default_factory=dict)
    redone: tuple[int, ...] = ()

    @property
    def rows(self) -> int | None:
        """Counts the rows; None where only reading the shards shows how many there are."""
        return sum_if_known(shard.rows for shard in self.shards)

    def with_paths(self, renamed: Callable[[str], str]) -> "Plan":
        """Returns the plan with another path for each file; itself where none changes."""
        paths = chain(self.empty, (each.path for shard in self.shards for each in shard.slices))
        if all(renamed(path) == path for path in paths):  # millions of them are not copied
            return self
        shards = [
            replace(shard, slices=tuple(replace(s, path=renamed(s.path)) for s in shard.slices))
            for shard in self.shards
        ]
        empty = {renamed(path): identity for path, identity in self.empty.items()}
        return replace(self, shards=tuple(shards), empty=empty)

    def to_table(self) -> pa.Table:
        """Makes a table of one row per shard (PLAN_SCHEMA); the rest of the plan lies in the
        schema's metadata."""
        rest = {
            "format": self.format,
            "shard_size": self.shard_size,
            "image_column": self.image_column,
            "id_column": self.id_column,
            "skipped": dict(self.skipped),
            "limit": self.limit,
            "empty": dict(self.empty),
            "redone": list(self.redone),
            "passthrough": base64.b64encode(self.passthrough.serialize()).decode(),
        }
        slices = [each for shard in self.shards for each in shard.slices]
        columns = [pa.array([getattr(s, f.name) for s in slices], f.type) for f in _SLICE_FIELDS]
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
        """Reads the plan that `to_table` made. Raises UsageError for any other table."""
        raw = (table.schema.metadata or {}).get(_PLAN_KEY)
        if raw is None:
            raise UsageError("expected the plan of a run, found a table without one; start anew")
        rest = json.loads(raw)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(rest.pop("passthrough"))))
        rest["redone"] = tuple(rest.get("redone", ()))
        return cls(shards=tuple(_shards(table)), passthrough=schema, **rest)


def skipped_in(schema: pa.Schema) -> dict[str, int]:
    """Reads the files left out, `Plan.skipped`, from the schema of a plan's table alone."""
    rest = json.loads((schema.metadata or {}).get(_PLAN_KEY, b"{}"))
    return dict(rest.get("skipped", {}))


def shard_in(block: pa.Table) -> Shard:
    """Reads the shard of a block of the plan: one row of its table."""
    (shard,) = _shards(block)
    return replace(
        shard, tries=Tries((block.schema.metadata or {}).get(_TRIES_KEY, b"more").decode())
    )


def for_last_try(block: pa.Table, *, proven: bool) -> pa.Table:
    """Returns a block of the plan as it is for the last try at it in this run; `proven`: others
    are done."""
    tries = Tries.LAST_AMONG_DONE if proven else Tries.LAST
    return block.replace_schema_metadata((block.schema.metadata or {}) | {_TRIES_KEY: tries})


def _shards(table: pa.Table) -> Iterator[Shard]:
    for batch in table.select(["shard", "slices"]).to_batches():
        for index, slices in zip(batch[0].to_pylist(), batch[1], strict=True):
            # The fields that a plan of an earlier igpt lacks are the last.
            fields = [column.to_pylist() for column in slices.values.flatten()]
            yield Shard(index, tuple(map(FileSlice, *fields)))
