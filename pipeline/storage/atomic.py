"""Files that are written whole or not at all, on local disks and in stores."""

import errno
import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from fsspec import AbstractFileSystem

from pipeline.storage.filesystem import exists, is_local, protocols, read_bytes, retry_on

# Filesystems that show a file while it is being written; the others publish it at the end.
_NOT_ATOMIC = {"sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs", "webHDFS"}
# What is written to before a file has its name: hidden, and no .parquet or .json.
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]+\.tmp")


def write_atomic(fs: AbstractFileSystem, path: str, payload: bytes) -> None:
    """Writes a file that readers see whole or not at all; replaces what was there.

    Local: a temporary name beside it, fsync, rename. Object stores: one PUT or one completed
    multi-part upload.
    """
    temporary = _temporary_for(path)

    def write() -> None:
        if is_local(fs):
            _write_local(temporary, path, payload)
        elif has_temporaries(fs):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(temporary, payload)
            if fs.exists(path):  # rename does not replace on these: a gap, never half a file
                fs.rm_file(path)
            fs.mv(temporary, path)
        else:
            fs.pipe_file(path, payload)

    try:
        retry_on(fs, write)
    except FileNotFoundError:  # a run that ended took it for what a killed writer had left
        retry_on(fs, write)


def has_temporaries(fs: AbstractFileSystem) -> bool:
    """Returns whether a writer that is killed may leave a file under a temporary name."""
    return is_local(fs) or bool(protocols(fs) & _NOT_ATOMIC)


def is_temporary(path: str) -> bool:
    """Returns whether a file has the name of one that `write_atomic` or `write_new` has not
    finished."""
    return _TEMPORARY.fullmatch(path.rpartition("/")[2]) is not None


def _temporary_for(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


def write_new(fs: AbstractFileSystem, path: str, payload: bytes) -> None:
    """Writes a file that must not be there yet, whole or not at all: of two writers at once, one is
    first.

    Raises FileExistsError. Where a store knows no such writing, two writers at the same moment are
    not kept apart.
    """
    if is_local(fs):
        temporary = _temporary_for(path)
        _write_local(temporary, temporary, payload)
        create: Callable[[], None] = partial(os.link, temporary, path)
    else:
        create = partial(fs.pipe_file, path, payload, mode="create")
    try:
        if exists(fs, path):
            raise FileExistsError(errno.EEXIST, "it is there already", path)
        create()
    except FileExistsError:
        raise
    except (OSError, NotImplementedError, TypeError, ValueError) as error:
        # Somebody was first, or the store cannot do this.
        if exists(fs, path) and read_bytes(fs, path) != payload:
            raise FileExistsError(errno.EEXIST, "it is there already", path) from error
        write_atomic(fs, path, payload)
    finally:
        if is_local(fs):
            with suppress(FileNotFoundError):  # taken for a leftover too
                os.remove(temporary)


def _write_local(temporary: str, path: str, payload: bytes) -> None:
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    descriptor = os.open(folder, os.O_RDONLY)  # the rename itself must survive a power cut
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
