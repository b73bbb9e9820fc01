"""Reader of image files: a file is a row."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from pipeline.readers.chunk import CHUNK_BYTES, STAGE, Chunk, ReadOptions, RowInput, null_table
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage.filesystem import open_location, read_bytes

_READ_THREADS = 16
_FILES_AHEAD = 32  # files read, or being read, that the caller has not asked for
_BYTES_AHEAD = 64 << 20  # fewer files, where they are so large that they would exceed this
_CHUNK_FILES = 8


def read_image_files(shard: Shard, options: ReadOptions) -> Iterator[Chunk]:
    """A file is a row; its id is the file's name."""

    def read(piece: FileSlice) -> bytes | RowError:
        try:
            fs, path = open_location(piece.path, options.storage_options)
            image = read_bytes(fs, path)
        except Exception as error:  # of one image; each store has its own classes of errors
            return RowError.of(STAGE, error)
        return image or RowError(STAGE, "EmptyImage", "the file is empty")

    schema = options.passthrough
    pieces: list[FileSlice] = []
    images: list[RowInput] = []
    size = 0
    for piece, image in _read_ahead(shard.slices, read):
        pieces.append(piece)
        images.append(image)
        size += len(image) if isinstance(image, bytes) else 0
        if len(pieces) == _CHUNK_FILES or size >= CHUNK_BYTES:
            yield _files_chunk(pieces, images, schema)
            pieces, images, size = [], [], 0
    if pieces:
        yield _files_chunk(pieces, images, schema)


def _files_chunk(pieces: list[FileSlice], images: list[RowInput], schema: pa.Schema) -> Chunk:
    ids = [piece.name for piece in pieces]
    sources = [piece.path for piece in pieces]
    return Chunk(ids, sources, images, null_table(schema, len(pieces)))


def _read_ahead(
    pieces: Iterable[FileSlice], read: Callable[[FileSlice], bytes | RowError]
) -> Iterator[tuple[FileSlice, bytes | RowError]]:
    """Each piece with what `read` gives, in order; threads read the next ones meanwhile."""
    waiting = iter(pieces)
    ahead: deque[tuple[FileSlice, Future[bytes | RowError]]] = deque()
    window, largest = _CHUNK_FILES, 1
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        while True:
            for piece in islice(waiting, max(window - len(ahead), 0)):
                ahead.append((piece, pool.submit(read, piece)))
            if not ahead:
                return
            piece, future = ahead.popleft()
            try:
                image = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the others fail as slowly
                raise
            if isinstance(image, bytes):
                largest = max(largest, len(image))
            window = min(_FILES_AHEAD, _BYTES_AHEAD // largest + 1)
            yield piece, image
