"""Columns of image files by the metadata files in their folders, as in Hugging Face's imagefolder.

A file `metadata.csv`, `.jsonl` or `.parquet` has a row for each image below its folder, whose path
from there is in its column `file_name`. An image has the columns of the nearest such file.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.files import InputFile, files_of_format, has_broken_name
from pipeline.inputs.parquet_columns import is_text, with_partitions
from pipeline.inputs.parquet_schema import passthrough_schema
from pipeline.inputs.text_tables import Options, read_planned, read_table
from pipeline.rows import ID
from pipeline.shards import FileSlice
from pipeline.storage.file_identity import NO_FILE
from pipeline.storage.redact import redacted

METADATA_NAMES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
# What is left out, in the words of `Plan.skipped`.
WITHOUT_IMAGE = "a row of metadata and no image"
WITHOUT_COLUMNS = "metadata that is not read"
_FILE_NAME = "file_name"
# In the metadata of the schema of the columns: the names of the files that they come from.
_FILES_KEY = b"igpt_image_metadata"


def metadata_files(files: Sequence[InputFile]) -> list[InputFile]:
    """Returns the files of an input that may hold columns of its images: by their names, and no
    pipes; none at web addresses, whose signatures are each for one file."""
    return [
        file
        for file in files
        if file.name.rpartition("/")[2] in METADATA_NAMES
        and file.identity != NO_FILE
        and not has_broken_name(file)
        and not file.path.lower().startswith(("http://", "https://"))
    ]


def split_metadata(
    files: Sequence[InputFile], format: str
) -> tuple[list[InputFile], list[InputFile]]:
    """Takes the metadata files apart from the files of an input, unless it is one of tables."""
    metadata = metadata_files(files) if format in ("auto", "images") else []
    if not metadata or not files_of_format(files, "images"):
        return list(files), []
    names = {file.name for file in metadata}
    return [file for file in files if file.name not in names], metadata


def find_metadata(
    images: Sequence[InputFile],
    files: Sequence[InputFile],
    keep_columns: Sequence[str] | None,
    options: Mapping[str, Any],
) -> tuple[pa.Schema, dict[str, int]]:
    """Reads metadata files and finds the columns that they give to images.

    Args:
        keep_columns: those wanted; None for all.

    Returns:
        The schema of the columns, with what `metadata_of` needs; and what is left out, as
        `Plan.skipped` has it: files without a column `file_name`, and rows that name no image.

    Raises UsageError where they contradict one another, or cannot be read.
    """
    tables = [] if keep_columns == [] else [(file, read_planned(file, options)) for file in files]
    used = [(file, table) for file, table in tables if _names_images(table.schema)]
    left_out = {WITHOUT_COLUMNS: len(files) - len(used)}
    if not used:
        return pa.schema([]), {what: n for what, n in left_out.items() if n}
    folders = Counter(_folder(file.name) for file, _ in used)
    for file, _ in used:
        if folders[_folder(file.name)] > 1:
            raise UsageError(
                f"expected one metadata file in a folder, found several beside "
                f"{redacted(file.path)}; next: leave the others out"
            )
    there = {image.name: _nearest(image.name, folders) for image in images}
    left_out[WITHOUT_IMAGE] = sum(_count_missing(file, table, there) for file, table in used)
    schemas = [(file, with_partitions(table.schema, "")) for file, table in used]
    schema = passthrough_schema(schemas, keep_columns, _FILE_NAME, None)
    if ID in schema.names:
        raise UsageError(
            f"expected metadata without a column {ID}, which is the path of the image in every "
            "output; next: --keep-columns with the columns to keep, without it"
        )
    places = json.dumps([[file.name, file.identity] for file, _ in used])
    schema = schema.with_metadata({**(schema.metadata or {}), _FILES_KEY: places})
    return schema, {what: n for what, n in left_out.items() if n}


def _names_images(schema: pa.Schema) -> bool:
    return schema.names.count(_FILE_NAME) == 1 and is_text(schema.field(_FILE_NAME).type)


def _count_missing(file: InputFile, table: pa.Table, images: Mapping[str, str | None]) -> int:
    """Counts the rows that name no image for which this file is the nearest one, by the folders of
    `images`. Raises UsageError where two name the same."""
    every = _image_names(table, file.name)
    most, n = Counter(filter(None, every)).most_common(1)[0] if any(every) else ("", 0)
    if n > 1:
        raise UsageError(
            f"expected one row for each image in {redacted(file.path)}, found {n} of {most}; next: "
            "leave the others out"
        )
    return sum(name is None or images.get(name) != _folder(file.name) for name in every)


def metadata_of(
    images: Sequence[FileSlice], schema: pa.Schema, options: Mapping[str, Any]
) -> pa.Table:
    """Returns the columns of images, as a table of the schema from `find_metadata`; null where no
    metadata file has a row for the image.

    Raises what reading a metadata file may raise.
    """
    files = {_folder(name): (name, identity) for name, identity in _files_of(schema)}
    by_folder: dict[str | None, list[int]] = {}
    for i, image in enumerate(images):
        by_folder.setdefault(_nearest(image.name, files), []).append(i)
    pieces = []
    for folder, places in by_folder.items():
        if folder is None:
            piece = pa.table([pa.nulls(len(places), f.type) for f in schema], schema=schema)
        else:
            name, identity = files[folder]
            path = _beside(images[places[0]], name)
            rows, columns = _loaded(path, name, identity, schema, Options(options))
            piece = columns.take(pa.array([rows.get(images[i].name) for i in places], pa.int64()))
        pieces.append(piece)
    order = list(chain.from_iterable(by_folder.values()))
    return pa.concat_tables(pieces).take(pa.array([order.index(i) for i in range(len(order))]))


def _beside(image: FileSlice, name: str) -> str:
    """Returns the path or URI of another file of the input by its name."""
    head, chained, outer = image.path.partition("::")
    if chained and "://" in head and head.endswith(image.name):  # zip://a.png::s3://b/c.zip
        return f"{head.removesuffix(image.name)}{name}{chained}{outer}"
    return image.path.removesuffix(image.name) + name


def has_metadata(schema: pa.Schema) -> bool:
    """Returns whether columns are those of metadata files."""
    return _FILES_KEY in (schema.metadata or {})


def _files_of(schema: pa.Schema) -> list[tuple[str, str | None]]:
    return [(name, identity) for name, identity in json.loads(schema.metadata[_FILES_KEY])]


@lru_cache(maxsize=16)
def _loaded(
    path: str, name: str, identity: str | None, schema: pa.Schema, options: Options
) -> tuple[dict[str, int], pa.Table]:
    """Reads a metadata file: the row of each image by its name in the input, and the columns."""
    table = read_table(path, name, identity, options)
    absent = {_FILE_NAME, *schema.names} - set(table.schema.names)
    if absent:
        raise ValueError(f"expected column {min(absent)} in {redacted(path)}, as it was planned")
    rows = {image: row for row, image in enumerate(_image_names(table, name)) if image is not None}
    arrays = [table[field.name].cast(field.type).combine_chunks() for field in schema]
    return rows, pa.table(arrays, schema=schema)


def _image_names(table: pa.Table, name: str) -> list[str | None]:
    """Returns the names in the input of the images of a metadata file with this name."""
    folder = _folder(name)
    return [
        None if each is None else posixpath.normpath(posixpath.join(folder, each))
        for each in table[_FILE_NAME].to_pylist()
    ]


def _nearest(name: str, folders: Mapping[str, object]) -> str | None:
    """Returns the innermost of folders in which a file lies, by its name in the input."""
    folder = _folder(name)
    while folder not in folders:
        if not folder:
            return None
        folder = _folder(folder)
    return folder


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
