"""The failed rows of a run, by class of error."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import part_name
from pipeline.storage.threads import map_in_threads

EXAMPLES = 5  # rows of each class that are kept


@dataclass(frozen=True)
class ErrorKind:
    """Rows that failed with one class of error: the stages where, how many, and the first ones as
    (id, message)."""

    error: str
    stages: tuple[str, ...]
    count: int
    examples: tuple[tuple[str, str], ...]


def count_by_kind(directory: RunDirectory, shards: Iterable[int]) -> Counter[str]:
    """Counts the failed rows of these shards by class of error."""

    def errors(shard: int) -> Counter[str]:
        table = _read(directory, shard, ["error"])
        return Counter() if table is None else Counter(table["error"].to_pylist())

    total: Counter[str] = Counter()
    for found in map_in_threads(errors, sorted(shards)):
        total += found
    return total


def failed_files(directory: RunDirectory, shards: Iterable[int]) -> set[str]:
    """Returns the files that the failed rows of these shards come from."""

    def sources(shard: int) -> list[str]:
        table = _read(directory, shard, ["source"])
        return [] if table is None else list(table["source"].to_pylist())

    found = {each for some in map_in_threads(sources, sorted(shards)) for each in some}
    return found | {source.rpartition("#")[0] for source in found}  # `file`, or `file#row`


def error_kinds(directory: RunDirectory, shard: int) -> list[ErrorKind]:
    """Returns the classes of error of a shard, in the order of their first rows."""
    table = _read(directory, shard, ["id", "stage", "error", "message"])
    if table is None:
        return []
    return [_kind(error, table) for error in pc.unique(table["error"]).to_pylist()]


def merged(kinds: Iterable[ErrorKind]) -> tuple[ErrorKind, ...]:
    """Adds kinds up to one for each class, the most frequent first."""
    found: dict[str, ErrorKind] = {}
    for kind in kinds:
        known = found.get(kind.error, ErrorKind(kind.error, (), 0, ()))
        found[kind.error] = ErrorKind(
            kind.error,
            tuple(dict.fromkeys(known.stages + kind.stages)),
            known.count + kind.count,
            (known.examples + kind.examples)[:EXAMPLES],
        )
    return tuple(sorted(found.values(), key=lambda kind: (-kind.count, kind.error)))


def _read(directory: RunDirectory, shard: int, columns: Sequence[str]) -> pa.Table | None:
    """Reads columns of a part of errors; None where the shard has none."""
    content = directory.read(part_name("errors", shard))
    return None if content is None else pq.read_table(io.BytesIO(content), columns=list(columns))


def _kind(error: str, table: pa.Table) -> ErrorKind:
    rows = table.filter(pc.equal(table["error"], error))
    first = rows.slice(0, EXAMPLES)
    return ErrorKind(
        error,
        tuple(pc.unique(rows["stage"]).to_pylist()),
        rows.num_rows,
        tuple(zip(first["id"].to_pylist(), first["message"].to_pylist(), strict=True)),
    )
