"""From a URI to a filesystem: options, whole files.

Paths without a protocol are local files. Everything else goes through fsspec, so `s3://`, `gs://`,
`hf://` and the rest work as soon as their package is installed.
"""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from igpt_core.errors import library_errors
from igpt_core.files.model_files import EMBEDDED, is_hub_id
from pipeline.errors import UsageError
from pipeline.storage.redact import redacted, redacted_line
from pipeline.storage.retry import is_server_fault, with_retry

Result = TypeVar("Result")
Role = Literal["input", "output", "model"]
ROLES: tuple[Role, ...] = ("input", "output", "model")

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)(?:://|::)")
# Filesystems that retry their requests themselves; to retry on top of that would take minutes.
_RETRYING = {"s3", "s3a", "gs", "gcs", "abfs", "az", "hf"}
# s3fs would ask for the size first, to read large objects in pieces: two requests for each image.
_ONE_GET = {"max_concurrency": 1}


class OutOfReach(ConnectionError):
    """The folder of a location is gone, as where it is not mounted: a transient fault."""


def store_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns what an unreachable or forbidden location raises, and `others`, for an `except`:
    filesystems let the errors of the libraries below them through, and which of those are loaded
    changes."""
    return (OSError, *library_errors(), *others)


def options_for(storage_options: Mapping[str, Any] | None, role: Role) -> dict[str, Any]:
    """Returns the fsspec options of one location: flat options hold for every location,
    `{"input": {...}, "output": {...}, "model": {...}}` (any of them) for one each.

    Raises UsageError where the two forms are mixed. Values never stand in a message.
    """
    if not storage_options:
        return {}
    named = [key for key in storage_options if key in ROLES]
    if not named:
        return dict(storage_options)
    wrong = [key for key, value in storage_options.items() if not isinstance(value, Mapping)]
    wrong += [key for key in storage_options if key not in ROLES and key not in wrong]
    if wrong:
        raise UsageError(
            f"--storage-options names locations ({', '.join(named)}), so every key must be one of "
            f"{', '.join(ROLES)} with an object of options; {', '.join(wrong)} is not"
        )
    return dict(storage_options.get(role, {}))


def open_location(
    uri: str, options: Mapping[str, Any] | None = None
) -> tuple[AbstractFileSystem, str]:
    """Opens the filesystem of a URI; returns it and the path within it (local: absolute, no
    trailing slash).

    `options` go to fsspec for locations that are not local. Raises UsageError for an unknown
    protocol, a missing package, options that the filesystem does not take, or a server that it
    cannot reach.
    """
    found = _PROTOCOL.match(uri)
    if found is None or (os.path.exists(uri) and "://" not in uri):
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    protocol = found[1]
    if protocol in ("file", "local"):
        return LocalFileSystem(), os.path.abspath(uri[found.end() :])
    try:
        cls = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UsageError(
            f"cannot open {protocol}:// locations yet: {redacted_line(error)}"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"expected a path or a URI that fsspec knows (s3://, gs://, ...), found {protocol}://; "
            "check the spelling or install its package"
        ) from error
    try:
        if "::" in uri and not _lies_in_another(cls):  # letters of a name
            of_uri = cls._get_kwargs_from_urls(uri)
            fs = fsspec.filesystem(protocol, **{**of_uri, **dict(options or {})})
            path = cls._strip_protocol(uri)
        else:
            fs, path = fsspec.core.url_to_fs(uri, **dict(options or {}))
        if "s3" in protocols(fs):
            _retry_server_faults()
            fs.connect()  # without a request: s3fs looks at its options no sooner
    except store_errors(TypeError, ValueError, ImportError) as error:
        raise UsageError(
            f"cannot open {protocol}:// with --storage-options {', '.join(options or {}) or '{}'}: "
            f"{redacted_line(error)}"
        ) from error
    return fs, path.rstrip("/")


@lru_cache(maxsize=1)
def _retry_server_faults() -> None:
    """Has s3fs retry what a store answers with a fault of its own: it leaves that to botocore,
    whose five tries one request in some ten thousand fails on a bad day."""
    import s3fs.core

    others = s3fs.core.CUSTOM_ERROR_HANDLER
    s3fs.core.set_custom_error_handler(lambda error: is_server_fault(error) or others(error))


def _class_of(uri: str) -> type[AbstractFileSystem]:
    found = _PROTOCOL.match(uri)
    assert found is not None
    cls: type[AbstractFileSystem] = fsspec.get_filesystem_class(found[1])
    return cls


def _lies_in_another(cls: type[AbstractFileSystem]) -> bool:
    """Tells whether URIs of a filesystem go on with those of another behind `::`, as in
    `zip://a.png::s3://bucket/b.zip`: it takes a file, or what opens one."""
    made = [vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)]
    takes = {name for each in made for name in inspect.signature(each).parameters}
    return bool({"fo", "fs", "target_protocol"} & takes)


def absolute(location: str) -> str:
    """Makes a location mean the same in every process: local paths become absolute, URIs and the
    name of the shipped model stay."""
    if _PROTOCOL.match(location) or location == EMBEDDED:
        return location
    return os.path.abspath(os.path.expanduser(location))


def absolute_model(location: str) -> str:
    """Does the same for a model, which may also be the id of one on the Hugging Face Hub."""
    return location if is_hub_id(location) else absolute(location)


def local_output(path: str) -> str:
    """Returns the path of a local file to be written, its folder made. Raises UsageError where it
    is a URI or cannot be written: better now than when the work is done."""
    if _PROTOCOL.match(path):
        raise UsageError(f"expected a local --output, found {redacted(path)}; copy it afterwards")
    path = absolute(path)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder of --output: {redacted_line(error)}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write into {folder}; check --output and your rights")
    return path


def is_local(fs: AbstractFileSystem) -> bool:
    """Returns whether paths of `fs` can be given to `open`."""
    return isinstance(fs, LocalFileSystem)


def uri_of(child: str, *, uri: str, path: str) -> str:
    """Returns the URI of `child`, a path on the filesystem for which `open_location(uri)` gave
    `path`.

    Keeps what the URI holds beside the path: protocol, host, the outer file of `zip://a::b.zip`.
    """
    if "://" not in uri or _PROTOCOL.match(uri) is None or uri.startswith(("file:", "local:")):
        return child
    head, chained, outer = uri.partition("::")
    # simplecache::s3://bucket/key: the path belongs to the end; s3://bucket/a::b.png: it is a name.
    if "://" not in head or (chained and not _lies_in_another(_class_of(uri))):
        head, chained, outer = uri, "", ""
    head = head.rstrip("/")
    if head.endswith(path):
        return head.removesuffix(path) + child + chained + outer
    return f"{head.partition('://')[0]}://{child.lstrip('/')}{chained}{outer}"


def join(path: str, *names: str) -> str:
    """Joins to `path/name/...`, for paths and URIs alike."""
    return "/".join([path.rstrip("/"), *names])


def exists(fs: AbstractFileSystem, path: str) -> bool:
    """Returns whether a file or folder is there now, whatever was listed before.

    Raises OSError where nobody can tell: a filesystem's own `exists` says no to that.
    """
    return kind(fs, path) is not None


def require_folder(fs: AbstractFileSystem, path: str) -> None:
    """Raises OutOfReach where a local folder is gone or empty: of a file that was there nobody can
    say then that it was deleted. Of a store its own answers tell."""
    if is_local(fs) and not (os.path.isdir(path) and any(os.scandir(path))):
        raise OutOfReach(f"the folder {path} is gone or empty, as where it is not mounted")


def read_bytes(fs: AbstractFileSystem, path: str) -> bytes:
    """Reads a whole file. Raises OSError (FileNotFoundError, PermissionError, ...)."""
    if is_local(fs):
        with open(path, "rb") as file:
            return file.read()
    options = _ONE_GET if "s3" in protocols(fs) else {}
    return bytes(retry_on(fs, lambda: fs.cat_file(path, **options)))


def retry_on(fs: AbstractFileSystem, request: Callable[[], Result]) -> Result:
    """Makes a request; retries it where the filesystem does not do so itself."""
    return request() if protocols(fs) & _RETRYING else with_retry(request)


def protocols(fs: AbstractFileSystem) -> set[str]:
    """Returns the names that a filesystem goes by in URIs."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def kind(fs: AbstractFileSystem, path: str) -> Literal["file", "folder"] | None:
    """Tells what is there now, whatever was listed before; None: nothing."""
    found = entry_at(fs, path)
    if found is None:
        return None
    return "folder" if found["type"] == "directory" else "file"


def entry_at(fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """Returns the entry that a listing would have for a path now, by fsspec's names; None where
    nothing is there."""
    fs.invalidate_cache()
    try:
        return dict(retry_on(fs, lambda: fs.info(path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
