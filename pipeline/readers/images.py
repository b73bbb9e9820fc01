"""Reader of image files: a file is a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.inputs.class_folders import labels_of
from pipeline.inputs.image_metadata import has_metadata, metadata_of
from pipeline.readers.faults import ImageFaults, require_input
from pipeline.readers.input_rows import STAGE, InputRows, ReadOptions, RowContent, null_table
from pipeline.readers.read_ahead import read_ahead
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage.file_identity import NO_FILE, size_in
from pipeline.storage.filesystem import open_location, read_bytes
from pipeline.storage.redact import redacted_location


def read_image_files(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Reads a file as a row; its id is the file's name. Raises what is not the fault of a row; see
    `ImageFaults`."""
    faults = ImageFaults(shard)

    def read(file: FileSlice) -> bytes | RowError:
        if file.name in options.kept:
            return b""
        if file.identity == NO_FILE:
            return RowError(STAGE, "NoFile", f"expected a file, found {NO_FILE}")
        if refused := options.refused(size_in(file.identity)):
            return refused
        try:
            image = _read(file, options.storage_options)
        except Exception as error:  # of one image; each store has its own classes of errors
            return faults.row_error(error)
        return image or RowError(STAGE, "EmptyImage", "the file is empty")

    for some in read_ahead(shard.slices, read, size_of=_size, most_bytes=options.max_image_bytes):
        yield _input_rows(some, options)
    faults.check()


def _size(file: FileSlice) -> int | None:
    return size_in(file.identity)


def _read(file: FileSlice, options: Mapping[str, Any]) -> bytes:
    fs, path = open_location(file.path, options)
    try:
        return read_bytes(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        require_input(file, fs, path)
        return read_bytes(fs, path)  # it may have come back with its folder just now


def _input_rows(some: Sequence[tuple[FileSlice, RowContent]], options: ReadOptions) -> InputRows:
    schema = options.passthrough
    ids = [file.name for file, _ in some]
    sources = [redacted_location(file.path) for file, _ in some]
    if has_metadata(schema):
        columns = metadata_of([file for file, _ in some], schema, options.storage_options)
    else:
        columns = labels_of(ids, schema) if len(schema) else null_table(schema, len(ids))
    return InputRows(ids, sources, [image for _, image in some], columns)
