"""The footers of Parquet inputs: rows, column of images or tokens, columns passed through."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import UsageError
from pipeline.inputs.counting import counting
from pipeline.inputs.files import InputFile
from pipeline.inputs.parquet_columns import is_image, is_samples, is_tokens, with_partitions
from pipeline.rows import PREFIX, TOKENS, hub_features, hub_metadata
from pipeline.storage.filesystem import is_local, open_location, store_errors
from pipeline.storage.redact import redacted_line

_FOOTER_THREADS = 32
_FOOTERS_AT_ONCE = 512
_FOOTER_BYTES = 64 << 10

INT96_UNIT = "us"  # nanoseconds, the default, end in 2262

Schemas = list[tuple[InputFile, pa.Schema]]


def parquet_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns what a missing, unreachable or damaged Parquet file raises (names in it may not be
    UTF-8), and `others`, for an `except`."""
    return store_errors(pa.ArrowException, UnicodeDecodeError, *others)


def read_footers(
    files: Sequence[InputFile],
    options: Mapping[str, Any],
    *,
    limit: int | None,
    shown: bool = False,
) -> tuple[list[tuple[InputFile, int]], Schemas]:
    """Reads files' rows and largest row groups, as many as the limit needs; and each schema that
    occurs, with the first file that has it. Files without rows have no say in schemas: what wrote
    them, often did not know the types. `shown`: see `counting`. Raises UsageError where no file has
    rows."""
    counted: list[tuple[InputFile, int]] = []
    schemas: dict[tuple[Any, ...], tuple[InputFile, pa.Schema]] = {}
    rows = 0
    with (
        counting(len(files), "Parquet files", shown=shown) as count,
        ThreadPoolExecutor(_FOOTER_THREADS) as pool,
    ):
        for start in range(0, len(files), _FOOTERS_AT_ONCE):
            some = files[start : start + _FOOTERS_AT_ONCE]
            footers = pool.map(lambda file: _read_footer(file, options), some)
            for file, (footer, schema) in zip(some, footers, strict=True):
                groups = (footer.row_group(i).num_rows for i in range(footer.num_row_groups))
                file = file._replace(largest_group=max(groups, default=0))
                schema = with_partitions(schema, file.name)
                counted.append((file, footer.num_rows))
                count()
                if footer.num_rows == 0:
                    continue
                rows += footer.num_rows
                hub = (schema.metadata or {}).get(b"huggingface")
                schemas.setdefault((hub, *schema.names, *schema.types), (file, schema))
            if limit is not None and rows >= limit:
                break
    if not schemas:
        raise UsageError(
            f"expected rows, found {len(files)} Parquet files without any, the first is "
            f"{files[0].path}; check --input"
        )
    return counted, list(schemas.values())


def _read_footer(file: InputFile, options: Mapping[str, Any]) -> tuple[pq.FileMetaData, pa.Schema]:
    """Reads the footer of a Parquet file; returns it and its Arrow schema."""
    fs, path = open_location(file.path, options)
    try:
        if is_local(fs):
            with open(path, "rb") as opened:
                footer = pq.read_metadata(opened)
        else:
            footer = _read_remote_footer(fs, path)
        nothing = pa.BufferReader(b"")
        whole = pq.ParquetFile(
            nothing, metadata=footer, coerce_int96_timestamp_unit=INT96_UNIT
        ).schema_arrow
        return footer, whole
    except parquet_errors() as error:
        raise UsageError(
            f"cannot read the Parquet footer of {file.path}: {redacted_line(error)}; repair the "
            "file or leave it out"
        ) from error


def _read_remote_footer(fs: AbstractFileSystem, path: str) -> pq.FileMetaData:
    """Makes one request, for the end of the file, which holds nearly every footer."""
    tail = fs.cat_file(path, start=-_FOOTER_BYTES)
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed <= len(tail) or tail[-4:] != b"PAR1":
        return pq.read_metadata(pa.BufferReader(tail))
    with fs.open(path, "rb", cache_type="none") as opened:
        return pq.read_metadata(opened)


def count_positions(schemas: Schemas, samples: str) -> int:
    """Returns how many tokens a sample has in a column of samples, in every file as many."""
    counts = {}
    for file, schema in schemas:
        type_ = schema.field(samples).type if samples in schema.names else None
        if type_ is None or not is_samples(type_):
            raise UsageError(
                f"expected lists of tokens in column {samples} of {file.path}, found "
                f"{type_ or 'no such column'}; next: igpt verify for this run"
            )
        counts[type_.value_type.list_size] = file
    if len(counts) > 1:
        raise UsageError(
            f"expected as many tokens per sample in every file, found {sorted(counts)}; next: igpt "
            "verify for this run"
        )
    return int(next(iter(counts)))


def holds_tokens(schemas: Schemas, wanted: str | None) -> bool:
    """Returns whether the input is one of tokens, going by its first file: the wanted column holds
    them, or without one there is a column `tokens`, and none of images."""
    schema = schemas[0][1]
    if wanted is None and any(is_image(type_) for type_ in schema.types):
        return False
    column = wanted or TOKENS
    return column in schema.names and is_tokens(schema.field(column).type)


