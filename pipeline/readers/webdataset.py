"""Reader of tars (WebDataset): a sample, the members of one basename, is a row."""

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import islice
from typing import IO, NamedTuple

import pyarrow as pa

from pipeline.inputs.tar_index import (
    DAMAGE_ERRORS,
    BytesBehind,
    DamagedTar,
    Member,
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
from pipeline.storage.redact import redacted, redacted_error, redacted_line, redacted_location

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


Content = bytes | FailedSample  # of a member, or why it has none


class UnreadableTar(OSError):
    """A tar that a store does not give, or only its beginning. The message is one line, with the
    tar's location."""


def read_webdataset(shard: Shard, options: ReadOptions) -> Iterator[InputRows]:
    """Reads a sample as a row, in the order in which the samples begin; its id is `file#key`, or
    what the id column holds. Its members may lie anywhere in the tar, unless the tar is cut between
    its samples: then no more of it is read than the shard, and one sample held at a time.

    A tar that is cut short, damaged or empty gives one more row, with the error, named like the
    file.

    Raises UnreadableTar where a tar is gone, forbidden or breaks off with an error of its store,
    also when the tars before it in the shard were read: the shard is all or nothing. No row stands
    for that tar, as nobody knows how many it would be.
    """

    def read() -> Iterator[InputRows]:
        for tar in shard.slices:
            row = tar.start
            count = None if tar.stop is None else tar.stop - tar.start
            for found in _together(islice(_read_tar(tar, options), count), options):
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
    """Yields the rows of a tar or of a slice of it, and at last what is wrong with its bytes.
    Raises UnreadableTar."""
    with _naming(tar.path), ExitStack() as stack:
        try:
            opened = open_tar(tar.path, options.storage_options, stop=tar.end_byte)
            stream = stack.enter_context(opened)
        except DAMAGE_ERRORS as failure:
            yield _Row(tar.name, redacted_location(tar.path), RowError.of(STAGE, failure), {})
            return
        if tar.first_byte is not None:
            yield from _read_in_order(stream, tar.first_byte, tar, options)
            return
        file, damage = stack.enter_context(_local_copy(stream))
        yield from _read_anywhere(file, damage, tar, options)


def _read_in_order(
    file: IO[bytes], first_byte: int, tar: FileSlice, options: ReadOptions
) -> Iterator[_Row]:
    """Reads samples whose members lie one after the other, as they come."""
    read = _content_reader(file, options)
    damage: RowError | None = None
    within: RowError | None = None
    sample = ""
    contents: dict[str, Content] = {}
    try:
        for key, field, member in read_members(file, first_byte, tar.end_byte):
            if key != sample and contents:
                yield _row(tar, sample, contents, options, None)
                contents = {}
            sample = key
            member = _checked(member, key, field, contents)
            contents[field] = read(field, member)
    except DamagedTar as failure:
        damage = RowError.of(STAGE, failure)
        within = None if isinstance(failure, BytesBehind) else damage
    if contents:
        yield _row(tar, sample, contents, options, within)
    elif damage is None and first_byte == 0:
        damage = RowError(STAGE, "EmptyTar", "the tar holds no samples")
    if damage and tar.end_byte is None:
        yield _Row(tar.name, redacted_location(tar.path), damage, {})


def _read_anywhere(
    file: IO[bytes], damage: RowError | None, tar: FileSlice, options: ReadOptions
) -> Iterator[_Row]:
    """Reads samples whose members lie anywhere in a file of this machine. `damage`: of the tar,
    behind the end of the file."""
    read = _content_reader(file, options)
    samples: dict[str, dict[str, Member]] = {}
    key = ""
    try:
        for key, field, member in read_members(file):
            fields = samples.setdefault(key, {})
            fields[field] = _checked(member, key, field, fields)
    except BytesBehind as failure:
        damage, key = damage or RowError.of(STAGE, failure), ""
    except DamagedTar as failure:
        damage = damage or RowError.of(STAGE, failure)
    if not samples and damage is None:
        damage = RowError(STAGE, "EmptyTar", "the tar holds no samples")
    last = key  # where a tar is cut or damaged, this sample may not be whole
    for key, fields in samples.items():
        contents = {field: read(field, member) for field, member in fields.items()}
        yield _row(tar, key, contents, options, damage if key == last else None)
    if damage:
        yield _Row(tar.name, redacted_location(tar.path), damage, {})


def _content_reader(file: IO[bytes], options: ReadOptions) -> Callable[[str, Member], Content]:
    """Returns what reads the content of a field; nothing of one that is not needed."""
    columns = {*options.passthrough.names, options.id_column}

    @cache
    def is_image(field: str) -> bool:
        return field in ([options.image_column] if options.image_column else image_fields([field]))

    def read(field: str, member: Member) -> Content:
        if is_image(field):
            return _content(file, member, options.refused(member.size))
        return _content(file, member, None) if field in columns else b""

    return read


def _checked(member: Member, key: str, field: str, fields: Mapping[str, object]) -> Member:
    """Returns the member, with a fault where the sample has the field already."""
    if field not in fields:
        return member
    return member._replace(fault=("DuplicateMember", f"{key}.{field} twice"))


def _content(file: IO[bytes], member: Member, refused: RowError | None) -> Content:
    """Returns the content of a member, or why it has none."""
    if member.fault is not None:
        return FailedSample(*member.fault)
    if refused is not None:
        return FailedSample(refused.error, refused.message)
    file.seek(member.offset)
    payload = file.read(member.size)
    if len(payload) < member.size:
        return FailedSample("TruncatedTar", "the tar is cut short within this sample")
    return payload


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
    while True:
        try:
            some = stream.read(_COPY_BYTES)
        except DAMAGE_ERRORS as failure:
            return RowError.of(STAGE, failure)
        if not some:
            return None
        copy.write(some)


def _row(
    tar: FileSlice,
    key: str,
    contents: Mapping[str, Content],
    options: ReadOptions,
    damage: RowError | None,
) -> _Row:
    """Makes the row of a sample. `damage`: of the tar, behind the sample."""
    names = options.passthrough.names
    id_column = options.id_column
    wanted = [*names, *([id_column] if id_column and id_column not in names else [])]
    values: Values = {}
    try:
        values = {name: _value(name, contents) for name in wanted if name in contents}
        if damage and len(values) < len(wanted):
            raise FailedSample(damage.error, "the tar is cut or damaged within this sample")
        if id_column and id_column not in values:
            raise FailedSample("MissingId", f"expected a member .{id_column}, found none")
        image: bytes | RowError = _image(contents, options.image_column)
    except FailedSample as failure:
        image = failure.row_error
    id_ = str(values[id_column]) if id_column and id_column in values else None
    source = f"{redacted_location(tar.path)}#{key}"
    return _Row(id_ or f"{tar.name}#{key}", source, image, values)


def _value(field: str, contents: Mapping[str, Content]) -> int | str:
    payload = _payload(field, contents)
    try:
        if field_type(field) == pa.string():
            return payload.decode()
        number: int = pa.scalar(int(payload), pa.int64()).as_py()
        return number
    except (ValueError, OverflowError) as failure:
        raise FailedSample(
            "InvalidField", f"member .{field}: {redacted_line(failure)}"
        ) from failure


def _image(contents: Mapping[str, Content], chosen: str | None) -> bytes:
    found = image_fields(contents) if chosen is None else [chosen] if chosen in contents else []
    if not found:
        raise FailedSample(
            "MissingImage", f"expected an image, found members .{', .'.join(contents)}"
        )
    if len(found) > 1:
        raise FailedSample(
            "SeveralImages", f"expected one image, found {', '.join(found)}; see --image-column"
        )
    image = _payload(found[0], contents)
    if not image:
        raise FailedSample("EmptyImage", f"member .{found[0]} holds no bytes")
    return image


def _payload(field: str, contents: Mapping[str, Content]) -> bytes:
    content = contents[field]
    if isinstance(content, FailedSample):
        raise content
    return content
