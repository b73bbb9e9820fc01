"""One shard of a run looked through: its results, errors and stats, read in full."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import rows
from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import part_name
from pipeline.storage.filesystem import join, read_bytes, store_errors
from pipeline.storage.redact import redacted_line
from pipeline.verify.duplicate_ids import hashes

# An error for a row whose id an earlier row has: the one id that may stand in both.
_REPEATED = "DuplicateId"


@dataclass(frozen=True)
class Layout:
    """What the results of a run look like: name and type of each column as run.json has them, and
    the columns passed through as the plan has them."""

    columns: Sequence[Mapping[str, str]]
    passthrough: pa.Schema

    def complaint(self, schema: pa.Schema) -> str | None:
        """What of a part's schema is not as it should be."""
        expected = [(column["name"], _spelled(column["type"])) for column in self.columns]
        found = [(field.name, _spelled(str(field.type))) for field in schema]
        if found != expected:
            differing = [pair for pair in found if pair not in expected]
            missing = [pair for pair in expected if pair not in found]
            return f"expected columns {missing or expected}, found {differing or found}"
        for field in self.passthrough:
            if schema.field(field.name).type != field.type:
                return f"expected {field}, found {schema.field(field.name)}"
        known = rows.hub_features(self.passthrough)
        wanted = rows.hub_metadata(schema, known=known)[b"huggingface"]
        if (schema.metadata or {}).get(b"huggingface") != wanted:
            return "the huggingface metadata does not describe the columns"
        return None


def _spelled(type_: str) -> str:
    """Parquet has another name for the elements of lists than Arrow."""
    return type_.replace("<item: ", "<element: ")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file: which check it fails, and how, in a few words."""

    check: str
    text: str


@dataclass(frozen=True)
class PartFacts:
    """What a shard's files hold: bad rows by class, hashes of all ids that must be unique."""

    rows: int
    kinds: Counter[str]
    hashes: NDArray[np.int64]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        return self.kinds.total()


def look_through(
    directory: RunDirectory,
    shard: int,
    *,
    run: str,
    planned: int | None,
    failed: bool,
    layout: Layout,
) -> PartFacts:
    """Read the files of a shard that is done.

    Args:
        run: the id of the run, as run.json has it.
        planned: its rows in the plan.
        failed: whether there is a part of errors.
    """
    problems: list[Problem] = []
    ids: list[str] = []
    n_rows, kinds = None, Counter[str]()
    try:
        results = _open(directory, part_name("data", shard))
        groups = range(results.num_row_groups)
        for found in (results.read_row_group(group).column(rows.ID) for group in groups):
            ids += _ids(found, part_name("data", shard), problems)
        n_rows = results.metadata.num_rows
        complaint = layout.complaint(results.schema_arrow)
        if complaint:
            problems.append(Problem("schema", f"{part_name('data', shard)}: {complaint}"))
        if failed:
            table = _open(directory, part_name("errors", shard)).read()
            if not table.schema.equals(rows.ERRORS):
                text = f"{part_name('errors', shard)}: expected the columns of errors, found "
                problems.append(Problem("schema", text + ", ".join(table.column_names)))
            kinds = Counter(table["error"].to_pylist())
            own = table.filter(pc.not_equal(table["error"], _REPEATED))
            ids += _ids(own[rows.ID], part_name("errors", shard), problems)
    except (*parquet_errors(), KeyError) as error:
        name = part_name("errors" if n_rows is not None else "data", shard)
        problems.append(Problem("readable", f"{name}: {redacted_line(error, length=120)}"))
    else:
        problems += _miscounted(directory, shard, n_rows, kinds.total(), planned, run)
    return PartFacts(n_rows or 0, kinds, hashes(ids), tuple(problems))


def unique_ids(directory: RunDirectory, shard: int, *, failed: bool) -> list[str]:
    """The ids that `look_through` makes hashes of."""
    ids: list[str | None] = []
    results = _open(directory, part_name("data", shard))
    ids += results.read([rows.ID])[rows.ID].to_pylist()
    if failed:
        table = _open(directory, part_name("errors", shard)).read()
        ids += table.filter(pc.not_equal(table["error"], _REPEATED))[rows.ID].to_pylist()
    return [id_ for id_ in ids if id_ is not None]


def _open(directory: RunDirectory, name: str) -> pq.ParquetFile:
    content = read_bytes(directory.fs, join(directory.path, name))
    return pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)


def _ids(column: pa.ChunkedArray, name: str, problems: list[Problem]) -> list[str]:
    if column.null_count:
        problems.append(Problem("ids", f"{name}: {column.null_count} rows without an id"))
    return column.drop_null().to_pylist()  # type: ignore[no-any-return]


def _miscounted(
    directory: RunDirectory, shard: int, n_rows: int, n_errors: int, planned: int | None, run: str
) -> list[Problem]:
    problems = []
    if planned is not None and n_rows + n_errors != planned:
        text = f"{part_name('data', shard)}: {n_rows} rows and {n_errors} errors of {planned}"
        problems.append(Problem("rows", text))
    found, name = {"shard": shard, "rows": n_rows, "errors": n_errors}, part_name("stats", shard)
    try:
        stats: Any = json.loads(read_bytes(directory.fs, join(directory.path, name)))
        wrong = [f"{key} {stats[key]} for {n}" for key, n in found.items() if stats[key] != n]
        if stats.get("run", run) != run:  # older ones do not say
            data = part_name("data", shard)
            wrong.append(
                f"of another run, which wrote while this one began; next: delete {data}, then the "
                "same command again"
            )
    except (*store_errors(), ValueError, KeyError, TypeError) as error:
        wrong = [f"{type(error).__name__}: {redacted_line(error, length=120)}"]
    if wrong:
        problems.append(Problem("stats", f"{name}: {', '.join(wrong)}"))
    return problems
