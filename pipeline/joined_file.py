"""Bytes and ranges of a file, one after the other, to be read as a file of their own."""

import io
from bisect import bisect_right
from typing import Any


class JoinedFile(io.RawIOBase):
    """Segments are appended first, then read; ranges are read from `file` when they are asked
    for."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self._segments: list[tuple[int, bytes | None]] = []  # the place in `file`, or bytes
        self._starts: list[int] = []
        self._at = 0
        self.size = 0

    def append(self, payload: bytes) -> None:
        self._add(0, payload, len(payload))

    def append_range(self, begin: int, end: int) -> None:
        self._add(begin, None, end - begin)

    def _add(self, begin: int, payload: bytes | None, size: int) -> None:
        if size > 0:
            self._segments.append((begin, payload))
            self._starts.append(self.size)
            self.size += size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = self.size - self._at
        left = left if size is None or size < 0 else min(left, size)
        pieces = []
        while left > 0:
            index = bisect_right(self._starts, self._at) - 1
            piece = self._piece(index, self._at - self._starts[index], left)
            if not piece:  # the file is shorter now
                break
            pieces.append(piece)
            self._at += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, index: int, offset: int, size: int) -> bytes:
        begin, payload = self._segments[index]
        if payload is not None:
            return payload[offset : offset + size]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else self.size
        self._file.seek(begin + offset)
        return bytes(self._file.read(min(size, end - self._starts[index] - offset)))
