"""Files that threads read ahead of the caller, a bounded number of bytes of them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.readers.input_rows import READ_BYTES, RowContent

_BYTES_AHEAD = 64 << 20  # that are held together, unless it is one file
_MOST_FILES = 8  # that are handed on together; and read at first where no size is known

File = TypeVar("File")


def read_ahead(
    files: Iterable[File],
    read: Callable[[File], RowContent],
    *,
    size_of: Callable[[File], int | None],
    most_bytes: int,
    threads: int = 16,
) -> Iterator[list[tuple[File, RowContent]]]:
    """Yields files with what `read` gives, in order, a few of them at a time (READ_BYTES); threads
    read the next ones meanwhile, as many as hold a bounded number of bytes.

    Args:
        size_of: bytes of a file; where nobody knows (None), it counts as those so far on the mean.
        most_bytes: of a file that is read; a larger one, which `read` refuses, counts as none.
    """
    some: list[tuple[File, RowContent]] = []
    size = 0
    for file, image in _one_by_one(files, read, size_of, most_bytes, threads):
        some.append((file, image))
        size += len(image) if isinstance(image, bytes) else 0
        if len(some) == _MOST_FILES or size >= READ_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _one_by_one(
    files: Iterable[File],
    read: Callable[[File], RowContent],
    size_of: Callable[[File], int | None],
    most_bytes: int,
    threads: int,
) -> Iterator[tuple[File, RowContent]]:
    waiting = deque(files)
    ahead: deque[tuple[File, Future[RowContent], int]] = deque()
    n_read = bytes_read = 0

    def weight(file: File) -> int:
        size = size_of(file)
        if size is None:
            return bytes_read // n_read if n_read else _BYTES_AHEAD // _MOST_FILES
        return size if size <= most_bytes else 0

    with ThreadPoolExecutor(threads) as pool:
        while waiting or ahead:
            held = sum(_bytes_of(future, size) for _, future, size in ahead)
            while waiting and len(ahead) < 2 * threads:
                size = weight(waiting[0])
                if ahead and held + size > _BYTES_AHEAD:
                    break
                held += size
                file = waiting.popleft()
                ahead.append((file, pool.submit(read, file), size))
            file, future, _ = ahead.popleft()
            try:
                image = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # the others fail as slowly
                raise
            if isinstance(image, bytes):
                n_read, bytes_read = n_read + 1, bytes_read + len(image)
            yield file, image


def _bytes_of(future: "Future[RowContent]", expected: int) -> int:
    """Returns the size of a file that has come, or what is expected of one that is still to."""
    if not future.done() or future.exception() is not None:
        return expected
    image = future.result()
    return len(image) if isinstance(image, bytes) else 0
