"""What planning must know of tars (WebDataset): the fields of the first samples, how many samples
there are and where they begin. Only headers are read; compressed tars are decompressed for them."""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.inputs.counting import counting
from pipeline.inputs.files import InputFile, format_extensions
from pipeline.inputs.tar_index import (
    DAMAGE_ERRORS,
    MOST_BYTES,
    DecompressedTar,
    Samples,
    find_samples,
    open_tar,
    read_members,
)
from pipeline.storage.filesystem import store_errors
from pipeline.storage.redact import redacted_line

# By the last extension of a field, as WebDataset's own decoder takes them.
_INTEGERS = {"cls", "cls2", "class", "count", "index", "inx", "id"}
_TEXTS = {"txt", "text", "transcript", "json", "jsn"}

_FIRST_SAMPLES = 32
_FIRST_TARS = 16
_MOST_NAMED = 20  # in a line
_MOST_FIELDS = 1000  # of all samples; where names hold dots, each may seem to have its own
_THREADS = 32


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
            f"{_named(fields)}; choose with --image-column"
        )
    if image is None and ambiguous:
        several = _named(image_fields(ambiguous[0]))
        raise UsageError(
            f"expected one image a sample in {file.path}, found {several}; choose with "
            "--image-column"
        )
    # What is wanted may lie far behind the images.
    columns = [(f, field_type(f)) for f in dict.fromkeys([*fields, *wanted]) if f != image]
    return file, pa.schema([column for column in columns if column[1] is not None])


def _named(fields: Sequence[str]) -> str:
    """Names fields, the first of them where there are many."""
    named = [field or "without extension" for field in fields[:_MOST_NAMED]]
    return ", ".join([*named, "..."] if len(fields) > _MOST_NAMED else named)


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
    with _refusing(file), open_tar(file.path, options) as opened:
        for key, field, member in read_members(opened):
            yield key, field, member.size


@contextmanager
def _refusing(file: InputFile) -> Iterator[None]:
    """Makes an error of a store a UsageError that names the tar."""
    try:
        yield
    except DAMAGE_ERRORS:
        raise
    except store_errors() as error:
        raise UsageError(
            f"cannot read the tar {file.path}: {redacted_line(error)}; check your rights and "
            "--storage-options, or leave it out of --input"
        ) from error


def count_samples(
    files: Sequence[InputFile],
    options: Mapping[str, Any],
    *,
    limit: int | None,
    with_fields: bool = True,
    shown: bool = False,
) -> tuple[list[tuple[InputFile, int | None]], list[str]]:
    """Returns files with their rows and `sample_starts`: without a limit all of them, with one the
    first that make it up; and the fields of their samples that can be columns.

    Compressed tars are decompressed for that. Where there is no limit, and nobody wants the fields
    (`with_fields`), they are not, and nobody knows their rows (None). `shown`: see `counting`.
    Raises UsageError for too many fields.
    """
    counted: list[tuple[InputFile, int | None]] = []
    fields: dict[str, None] = {}
    found = (
        _find_all(files, options, decompress=with_fields, shown=shown)
        if limit is None
        else _find_first(files, options, limit=limit, with_fields=with_fields)
    )
    with closing(found):
        for file, samples, rows in found:
            if samples is None:
                counted.append((file, None))
                continue
            if with_fields:
                _add_fields(fields, samples, file)
            counted.append((file._replace(sample_starts=samples.starts), rows))
    return counted, list(fields)


Found = Generator[tuple[InputFile, Samples | None, int | None], None, None]


def _find_all(
    files: Sequence[InputFile], options: Mapping[str, Any], *, decompress: bool, shown: bool
) -> Found:
    """Yields tars with their samples, and how many rows they give."""
    find = partial(samples_in, options=options, decompress=decompress)
    with (
        counting(len(files), "tars", shown=shown) as count,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for file, samples in zip(files, pool.map(find, files), strict=True):
            yield file, samples, samples and samples.rows
            count()


def _find_first(
    files: Sequence[InputFile], options: Mapping[str, Any], *, limit: int, with_fields: bool
) -> Found:
    """Yields the first tars with their samples, and how many rows of them make up the limit. Where
    nobody wants all fields, no more of a compressed tar is read than gives these."""
    left = limit
    for file in files:
        if left <= 0:
            return
        enough = None if with_fields else left
        samples = samples_in(file, options, decompress=True, enough=enough)
        assert samples is not None
        yield file, samples, min(samples.rows, left)
        left -= samples.rows


def _add_fields(fields: dict[str, None], samples: Samples | None, file: InputFile) -> None:
    """Adds the fields of a tar that can be columns. Raises UsageError for too many."""
    found = () if samples is None else samples.fields
    fields |= dict.fromkeys(field for field in found if field_type(field) is not None)
    if len(fields) > _MOST_FIELDS:
        raise UsageError(
            f"expected samples of at most {_MOST_FIELDS} fields, found more in {file.path}; next: "
            "names with one dot before the field (a.cls, not a.1.cls), or --keep-columns"
        )


def samples_in(
    file: InputFile,
    options: Mapping[str, Any],
    *,
    decompress: bool = False,
    enough: int | None = None,
) -> Samples | None:
    """Reads the samples of a tar; None of a compressed one that is not to be decompressed.

    Args:
        enough: of a compressed tar no more is read once it has more samples than these.

    Raises UsageError where the store refuses.
    """
    with _refusing(file), open_tar(file.path, options) as opened:
        if not isinstance(opened, DecompressedTar):
            return find_samples(opened)
        return find_samples(opened, enough=enough) if decompress else None
