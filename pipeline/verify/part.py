"""One shard of a run: its results, errors and stats, read in full and checked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import rows
from pipeline.errors import UsageError
from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import parquet_file, part_name
from pipeline.run_directory.stats import read_stats
from pipeline.storage.filesystem import join, read_bytes
from pipeline.storage.redact import redacted_error, redacted_line
from pipeline.verify.duplicate_ids import hashes

# An error for a row whose id an earlier row has: the one id that may stand in both.
_REPEATED = "DuplicateId"


def damage() -> tuple[type[Exception], ...]:
    """Returns what reading a file of a run raises that is missing, out of reach or damaged, or
    holds something else than it should."""
    return (*parquet_errors(), UsageError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class ExpectedSchema:
    """The schema that all parts of a run have: name and type of each column as run.json has them,
    and the columns passed through as the plan has them."""

    columns: Sequence[Mapping[str, str]]
    passthrough: pa.Schema

    def mismatch(self, schema: pa.Schema) -> str | None:
        """Says what of a part's schema is not as expected; None where all is."""
        expected = [(column["name"], _normalized(column["type"])) for column in self.columns]
        found = [(field.name, _normalized(str(field.type))) for field in schema]
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


def _normalized(type_: str) -> str:
    """Names the elements of lists as Parquet does: Arrow has another name for them."""
    return type_.replace("<item: ", "<element: ")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file: which check it fails, and how, in a few words."""

    check: str
    text: str


@dataclass(frozen=True)
class PartFacts:
    """What a shard's files hold.

    Attributes:
        rows: with a result.
        kinds: failed rows by class of error.
        hashes: of all ids that must be unique.
        problems: what is wrong with the files.
    """

    rows: int
    kinds: Counter[str]
    hashes: NDArray[np.int64]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        """Counts the failed rows."""
        return self.kinds.total()


def check_part(
    directory: RunDirectory,
    shard: int,
    *,
    run: str,
    planned: int | None,
    has_errors: bool,
    schema: ExpectedSchema,
) -> PartFacts:
    """Reads the files of a shard that is done, and checks them.

    Args:
        run: the id of the run, as run.json has it.
        planned: its rows in the plan; None where they are not counted.
        has_errors: whether there is a part of errors.
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
        mismatch = schema.mismatch(results.schema_arrow)
        if mismatch:
            problems.append(Problem("schema", f"{part_name('data', shard)}: {mismatch}"))
        if has_errors:
            table = _open(directory, part_name("errors", shard)).read()
            if not table.schema.equals(rows.ERRORS):
                text = f"{part_name('errors', shard)}: expected the columns of errors, found "
                problems.append(Problem("schema", text + ", ".join(table.column_names)))
            kinds = Counter(table["error"].to_pylist())
            own = table.filter(pc.not_equal(table["error"], _REPEATED))
            ids += _ids(own[rows.ID], part_name("errors", shard), problems)
    except damage() as error:
        name = part_name("errors" if n_rows is not None else "data", shard)
        problems.append(Problem("readable", f"{name}: {redacted_line(error, length=120)}"))
    else:
        problems += _miscounted(directory, shard, n_rows, kinds.total(), planned, run)
    return PartFacts(n_rows or 0, kinds, hashes(ids), tuple(problems))


def unique_ids(directory: RunDirectory, shard: int, *, has_errors: bool) -> list[str]:
    """Reads the ids whose hashes `check_part` returns."""
    ids: list[str | None] = []
    results = _open(directory, part_name("data", shard))
    ids += results.read([rows.ID])[rows.ID].to_pylist()
    if has_errors:
        table = _open(directory, part_name("errors", shard)).read()
        ids += table.filter(pc.not_equal(table["error"], _REPEATED))[rows.ID].to_pylist()
    return [id_ for id_ in ids if id_ is not None]


def _open(directory: RunDirectory, name: str) -> pq.ParquetFile:
    return parquet_file(read_bytes(directory.fs, join(directory.path, name)))


def _ids(column: pa.ChunkedArray, name: str, problems: list[Problem]) -> list[str]:
    if column.null_count:
        problems.append(Problem("ids", f"{name}: {column.null_count} rows without an id"))
    return column.drop_null().to_pylist()  # type: ignore[no-any-return]


def _miscounted(
    directory: RunDirectory, shard: int, n_rows: int, n_errors: int, planned: int | None, run: str
) -> list[Problem]:
    """Compares the rows of a shard with its plan and its stats."""
    problems = []
    data, name = part_name("data", shard), part_name("stats", shard)
    if planned is not None and n_rows + n_errors != planned:
        text = f"{data}: {n_rows} rows and {n_errors} errors of {planned}"
        problems.append(Problem("rows", text))
    counted = {"shard": shard, "rows": n_rows, "errors": n_errors}
    try:
        stats = read_stats(directory, shard)
        if stats is None:
            return [*problems, Problem("stats", f"{name} is not there")]
        wrong = [f"{key} {stats[key]} for {n}" for key, n in counted.items() if stats[key] != n]
        if stats.get("run", run) != run:  # older ones do not say
            wrong.append(
                f"of another run, which wrote while this one began; next: delete {data}, then the "
                "same command again"
            )
    except damage() as error:
        wrong = [redacted_error(error, length=120)]
    if wrong:
        problems.append(Problem("stats", f"{name}: {', '.join(wrong)}"))
    return problems
