"""Counter-based noise: Gumbel numbers that are a pure function of a row's seed, the sample, the
position and the color."""

import itertools
import math
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igpt_core.errors import whole_tensor

# Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK32 = 0xFFFFFFFF

# MurmurHash3's finalizer (Appleby, 2011), which spreads each bit of a word over all of them.
_MIXERS = (0x85EBCA6B, 0xC2B2AE35)

# The table of Gumbel numbers: a step for each of so many parts of an octave of the uniform number,
# which has so many octaves on each side of 1/2.
_STEP_BITS = 8
_OCTAVES = 32
_STEPS = (_OCTAVES << _STEP_BITS) + 1  # of a side; at its upper end lies 1/2 itself
_FRACTION_BITS = 23 - _STEP_BITS
_HALF_EXPONENT = 126  # of float32, as 0.5 has it

# Numbers of noise: a CPU keeps so many in its cache while they are made, and on a GPU each making
# launches some hundred kernels.
_AT_ONCE, _AT_ONCE_ON_GPU = 1 << 18, 1 << 24

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _multiply_high_low(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Returns the high and low 32 bits of a * multiplier, for a in [0, 2^32): int64 holds no 64-bit
    product of unsigned numbers, so it is put together from 16-bit halves."""
    low = (a & 0xFFFF) * multiplier
    high = (a >> 16) * multiplier + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counters: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Returns the output words of Philox4x32-10.

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
    return c0, c1, c2, c3


class GumbelNoise:
    """The noise of sequences: for each position and color a number of the standard Gumbel
    distribution.

    The color with the highest sum of logit and noise is one drawn from the softmax of the logits
    (Gumbel-max: Maddison, Tarlow, Minka, "A* Sampling", 2014).

    Attributes:
        seeds: (R,) int64, of the row that each sequence is a sample of.
        samples: (R,) int64, which one.
    """

    def __init__(self, seeds: Tensor, n_samples: int) -> None:
        """Makes the noise of `n_samples` of each row, which lie side by side.

        Args:
            seeds: (B,) of any integer dtype, any value; see `row_seed`.

        Raises:
            ValueError: seeds of a dtype that is no integer one.
        """
        self.seeds = whole_tensor("seeds", seeds).repeat_interleave(n_samples)
        self.samples = torch.arange(n_samples, device=seeds.device).repeat(len(seeds))

    def put(self, rows: Tensor, noise: "GumbelNoise") -> None:
        """Puts the noise of other sequences in the place of that of these rows."""
        self.seeds[rows], self.samples[rows] = noise.seeds, noise.samples

    def at(self, positions: Tensor, n_colors: int) -> Tensor:
        """Draws the noise at positions (T,) of all sequences, or (R, T) of each its own, of any
        integer dtype.

        Returns:
            (R, T, n_colors) float32, from -3.13 to 22.9: the same bits on every device.
        """
        words = self._words(whole_tensor("positions", positions))
        return _gumbel(_hashed(words, n_colors))

    def _words(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Computes two words (R, T) int64 for each position."""
        seeds, samples = self.seeds[:, None], self.samples[:, None]
        zero = torch.zeros_like(seeds)
        key = (seeds & _MASK32, (seeds >> 32) & _MASK32)
        return philox((positions, samples, zero, zero), key)[:2]


class NoiseAhead:
    """The noise of windows of sequences, made for several pixels at once, which takes a fraction of
    the calls."""

    def __init__(
        self, rows: int, n_colors: int, size: int, last_start: int, device: torch.device
    ) -> None:
        """`size` and `last_start`: of the windows, and the position where the last begins."""
        self._noise = GumbelNoise(torch.zeros(rows, dtype=torch.int64, device=device), 1)
        self._n_colors, self._size = n_colors, size
        self._last_start = last_start
        at_once = _AT_ONCE_ON_GPU if device.type == "cuda" else _AT_ONCE
        n_pixels = min(at_once // max(rows * n_colors, 1), last_start + 4 * size)
        self._n_pixels = max(n_pixels, 4 * size)
        self._decided: NDArray[np.int64] | None = None  # of nothing that was made

    def put(self, rows: Tensor, noise: GumbelNoise) -> None:
        """Puts the noise of other sequences in the place of that of these rows."""
        self._noise.put(rows, noise)
        self._decided = None

    def of(self, firsts: Tensor, n: int, *, decided: NDArray[np.int64], slack: int) -> Tensor:
        """Returns the noise (R, n, V) of n tokens of each sequence from positions `firsts` (R,) on.

        Args:
            decided: what the host knows of the firsts, none of which goes back but for the windows
                at the end of a sequence, and of those that are over.
            slack: how much further than that these may be.
        """
        moved = self._n_pixels
        if self._decided is not None:
            moved = int((decided - self._decided).max(initial=0))
        if moved + slack + n > self._n_pixels:
            moved, self._decided = 0, decided
            self._first = firsts.clamp(max=self._last_start + 1)
            pixels = self._first[:, None] - 1 + self._ahead(self._n_pixels)
            self._made = self._noise.at(pixels, self._n_colors)
        if self._size == 1:  # all that are not done have moved alike
            return self._made[:, moved : moved + n]
        rows = torch.arange(len(firsts), device=firsts.device)[:, None]
        # Sequences that are over may stand anywhere.
        moves = (firsts - self._first).clamp(0, self._n_pixels - n)
        return self._made[rows, moves[:, None] + self._ahead(n)]

    def _ahead(self, n: int) -> Tensor:
        return torch.arange(n, device=self._noise.seeds.device)


def _hashed(words: tuple[Tensor, Tensor], n_colors: int) -> Tensor:
    """Makes random bits (..., n_colors) int32 of words (...) and colors."""
    first, second = (_signed(word)[..., None] for word in words)
    bits = first ^ _color_words(n_colors, first.device)
    bits ^= _shifted(bits, 16)
    bits *= _as_signed(_MIXERS[0])
    bits += second
    bits ^= _shifted(bits, 13)
    bits *= _as_signed(_MIXERS[1])
    bits ^= _shifted(bits, 16)
    return bits


def _gumbel(bits: Tensor) -> Tensor:
    """Makes Gumbel numbers, float32, of random bits, int32: -log(-log(u)) of a uniform number u.

    Logarithms are not the same to the last bit on all devices, so they come from a table, between
    whose steps it is linear: that is within 3e-6.
    """
    # The highest bit says which half u lies in, the others how far from its end: both ends are as
    # fine as float32 is at zero.
    distance = (bits & 0x7FFFFFFF).float().add_(0.5).view(torch.int32)
    fraction = (distance & ((1 << _FRACTION_BITS) - 1)).float()
    step = distance >> _FRACTION_BITS
    step -= _HALF_EXPONENT << _STEP_BITS
    step += (bits < 0).int() * _STEPS
    values, slopes = _table(bits.device)
    return slopes[step].mul_(fraction).add_(values[step])


def _as_signed(word: int) -> int:
    """Returns the int32 of the same 32 bits."""
    return word - (1 << 32) if word >> 31 else word


def _signed(words: Tensor) -> Tensor:
    return torch.where(words >> 31 == 1, words - (1 << 32), words).to(torch.int32)


def _shifted(bits: Tensor, n: int) -> Tensor:
    """Shifts int32 to the right, zeros from the left."""
    return (bits >> n) & ((1 << (32 - n)) - 1)


@lru_cache(maxsize=8)
def _color_words(n_colors: int, device: torch.device) -> Tensor:
    """Makes a word for each color, int32, far from each other."""
    words = torch.arange(n_colors, device=device) * _WEYL[0] & _MASK32
    return _signed(words)


@lru_cache(maxsize=8)
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    """Makes the value at each step, float32, and its growth per unit of the fraction within it.

    A step is a distance from 0 or from 1: `_STEPS` of u near 0, and as many of u near 1.
    """
    distances = [
        math.ldexp(1 + step % (1 << _STEP_BITS) / (1 << _STEP_BITS), (step >> _STEP_BITS) - 33)
        for step in range(_STEPS)
    ]
    values, slopes = [], []
    for log in (math.log, lambda distance: math.log1p(-distance)):
        side = [-math.log(-log(distance)) for distance in distances]
        values += side
        slopes += [(b - a) / (1 << _FRACTION_BITS) for a, b in itertools.pairwise(side)]
        slopes.append(0.0)
    make = partial(torch.tensor, dtype=torch.float32, device=device)  # whatever torch's default
    return make(values), make(slopes)
