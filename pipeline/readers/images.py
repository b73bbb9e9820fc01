"""Reader of image files: a file is a row."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa

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
from pipeline.storage.filesystem import open_location, read_bytes

_READ_THREADS = 16
_FILES_AHEAD = 32  # files read, or being read, that the caller has not taken
_BYTES_AHEAD = 64 << 20  # fewer files, where they are so large that they would exceed this
_MOST_FILES = 8  # that are handed on together


def read_image_files(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Reads a file as a row; its id is the file's name. Raises what is not the fault of a row; see
    `ImageFaults`."""
    faults = ImageFaults(shard)

    def read(file: FileSlice) -> bytes | RowError:
        if file.name in options.kept:
            return b""
        try:
            image = _read(file, options.storage_options)
        except Exception as error:  # of one image; each store has its own classes of errors
            return faults.row_error(error)
        return image or RowError(STAGE, "EmptyImage", "the file is empty")

    schema = options.passthrough
    files: list[FileSlice] = []
    images: list[RowContent] = []
    size = 0
    for file, image in _read_ahead(shard.slices, read):
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
    return InputRows(ids, sources, images, null_table(schema, len(files)))


def _read_ahead(
    files: Iterable[FileSlice], read: Callable[[FileSlice], bytes | RowError]
) -> Iterator[tuple[FileSlice, bytes | RowError]]:
    """Yields each file with what `read` gives, in order; threads read the next ones meanwhile."""
    waiting = iter(files)
    ahead: deque[tuple[FileSlice, Future[bytes | RowError]]] = deque()
    window, largest = _MOST_FILES, 1
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        while True:
            for file in islice(waiting, max(window - len(ahead), 0)):
                ahead.append((file, pool.submit(read, file)))
            if not ahead:
                return
            file, future = ahead.popleft()
            try:
                image = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the others fail as slowly
                raise
            if isinstance(image, bytes):
                largest = max(largest, len(image))
            window = min(_FILES_AHEAD, _BYTES_AHEAD // largest + 1)
            yield file, image
