"""Runs as processes of their own, which can be killed, and what they leave."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

TIMEOUT = 240  # seconds that anything may take on a busy machine


def rounds(total: int, *what: object, short: int) -> list:
    """Lists parameters of a test's rounds, with a seed for each: the first ones are in the short
    version, all in the long."""
    return [
        pytest.param(*what, seed, marks=pytest.mark.slow if seed < short else pytest.mark.chaos)
        for seed in range(total)
    ]


def done(output: Path) -> int:
    """Counts the parts of results that are there."""
    return len(list((output / "data").glob("part-*.parquet")))


class Driver:
    """`igpt` in a process group of its own, with a Ray of its own unless it is given another."""

    def __init__(self, *words: object, log: Path, **environment: str) -> None:
        self._log = log
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs", *map(str, words)],
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "RAY_ADDRESS": "", **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> bool:
        """Kills the driver alone; what it has started must end by itself. Returns false where it
        had ended before."""
        self._process.kill()
        return self._process.wait(TIMEOUT) == -signal.SIGKILL

    def tell(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(TIMEOUT)

    def log(self) -> str:
        return self._log.read_text()

    def until(self, condition) -> bool:
        """Waits for it; returns false where the run ends before it is seen."""
        deadline = time.monotonic() + TIMEOUT
        while self.running:
            if condition():
                return True
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return False


@contextmanager
def driver(*words: object, log: Path, **environment: str) -> Iterator[Driver]:
    """Starts a run, which is killed where the test leaves it behind."""
    started = Driver(*words, log=log, **environment)
    try:
        yield started
    finally:
        if started.running:
            started.kill()


def finish(*words: object, log: Path, **environment: str) -> None:
    """Runs from start to end, or from where it is."""
    with driver(*words, log=log, **environment) as last:
        assert last.wait() == 0, last.log()[-3000:]


def workers(pid: int) -> list[int]:
    """Finds the processes of Ray's actors below a driver."""
    return _below(pid, b"ray::MapWorker")


def head(pid: int) -> list[int]:
    """Finds the process that is the head of a driver's own Ray."""
    return [each for each in _below(pid, b"") if b"gcs_server" in _command(each)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return b""


def _below(pid: int, begins: bytes) -> list[int]:
    """Finds processes below one, by the parents that Linux names, whose command begins so."""
    found, names = {pid}, {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(status[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(pid for pid in found if names.get(pid, b"").startswith(begins))


def kill_one(pids: list[int], chance: random.Random) -> bool:
    """Kills one of them; returns false where none is there any more."""
    with suppress(ProcessLookupError, IndexError):
        os.kill(chance.choice(pids), signal.SIGKILL)
        return True
    return False
