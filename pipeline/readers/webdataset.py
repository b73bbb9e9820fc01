"""Reader of tars (WebDataset): a sample, the members of one basename, is a row."""

import gzip
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from typing import IO, NamedTuple

import pyarrow as pa

from pipeline.inputs.tar_index import (
    DAMAGE,
    DamagedTar,
    Member,
    TruncatedTar,
    open_tar,
    read_members,
)
from pipeline.inputs.webdataset_schema import field_type, image_fields
from pipeline.readers.chunk import (
    CHUNK_BYTES,
    STAGE,
    Chunk,
    ReadOptions,
    failed,
    null_table,
    one_ahead,
)
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard
from pipeline.storage.filesystem import store_errors
from pipeline.storage.redact import redacted, redacted_line

MOST_UNPACKED = 16 << 30  # of a packed tar, which may be made to fill the disk

_CHUNK_ROWS = 256
_BLOCK = 1 << 20

Values = Mapping[str, int | str | None]


class _Row(NamedTuple):
    id: str
    source: str
    image: bytes | RowError
    values: Values


class BadSample(Exception):
    """A sample gives no row: the class and the message of its error."""

    def __init__(self, error: str, message: str) -> None:
        self.row_error = RowError(STAGE, error, message)


class UnreadableTar(OSError):
    """A store does not hand out a tar, or only its beginning. The message is one line, with the
    tar's location."""


def read_tars(shard: Shard, options: ReadOptions) -> Iterator[Chunk]:
    """A sample is a row, in the order in which the samples begin; its id is `file#key`, or what
    the id column holds. Its members may lie anywhere in the tar.

    A tar that is cut, damaged or empty gives one more row, with the error, named like the file.

    Raises UnreadableTar where a tar is gone, forbidden or breaks off with an error of its store,
    also when the tars before it in the shard were read: the shard is all or nothing. No row stands
    for that tar, as nobody knows how many it would be.
    """

    def chunks() -> Iterator[Chunk]:
        for piece in shard.slices:
            row = 0
            for chunk in _chunks(islice(_read_tar(piece, options), piece.stop), options):
                row += len(chunk.ids)
                yield chunk
            if piece.stop is not None and row < piece.stop:
                error = RowError(STAGE, "ChangedFile", f"the tar has only {row} samples now")
                yield failed(replace(piece, start=row), error, options.passthrough)

    return one_ahead(chunks())


def _chunks(rows: Iterator[_Row], options: ReadOptions) -> Iterator[Chunk]:
    some: list[_Row] = []
    size = 0
    for row in rows:
        some.append(row)
        size += len(row.image) if isinstance(row.image, bytes) else 0
        size += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if len(some) == _CHUNK_ROWS or size >= CHUNK_BYTES:
            yield _chunk(some, options.passthrough)
            some, size = [], 0
    if some:
        yield _chunk(some, options.passthrough)


def _chunk(rows: list[_Row], schema: pa.Schema) -> Chunk:
    arrays = [pa.array([row.values.get(f.name) for row in rows], f.type) for f in schema]
    columns = pa.table(arrays, schema=schema) if arrays else null_table(schema, len(rows))
    ids, sources, images, _ = zip(*rows, strict=True)
    return Chunk(list(ids), list(sources), list(images), columns)


