"""Reader of tars (WebDataset): a sample, the members of one basename, is a row."""

import gzip
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import IO, NamedTuple

import pyarrow as pa

from pipeline.inputs.tar_index import (
    DAMAGE_ERRORS,
    DamagedTar,
    Member,
    TruncatedTar,
    open_tar,
    read_members,
)
from pipeline.inputs.webdataset_schema import field_type, image_fields
from pipeline.readers.input_rows import (
    READ_BYTES,
    STAGE,
    InputRows,
    ReadOptions,
    failed_rows,
    null_table,
    prefetch,
)
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage.filesystem import store_errors
from pipeline.storage.redact import redacted, redacted_error, redacted_line

MOST_DECOMPRESSED = 16 << 30  # of a .tar.gz, which may be made to fill the disk

_MOST_ROWS = 256  # that are handed on together
_COPY_BYTES = 1 << 20

Values = Mapping[str, int | str | None]


class _Row(NamedTuple):
    id: str
    source: str
    image: bytes | RowError
    values: Values


class FailedSample(Exception):
    """A sample that gives no good row: the class and the message of its error."""

    def __init__(self, error: str, message: str) -> None:
        self.row_error = RowError(STAGE, error, message)


class UnreadableTar(OSError):
    """A tar that a store does not give, or only its beginning. The message is one line, with the
    tar's location."""


