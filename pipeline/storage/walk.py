"""Listing folders of any filesystem: one, all files below one, those that match a glob, each with
its identity."""

import datetime
import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from pipeline.storage.file_identity import entry_identity, local_identity
from pipeline.storage.filesystem import is_local, protocols, retry_on

Files = dict[str, str | None]  # the identity of each file by its path

_MAGIC = re.compile(r"[*?\[]")
# What other tools leave beside data: macOS in its zips, Hadoop, Spark, Delta and Databricks in
# tables. Not every name with an underscore: cameras name photos in Adobe RGB `_DSC0001.JPG`.
_LEFTOVER = re.compile(
    r"__MACOSX|_SUCCESS|_temporary|_(common_|spark_)?metadata|_delta_log|_change_data"
    r"|_(started|committed)_\d+"
)
_LISTING_THREADS = 32
_LISTING_PAGE = 1000


def is_hidden(name: str) -> bool:
    """Returns whether listings pass over a name: `.git`, `_SUCCESS`, half-written temporary
    files."""
    return name.startswith(".") or _LEFTOVER.fullmatch(name) is not None


def list_files(fs: AbstractFileSystem, path: str) -> Files:
    """Lists every file below a folder, sorted, hidden names and folders left out; none if it is
    missing.

    Linked folders are followed, but never into themselves.
    """
    found = _walk(fs, path, lambda relative: not is_hidden(relative.rpartition("/")[2]))
    return dict(sorted(found, key=_by_path))


def _by_path(file: tuple[str, str | None]) -> str:
    return file[0]


def has_magic(path: str) -> bool:
    """Returns whether a path could be meant as a glob."""
    return _MAGIC.search(path) is not None


def glob_files(fs: AbstractFileSystem, pattern: str) -> tuple[str, Files]:
    """Finds the fixed folder of a pattern, and the files that match or lie in a folder that does.

    `*` and `?` stay within a name, `**` stands for any number of folders, `[ab]` and `[!ab]` for
    one character. Only folders that can lead to a match are listed. A hidden name matches only
    where its part of the pattern starts with the same `.` or `_`.
    """
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if has_magic(part))
    root = "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "")
    wanted = parts[fixed:]
    regexes = [re.compile(fnmatch.translate(part)) for part in wanted]

    def leads(names: Sequence[str], at: int, *, complete: bool) -> bool:
        """Returns whether names can go on to match `wanted[at:]` (complete: whether they do)."""
        if at == len(wanted):
            return not any(is_hidden(name) for name in names)
        if not names:
            return not complete or all(part == "**" for part in wanted[at:])
        name, rest = names[0], names[1:]
        if wanted[at] == "**":
            return leads(names, at + 1, complete=complete) or (
                not is_hidden(name) and leads(rest, at, complete=complete)
            )
        if is_hidden(name) and name[0] != wanted[at][0]:
            return False
        return regexes[at].match(name) is not None and leads(rest, at + 1, complete=complete)

    prefix = len(root.rstrip("/")) + 1 if root else 0
    found = _walk(fs, root, lambda relative: leads(relative.split("/"), 0, complete=False))
    matching = (file for file in found if leads(file[0][prefix:].split("/"), 0, complete=True))
    return root, dict(sorted(matching, key=_by_path))


def _walk(
    fs: AbstractFileSystem, root: str, enter: Callable[[str], bool]
) -> Iterator[tuple[str, str | None]]:
    """Yields files below root. `enter` gets each name relative to root, of files and folders."""
    prefix = len(root.rstrip("/")) + 1 if root else 0
    walk = _walk_local if is_local(fs) else _walk_remote
    return walk(fs, root, lambda path: enter(path[prefix:]))


