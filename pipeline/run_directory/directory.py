"""RunDirectory: run.json and plan.parquet of a run, claimed, compared, read again at resume."""

import datetime
import importlib.metadata
import io
import json
import platform
import shlex
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import UsageError
from pipeline.run_directory.layout import (
    FOLDERS,
    FORMAT,
    LEASE_FILE,
    PLAN_FILE,
    REPORT_FILE,
    RUN_FILE,
    finished_shards,
    is_stop_file,
    parquet_bytes,
    part_name,
)
from pipeline.shards import Plan
from pipeline.storage.atomic import has_temporaries, is_temporary, write_atomic, write_new
from pipeline.storage.filesystem import exists, join, open_location, read_bytes, store_errors
from pipeline.storage.redact import redacted_line

REPORT_FILES = (REPORT_FILE, "report.html", "contact_sheet.png", "README.md")
_THREADS = 32
_PACKAGES = ("igpt", "torch", "ray", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps everything: `location` as given but for a slash at its end, and its path
    on the filesystem."""

    location: str
    fs: AbstractFileSystem
    path: str

    @classmethod
    def at(cls, location: str, options: Mapping[str, Any]) -> "RunDirectory":
        fs, path = open_location(location, options)
        return cls(location.rstrip("/"), fs, path)

    def record(self) -> dict[str, Any] | None:
        """What run.json holds; None where there is none.

        Raises UsageError where it is not one of ours, of a later version, or out of reach.
        """
        with self.reached():
            if not exists(self.fs, join(self.path, RUN_FILE)):
                return None
            content = read_bytes(self.fs, join(self.path, RUN_FILE))
        try:
            record = json.loads(content)
            found = record["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.location}/{RUN_FILE} is not the record of a run; next: another --output"
            ) from error
        if found != FORMAT:
            raise UsageError(
                f"{self.location} is a run of format {found}, this igpt reads format {FORMAT}; "
                "next: the version of igpt that wrote it, or another --output"
            )
        return dict(record)

    def check_free(self, kind: str = "a run directory") -> None:
        """Raises UsageError where there are files: those of another `kind` of folder."""
        try:
            self.fs.invalidate_cache()
            names = self.fs.ls(self.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        names = [name.rpartition("/")[2] for name in names]
        names = [name for name in names if not _is_unseen(name)]
        if self.fs.isfile(self.path):
            raise UsageError(f"expected --output to be a folder, found a file at {self.location}")
        if names:
            raise UsageError(
                f"expected --output to be new, empty or {kind}, found {len(names)} other files in "
                f"{self.location}; next: another --output"
            )

    def clear(self) -> None:
        """Delete what a run writes, by its names: the folders of parts, the plan, the reports,
        marks of drivers that were told to stop. The lease stays that of whoever has it."""
        self._delete(is_stop_file, "")
        # The plan after the parts, which none but it explains; run.json last: still a run.
        for name in (*REPORT_FILES, *FOLDERS, PLAN_FILE, RUN_FILE):
            self._remove(name)

    def _remove(self, name: str) -> None:
        path = join(self.path, name)
        if exists(self.fs, path):
            try:
                self.fs.rm(path, recursive=name in FOLDERS)
            except FileNotFoundError:  # another run clears here at the same time
                if exists(self.fs, path):
                    self.fs.rm(path, recursive=name in FOLDERS)

    def forget(self, shards: Collection[int]) -> None:
        """Delete the results of these shards, so that they are to be done again. The report goes
        first: stopped in between, it is a run that resumes.

        Errors and stats stay until the writer of the new results replaces them: an actor that
        still writes the old results, for a driver that was overtaken, ends with a whole part.
        """
        if not shards:
            return
        self._delete({REPORT_FILE}.__contains__, "")
        self._delete({part_name("data", shard) for shard in shards}.__contains__, "data")

    def _delete(self, chosen: Callable[[str], bool], folder: str) -> None:
        """The files of a folder whose names, relative to the run directory, are chosen."""
        self.fs.invalidate_cache()
        with suppress(FileNotFoundError), ThreadPoolExecutor(_THREADS) as pool:
            paths = self.fs.ls(join(self.path, folder).rstrip("/"), detail=False)
            there = [p for p in paths if chosen(join(folder, p.rpartition("/")[2]).lstrip("/"))]
            list(pool.map(self.fs.rm_file, there))

    def delete_leftovers(self) -> None:
        """Delete what killed writers left under temporary names, for the run that has the lease,
        once its shards are done: only a run that was replaced may still write then, or one that
        begins, which writes again. What cannot be deleted stays: `igpt verify` names it."""
        if not has_temporaries(self.fs):
            return
        for folder in ("", *FOLDERS):
            with suppress(*store_errors()):
                self._delete(is_temporary, folder)

    def begin(self, record: Mapping[str, Any]) -> None:
        """Write run.json, which makes it a run directory.

        Raises UsageError where nothing can be written, or another run began here meanwhile.
        """
        with self.reached(), suppress(FileExistsError):
            write_new(self.fs, join(self.path, RUN_FILE), _json_bytes(record))
        if (self.record() or {}).get("run") != record["run"]:
            raise UsageError(
                f"another run began in {self.location} just now; next: the same command again to "
                "go on with it where its options are the same, or another --output"
            )

    def write_plan(self, plan: Plan) -> None:
        """Raises UsageError where nothing can be written."""
        with self.reached():
            write_atomic(self.fs, join(self.path, PLAN_FILE), parquet_bytes(plan.to_table()))

    def plan(self) -> Plan | None:
        """The plan that was made when the run began; None where it got no further."""
        path = join(self.path, PLAN_FILE)
        if not exists(self.fs, path):
            return None
        return Plan.from_table(pq.read_table(io.BytesIO(read_bytes(self.fs, path))))

    def report(self) -> dict[str, Any] | None:
        """What report.json holds: of a finished run; None where there is none."""
        path = join(self.path, REPORT_FILE)
        if not exists(self.fs, path):
            return None
        return dict(json.loads(read_bytes(self.fs, path)))

    def finished(self) -> set[int]:
        """The shards that are done."""
        return finished_shards(self.fs, self.path)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turns what an unreachable or forbidden location raises into a UsageError."""
        try:
            yield
        except store_errors() as error:
            raise UsageError(
                f"cannot use {self.location}: {type(error).__name__}: "
                f"{redacted_line(error)}; check the path, your rights and --storage-options"
            ) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomic(self.fs, join(self.path, name), _json_bytes(content))


def _is_unseen(name: str) -> bool:
    """Whether a file of this name may lie where a run is to begin: a driver was killed there."""
    return name == LEASE_FILE or is_stop_file(name) or is_temporary(name)


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def resuming(command: str) -> str:
    """The command of a run without what would make it start anew."""
    return shlex.join(word for word in shlex.split(command) if word != "--overwrite")


def new_record(
    job: str, *, command: str, options: Mapping[str, Any], **facts: Any
) -> dict[str, Any]:
    """The content of run.json. `options` must hold no secrets."""
    return {
        "format": FORMAT,
        "run": uuid.uuid4().hex,
        "job": job,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": dict(options),
        **facts,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def refuse_other_run(
    location: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any], *, kind: str = "run"
) -> None:
    """Raises UsageError where something in `wanted`, on which results depend, is not as it was."""
    differing = differences(recorded, wanted)
    if differing:
        raise UsageError(
            f"{location} holds another {kind} ({'; '.join(differing)}); next: the same options to "
            "resume it, --overwrite to replace it, or another --output"
        )


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What in `wanted` is not as it was, each in words."""
    return [
        f"{name}: {recorded.get(name)} there, {value} now"
        for name, value in wanted.items()
        if value != recorded.get(name)
    ]