def read_webdataset(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Reads a sample as a row, in the order in which the samples begin; its id is `file#key`, or
    what the id column holds. Its members may lie anywhere in the tar.

    A tar that is cut, damaged or empty gives one more row, with the error, named like the file.

    Raises UnreadableTar where a tar is gone, forbidden or breaks off with an error of its store,
    also when the tars before it in the shard were read: the shard is all or nothing. No row stands
    for that tar, as nobody knows how many it would be.
    """

    def read() -> Iterator[InputRows]:
        for tar in shard.slices:
            row = 0
            for found in _together(islice(_read_tar(tar, options), tar.stop), options):
                row += len(found.ids)
                yield found
            if tar.stop is not None and row < tar.stop:
                error = RowError(STAGE, "ChangedFile", f"the tar has only {row} samples now")
                yield failed_rows(tar, range(row, tar.stop), error, options.passthrough)

    return prefetch(read())


def _together(rows: Iterator[_Row], options: ReadOptions) -> Iterator[InputRows]:
    """Puts together as many rows as are handed on at once."""
    some: list[_Row] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row.image) if isinstance(row.image, bytes) else 0
        size += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if len(some) == _MOST_ROWS or size >= READ_BYTES:
            yield _input_rows(some, options.passthrough)
            some, size = [], 0
    if some:
        yield _input_rows(some, options.passthrough)


def _input_rows(rows: list[_Row], schema: pa.Schema) -> InputRows:
    arrays = [pa.array([row.values.get(f.name) for row in rows], f.type) for f in schema]
    columns = pa.table(arrays, schema=schema) if arrays else null_table(schema, len(rows))
    ids, sources, images, _ = zip(*rows, strict=True)
    return InputRows(list(ids), list(sources), list(images), columns)


def _read_tar(tar: FileSlice, options: ReadOptions) -> Iterator[_Row]:
    """Yields the rows of a whole tar, and at last what is wrong with its bytes. Raises
    UnreadableTar."""
    with _naming(tar.path), ExitStack() as stack:
        try:
            stream = stack.enter_context(open_tar(tar.path, options.storage_options))
        except DAMAGE_ERRORS as failure:
            yield _Row(tar.name, tar.path, RowError.of(STAGE, failure), {})
            return
        file, damage = stack.enter_context(_local_copy(stream))
        samples: dict[str, dict[str, Member]] = {}
        key = ""
        try:
            for key, field, member in read_members(file):
                fields = samples.setdefault(key, {})
                if field in fields:
                    member = member._replace(fault=("DuplicateMember", f"{key}.{field} twice"))
                fields[field] = member
        except DamagedTar as failure:
            damage = damage or RowError.of(STAGE, failure)
        if not samples and damage is None:
            damage = RowError(STAGE, "EmptyTar", "the tar holds no samples")
        last = key  # where a tar is cut or damaged, this sample may not be whole
        for key, fields in samples.items():
            id_, image, values = _sample(file, fields, options, damage if key == last else None)
            yield _Row(id_ or f"{tar.name}#{key}", f"{tar.path}#{key}", image, values)
        if damage:
            yield _Row(tar.name, tar.path, damage, {})


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Makes an error of a store, or of the disk that a tar is copied to, say which tar it is of."""
    try:
        yield
    except store_errors() as error:
        raise UnreadableTar(
            f"cannot read the tar {redacted(path)}: {redacted_error(error)}"
        ) from error


@contextmanager
def _local_copy(stream: IO[bytes]) -> Iterator[tuple[IO[bytes], RowError | None]]:
    """Yields a file of this machine with the bytes of a stream, as far as they can be read, and
    what is wrong with those where it ends early: members may come in any order, and neither a
    compressed file nor a store can be read here and there."""
    if isinstance(stream, io.BufferedReader):  # it is such a file
        yield stream, None
        return
    with tempfile.TemporaryFile() as copy:
        damage = _copy(stream, copy)
        copy.seek(0)
        yield copy, damage


def _copy(stream: IO[bytes], copy: IO[bytes]) -> RowError | None:
    """Copies all bytes; returns what is wrong with them where it ended early."""
    compressed = isinstance(stream, gzip.GzipFile)
    # read would lose what it has got before an error
    read = stream.read1 if isinstance(stream, gzip.GzipFile) else stream.read
    while True:
        try:
            some = read(_COPY_BYTES)
        except EOFError as failure:
            return RowError.of(STAGE, TruncatedTar(f"the tar is cut short: {failure}"))
        except DAMAGE_ERRORS as failure:
            return RowError.of(STAGE, failure)
        if not some:
            return None
        copy.write(some)
        if compressed and copy.tell() > MOST_DECOMPRESSED:
            return RowError(
                STAGE, "TarTooLarge", f"expected at most {MOST_DECOMPRESSED} bytes in it"
            )


def _sample(
    file: IO[bytes], fields: Mapping[str, Member], options: ReadOptions, damage: RowError | None
) -> tuple[str | None, bytes | RowError, Values]:
    """Reads what the id column holds, the image, the columns. `damage`: of the tar, behind the
    sample."""
    names = options.passthrough.names
    id_column = options.id_column
    wanted = [*names, *([id_column] if id_column and id_column not in names else [])]
    values: Values = {}
    try:
        values = {name: _value(file, name, fields) for name in wanted if name in fields}
        if damage and len(values) < len(wanted):
            raise FailedSample(damage.error, "the tar is cut or damaged within this sample")
        if id_column and id_column not in values:
            raise FailedSample("MissingId", f"expected a member .{id_column}, found none")
        image: bytes | RowError = _image(file, fields, options.image_column)
    except FailedSample as failure:
        image = failure.row_error
    id_ = str(values[id_column]) if id_column and id_column in values else None
    return id_, image, values


def _value(file: IO[bytes], field: str, fields: Mapping[str, Member]) -> int | str:
    payload = _read(file, fields[field])
    try:
        if field_type(field) == pa.string():
            return payload.decode()
        number: int = pa.scalar(int(payload), pa.int64()).as_py()
        return number
    except (ValueError, OverflowError) as failure:
        raise FailedSample(
            "InvalidField", f"member .{field}: {redacted_line(failure)}"
        ) from failure


def _image(file: IO[bytes], fields: Mapping[str, Member], chosen: str | None) -> bytes:
    found = image_fields(fields) if chosen is None else [chosen] if chosen in fields else []
    if not found:
        raise FailedSample(
            "MissingImage", f"expected an image, found members .{', .'.join(fields)}"
        )
    if len(found) > 1:
        raise FailedSample(
            "SeveralImages", f"expected one image, found {', '.join(found)}; see --image-column"
        )
    image = _read(file, fields[found[0]])
    if not image:
        raise FailedSample("EmptyImage", f"member .{found[0]} holds no bytes")
    return image


def _read(file: IO[bytes], member: Member) -> bytes:
    if member.fault is not None:
        raise FailedSample(*member.fault)
    file.seek(member.offset)
    payload = file.read(member.size)
    if len(payload) < member.size:
        raise FailedSample("TruncatedTar", "the tar is cut short within this sample")
    return payload
