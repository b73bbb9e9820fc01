"""Who may work at a run directory: the run that was started last.

A file in the run directory names who took it last. It is written by `take` alone and deleted by
nobody: whatever else a driver did to it might hit another one that takes it at that moment. The
actors of a run look into it before they work at a shard and before they write, so what was left
behind by a driver that is gone, or has been replaced, gives way. A driver that is told to stop says
so in a file of its own.
"""

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.run_directory.layout import LEASE_FILE, RUN_FILE, stop_file
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import join, open_location, read_bytes, store_errors
from pipeline.storage.retry import with_retry


@dataclass(frozen=True)
class Lease:
    """A run's right to work at a run directory, until another one takes it.

    Attributes:
        output: the run directory.
        options: its fsspec options.
        run: of run.json; the same after a resume.
        holder: unique to each start of the driver.
    """

    output: str
    options: Mapping[str, Any] = field(repr=False)
    run: str
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)

    def take(self) -> None:
        """From whoever has it."""
        self.__dict__.pop("_ended", None)
        self._write(LEASE_FILE)

    def stop(self) -> None:
        """No shard is begun any more; those that are may be written."""
        self._write(stop_file(self.holder))

    def end(self) -> None:
        """The driver ends: what `stop` left goes. Where the store is out of reach it stays, and
        says nothing to other runs."""
        fs, folder = self._place
        with suppress(*store_errors()):
            fs.rm_file(join(folder, stop_file(self.holder)))

    def may_begin(self) -> bool:
        """Whether the run may begin a shard. Once it may not, it never may again."""
        if "_ended" not in self.__dict__:
            found = self._read()
            if found.get("holder") == self.holder and not self._read(stop_file(self.holder)):
                return True
            self.__dict__["_ended"] = True
        return False

    def may_write(self) -> bool:
        """Whether the run may write a part."""
        return bool(self._read().get("holder") == self.holder)

    def is_of_another_run(self) -> bool:
        """Whether the run directory is that of a run with other results, at work or finished."""
        found = self._read() or self._read(RUN_FILE)
        return found.get("run", self.run) != self.run

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
        """Without what is of this process: the filesystem, and what was seen there."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
