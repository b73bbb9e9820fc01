"""Counter-based noise: a pure function of a row's seed, the sample and the position."""

import torch
from torch import Tensor

# Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK32 = 0xFFFFFFFF


def _multiply_high_low(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Returns the high and low 32 bits of a * multiplier, for a in [0, 2^32): int64 holds no 64-bit
    product of unsigned numbers, so it is put together from 16-bit halves."""
    low = (a & 0xFFFF) * multiplier
    high = (a >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counters: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the first output word of Philox4x32-10.

    Args:
        counters, key: int64 tensors of values in [0, 2^32) that broadcast together.

    Returns:
        int64 in [0, 2^32), of the broadcast shape.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_high_low(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply_high_low(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0


def uniform_noise(seeds: Tensor, n_samples: int, positions: range) -> Tensor:
    """Draws a uniform number for each (row, sample, position), by (row seed, k, t) alone.

    Args:
        seeds: (B,) of any integer dtype, any value; see `row_seed`.
        n_samples: samples of each row.
        positions: pixel positions t.

    Returns:
        (B, n_samples, len(positions)) float64 in [0, 1), multiples of 2^-32, on seeds' device.

    Raises:
        ValueError: seeds of a dtype that is no integer one.
    """
    device, dtype = seeds.device, seeds.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"expected seeds of an integer dtype, found {dtype}; next: seeds.long()")
    seeds = seeds.long().view(-1, 1, 1)  # narrower ones hold neither the words nor their mask
    sample = torch.arange(n_samples, device=device).view(1, -1, 1)
    position = torch.tensor(positions, dtype=torch.int64, device=device).view(1, 1, -1)
    zero = torch.zeros_like(seeds)
    key = (seeds & _MASK32, (seeds >> 32) & _MASK32)
    return philox((position, sample, zero, zero), key).double() * 2.0**-32
