"""The identity of a file: what its filesystem tells of its content without reading it."""

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

DEAD_LINK = "a dead link"
NO_FILE = "a pipe, device or socket"  # to read one may never come to an end
_SIZE = re.compile(r"size=(\d+)\b")

# What filesystems of fsspec call what changes with the content of a file, the surest first.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "blob_id", "sha", "CRC"),
    *("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified"),
    *("modificationTime", "modify", "created"),
)


def local_identity(path: str | os.PathLike[str]) -> str | None:
    """Returns size (bytes) and time of modification (nanoseconds) of a local file, of a link those
    of what it leads to; None where the disk does not tell."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return DEAD_LINK
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return NO_FILE
    return f"size={status.st_size} mtime={status.st_mtime_ns}"


def size_in(identity: str | None) -> int | None:
    """Reads the size of a file (bytes) from its identity; None where that does not say."""
    found = _SIZE.match(identity or "")
    return int(found[1]) if found else None


def entry_identity(entry: Mapping[str, Any]) -> str | None:
    """Returns size and ETag (or what else a store has, at worst the time of modification) from an
    entry of a listing; None where the store tells nothing."""
    name = next((name for name in _VERSIONS if entry.get(name)), None)
    size = entry.get("size", entry.get("Size"))
    if name is None:
        return None if size is None else f"size={size}"
    return f"size={size} {name.lower()}={str(entry[name]).strip(chr(34))}"