def choose_tokens_column(schemas: Schemas, wanted: str | None) -> tuple[str, int | None]:
    """Finds the column of tokens, which every file must have, and how many a row has if its type
    says so."""
    file, schema = schemas[0]
    candidates = [field.name for field in schema if is_tokens(field.type)]
    if wanted is None and TOKENS not in candidates and len(candidates) != 1:
        found = ", ".join(candidates or schema.names)
        raise UsageError(
            f"expected a column {TOKENS}, or one other of lists of whole numbers, in {file.path}, "
            f"found {found}; next: --image-column with the column that holds tokens"
        )
    column = wanted or (TOKENS if TOKENS in candidates else candidates[0])
    lengths: dict[int, InputFile] = {}
    for file, schema in schemas:
        type_ = schema.field(column).type if column in schema.names else None
        if type_ is None or not is_tokens(type_):
            raise UsageError(
                f"expected tokens (lists of whole numbers) in column {column} of {file.path}, "
                f"found {type_ or 'no such column'}; next: an input whose files all have them"
            )
        if pa.types.is_fixed_size_list(type_):
            lengths.setdefault(type_.list_size, file)
    if len(lengths) > 1:
        (one, first), (other, second), *_ = lengths.items()
        raise UsageError(
            f"expected as many tokens per row in every file, found {one} in {first.path} and "
            f"{other} in {second.path}; next: one job for each"
        )
    return column, next(iter(lengths), None)


def choose_image_column(schemas: Schemas, wanted: str | None) -> str:
    """Finds the column of encoded images, which every file must have."""
    file, schema = schemas[0]
    candidates = [field.name for field in schema if is_image(field.type)]
    by_name = [name for name in ("image", "img") if name in candidates]
    if wanted is None and not candidates:
        raise UsageError(
            f"expected a column of encoded images (binary, or a struct with bytes) in {file.path}, "
            f"found {', '.join(schema.names)}; next: a table that has one, or --format tokens for "
            "one of tokens"
        )
    if wanted is None and len(candidates) > 1 and not by_name:
        raise UsageError(
            f"expected one column of encoded images in {file.path}, found "
            f"{', '.join(candidates)}; choose with --image-column"
        )
    column = wanted or (candidates[0] if len(candidates) == 1 else by_name[0])
    for file, schema in schemas:
        if column not in schema.names or not is_image(schema.field(column).type):
            found = schema.field(column).type if column in schema.names else "no such column"
            advice = f"; next: --image-column {' or '.join(candidates)}" if candidates else ""
            raise UsageError(
                f"expected encoded images in column {column} of {file.path}, found {found}{advice}"
            )
    return column


def passthrough_schema(
    schemas: Schemas, keep: Sequence[str] | None, image: str | None, id_column: str | None
) -> pa.Schema:
    """Returns the columns that go into the results, with their Hub features; in every file the
    same."""
    first, schema = schemas[0]
    wanted = [*(keep or []), *([id_column] if id_column else [])]
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        raise UsageError(
            f"expected column {', '.join(missing)} in {first.path}, found "
            f"{', '.join(schema.names) or 'none'}; next: one of these"
        )
    if keep is not None and image in keep:
        raise UsageError(f"expected columns to keep without {image}: the images are not copied")
    # A column that becomes the output's `id` need not stand there twice.
    apart = {image, "id"} if id_column == "id" else {image}
    names = [n for n in schema.names if n not in apart and (keep is None or n in keep)]
    reserved = [name for name in names if name.startswith(PREFIX)]
    if reserved:
        raise UsageError(f"column names that start with {PREFIX} are taken; rename {reserved[0]}")
    fields: dict[str, pa.Field] = {}
    features: dict[str, Any] = {}
    for file, schema in schemas:
        _check_columns(file, schema, id_column)
        others = [n for n in schema.names if n not in apart] if keep is None else names
        odd = sorted(set(names) ^ set(others)) or [n for n in names if n not in schema.names]
        if odd:
            raise _mixed(odd[0], f"is in only one of {first.path} and {file.path}")
        known = hub_features(schema)
        for name in names:
            field = schema.field(name).with_nullable(True)
            before = fields.setdefault(name, field)
            if before.type == pa.null():  # a file with nothing but nulls says nothing of the type
                fields[name] = field
            elif field.type not in (before.type, pa.null()):
                raise _mixed(name, f"is {before.type} in {first.path}, {field.type} in {file.path}")
            if name in known and features.setdefault(name, known[name]) != known[name]:
                raise _mixed(name, f"has other labels in {first.path} than in {file.path}")
    kept = pa.schema([fields[name] for name in names])
    return kept.with_metadata(hub_metadata(kept, known=features))


def _mixed(column: str, how: str) -> UsageError:
    return UsageError(
        f"expected the same columns in every file, but {column} {how}; keep the others with "
        "--keep-columns, or run one job for each kind of file"
    )


def _check_columns(file: InputFile, schema: pa.Schema, id_column: str | None) -> None:
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise UsageError(f"expected different column names in {file.path}, found {twice[0]} twice")
    if id_column is None:
        return
    if id_column not in schema.names:
        raise _mixed(id_column, f"is not in {file.path}")
    type_ = schema.field(id_column).type
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    if not (pa.types.is_integer(value) or value in (pa.string(), pa.large_string())):
        raise UsageError(
            f"expected text or whole numbers in --id-column {id_column}, found {type_} in "
            f"{file.path}; choose another column"
        )
