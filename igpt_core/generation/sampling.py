"""How a token is drawn: the options, the seed of a row, and logits and noise to tokens."""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igpt_core.errors import check_whole

if TYPE_CHECKING:  # for names alone: options are checked without torch, which takes seconds
    from torch import Tensor


# Of the noise, which decides what a seed draws. 1 was one number for each pixel, at which the
# distribution was inverted.
NOISE_VERSION = 2


@dataclass(frozen=True)
class SamplingConfig:
    """Options of sampling, applied as in transformers: temperature, then top-k, then top-p.

    Attributes:
        temperature: softmax temperature, by which the logits are divided; from 1e-30 to 1e30, where
            float32 holds what comes of it.
        top_k: top-k sampling, from the k most probable colors (ties with the k-th are kept); from
            all where None.
        top_p: nucleus sampling, from the fewest most probable colors whose probabilities reach p,
            among those that top_k left; from all of them where None.
        greedy: take the most probable color, the lowest index of several, and use no noise.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}")
        if not 1e-30 <= self.temperature <= 1e30:
            raise ValueError(
                f"temperature must be from 1e-30 to 1e30, found {self.temperature}; next: greedy "
                "for the most probable color"
            )
        if self.top_k is not None:
            # As an int, which compares and sums like others.
            object.__setattr__(self, "top_k", check_whole("top_k", self.top_k, least=1))
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], found {self.top_p}")


def row_seed(run_seed: int, row_id: str) -> int:
    """Returns a row's seed, a stable 63-bit hash (BLAKE2b) of the run's seed and the row's id.

    Raises TypeError for a seed that is no whole number, of which the hash would be another.
    """
    run_seed = check_whole("run_seed", run_seed)
    digest = hashlib.blake2b(f"{run_seed}\x00{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def filter_logits(logits: "Tensor", sampling: SamplingConfig) -> "Tensor":
    """Divides logits (..., V) by the temperature; sets to -inf what top_k and top_p exclude."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.double().softmax(dim=-1)  # summed up below
        # A color stays while those before it have not reached p: the most probable always does.
        excluded = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        logits = logits.masked_fill(excluded.scatter(-1, order, excluded), -math.inf)
    return logits


def sample_tokens(logits: "Tensor", noise: "Tensor | None", sampling: SamplingConfig) -> "Tensor":
    """Draws the token with the highest sum of filtered logit and Gumbel noise: one of the softmax
    of the filtered logits (see `GumbelNoise`).

    Distributions that are a little different mostly draw the same token with the same noise.

    Args:
        logits: (..., V), any float dtype.
        noise: (..., V) float32, see `GumbelNoise.at`; not looked at where it is greedy.
        sampling: temperature, top_k, top_p, greedy.

    Returns:
        (...) int64 in [0, V). A color of probability zero is never drawn.
    """
    if sampling.greedy:
        return logits.argmax(dim=-1)
    assert noise is not None
    wide = logits if logits.itemsize >= noise.itemsize else logits.float()
    return (filter_logits(wide, sampling) + noise).argmax(dim=-1)
