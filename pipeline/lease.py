"""Who may work at a run directory: the run that was started last.

A file in the run directory names the run that is at work. The actors of a run look into it before
they work at a shard and before they write, so what was left behind by a driver that is gone, or has
been replaced, gives way; and a driver that is told to stop says so there.
"""

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.layout import LEASE_FILE, RUN_FILE
from pipeline.patience import patiently
from pipeline.storage import join, open_location, read_bytes, store_errors, write_atomic


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
        self._write(stopping=False)

    def stop(self) -> None:
        """No shard is begun any more; those that are may be written."""
        if self.may_write():
            self._write(stopping=True)

    def release(self) -> None:
        """Nobody works there now, unless another run has taken it. Where the store is out of reach
        it stays, for the next run to take."""
        with suppress(*store_errors()):
            if self.may_write():
                fs, folder = self._place
                fs.rm_file(join(folder, LEASE_FILE))

    def may_begin(self) -> bool:
        """Whether the run may begin a shard. Once it may not, it never may again."""
        if "_ended" not in self.__dict__:
            found = self._read()
            if found.get("holder") == self.holder and not found["stopping"]:
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
            return dict(json.loads(patiently(lambda: read_bytes(fs, join(folder, name)))))
        except FileNotFoundError:
            return {}

    def _write(self, *, stopping: bool) -> None:
        content = {"run": self.run, "holder": self.holder, "stopping": stopping}
        fs, folder = self._place
        write_atomic(fs, join(folder, LEASE_FILE), json.dumps(content).encode())

    def __getstate__(self) -> dict[str, Any]:
        """Without what is of this process: the filesystem, and what was seen there."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
