"""The members of a tar, by the sample that they belong to; where its samples begin, and where it is
cut or damaged.

Only headers are read, and nothing is ever extracted under a name that stands in a tar.
"""

import gzip
import tarfile
import zlib
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

from pipeline.storage.block_reader import BlockReader
from pipeline.storage.filesystem import is_local, open_location

MOST_BYTES = 512 << 20  # of a member; twice what the largest image takes in memory
MOST_DECOMPRESSED = 16 << 30  # of a .tar.gz, which may be made to fill the disk
_MOST_TAR_BYTES = 1 << 42  # beyond what filesystems hold in a file
_ZEROS_AT_ONCE = 8 << 10  # bytes read behind the end of a tar; whole blocks
_STEP_BACK_BYTES = 64 << 10  # that are held of a compressed tar behind what is read
_DECOMPRESSED_BYTES = 256 << 10  # at once

_GZIP = b"\x1f\x8b"
# What tarfile raises over a header that is damaged, or made to do harm (names that nest).
_HEADER_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)


class DamagedTar(Exception):
    """A file that is no tar, or from some byte on none any more."""


class TruncatedTar(DamagedTar):
    """A tar that ends before its end marker."""


class BytesBehind(DamagedTar):
    """A tar that is whole, with bytes behind its end marker that are no tar."""


class TarTooLarge(DamagedTar):
    """A compressed tar of more bytes than are decompressed."""


# What is raised over bytes that are damaged or cut short, as none of a store's own errors is.
DAMAGE_ERRORS = (DamagedTar, EOFError, zlib.error, gzip.BadGzipFile)


class Member(NamedTuple):
    """Where a member begins, where its bytes lie, and why they cannot be read (class and
    message)."""

    start: int  # of its first header
    offset: int
    size: int
    fault: tuple[str, str] | None


