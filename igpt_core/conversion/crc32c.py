"""CRC-32C, the checksum of TensorFlow's files, fast enough for gigabytes in numpy."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_LANES = 1 << 16  # words in a row: its state and the tables stay in the second-level cache

_Words = npt.NDArray[np.uint32]


def crc32c(content: bytes | bytearray | memoryview) -> int:
    """The checksum of some bytes, 32 bits (RFC 3720, appendix B.4)."""
    data = np.frombuffer(content, np.uint8)
    # Linear over bits: what the bytes add to a state of zeros, and what becomes of the first state.
    return _from_zero(data) ^ _after_zeros(0xFFFFFFFF, len(data)) ^ 0xFFFFFFFF


def _from_zero(data: npt.NDArray[np.uint8]) -> int:
    """The state after the bytes, from a state of zeros: the sum of all words, each shifted past
    the words behind it. Rows of words are summed up first, then the words of that sum."""
    lanes = min(_LANES, 1 << max(0, (len(data) - 1) // 4).bit_length())
    n_first = len(data) % (4 * lanes)
    first = np.zeros(4 * lanes, np.uint8)
    first[4 * lanes - n_first :] = data[:n_first]  # zeros in front change nothing
    total = first.view("<u4")
    for row in data[n_first:].view("<u4").reshape(-1, lanes):
        total = _shift(total, lanes) ^ row
    while lanes > 1:
        lanes //= 2
        total = _shift(total[:lanes], lanes) ^ total[lanes:]
    return int(_shift(total, 1)[0])


def masked_crc32c(content: bytes | bytearray | memoryview) -> int:
    """The checksum as LevelDB and TensorFlow store it: rotated, plus a constant, so that bytes
    which hold checksums themselves get a sound one too."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _shift(words: _Words, n_words: int) -> _Words:
    """Each state after n_words words of zeros, a power of two."""
    low, high = _tables(n_words)
    halves = np.ascontiguousarray(words).view(np.uint16)
    return low[halves[0::2]] ^ high[halves[1::2]]


@lru_cache(maxsize=32)
def _tables(n_words: int) -> tuple[_Words, _Words]:
    """For the lower and the upper 16 bits of a state: what they become after n_words zeros."""
    columns = _columns(n_words)
    tables = []
    for half in (columns[:16], columns[16:]):
        table = np.zeros(1, np.uint32)
        for column in half:
            table = np.concatenate([table, table ^ np.uint32(column)])
        tables.append(table)
    return tables[0], tables[1]


def _after_zeros(state: int, n_bytes: int) -> int:
    for _ in range(n_bytes % 4):
        state = _shift_byte(state)
    n_words = n_bytes // 4
    for bit in range(n_words.bit_length()):
        if n_words >> bit & 1:
            state = _apply(_columns(1 << bit), state)
    return state


@lru_cache(maxsize=64)
def _columns(n_words: int) -> tuple[int, ...]:
    """What each single bit of a state becomes after n_words words of zeros, a power of two."""
    if n_words > 1:
        half = _columns(n_words // 2)
        return tuple(_apply(half, column) for column in half)
    columns = [1 << bit for bit in range(32)]
    for _ in range(4):
        columns = [_shift_byte(column) for column in columns]
    return tuple(columns)


def _apply(columns: tuple[int, ...], state: int) -> int:
    result = 0
    for bit, column in enumerate(columns):
        if state >> bit & 1:
            result ^= column
    return result


def _shift_byte(state: int) -> int:
    for _ in range(8):
        state = state >> 1 ^ (_POLYNOMIAL if state & 1 else 0)
    return state
