"""Shards: deterministic slices of the input, and the plan that cuts an input into them."""

import base64
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from PIL import Image

from pipeline.rows import PREFIX, hub_features, hub_metadata
from pipeline.storage import (
    STORE_ERRORS,
    UsageError,
    glob_files,
    has_magic,
    is_local,
    kind,
    list_files,
    one_line,
    open_location,
    uri_of,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Rows `start` to `stop` of a file: its path or URI, and the name that ids are made from."""

    path: str
    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows that become the part `index` of the output."""

    index: int
    slices: tuple[FileSlice, ...]

    @property
    def rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.slices)


# --- the plan -------------------------------------------------------------------------------------

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
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

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
            yield Shard(index, tuple(FileSlice(**piece) for piece in slices.as_py()))


def plan_shards(
    input: str,
    *,
    shard_size: int | Callable[[int], int],
    format: str = "auto",
    image_column: str | None = None,
    id_column: str | None = None,
    keep_columns: Sequence[str] | None = None,
    limit: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Plan:
    """Cuts an input (file, folder, glob, comma-list of them) into shards of `shard_size` rows,
    in the order of the files' names; only the last shard may be smaller.

    `limit` takes the first rows only. `keep_columns` None keeps every column but the image.
    `storage_options` are those of the input location alone. Raises UsageError.
    """
    options = storage_options or {}
    files = _find(input, options)
    format, files, skipped = _choose(files, format, input)
    passthrough = pa.schema([])
    if format == "images":
        given = {
            "--image-column": image_column,
            "--id-column": id_column,
            "--keep-columns": keep_columns,
        }
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise UsageError(f"{wrong[0]} is for tables, {input} holds image files; leave it out")
        counted = [(file, 1) for file in files]
    else:
        counted, schemas = _read_footers(files, options, limit=limit)
        image_column = _image_column(schemas, image_column)
        passthrough = _passthrough(schemas, keep_columns, image_column, id_column)
    total = sum(rows for _, rows in counted)
    if total == 0:
        raise UsageError(f"expected rows at {input}, found {len(files)} files without any")
    if not isinstance(shard_size, int):
        shard_size = shard_size(total if limit is None else min(total, limit))
    shards = tuple(_cut(counted, shard_size, limit))
    return Plan(format, shard_size, shards, image_column, id_column, passthrough, skipped)


def _cut(
    counted: Iterable[tuple["_File", int]], shard_size: int, limit: int | None
) -> Iterator[Shard]:
    """Shards of exactly `shard_size` rows from files with their numbers of rows, but the last."""
    index, room, left = 0, shard_size, limit
    slices: list[FileSlice] = []
    for file, rows in counted:
        if left is not None:
            rows = min(rows, left)
            left -= rows
        start = 0
        while start < rows:
            stop = min(rows, start + room)
            slices.append(FileSlice(file.path, file.name, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield Shard(index, tuple(slices))
                index, slices, room = index + 1, [], shard_size
        if left == 0:
            break
    if slices:
        yield Shard(index, tuple(slices))


# --- the files of an input ------------------------------------------------------------------------

# Pillow recognizes these but cannot decode them.
_ONLY_IDENTIFIED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


def format_extensions() -> dict[str, frozenset[str]]:
    """The extensions of each input format, in lower case with their dot; for images all that
    Pillow can decode."""
    known = Image.registered_extensions()
    images = {e for e, name in known.items() if name in Image.OPEN and name not in _ONLY_IDENTIFIED}
    return {"images": frozenset(images), "parquet": frozenset({".parquet", ".parq", ".pq"})}


class _File(NamedTuple):
    """A file of the input."""

    path: str  # or URI
    name: str  # relative to the folder that all of the input lies in


def _find(text: str, options: Mapping[str, Any]) -> list[_File]:
    """All visible files of an input (file, folder, glob, comma-list), sorted by name."""
    if os.path.exists(text):  # whose name may hold commas
        parts = [text]
    else:
        parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("expected --input to name a file, folder or glob, found nothing")
    opened = [open_location(part, options) for part in parts]
    if any(fs != opened[0][0] for fs, _ in opened):
        raise UsageError(f"expected inputs on one filesystem, found {text}; run one job for each")
    bases: list[str] = []
    uris: dict[str, str] = {}  # by path, so that what is named twice is there once
    for uri, (fs, path) in zip(parts, opened, strict=True):
        base, paths = _list_part(fs, uri, path)
        bases.append(base)
        for found in paths:
            uris[found] = uri_of(found, uri=uri, path=path)
    common = _common_folder(bases)
    files = [_File(uri, path.removeprefix(common).lstrip("/")) for path, uri in uris.items()]
    broken = next((file.path for file in files if not _is_utf8(file.path)), None)
    if broken is not None:
        raise UsageError(f"expected file names in UTF-8, found {broken!a}; rename that file")
    return sorted(files, key=lambda file: file.name)


def _list_part(fs: AbstractFileSystem, uri: str, path: str) -> tuple[str, list[str]]:
    """The folder that names are relative to, and the files, of one part of the input."""
    try:
        found = kind(fs, path)
        if found == "folder":
            base, files = path, list_files(fs, path)
        elif found == "file":  # what exists is never a glob
            base, files = path.rpartition("/")[0], [path]
        elif has_magic(path):
            base, files = glob_files(fs, path)
        else:
            braces = "; write {a,b} as a comma-list of globs" if "{" in uri or "}" in uri else ""
            raise UsageError(f"expected a file or folder at {uri}, found nothing{braces}")
    except STORE_ERRORS as error:
        raise UsageError(
            f"cannot read {uri}: {type(error).__name__}: {one_line(error)}; check the path, your "
            "rights and --storage-options"
        ) from error
    if not files:
        raise UsageError(f"expected files at {uri}, found none; check --input")
    return base, files


def _is_utf8(path: str) -> bool:
    """Whether a local name can be written down: other bytes in it come as lone surrogates."""
    return path.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in path)


def _common_folder(folders: Sequence[str]) -> str:
    """As os.path.commonpath, for URIs with their double slash too."""
    split = [folder.split("/") for folder in folders]
    same = (len(set(level)) == 1 for level in zip(*split, strict=False))
    return "/".join(split[0][: sum(takewhile(bool, same))])


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _choose(
    files: Sequence[_File], format: str, text: str
) -> tuple[str, list[_File], dict[str, int]]:
    """The format, the files of that format, and the number of others by extension."""
    extensions = format_extensions()
    if format not in ("auto", *extensions):
        raise UsageError(f"expected --format auto, {', '.join(extensions)}; found {format}")
    counts = Counter(_extension(file.name) for file in files)
    present = {name: sum(counts[e] for e in ends) for name, ends in extensions.items()}
    present = {name: count for name, count in present.items() if count}
    if format == "auto" and len(present) > 1:
        what = " and ".join(f"{count} of {name}" for name, count in present.items())
        raise UsageError(
            f"expected files of one format at {text}, found {what}; choose with "
            f"--format {' or '.join(present)}"
        )
    if not present or format not in ("auto", *present):
        seen = ", ".join(f"{n} of {e or 'no extension'}" for e, n in counts.most_common(5))
        wanted = format if format != "auto" else " or ".join(extensions)
        raise UsageError(
            f"expected files of {wanted} at {text}, found {seen}; check --input and --format"
        )
    chosen = next(iter(present)) if format == "auto" else format
    ends = extensions[chosen]
    skipped = {e: n for e, n in sorted(counts.items()) if e not in ends}
    return chosen, [file for file in files if _extension(file.name) in ends], skipped


# --- the footers of Parquet files -----------------------------------------------------------------

# What a missing, unreachable or damaged Parquet file raises (names in it may not be UTF-8).
PARQUET_ERRORS = (*STORE_ERRORS, pa.ArrowException, UnicodeDecodeError)

_FOOTER_THREADS = 32
_FOOTER_ROUND = 512
_FOOTER_BYTES = 64 << 10

_Schemas = list[tuple[_File, pa.Schema]]


def _read_footers(
    files: Sequence[_File], options: Mapping[str, Any], *, limit: int | None
) -> tuple[list[tuple[_File, int]], _Schemas]:
    """Files with their rows, as many as the limit asks for; and each schema that occurs, with
    the first file that has it."""
    counted: list[tuple[_File, int]] = []
    schemas: dict[tuple[Any, ...], tuple[_File, pa.Schema]] = {}
    rows = 0
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for start in range(0, len(files), _FOOTER_ROUND):
            batch = files[start : start + _FOOTER_ROUND]
            footers = pool.map(lambda file: _footer(file, options), batch)
            for file, (footer, schema) in zip(batch, footers, strict=True):
                counted.append((file, footer.num_rows))
                rows += footer.num_rows
                hub = (schema.metadata or {}).get(b"huggingface")
                schemas.setdefault((hub, *schema.names, *schema.types), (file, schema))
            if limit is not None and rows >= limit:
                break
    return counted, list(schemas.values())


def _footer(file: _File, options: Mapping[str, Any]) -> tuple[pq.FileMetaData, pa.Schema]:
    """The footer of a Parquet file, and its Arrow schema."""
    fs, path = open_location(file.path, options)
    try:
        if is_local(fs):
            with open(path, "rb") as opened:
                footer = pq.read_metadata(opened)
        else:
            footer = _remote_footer(fs, path)
        return footer, footer.schema.to_arrow_schema()
    except PARQUET_ERRORS as error:
        raise UsageError(
            f"cannot read the Parquet footer of {file.path}: {one_line(error)}; repair the file "
            "or leave it out of --input"
        ) from error


def _remote_footer(fs: AbstractFileSystem, path: str) -> pq.FileMetaData:
    """One request for the end of the file, which holds nearly every footer."""
    tail = fs.cat_file(path, start=-_FOOTER_BYTES)
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed <= len(tail) or tail[-4:] != b"PAR1":
        return pq.read_metadata(pa.BufferReader(tail))
    with fs.open(path, "rb", cache_type="none") as opened:
        return pq.read_metadata(opened)


def is_image(type_: pa.DataType) -> bool:
    """Whether a column can hold encoded images: binary, or a struct with binary `bytes`."""
    if pa.types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return index >= 0 and is_image(type_.field(index).type)
    return type_ in (pa.binary(), pa.large_binary(), pa.binary_view())


def _image_column(schemas: _Schemas, wanted: str | None) -> str:
    """The column of encoded images, which every file must have."""
    file, schema = schemas[0]
    candidates = [field.name for field in schema if is_image(field.type)]
    by_name = [name for name in ("image", "img") if name in candidates]
    if wanted is None and not candidates:
        raise UsageError(
            f"expected a column of encoded images (binary, or a struct with bytes) in {file.path}, "
            f"found {', '.join(schema.names)}"
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
            advice = f"; choose of {', '.join(candidates)}" if candidates else ""
            raise UsageError(
                f"expected encoded images in column {column} of {file.path}, found {found}{advice}"
            )
    return column


def _passthrough(
    schemas: _Schemas, keep: Sequence[str] | None, image: str, id_column: str | None
) -> pa.Schema:
    """The columns that go into the results, with their Hub features; in every file the same."""
    first, schema = schemas[0]
    asked = [*(keep or []), *([id_column] if id_column else [])]
    missing = [name for name in asked if name not in schema.names]
    if missing:
        raise UsageError(
            f"expected column {', '.join(missing)} in {first.path}, found "
            f"{', '.join(schema.names)}; check --keep-columns and --id-column"
        )
    if keep is not None and image in keep:
        raise UsageError(f"expected --keep-columns without {image}: the images are not copied")
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


def _check_columns(file: _File, schema: pa.Schema, id_column: str | None) -> None:
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