def _read_tar(piece: FileSlice, options: ReadOptions) -> Iterator[_Row]:
    """The rows of a whole tar, and at last what is wrong with its bytes. Raises UnreadableTar."""
    with _named(piece.path), ExitStack() as stack:
        try:
            stream = stack.enter_context(open_tar(piece.path, options.storage_options))
        except DAMAGE as failure:
            yield _Row(piece.name, piece.path, RowError.of(STAGE, failure), {})
            return
        file, damage = stack.enter_context(_at_hand(stream))
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
            yield _Row(id_ or f"{piece.name}#{key}", f"{piece.path}#{key}", image, values)
        if damage:
            yield _Row(piece.name, piece.path, damage, {})


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Makes an error of a store, or of the disk that a tar is copied to, say which tar it is of."""
    try:
        yield
    except store_errors() as error:
        raise UnreadableTar(
            f"cannot read the tar {redacted(path)}: {type(error).__name__}: {redacted_line(error)}"
        ) from error


@contextmanager
def _at_hand(stream: IO[bytes]) -> Iterator[tuple[IO[bytes], RowError | None]]:
    """A file of this machine with the bytes of a stream, as far as they can be read: members may
    come in any order, and neither a packed file nor a store can be read here and there."""
    if isinstance(stream, io.BufferedReader):  # it is such a file
        yield stream, None
        return
    with tempfile.TemporaryFile() as copy:
        damage = _copy(stream, copy)
        copy.seek(0)
        yield copy, damage


def _copy(stream: IO[bytes], copy: IO[bytes]) -> RowError | None:
    """Returns what is wrong with the bytes that it ended early at."""
    packed = isinstance(stream, gzip.GzipFile)
    # read would lose what it has got before an error
    read = stream.read1 if isinstance(stream, gzip.GzipFile) else stream.read
    while True:
        try:
            block = read(_BLOCK)
        except EOFError as failure:
            return RowError.of(STAGE, TruncatedTar(f"the tar is cut short: {failure}"))
        except DAMAGE as failure:
            return RowError.of(STAGE, failure)
        if not block:
            return None
        copy.write(block)
        if packed and copy.tell() > MOST_UNPACKED:
            return RowError(STAGE, "TarTooLarge", f"expected at most {MOST_UNPACKED} bytes in it")


def _sample(
    file: IO[bytes], fields: Mapping[str, Member], options: ReadOptions, damage: RowError | None
) -> tuple[str | None, bytes | RowError, Values]:
    """What the id column holds, the image, the columns. `damage`: of the tar, behind the sample."""
    names = options.passthrough.names
    id_column = options.id_column
    wanted = [*names, *([id_column] if id_column and id_column not in names else [])]
    values: Values = {}
    try:
        values = {name: _value(file, name, fields) for name in wanted if name in fields}
        if damage and len(values) < len(wanted):
            raise BadSample(damage.error, "the tar is cut or damaged within this sample")
        if id_column and id_column not in values:
            raise BadSample("MissingId", f"expected a member .{id_column}, found none")
        image: bytes | RowError = _image(file, fields, options.image_column)
    except BadSample as bad:
        image = bad.row_error
    id_ = str(values[id_column]) if id_column in values else None
    return id_, image, values


def _value(file: IO[bytes], field: str, fields: Mapping[str, Member]) -> int | str:
    payload = _read(file, fields[field])
    try:
        if field_type(field) == pa.string():
            return payload.decode()
        return pa.scalar(int(payload), pa.int64()).as_py()
    except (ValueError, OverflowError) as failure:
        raise BadSample("InvalidField", f"member .{field}: {redacted_line(failure)}") from failure


def _image(file: IO[bytes], fields: Mapping[str, Member], chosen: str | None) -> bytes:
    found = image_fields(fields) if chosen is None else [chosen] if chosen in fields else []
    if not found:
        raise BadSample("MissingImage", f"expected an image, found members .{', .'.join(fields)}")
    if len(found) > 1:
        raise BadSample(
            "SeveralImages", f"expected one image, found {', '.join(found)}; see --image-column"
        )
    image = _read(file, fields[found[0]])
    if not image:
        raise BadSample("EmptyImage", f"member .{found[0]} holds no bytes")
    return image


def _read(file: IO[bytes], member: Member) -> bytes:
    if member.fault is not None:
        raise BadSample(*member.fault)
    file.seek(member.offset)
    payload = file.read(member.size)
    if len(payload) < member.size:
        raise BadSample("TruncatedTar", "the tar is cut short within this sample")
    return payload
