"""Who may work at a run directory: the run that was started last.

A file in the run directory names the run that is at work. The actors of a run look into it before
they begin a shard and before they write a part, so what was left behind by a driver that is gone,
or has been replaced, gives way; and a driver that is told to stop says so there.
"""

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.storage import STORE_ERRORS, join, open_location, read_bytes, write_atomic

LEASE_FILE = ".owner"  # hidden: no input, no result


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
        self._write(stopping=False)

    def stop(self) -> None:
        """No shard is begun any more; those that are may be written."""
        if self.may_write():
            self._write(stopping=True)

    def release(self) -> None:
        """Nobody works there now, unless another run has taken it. Where the store is out of reach
        it stays, for the next run to take."""
        with suppress(*STORE_ERRORS):
            if self.may_write():
                self._place[0].rm_file(self._place[1])

    def may_begin(self) -> bool:
        """Whether the run may begin a shard."""
        found = self._read()
        return found.get("holder") == self.holder and not found["stopping"]

    def may_write(self) -> bool:
        """Whether the run may write a part."""
        return bool(self._read().get("holder") == self.holder)

    def is_of_another_run(self) -> bool:
        """Whether a run with other results has it."""
        return self._read().get("run", self.run) != self.run

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        fs, path = open_location(self.output, self.options)
        return fs, join(path, LEASE_FILE)

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(read_bytes(*self._place)))
        except FileNotFoundError:
            return {}

    def _write(self, *, stopping: bool) -> None:
        content = {"run": self.run, "holder": self.holder, "stopping": stopping}
        write_atomic(*self._place, json.dumps(content).encode())

    def __getstate__(self) -> dict[str, Any]:
        """Without the filesystem, which is of this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_place"}
