"""The files of an input: folders, globs and lists of them, and the format that they have."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise, takewhile
from typing import Any, NamedTuple

from braceexpand import braceexpand
from fsspec import AbstractFileSystem

from igpt_core.images.raster_formats import raster_extensions
from pipeline.errors import UsageError
from pipeline.storage.file_identity import NO_FILE, entry_identity, local_identity
from pipeline.storage.filesystem import (
    absolute,
    entry_at,
    is_local,
    kind,
    open_location,
    protocols,
    store_errors,
    uri_of,
)
from pipeline.storage.redact import LOCATION, redacted_error
from pipeline.storage.walk import Files, glob_files, has_magic, list_files, list_folder

MOST_NAMES = 1_000_000
URL_LISTS = frozenset({".txt", ".csv", ".tsv", ".jsonl"})  # beside Parquet
NOT_UTF8 = "a name that is not UTF-8"
NAMELESS = "an empty name"  # folders: `a//b.png` in a store whose filesystem cannot list it

_LOCATION = re.compile(LOCATION)
_WEB_QUERY = re.compile(r"https?://[^?]*\?", re.IGNORECASE)
_WEB_LOGIN = re.compile(r"^(https?://)[^/]*@", re.IGNORECASE)
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}")


def _extensions_of(format: str) -> frozenset[str]:
    known = format_extensions()
    if format == "urls":
        return known["parquet"] | URL_LISTS
    return known["parquet" if format == "tokens" else format]


def format_extensions() -> dict[str, frozenset[str]]:
    """Returns the extensions of each input format, in lower case with their dot."""
    return {
        "images": raster_extensions(),
        "parquet": frozenset({".parquet", ".parq", ".pq"}),
        "webdataset": frozenset({".tar", ".tar.gz", ".tgz"}),
    }


class InputFile(NamedTuple):
    """A file of the input."""

    path: str  # or URI
    name: str  # relative to the folder that all of the input lies in
    identity: str | None = None  # of its content, as `FileSlice` has it
    largest_group: int = 0  # rows of its largest row group, once a Parquet footer is read
    # Where each sample of a tar begins, once its headers are read, if it can be cut between them.
    sample_starts: Sequence[int] | None = None
    samples: int | None = None  # pictures in each of its rows, as `FileSlice` has it


def find_files(
    text: str, options: Mapping[str, Any], *, missing_ok: bool = False
) -> list[InputFile]:
    """Finds all visible files of an input (file, folder, glob, names with braces, comma-list of
    them), sorted by name.

    Raises UsageError where it is out of reach and, unless `missing_ok`, where something that it
    names is not there.
    """
    if os.path.exists(text):  # whose name may hold commas
        locations = [text]
    else:
        locations = [location.strip() for location in split_list(text) if location.strip()]
    if not locations:
        raise UsageError("expected --input to name a file, folder or glob, found nothing")
    opened = [open_location(location, options) for location in locations]
    if any(fs != opened[0][0] for fs, _ in opened):
        raise UsageError(f"expected inputs on one filesystem, found {text}; run one job for each")
    bases: list[str] = []
    # By path, so that what is named twice is there once.
    found: dict[str, tuple[str, str | None]] = {}
    for uri, (fs, path) in zip(locations, opened, strict=True):
        base, listed = _list_location(fs, uri, path, missing_ok=missing_ok)
        bases.append(_nameable(fs, base))
        for each, identity in listed.items():
            found[each] = uri_of(each, uri=uri, path=path), identity
    common = _common_folder(bases)
    files = [
        InputFile(
            uri, _nameable(opened[0][0], path).removeprefix(common).removeprefix("/"), identity
        )
        for path, (uri, identity) in found.items()
    ]
    files.sort(key=lambda file: file.name)
    for one, other in pairwise(files):
        if one.name == other.name:
            raise UsageError(
                f"expected web addresses that differ in their paths, found {one.name} with several "
                "queries or logins; next: a job for each"
            )
    return files


def _nameable(fs: AbstractFileSystem, path: str) -> str:
    """Returns what of a path may become a name: of a web address neither the query, which may be a
    signature, nor the login. On any other filesystem these are letters like others."""
    if not protocols(fs) & {"http", "https"}:
        return path
    return _WEB_LOGIN.sub(r"\1", path.partition("?")[0])


def split_list(text: str) -> list[str]:
    """Splits a comma-list at the commas that stand outside braces; in the query of a web address at
    those before another location alone."""
    items, depth, paired = [""], 0, _paired_braces(text)
    for at, letter in enumerate(text):
        if at in paired:
            depth += 1 if letter == "{" else -1
        if letter == "," and not depth and not _is_in_query(items[-1], text, at + 1):
            items.append("")
        else:
            items[-1] += letter
    return items


def _is_in_query(item: str, text: str, rest: int) -> bool:
    """Tells whether what follows an item, from the place `rest` of the text on, is of its query."""
    return _WEB_QUERY.search(item) is not None and _LOCATION.match(text, rest) is None


def expand_braces(text: str) -> list[str]:
    """Expands the braces of a text, lists `{a,b}` and ranges `{000..127}`, as a shell does; returns
    the text itself without any. A brace without its other one is a plain character.

    Raises UsageError for more than MOST_NAMES names.
    """
    paired = _paired_braces(text)
    escaped = "".join(
        "\\" + letter if letter in "{}\\" and at not in paired else letter
        for at, letter in enumerate(text)
    )
    # The package holds each range in memory.
    ranges = _RANGE.findall(text)
    huge = any(abs(int(b) - int(a)) >= MOST_NAMES * max(1, int(step or 1)) for a, b, step in ranges)
    names = [] if huge else list(islice(braceexpand(escaped), MOST_NAMES + 1))
    if huge or len(names) > MOST_NAMES:
        raise UsageError(
            f"expected braces in --input that stand for at most {MOST_NAMES} names, found more in "
            f"{text}; next: a folder or a glob"
        )
    return names


def _paired_braces(text: str) -> set[int]:
    """Finds the places of the braces that open and close; others are plain characters."""
    opened: list[int] = []
    paired: set[int] = set()
    for at, letter in enumerate(text):
        if letter == "{":
            opened.append(at)
        elif letter == "}" and opened:
            paired |= {opened.pop(), at}
    return paired


def _list_location(
    fs: AbstractFileSystem, uri: str, path: str, *, missing_ok: bool
) -> tuple[str, Files]:
    """Finds the folder that names are relative to, and the files, of one location of the input."""
    try:
        found = entry_at(fs, path)
        if found is not None and found["type"] == "directory":
            base, files = path, list_files(fs, path)
        elif found is not None:  # what exists is never a pattern
            identity = local_identity(path) if is_local(fs) else entry_identity(found)
            base, files = _nameable(fs, path).rpartition("/")[0], {path: identity}
        elif (names := expand_braces(path)) != [path]:
            base, files = _list_names(fs, uri, names, missing_ok=missing_ok)
        elif has_magic(path):
            base, files = glob_files(fs, path)
        elif missing_ok:
            base, files = path, {}
        else:
            raise UsageError(f"expected a file or folder at {uri}, found nothing")
    except store_errors() as error:
        raise UsageError(
            f"cannot read {uri}: {redacted_error(error)}; check the path, "
            "your rights and --storage-options"
        ) from error
    if not files and not missing_ok:
        raise UsageError(f"expected files at {uri}, found none; check --input")
    return base, files


def _list_names(
    fs: AbstractFileSystem, uri: str, names: Sequence[str], *, missing_ok: bool
) -> tuple[str, Files]:
    """Does the same for the names that braces stand for: files, folders and globs.

    A folder is listed once, however many of its files are named.
    """
    listed: dict[str, Files] = {}
    bases: list[str] = []
    files: Files = {}
    missing: list[str] = []
    for name in names:
        parent = name.rpartition("/")[0]
        if parent not in listed and not has_magic(name):
            listed[parent] = list_folder(fs, parent)[0]
        base = parent
        inside: Files = {}
        if has_magic(name):
            base, inside = glob_files(fs, name)
        elif name in listed[parent]:
            inside = {name: listed[parent][name]}
        elif kind(fs, name) == "folder":
            base, inside = name, list_files(fs, name)
        if not inside:
            missing.append(name)
        bases.append(base)
        files |= inside
    if missing and not missing_ok:
        raise UsageError(
            f"expected files for all {len(names)} names of {uri}, found none for {len(missing)} of "
            f"them, the first is {missing[0]}; check --input"
        )
    return _common_folder(bases), files


def has_broken_name(file: InputFile) -> bool:
    """Returns whether a local file's name or folder is not UTF-8, so that no id can be made of it:
    other bytes come as lone surrogates."""
    return not file.path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in file.path)


def _common_folder(folders: Sequence[str]) -> str:
    """Does what os.path.commonpath does, for URIs with their double slash too."""
    split = [folder.split("/") for folder in folders]
    same = (len(set(level)) == 1 for level in zip(*split, strict=False))
    return "/".join(split[0][: sum(takewhile(bool, same))])


def _extension(name: str) -> str:
    name = name.lower()
    if name.endswith("/"):
        return NAMELESS
    return ".tar.gz" if name.endswith(".tar.gz") else os.path.splitext(name)[1]


def absolute_input(text: str) -> str:
    """Makes an input mean the same in every process, as `absolute` does for a location."""
    if os.path.exists(text):
        return absolute(text)
    return ",".join(absolute(location.strip()) for location in split_list(text))


def choose_format(
    files: Sequence[InputFile], format: str, text: str
) -> tuple[str, list[InputFile], dict[str, int]]:
    """Returns the format, the files of that format, and the number of others by extension; those
    whose names are not UTF-8 (`has_broken_name`) as NOT_UTF8."""
    extensions = format_extensions()
    if format == "urls":
        extensions = {"urls": _extensions_of(format)}
    if format not in ("auto", *extensions, "tokens"):
        known = ", ".join(["auto", *extensions, "tokens"])
        raise UsageError(f"expected --format {known}; found {format}")
    if format == "tokens":  # a column of Parquet files
        format = "parquet"
    broken = sum(map(has_broken_name, files))
    files = [file for file in files if not has_broken_name(file)]
    counts = Counter(_extension(file.name) for file in files)
    present = {name: sum(counts[e] for e in ends) for name, ends in extensions.items()}
    present = {name: count for name, count in present.items() if count}
    if format == "auto" and len(present) > 1:
        what = " and ".join(f"{count} of {name}" for name, count in present.items())
        raise UsageError(
            f"expected files of one format at {text}, found {what}; choose with "
            f"--format {' or '.join(present)}"
        )
    if not present or format not in ("auto", *present):
        seen = ", ".join(f"{n} of {e or 'no extension'}" for e, n in counts.most_common(5))
        seen = ", ".join(filter(None, [seen, f"{broken} with {NOT_UTF8}" if broken else ""]))
        wanted = format if format != "auto" else " or ".join(extensions)
        move = "check --input and --format"
        if URL_LISTS & counts.keys():
            move = "next: --url-column for lists of web addresses, or another --input"
        raise UsageError(f"expected files of {wanted} at {text}, found {seen}; {move}")
    chosen = next(iter(present)) if format == "auto" else format
    ends = extensions[chosen]
    unread = [f for f in files_of_format(files, chosen) if f.identity == NO_FILE]
    if unread and chosen != "images":  # an image is one row, and fails by itself
        raise UsageError(f"expected a file at {unread[0].path}, found {NO_FILE}; leave it out")
    skipped = {e: n for e, n in sorted(counts.items()) if e not in ends}
    skipped |= {NOT_UTF8: broken} if broken else {}
    return chosen, files_of_format(files, chosen), skipped


def files_of_format(files: Sequence[InputFile], format: str) -> list[InputFile]:
    """Returns the files that have an extension of a format, and a name that can be written down."""
    ends = _extensions_of(format)
    return [f for f in files if _extension(f.name) in ends and not has_broken_name(f)]
