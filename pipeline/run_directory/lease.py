"""Who may work at a run directory: the run that was started last.

A file in the run directory names who acquired it last. It is written by `acquire` alone and deleted
by nobody: whatever else a driver did to it might hit another one that acquires it at that moment.
The actors of a run read it before they work at a shard and before they write, so those that a
driver left behind stop once another one has superseded it. A driver that is told to stop says so in
a file of its own.
"""

import json
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.run_directory.layout import LEASE_FILE, stop_file
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import join, open_location, read_bytes, store_errors
from pipeline.storage.retry import with_retry


@dataclass(frozen=True)
class Lease:
    """A run's right to work at a run directory, until another one acquires it.

    Attributes:
        output: the run directory.
        options: its fsspec options.
        run: of run.json; the same after a resume.
        holder: unique to each start of the driver.
        started: when that was, in unix seconds.
    """

    output: str
    options: Mapping[str, Any] = field(repr=False)
    run: str
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.time)

    def acquire(self) -> None:
        """Takes the lease over from whoever holds it."""
        self.__dict__.pop("_ended", None)
        self._write(LEASE_FILE)

    def stop(self) -> None:
        """Tells the actors to begin no further shard; those that are begun may be written."""
        self._write(stop_file(self.holder))

    def end(self) -> None:
        """Deletes what `stop` left, as the driver ends. Where the store is out of reach it stays,
        and means nothing to other runs."""
        fs, folder = self._place
        with suppress(*store_errors()):
            fs.rm_file(join(folder, stop_file(self.holder)))

    def may_begin(self) -> bool:
        """Returns whether the run may begin a shard. Once it may not, it never may again."""
        if "_ended" not in self.__dict__:
            found = self._read()
            if found.get("holder") == self.holder and not self._read(stop_file(self.holder)):
                return True
            self.__dict__["_ended"] = True
        return False

    def may_write(self) -> bool:
        """Returns whether the run may write a part."""
        return bool(self._read().get("holder") == self.holder)

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        return open_location(self.output, self.options)

    def _read(self, name: str = LEASE_FILE) -> dict[str, Any]:
        fs, folder = self._place
        try:
            return dict(json.loads(with_retry(lambda: read_bytes(fs, join(folder, name)))))
        except FileNotFoundError:
            return {}

    def _write(self, name: str) -> None:
        fs, folder = self._place
        content = json.dumps({"run": self.run, "holder": self.holder})
        write_atomic(fs, join(folder, name), content.encode())

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without what belongs to this process: the filesystem, and what was seen
        there."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