def _walk_local(
    fs: AbstractFileSystem, root: str, enter: Callable[[str], bool]
) -> Iterator[tuple[str, str | None]]:
    if not os.path.isdir(root):
        return
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while pending:
        folder, above = pending.pop()
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link to a folder that it lies in
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if not enter(entry.path):
                    continue
                if _is_folder(entry):
                    pending.append((entry.path, above | {here}))
                else:  # what cannot be read is a file to report
                    yield entry.path, local_identity(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk_remote(
    fs: AbstractFileSystem, root: str, enter: Callable[[str], bool]
) -> Iterator[tuple[str, str | None]]:
    """Makes one listing request per folder, many at once: a store lists a folder page by page."""
    seen = {root}
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        running: set[Future[tuple[Files, list[str]]]] = {pool.submit(list_folder, fs, root)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for listing in done:
                files, folders = listing.result()
                yield from (file for file in files.items() if enter(file[0]))
                new = {path for path in filter(enter, folders) if path not in seen}
                seen |= new
                running |= {pool.submit(list_folder, fs, path) for path in new}


class FolderEntry(NamedTuple):
    """A file or folder of a listing, and what the listing says of it."""

    name: str
    details: os.DirEntry[str] | Mapping[str, Any]

    @property
    def modified(self) -> float:
        """Returns unix seconds; 0 where a listing does not tell, or the file is gone by now."""
        if isinstance(self.details, os.DirEntry):
            try:
                return self.details.stat().st_mtime
            except FileNotFoundError:
                return 0.0
        for key in ("mtime", "LastModified", "last_modified"):
            moment = self.details.get(key)
            if isinstance(moment, datetime.datetime):
                return moment.timestamp()
            if isinstance(moment, int | float):
                return float(moment)
        return 0.0


def scan_folder(fs: AbstractFileSystem, folder: str) -> Iterator[FolderEntry]:
    """Yields what lies in a folder, by name; nothing if it is missing.

    On disks and on S3 it holds one entry, or a page of them, however many there are: filesystems
    hold a kilobyte for each file.
    """
    with suppress(FileNotFoundError):
        for path, details in _scan(fs, folder):
            yield FolderEntry(path.rstrip("/").rpartition("/")[2], details)


def _scan(
    fs: AbstractFileSystem, folder: str
) -> Iterator[tuple[str, os.DirEntry[str] | Mapping[str, Any]]]:
    if is_local(fs):
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry) for entry in entries)
    elif "s3" in protocols(fs) and folder:
        for page in _s3_pages(fs, folder):
            yield from ((entry["Key"], entry) for entry in page.get("Contents", []))
    else:
        fs.invalidate_cache()
        yield from ((entry["name"], entry) for entry in fs.ls(folder, detail=True))


def list_folder(fs: AbstractFileSystem, folder: str) -> tuple[Files, list[str]]:
    """Lists the files and the folders in a folder; none if it is missing. A folder that cannot be
    listed, as it has no name, is among the files, as `in//`; on S3 it is a folder like others."""
    try:
        if "s3" in protocols(fs) and folder:
            return _ls_s3(fs, folder)
        fs.invalidate_cache(folder)
        entries = retry_on(fs, lambda: fs.ls(folder, detail=True))
    except FileNotFoundError:
        return {}, []
    fs.invalidate_cache(folder)  # which would keep every listing
    folders = [e["name"].rstrip("/") for e in entries if e["type"] == "directory"]
    files = {e["name"]: entry_identity(e) for e in entries if e["type"] != "directory"}
    if folder in folders:  # the key `in//a.png` has a folder without a name, which no `ls` lists
        folders.remove(folder)
        files[f"{folder}//"] = None
    return files, folders


def _ls_s3(fs: AbstractFileSystem, folder: str) -> tuple[Files, list[str]]:
    """Does the same a page of names at a time: s3fs holds a kilobyte for each file."""
    bucket, prefix = _s3_prefix(fs, folder)
    files: Files = {}
    folders: list[str] = []
    for page in _s3_pages(fs, folder):
        # An object named like the folder itself is how consoles make an empty folder.
        entries = (entry for entry in page.get("Contents", []) if entry["Key"] != prefix)
        files |= {f"{bucket}/{entry['Key']}": entry_identity(entry) for entry in entries}
        prefixes = (entry["Prefix"] for entry in page.get("CommonPrefixes", []))
        folders += [f"{bucket}/{prefix.removesuffix('/')}" for prefix in prefixes]
    return files, folders


def _s3_pages(fs: AbstractFileSystem, folder: str) -> Iterator[Mapping[str, Any]]:
    """Yields the pages of S3's listing of a folder, as it answers."""
    bucket, prefix = _s3_prefix(fs, folder)
    more: dict[str, str] = {}
    while True:
        page = fs.call_s3(
            "list_objects_v2",
            Bucket=bucket,
            Prefix=prefix,
            Delimiter="/",
            MaxKeys=_LISTING_PAGE,
            **more,
        )
        yield page
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _s3_prefix(fs: AbstractFileSystem, folder: str) -> tuple[str, str]:
    bucket = str(fs.split_path(folder)[0])
    # Not the key of split_path: a folder may have no name, as between the slashes of `in//a.png`.
    key = folder.removeprefix(bucket)
    return bucket, f"{key[1:]}/" if key else ""
