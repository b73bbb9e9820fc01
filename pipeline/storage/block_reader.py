"""Files of a store read by range requests: on and on in large blocks, here and there in small
ones."""

from typing import IO

from fsspec import AbstractFileSystem

from pipeline.storage.filesystem import retry_on

_LARGE_BLOCK = 4 << 20
_SMALL_BLOCK = 16 << 10
_NEAR = 64 << 10  # bytes that are rather read than skipped: a request takes as long as some of them


class BlockReader:
    """A file of a store, opened without a cache of its own, that can be read from any place.

    Holds one block. Faults that are transient are retried.
    """

    def __init__(self, fs: AbstractFileSystem, raw: IO[bytes], *, stop: int | None = None) -> None:
        """Wraps a file that is open; no block goes beyond `stop` unless what is read does."""
        self._fs, self._raw, self._stop = fs, raw, stop
        self._size: int | None = getattr(raw, "size", None)  # where the store has told it
        self._block, self._block_start = b"", -1  # a first block is a small one
        self._at = 0

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """Reads so many bytes; fewer only at the end of the file."""
        found: list[bytes] = []
        while size > 0:
            start = self._at - self._block_start
            if not 0 <= start < len(self._block):
                self._fetch(size)
                start = 0
            some = self._block[start : start + size]
            if not some:
                break
            found.append(some)
            self._at += len(some)
            size -= len(some)
        return b"".join(found)

    def _fetch(self, size: int) -> None:
        """Fetches the block that begins where the next byte is read."""
        at, gap = self._at, self._at - self._block_start - len(self._block)
        reads_on = self._block_start >= 0 and 0 <= gap < _NEAR
        length = _LARGE_BLOCK if reads_on else _SMALL_BLOCK
        if self._stop is not None:
            length = min(length, self._stop - at)
        if self._size is not None and at >= self._size:  # no request for what is not there
            self._block, self._block_start = b"", at
            return

        def request() -> bytes:
            self._raw.seek(at)
            return self._raw.read(max(length, size))

        self._block, self._block_start = retry_on(self._fs, request), at
