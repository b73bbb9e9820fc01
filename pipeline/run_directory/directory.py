"""RunDirectory: run.json, the plan and the report of a run: created, compared, read again."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import UsageError
from pipeline.run_directory.layout import (
    FOLDERS,
    LEASE_FILE,
    PLAN_FILE,
    REPORT_FILE,
    RUN_FILE,
    finished_shards,
    is_stop_file,
    parquet_bytes,
)
from pipeline.run_directory.record import check_format
from pipeline.shards import Plan, skipped_in
from pipeline.storage.atomic import has_temporaries, is_temporary, write_atomic, write_new
from pipeline.storage.filesystem import exists, join, open_location, read_bytes, store_errors
from pipeline.storage.redact import redacted_line, redacted_location

REPORT_FILES = (REPORT_FILE, "report.html", "contact_sheet.png", "README.md")
_THREADS = 32


@dataclass(frozen=True)
class RunDirectory:
    """The folder where a run keeps everything: its `location` as it was given but for a slash at
    the end, and its `path` on the filesystem."""

    location: str
    fs: AbstractFileSystem
    path: str

    @classmethod
    def at(cls, location: str, options: Mapping[str, Any]) -> "RunDirectory":
        """Opens a location, where there may be nothing yet. Raises as `open_location` does."""
        fs, path = open_location(location, options)
        return cls(location.rstrip("/"), fs, path)

    def record(self) -> dict[str, Any] | None:
        """Returns what run.json holds; None where there is none.

        Raises UsageError where it is not one of ours, of a later version, or out of reach.
        """
        with self.reached():
            content = self.read(RUN_FILE)
        if content is None:
            return None
        try:
            record = dict(json.loads(content))
            check_format(self.location, record)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.location}/{RUN_FILE} is not the record of a run; next: another folder"
            ) from error
        return record

    def require_record(self) -> dict[str, Any]:
        """Returns what run.json holds. Raises UsageError as `record` does, and where there is
        none."""
        record = self.record()
        if record is None:
            raise UsageError(
                f"expected a run directory, found no {RUN_FILE} in {self.location}; check the path"
            )
        return record

    def read(self, name: str) -> bytes | None:
        """Returns a whole file, by its name in the directory; None where there is none."""
        try:
            return read_bytes(self.fs, join(self.path, name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Returns the JSON object in a file; None where there is no file. Raises UsageError for
        any other content."""
        content = self.read(name)
        try:
            return None if content is None else dict(json.loads(content))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"expected a JSON object in {self.location}/{name}, found other text: {error}"
            ) from error

    def check_free(self, kind: str = "a run directory") -> None:
        """Raises UsageError where the folder holds files, so that it is not free for a new `kind`
        of folder."""
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
        """Deletes what a run writes, by its names: the folders of parts, the plan, the reports,
        stop files of drivers. The lease stays with whoever holds it."""
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

    def _delete(self, chosen: Callable[[str], bool], folder: str) -> None:
        """Deletes the files of a folder whose names, relative to the run directory, are chosen."""
        self.fs.invalidate_cache()
        with suppress(FileNotFoundError), ThreadPoolExecutor(_THREADS) as pool:
            paths = self.fs.ls(join(self.path, folder).rstrip("/"), detail=False)
            there = [p for p in paths if chosen(join(folder, p.rpartition("/")[2]).lstrip("/"))]
            list(pool.map(self.fs.rm_file, there))

    def delete_leftovers(self) -> None:
        """Deletes what killed writers left under temporary names, for the run that holds the lease,
        once its shards are done: only a run that was superseded may still write then, or one that
        starts, which writes again. What cannot be deleted stays: `igpt verify` names it."""
        if not has_temporaries(self.fs):
            return
        for folder in ("", *FOLDERS):
            with suppress(*store_errors()):
                self._delete(is_temporary, folder)

    def create(self, record: Mapping[str, Any]) -> None:
        """Writes run.json, which makes the folder a run directory.

        Raises UsageError where nothing can be written, or another run was created here meanwhile.
        """
        with self.reached(), suppress(FileExistsError):
            write_new(self.fs, join(self.path, RUN_FILE), _json_bytes(record))
        if (self.record() or {}).get("run") != record["run"]:
            raise UsageError(
                f"another run began in {self.location} just now; next: the same command again to "
                "go on with it where its options are the same, or another --output"
            )

    def write_plan(self, plan: Plan) -> None:
        """Writes plan.parquet, with paths as they may be written down: without logins and
        signatures. Raises UsageError where nothing can be written."""
        table = plan.with_paths(redacted_location).to_table()
        with self.reached():
            write_atomic(self.fs, join(self.path, PLAN_FILE), parquet_bytes(table))

    def plan(self) -> Plan | None:
        """Returns the plan made when the run was created; None where it got no further."""
        content = self.read(PLAN_FILE)
        return None if content is None else Plan.from_table(pq.read_table(io.BytesIO(content)))

    def planned_rows(self) -> dict[int, int | None] | None:
        """Returns the rows of each planned shard, None for those that are not counted, without the
        list of what it reads; None without a plan."""
        try:
            with self.fs.open(join(self.path, PLAN_FILE), "rb") as file:
                table = pq.read_table(file, columns=["shard", "rows"])
        except FileNotFoundError:
            return None
        return dict(zip(table["shard"].to_pylist(), table["rows"].to_pylist(), strict=True))

    def skipped(self) -> dict[str, int]:
        """Counts the files of the input that the plan left out, by extension; {} without a plan."""
        try:
            with self.fs.open(join(self.path, PLAN_FILE), "rb") as file:
                return skipped_in(pq.read_schema(file))
        except FileNotFoundError:
            return {}

    def report(self) -> dict[str, Any] | None:
        """Returns what report.json holds, which a finished run has; None where there is none."""
        return self.read_json(REPORT_FILE)

    def finished(self) -> set[int]:
        """Returns the shards that are done."""
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
        """Writes a JSON object into a file, by its name in the directory."""
        write_atomic(self.fs, join(self.path, name), _json_bytes(content))


def _is_unseen(name: str) -> bool:
    """Returns whether a file of this name may lie where a run is to be created: a driver was killed
    there."""
    return name == LEASE_FILE or is_stop_file(name) or is_temporary(name)


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
