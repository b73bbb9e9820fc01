"""The formats of `igpt export`, a row of EXPORTS each: a part of a run as the files of the format.

Names of files are made of numbers and of names in `rows`, never of ids or of columns passed
through, which may hold anything.
"""

import base64
import io
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import rows
from pipeline.errors import UsageError
from pipeline.export.part import ARRAYS, Contents, Part
from pipeline.run_directory.layout import parquet_bytes

FILE_NAME = "file_name"  # what the `imagefolder` of datasets looks for
SAMPLE = "sample"
ROW = "row"
LABEL = "label"

# Columns that `imagefolder` would take for its picture, or for names of pictures.
_IMAGEFOLDER = re.compile("image|(.*_)?file_names?")


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        done: the file of a part that is written last, so that its presence means done; the number
            of the part goes into it.
        check: raises UsageError, which says what fits, where a run lacks what the format needs.
        files: yields the files of a part as (path within the export, content), `done` last; the
            same bytes for the same part.
        owned: returns the names in the export's folder, as patterns, of all that the format
            writes.
    """

    done: str
    check: Callable[[Contents], None]
    files: Callable[[Part], Iterator[tuple[str, bytes]]]
    owned: Callable[[Contents], list[str]]


# --- png: one folder of pictures per part, with an index that `imagefolder` reads -----------------


def _png_files(part: Part) -> Iterator[tuple[str, bytes]]:
    names: list[str] = []
    places: list[tuple[int, int]] = []
    for row, pngs in enumerate(part.pngs()):
        for sample, png in enumerate(pngs):
            name = f"{row:06d}-{sample}.png" if part.has_samples else f"{row:06d}.png"
            yield f"images/{part.name}/{name}", png
            names.append(name)
            places.append((row, sample))
    of_row = part.table.select(part.contents.values).take(
        pa.array([row for row, _ in places], pa.int64())
    )
    columns: dict[str, Any] = {FILE_NAME: pa.array(names, pa.string()), rows.ID: of_row[rows.ID]}
    if part.has_samples:
        columns[SAMPLE] = pa.array([sample for _, sample in places], pa.int32())
        for name in part.contents.of_samples:
            each = zip(of_row[name].to_pylist(), places, strict=True)
            values = [of_samples[sample] for of_samples, (_, sample) in each]
            at, type_ = of_row.schema.get_field_index(name), of_row[name].type.value_type
            of_row = of_row.set_column(at, name, pa.array(values, type_))
    index = pa.table(columns | {name: of_row[name] for name in of_row.column_names})
    yield f"images/{part.name}/metadata.parquet", _index_bytes(index, part)


def _png_check(contents: Contents) -> None:
    if contents.picture is None:
        fits = "npy or webdataset" if contents.arrays else "webdataset"
        raise UsageError(
            f"expected a run with tokens or pictures for --to png, found {_named(contents)}; "
            f"next: --to {fits}"
        )
    taken = {SAMPLE} if contents.picture == rows.IMAGES else set()
    _refuse_clash([n for n in contents.values if n in taken or _IMAGEFOLDER.fullmatch(n)])


# --- webdataset: one tar per part, one sample per row ---------------------------------------------


def _webdataset_files(part: Part) -> Iterator[tuple[str, bytes]]:
    buffer = io.BytesIO()
    values = _json_rows(part.table.select(part.contents.values))
    arrays = {name: part.array(name) for name in part.contents.arrays}
    is_label = _has_label(part.table.schema, part.contents)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row, pngs in enumerate(part.pngs()):
            members = {"json": json.dumps(values[row], default=_text).encode()}
            if is_label and values[row][LABEL] is not None:
                members["cls"] = str(values[row][LABEL]).encode()
            for sample, png in enumerate(pngs):
                members[f"{sample}.png" if part.has_samples else "png"] = png
            members |= {f"{name}.npy": _npy_bytes(array[row]) for name, array in arrays.items()}
            for extension, content in sorted(members.items()):
                member = tarfile.TarInfo(f"{part.index:06d}-{row:06d}.{extension}")
                member.size = len(content)  # time, owner and rights are those of TarInfo: fixed
                tar.addfile(member, io.BytesIO(content))
    yield f"{part.name}.tar", buffer.getvalue()


def _has_label(schema: pa.Schema, contents: Contents) -> bool:
    return LABEL in contents.values and pa.types.is_integer(schema.field(LABEL).type)


def _json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Returns rows for JSON, which has no NaN and no infinity: these become null."""
    for index, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table[field.name].cast(pa.float64())
            finite = pc.if_else(pc.is_finite(column), column, None)
            table = table.set_column(index, field.name, finite)
    found = list(table.to_pylist())
    for field in table.schema:
        if pa.types.is_nested(field.type):
            for row in found:
                row[field.name] = _finite(row[field.name])
    return found


def _finite(value: Any) -> Any:
    """Does the same within a nested value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _text(value: Any) -> str:
    """Writes what JSON has no type for: bytes as base64, times and the rest as Python does."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


# --- npy: one array per column and part, with an index --------------------------------------------


def _npy_files(part: Part) -> Iterator[tuple[str, bytes]]:
    for name in part.contents.arrays:
        yield f"{name}/{part.name}.npy", _npy_bytes(part.array(name))
    values = part.table.select(part.contents.values)
    row = pa.array(np.arange(part.table.num_rows, dtype=np.int64))
    columns = {name: values[name] for name in values.column_names}
    index = pa.table({rows.ID: columns.pop(rows.ID), ROW: row, **columns})
    yield f"index/{part.name}.parquet", _index_bytes(index, part)


def _npy_check(contents: Contents) -> None:
    if not contents.arrays:
        raise UsageError(
            f"expected a run with tokens, embeddings or other arrays for --to npy, found "
            f"{_named(contents)}; next: --to webdataset, or the run's data/*.parquet as they are"
        )
    _refuse_clash([name for name in contents.values if name == ROW])


# --------------------------------------------------------------------------------------------------

EXPORTS: dict[str, Format] = {
    "png": Format(
        done="images/part-{:06d}/metadata.parquet",
        check=_png_check,
        files=_png_files,
        owned=lambda _: ["images"],
    ),
    "webdataset": Format(
        done="part-{:06d}.tar",
        check=lambda _: None,
        files=_webdataset_files,
        owned=lambda _: ["part-*.tar"],
    ),
    "npy": Format(
        done="index/part-{:06d}.parquet",
        check=_npy_check,
        files=_npy_files,
        owned=lambda contents: [*contents.arrays, "index"],
    ),
}
# What `Format.owned` may return: names in the folder, not paths.
OWNED = re.compile(rf"images|part-\*\.tar|index|{ARRAYS.pattern}")


def _npy_bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _index_bytes(index: pa.Table, part: Part) -> bytes:
    """Writes an index as Parquet, with the Hub's features of the run: names of labels stay."""
    run = part.table.schema
    features = {
        name: feature
        for name, feature in rows.hub_features(run).items()
        if name in index.column_names and index.schema.field(name).type == run.field(name).type
    }
    metadata = rows.hub_metadata(index.schema, known=features)
    return parquet_bytes(index.replace_schema_metadata(metadata))


def _named(contents: Contents) -> str:
    return ", ".join((*contents.arrays, *contents.values))


def _refuse_clash(names: list[str]) -> None:
    if names:
        raise UsageError(
            f"the run's column {', '.join(names)} has a name that the index of this export needs; "
            "next: --to webdataset, or a run without it (--keep-columns)"
        )
