"""Files of a store by range requests, against the bytes themselves."""

import io
import random

from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage import retry
from pipeline.storage.block_reader import BlockReader


class Recorded(io.BytesIO):
    """A file that notes where and how much is read of it."""

    def __init__(self, content):
        super().__init__(content)
        self.requests = []

    def read(self, size):
        found = super().read(size)
        self.requests.append((self.tell() - len(found), len(found)))
        return found


CONTENT = random.Random(0).randbytes(9 << 20)


def test_what_is_read_anywhere_are_the_bytes_that_stand_there():
    reader = BlockReader(MemoryFileSystem(), io.BytesIO(CONTENT))
    rng = random.Random(1)
    for _ in range(500):
        at, size = rng.randrange(len(CONTENT) + 1000), rng.choice([0, 1, 512, 70_000, 5 << 20])
        reader.seek(at)
        assert reader.read(size) == CONTENT[at : at + size]
        assert reader.tell() == at + len(CONTENT[at : at + size])


def test_what_is_read_on_comes_in_large_blocks_and_what_is_skipped_does_not_come():
    raw = Recorded(CONTENT)
    reader = BlockReader(MemoryFileSystem(), raw)
    assert b"".join(iter(lambda: reader.read(1000), b"")) == CONTENT
    assert len(raw.requests) <= 6, "the last two find the end"
    assert sum(size for _, size in raw.requests) == len(CONTENT)
    raw = Recorded(CONTENT)
    reader = BlockReader(MemoryFileSystem(), raw)
    for at in range(0, len(CONTENT), 1 << 20):
        reader.seek(at)
        reader.read(512)
    assert len(raw.requests) == 9
    assert sum(size for _, size in raw.requests) <= 9 * (16 << 10)


def test_nothing_beyond_the_stop_is_read_ahead():
    raw = Recorded(CONTENT)
    reader = BlockReader(MemoryFileSystem(), raw, stop=1_000_000)
    while reader.tell() < 1_000_000:
        reader.read(1000)
    assert max(at + size for at, size in raw.requests) == 1_000_000
    assert reader.read(10) == CONTENT[1_000_000:1_000_010], "but what is asked for is"


def test_a_transient_fault_is_retried(monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    faults = [ConnectionResetError("reset by peer")] * 2

    class Faulty(io.BytesIO):
        def read(self, size):
            if faults:
                raise faults.pop()
            return super().read(size)

    assert BlockReader(MemoryFileSystem(), Faulty(b"abc")).read(9) == b"abc"
