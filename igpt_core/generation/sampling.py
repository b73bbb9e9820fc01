"""Logits and noise to tokens: a pure function, and the counter-based noise that it takes."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn. top_k first, then top_p on what it left, as in transformers.

    Attributes:
        temperature: the logits are divided by it; > 0.
        top_k: keep the k likeliest colors (ties with the k-th are kept); all where None.
        top_p: keep the fewest likeliest colors whose probabilities reach p; all where None.
        greedy: take the likeliest color, the lowest index of several, and use no noise.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be 1 or more, found {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], found {self.top_p}")


def row_seed(run_seed: int, row_id: str) -> int:
    """The seed of a row, a stable 63-bit hash (BLAKE2b) of the run's seed and the row's id."""
    digest = hashlib.blake2b(f"{run_seed}\x00{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _multiply_high_low(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * multiplier, for a in [0, 2^32): int64 holds no 64-bit product
    of unsigned numbers, so it is put together from 16-bit halves."""
    low = (a & 0xFFFF) * multiplier
    high = (a >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counters: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """First output word of Philox4x32-10.

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
    """One uniform number for each (row, sample, position), a function of (row seed, k, t) alone.

    Args:
        seeds: (B,) int64, any value.
        n_samples: samples of each row.
        positions: pixel positions t.

    Returns:
        (B, n_samples, len(positions)) float64 in [0, 1), multiples of 2^-32, on seeds' device.
    """
    device = seeds.device
    seeds = seeds.view(-1, 1, 1)
    sample = torch.arange(n_samples, device=device).view(1, -1, 1)
    position = torch.tensor(positions, dtype=torch.int64, device=device).view(1, 1, -1)
    zero = torch.zeros_like(seeds)
    key = (seeds & _MASK32, (seeds >> 32) & _MASK32)
    return philox((position, sample, zero, zero), key).double() * 2.0**-32


def filter_logits(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Logits (..., V) divided by the temperature, -inf where top_k and top_p exclude a color."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        # A color stays while those before it have not reached p: the likeliest always does.
        excluded = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(excluded.scatter(-1, order, excluded), -torch.inf)
    return logits


def sample_tokens(logits: Tensor, noise: Tensor, sampling: SamplingConfig) -> Tensor:
    """Draw a token a row by inverting the cumulative distribution at the noise.

    Everything is computed in float64: a float32 sum over 512 colors would round away what the
    32 bits of noise can tell apart.

    Args:
        logits: (R, V), any float dtype.
        noise: (R,) float64 in [0, 1), see `uniform_noise`.
        sampling: temperature, top_k, top_p, greedy.

    Returns:
        (R,) int64 in [0, V). A color of probability zero is never drawn.
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    probabilities = filter_logits(logits.double(), sampling).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    # noise <= 1 - 2^-32, so the product stays below the total and a token is always found.
    target = noise.unsqueeze(-1) * cumulative[:, -1:]
    return (cumulative <= target).sum(dim=-1)
