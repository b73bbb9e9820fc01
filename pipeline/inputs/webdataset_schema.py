"""What planning must know of tars (WebDataset): the fields of the first samples and, for a limit,
how many samples there are. No tar is read further than that."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.files import InputFile, format_extensions
from pipeline.inputs.tar_index import DAMAGE_ERRORS, MOST_BYTES, open_tar, read_members
from pipeline.storage.filesystem import store_errors
from pipeline.storage.redact import redacted_line

# By the last extension of a field, as WebDataset's own decoder takes them.
_INTEGERS = {"cls", "cls2", "class", "count", "index", "inx", "id"}
_TEXTS = {"txt", "text", "transcript", "json", "jsn"}

_FIRST_SAMPLES = 32
_FIRST_TARS = 16


def image_fields(fields: Iterable[str]) -> list[str]:
    """Returns those that are images by their extension."""
    images = format_extensions()["images"]
    return [field for field in fields if os.path.splitext(f"x.{field}")[1] in images]


def field_type(field: str) -> pa.DataType | None:
    """Returns the type of a field that becomes a column; None for one that does not."""
    extension = field.rpartition(".")[2]
    if extension in _INTEGERS:
        return pa.int64()
    return pa.string() if extension in _TEXTS else None


def find_sample_schema(
    files: Sequence[InputFile],
    options: Mapping[str, Any],
    *,
    image: str | None,
    wanted: Iterable[str],
) -> tuple[InputFile, pa.Schema]:
    """Finds the first tar that holds samples, and the columns that its first samples can give, or
    those wanted: whole numbers and text, by their extensions. `image`: the field of images, where
    one is chosen.

    Raises UsageError where there are no samples, or it is not clear which image is theirs.
    """
    for file in files[:_FIRST_TARS]:
        samples = _read_first_fields(file, options)
        if samples:
            break
    else:
        raise UsageError(
            f"expected samples in {files[0].path}, found none; check --input, or leave the tars "
            "without any out"
        )
    fields = list(dict.fromkeys(field for sample in samples.values() for field in sample))
    images = image_fields(fields)
    ambiguous = [sample for sample in samples.values() if len(image_fields(sample)) > 1]
    if (image or next(iter(images), None)) not in fields:
        raise UsageError(
            f"expected images {image or ''} in the samples of {file.path}, found members "
            f"{', '.join(field or 'without extension' for field in fields)}; "
            f"choose with --image-column"
        )
    if image is None and ambiguous:
        several = ", ".join(image_fields(ambiguous[0]))
        raise UsageError(
            f"expected one image a sample in {file.path}, found {several}; choose with "
            "--image-column"
        )
    # What is wanted may lie far behind the images.
    columns = [(f, field_type(f)) for f in dict.fromkeys([*fields, *wanted]) if f != image]
    return file, pa.schema([column for column in columns if column[1] is not None])


def _read_first_fields(file: InputFile, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Reads the fields of the first samples of a tar, by key."""
    samples: dict[str, list[str]] = {}
    try:
        for key, field, size in _read_headers(file, options):
            if key not in samples and len(samples) == _FIRST_SAMPLES:
                break
            samples.setdefault(key, []).append(field)
            if size > MOST_BYTES:  # what lies behind is too far away
                break
    except DAMAGE_ERRORS:
        pass
    return samples


def _read_headers(file: InputFile, options: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yields key, field and size of each member. Raises UsageError where the store refuses."""
    try:
        with open_tar(file.path, options) as opened:
            for key, field, member in read_members(opened):
                yield key, field, member.size
    except DAMAGE_ERRORS:
        raise
    except store_errors() as error:
        raise UsageError(
            f"cannot read the tar {file.path}: {redacted_line(error)}; check your rights and "
            "--storage-options, or leave it out of --input"
        ) from error


def count_samples(
    files: Sequence[InputFile], options: Mapping[str, Any], *, limit: int | None
) -> list[tuple[InputFile, int | None]]:
    """Returns files with their rows: without a limit all of them, not counted (None); with one the
    first files and rows that make it up. The rows of a tar that is cut or damaged are not
    counted."""
    if limit is None:
        return [(file, None) for file in files]
    counted: list[tuple[InputFile, int | None]] = []
    left = limit
    for file in files:
        if left <= 0:
            break
        keys: set[str] = set()
        rows: int | None = None
        try:
            for key, _, _ in _read_headers(file, options):
                keys.add(key)
                if len(keys) == left:
                    break
            rows = max(len(keys), 1)  # a tar without samples is an error, and that is a row
        except DAMAGE_ERRORS:
            pass
        counted.append((file, rows))
        left -= len(keys) + 1 if rows is None else rows
    return counted
