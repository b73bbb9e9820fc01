"""The fast checksum against published values and the plain definition."""

import time

import numpy as np
import pytest

import bundle_writer
from igpt_core.conversion import crc32c as module
from igpt_core.conversion.crc32c import crc32c, masked_crc32c


@pytest.mark.parametrize(
    ("content", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(content, checksum):
    assert crc32c(content) == bundle_writer.crc32c(content) == checksum


@pytest.mark.parametrize("lanes", [1, 8, 1 << 16])
def test_every_length_around_words_and_rows(lanes, monkeypatch):
    monkeypatch.setattr(module, "_LANES", lanes)
    content = np.random.default_rng(0).integers(0, 256, 300, np.uint8).tobytes()
    for size in range(300):
        assert crc32c(content[:size]) == bundle_writer.crc32c(content[:size]), size


def test_more_than_a_full_row():
    content = np.random.default_rng(1).integers(0, 256, 5 * (1 << 18) + 7, np.uint8).tobytes()
    expected = bundle_writer.crc32c(content)
    assert crc32c(content) == crc32c(bytearray(content)) == expected
    assert masked_crc32c(content) == bundle_writer.masked(content)


def test_a_checkpoint_takes_seconds():
    """300 MB is the smallest published one. It takes 0.2 s here; a byte at a time, a minute."""
    content = bytes(64 << 20)
    start = time.perf_counter()
    crc32c(content)
    assert time.perf_counter() - start < 5