class DecompressedTar:
    """The bytes of a compressed tar, for reading forwards; steps back of a header or two are free.

    What can be decompressed of a damaged file is read before the error is raised: one of
    DAMAGE_ERRORS, TarTooLarge behind MOST_DECOMPRESSED bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._gzip = gzip.GzipFile(fileobj=self._file)
        self._at = self._first = 0  # the byte to be read next, and the first that is held
        self._held = b""
        self._failure: Exception | None = None

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> None:
        if offset < self._first:
            self._begin()
        self._at = offset

    def read(self, size: int) -> bytes:
        """Reads fewer bytes at the end alone, and before what is damaged."""
        some = self._some(size)
        if len(some) == size or not size:
            return some
        parts = []
        while some:
            parts.append(some)
            size -= len(some)
            some = self._some(size)
        if not parts and self._failure is not None:
            raise self._failure
        return b"".join(parts)

    def _some(self, size: int) -> bytes:
        """Reads at most `size` bytes of those that are held next."""
        while self._at >= self._first + len(self._held) and self._decompress():
            pass
        begin = self._at - self._first
        some = self._held[begin : begin + size]
        self._at += len(some)
        return some

    def _decompress(self) -> bool:
        """Decompresses some more bytes; returns whether there were any."""
        if self._failure is not None:
            return False
        end = self._first + len(self._held)
        try:  # read would lose what it has got before an error
            more = self._gzip.read1(_DECOMPRESSED_BYTES)
        except EOFError as failure:
            self._failure = TruncatedTar(f"the tar is cut short: {failure}")
            return False
        except DAMAGE_ERRORS as failure:
            self._failure = failure
            return False
        if end + len(more) > MOST_DECOMPRESSED:
            self._failure = TarTooLarge(f"expected at most {MOST_DECOMPRESSED} bytes in it")
            more = more[: MOST_DECOMPRESSED - end]
        kept = self._held[-_STEP_BACK_BYTES:]
        self._first, self._held = end - len(kept), kept + more
        return bool(more)


@contextmanager
def open_tar(
    path: str, options: Mapping[str, Any], *, stop: int | None = None
) -> Iterator[IO[bytes]]:
    """Opens a tar as a stream of its bytes, decompressed if need be; who reads on reads to `stop`.
    Raises as the store does."""
    fs, path = open_location(path, options)
    with open(path, "rb") if is_local(fs) else fs.open(path, "rb", cache_type="none") as raw:
        file = raw if is_local(fs) else cast(IO[bytes], BlockReader(fs, raw, stop=stop))
        compressed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        yield cast(IO[bytes], DecompressedTar(file)) if compressed else file


class Samples(NamedTuple):
    """The samples of a tar.

    Attributes:
        rows: how many rows it gives: its samples, and one more for an error of the tar itself.
        starts: the byte where each sample begins, where they lie one after the other, so that the
            tar can be cut between them; None where members of a sample lie apart, and of a
            compressed tar.
        fields: those that any of them has, in the order in which they come.
    """

    rows: int
    starts: Sequence[int] | None
    fields: tuple[str, ...] = ()


def find_samples(file: IO[bytes], *, enough: int | None = None) -> Samples:
    """Reads the headers of a tar; a compressed one is decompressed for that.

    Args:
        enough: no more is read once the tar has more samples than these; None: all of it.

    Raises as the store does.
    """
    keys: set[str] = set()
    fields: dict[str, None] = {}
    starts = array("q")
    before, are_apart, is_damaged = None, False, False
    try:
        for key, field, member in read_members(file):
            fields[field] = None
            if key == before:
                continue
            are_apart |= key in keys
            keys.add(key)
            starts.append(member.start)
            before = key
            if enough is not None and len(keys) > enough:
                break
    except DAMAGE_ERRORS:
        is_damaged = True
    rows = len(keys) + (is_damaged or not keys)
    is_cut = not are_apart and not isinstance(file, DecompressedTar)
    return Samples(rows, starts if is_cut else None, tuple(fields))


def read_members(
    file: IO[bytes], start: int = 0, stop: int | None = None
) -> Iterator[tuple[str, str, Member]]:
    """Yields the key, the field and the place of each member, in order: of those that begin at the
    bytes `start` to `stop`, of which the first is where a member begins; None: of all.

    As WebDataset has it, a member belongs to the sample `key` of its path up to the first dot of
    its name, and is the `field` after that dot, in lower case. Folders, hidden names and names
    like `__this__` are passed over. Behind the end of a tar another may begin, as `cat a.tar b.tar`
    has it. Raises DamagedTar after the last member that is found where the tar does not end as
    tars end, unless it is read to `stop`.
    """
    at: int | None = start
    while at is not None:
        end = yield from _read_one_tar(file, at, stop)
        if stop is not None and end >= stop:
            return
        at = _skip_zeros(file, end)
        if at is not None and not _is_header(file, at):
            raise BytesBehind(f"behind the end of the tar other bytes begin, at byte {at}")


def _is_header(file: IO[bytes], start: int) -> bool:
    file.seek(start)
    try:
        tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "backslashreplace")
    except _HEADER_ERRORS:
        return False
    return True


def _read_one_tar(
    file: IO[bytes], start: int, stop: int | None
) -> Generator[tuple[str, str, Member], None, int]:
    """Does the same up to the end marker of the tar; returns where that begins, or where the
    reading stopped."""
    file.seek(start)
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="backslashreplace")
    except _HEADER_ERRORS as error:
        raise DamagedTar(f"expected a tar, found a file that starts otherwise: {error}") from error
    failure = ""
    try:
        while (stop is None or start < stop) and (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # which would keep every header
            if not start < tar.offset < _MOST_TAR_BYTES:  # below: it would never come to an end
                raise DamagedTar(f"the tar is damaged: a member of {info.size} bytes")
            yield from _members(info, start)
            start = tar.offset
    except _HEADER_ERRORS as error:
        failure = f" ({error})"
    if stop is not None and start >= stop:
        return start
    # tarfile takes a tar that is cut, or goes on with other bytes, for one that ends there.
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise TruncatedTar("the tar is cut short: it has no end marker")
    if failure or any(block):
        raise DamagedTar(f"the tar is damaged: no header of a member at byte {tar.offset}{failure}")
    return int(tar.offset)


def _skip_zeros(file: IO[bytes], start: int) -> int | None:
    """Returns where the first block that is not of zeros begins, from a block at `start` on; None
    where the file ends before."""
    file.seek(start)
    while some := file.read(_ZEROS_AT_ONCE):
        if len(rest := some.lstrip(b"\0")):
            return start + (len(some) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        start += len(some)
    return None


def _members(info: tarfile.TarInfo, start: int) -> Iterator[tuple[str, str, Member]]:
    path = info.name.removeprefix("./")
    name = path.rpartition("/")[2]
    meta = name.startswith("__") and name.endswith("__")
    if info.isdir() or not name or name.startswith(".") or meta:
        return
    stem, _, field = name.partition(".")
    fault = None
    if not info.isreg() or info.issparse():
        fault = (
            "UnreadableMember",
            f"expected a plain file, found a link, device or sparse: {path}",
        )
    elif info.size > MOST_BYTES:
        fault = ("MemberTooLarge", f"expected at most {MOST_BYTES} bytes in {path}: {info.size}")
    key = path[: len(path) - len(name)] + stem
    yield key, field.lower(), Member(start, info.offset_data, info.size, fault)
