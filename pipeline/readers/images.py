"""Reader of image files: a file is a row."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.inputs.class_folders import labels_of
from pipeline.readers.faults import ImageFaults, require_input
from pipeline.readers.input_rows import (
    READ_BYTES,
    STAGE,
    InputRows,
    ReadOptions,
    RowContent,
    null_table,
)
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage.file_identity import NO_FILE, size_in
from pipeline.storage.filesystem import open_location, read_bytes

_READ_THREADS = 16
_FILES_AHEAD = 32  # files read, or being read, that the caller has not taken
_BYTES_AHEAD = 64 << 20  # that they take together, unless it is one
_MOST_FILES = 8  # that are handed on together; and read at first where no size is known


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

    schema = options.passthrough
    files: list[FileSlice] = []
    images: list[RowContent] = []
    size = 0
    for file, image in _read_ahead(shard.slices, read, options.max_image_bytes):
        files.append(file)
        images.append(image)
        size += len(image) if isinstance(image, bytes) else 0
        if len(files) == _MOST_FILES or size >= READ_BYTES:
            yield _input_rows(files, images, schema)
            files, images, size = [], [], 0
    if files:
        yield _input_rows(files, images, schema)
    faults.check()


def _read(file: FileSlice, options: Mapping[str, Any]) -> bytes:
    fs, path = open_location(file.path, options)
    try:
        return read_bytes(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        require_input(file, fs, path)
        return read_bytes(fs, path)  # it may have come back with its folder just now


def _input_rows(files: list[FileSlice], images: list[RowContent], schema: pa.Schema) -> InputRows:
    ids = [file.name for file in files]
    sources = [file.path for file in files]
    columns = labels_of(ids, schema) if len(schema) else null_table(schema, len(files))
    return InputRows(ids, sources, images, columns)


def _read_ahead(
    files: Iterable[FileSlice], read: Callable[[FileSlice], bytes | RowError], most_bytes: int
) -> Iterator[tuple[FileSlice, bytes | RowError]]:
    """Yields each file with what `read` gives, in order; threads read the next ones meanwhile, as
    many as hold a bounded number of bytes. A file whose size nobody knows counts as the largest so
    far; one of more than `most_bytes`, which is not read, as none."""
    waiting = deque(files)
    ahead: deque[tuple[FileSlice, Future[bytes | RowError], int]] = deque()
    held = largest = 0

    def weight(file: FileSlice) -> int:
        size = size_in(file.identity)
        if size is None:
            return largest or _BYTES_AHEAD // _MOST_FILES
        return size if size <= most_bytes else 0

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        while waiting or ahead:
            while waiting and len(ahead) < _FILES_AHEAD:
                size = weight(waiting[0])
                if ahead and held + size > _BYTES_AHEAD:
                    break
                held += size
                file = waiting.popleft()
                ahead.append((file, pool.submit(read, file), size))
            file, future, size = ahead.popleft()
            try:
                image = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the others fail as slowly
                raise
            held -= size
            largest = max(largest, len(image) if isinstance(image, bytes) else 0)
            yield file, image
