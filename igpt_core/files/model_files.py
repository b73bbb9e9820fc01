"""Where the files of a model folder are: local, or fetched once per node from a URI or the Hub."""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpt_core.errors import CheckpointError, NoFileError, fetch_errors, one_of
from igpt_core.files.cache import models_folder
from igpt_core.files.hub import commit_of, hub_files, is_commit, split_id
from igpt_core.files.loading import FROM_THE_FOLDER, FetchOptions

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

EMBEDDED = "embedded"  # the name of the model that is shipped with the package

_EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / "cifar10-32x32"
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(?:://|::)")
_LOCAL_URI = re.compile(r"(?:file|local)://")
# What filesystems tell of a file that changes when the file is replaced.
_STATE_MARKS = (
    *("size", "created", "mtime", "last_modified", "LastModified", "Last-Modified"),
    *("etag", "ETag", "md5Hash", "Content-MD5", "blob_id"),
)


def resolve(name: str) -> str:
    """Returns the shipped model's folder for "embedded", any other path or URI as it is."""
    return str(_EMBEDDED_FOLDER) if name == EMBEDDED else name


def is_remote(path_or_uri: str) -> bool:
    """Tells whether this is a URI of something else than the local disk."""
    return bool(_URI.match(path_or_uri)) and not _LOCAL_URI.match(path_or_uri)


def is_hub_id(location: str) -> bool:
    """Tells whether this names a model on the Hugging Face Hub, as `owner/name` or
    `owner/name@revision`: a local file or folder of that name comes first, and a palette's file
    is none."""
    if split_id(location) is None or location.endswith(".npy"):
        return False
    return not Path(location).exists()


def at_revision(path_or_uri: str | os.PathLike[str], revision: str | None) -> str:
    """Adds a revision to a hub id; returns any other location as it is, for it has no revisions.

    Raises CheckpointError where the id names another revision already.
    """
    location = os.fspath(path_or_uri)
    parts = split_id(location)
    if revision is None or parts is None or not is_hub_id(location):
        return location
    if parts[1] not in (None, revision):
        raise CheckpointError(f"{location}: expected one revision, found {revision} beside it")
    return f"{parts[0]}@{revision}"


def resolve_revision(
    location: str, *groups: Sequence[str], fetch: FetchOptions = FROM_THE_FOLDER
) -> str:
    """Adds to a hub id the commit that it stands for now, so that every process which is given it
    reads the same files; returns any other location as it is.

    Args:
        groups, fetch: as for `model_files`; the commit is that of these files.

    Raises CheckpointError as `model_files` does.
    """
    parts = split_id(location)
    if parts is None or is_commit(parts[1]) or not is_hub_id(location):
        return location
    return f"{parts[0]}@{commit_of(model_files(location, *groups, fetch=fetch)[0], fetch)}"


def model_files(
    path_or_uri: str | os.PathLike[str],
    *groups: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    fetch: FetchOptions = FROM_THE_FOLDER,
) -> list[Path]:
    """Returns local paths of files of a model folder: of each group, the first that is there.

    Files of a URI are fetched into $IGPT_CACHE (~/.cache/igpt unless set), below a name that
    stands for the URI and the state of these files: what is replaced there is fetched again, and
    one call never mixes two states. Concurrent processes fetch a file once. Those of a model on
    the Hugging Face Hub: see `hub_files`.

    Args:
        path_or_uri: a local folder, "embedded", the URI of a folder, or a hub id (`owner/name` or
            `owner/name@revision`) for which there is no local folder.
        groups: names of files, the preferred first.
        storage_options: for the URI's filesystem.
        fetch: the subfolder, and how files come from the Hub.

    Raises:
        NoFileError: nothing of a group in the folder.
        CheckpointError: no such folder, or a failure to fetch.
    """
    where = resolve(os.fspath(path_or_uri))
    if is_hub_id(where):
        return hub_files(where, groups, fetch)
    if fetch.subfolder:
        where = f"{where.rstrip('/')}/{fetch.subfolder.strip('/')}"
    if is_remote(where):
        return _fetch(where, groups, storage_options)
    folder = Path(_LOCAL_URI.sub("", where)).expanduser()
    if not folder.is_dir():
        if Path(f"{folder}.index").is_file():
            raise CheckpointError(
                f"{where} is a TensorFlow checkpoint; next: make a model folder of it with "
                "igpt convert"
            )
        raise CheckpointError(
            f"there is no folder {where}: give a model's folder, its URI, its id on the Hugging "
            f"Face Hub (owner/name), or {EMBEDDED!r}"
        )
    names = sorted(entry.name for entry in folder.iterdir())
    return [folder / _choose(group, names, where) for group in groups]


def _choose(group: Sequence[str], names: Sequence[str], where: str) -> str:
    for name in group:
        if name in names:
            return name
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise NoFileError(f"{where}: expected {one_of(group)}, found {found or 'nothing'}")


def _fetch(
    uri: str, groups: Sequence[Sequence[str]], storage_options: Mapping[str, Any] | None
) -> list[Path]:
    try:
        fs, root = _open(uri, storage_options)
        fs.invalidate_cache()  # what was listed earlier may have been replaced
        states: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys(name for group in groups for name in group):
            with suppress(FileNotFoundError):
                states[name] = _state(fs, f"{root}/{name}")
        if missing := [group for group in groups if not any(name in states for name in group)]:
            _choose(missing[0], _listing(fs, root, uri), uri)
        chosen = [next(name for name in group if name in states) for group in groups]
        version = json.dumps(
            [uri.rstrip("/"), {name: states[name] for name in sorted(chosen)}], default=str
        )
        folder = models_folder() / hashlib.sha256(version.encode()).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            _fetch_file(fs, f"{root}/{name}", folder / name, state=states[name])
    except CheckpointError:
        raise
    except TypeError as error:
        names = ", ".join(storage_options or {}) or "none"  # values may be secrets
        raise CheckpointError(
            f"{uri}: its filesystem does not take these storage options: {names}"
        ) from error
    except fetch_errors() as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{uri}: cannot be fetched ({reason})") from error
    return [folder / name for name in chosen]


def _open(uri: str, storage_options: Mapping[str, Any] | None) -> "tuple[AbstractFileSystem, str]":
    import fsspec  # not before a URI asks for it: local folders and configurations do without

    try:
        fs, root = fsspec.core.url_to_fs(uri, **dict(storage_options or {}))
    except ImportError as error:
        raise CheckpointError(f"{uri}: install what its filesystem needs: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{uri}: no fsspec filesystem for it: {error}") from error
    return fs, root.rstrip("/")


def _state(fs: "AbstractFileSystem", path: str) -> dict[str, Any]:
    info = fs.info(path)
    return {mark: info[mark] for mark in _STATE_MARKS if mark in info}


def _listing(fs: "AbstractFileSystem", root: str, uri: str) -> list[str]:
    try:
        paths = fs.ls(root, detail=False)
    except FileNotFoundError:
        paths = []
    if not paths:
        raise CheckpointError(f"there is no folder {uri}, or it is empty")
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def _fetch_file(
    fs: "AbstractFileSystem", source: str, target: Path, *, state: Mapping[str, Any]
) -> None:
    """Fetches under a temporary name, then renames: a file under its own name is whole."""
    if target.exists():
        return
    with _locked(target.with_name(f".{target.name}.lock")):
        if target.exists():  # another process was first
            return
        temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        try:
            fs.get_file(source, str(temporary))
            arrived = temporary.stat().st_size
            if state.get("size") not in (None, arrived):
                raise OSError(f"{arrived} of {state['size']} bytes of {target.name} arrived")
            fs.invalidate_cache()
            if _state(fs, source) != state:
                raise OSError(f"{target.name} was replaced meanwhile: try again")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock, which a process that dies lets go of."""
    import fcntl  # not on Windows, where local folders still work

    with open(path, "w") as file:
        # Without it (some network filesystems) two may fetch at once; the rename stays safe.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
