"""What attention takes beside queries, keys and values: scales, a prefix, masks."""

from typing import NamedTuple

import torch
from torch import Tensor


class Scales(NamedTuple):
    """Factors (B, H, T, 1) float32 of keys and values in 8 bits, one for each head and position."""

    k: Tensor
    v: Tensor


class Prefix(NamedTuple):
    """Keys and values (B / n, H, P, D) before those of B rows, n of which share each."""

    k: Tensor
    v: Tensor
    scales: Scales | None = None

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the keys and values (B, H, P + T, D) of all positions, for each row."""
        n = len(k) // max(len(self.k), 1)
        return (
            torch.cat([self.k.repeat_interleave(n, dim=0), k], dim=2),
            torch.cat([self.v.repeat_interleave(n, dim=0), v], dim=2),
        )


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Makes a mask (Tq, Tk), true where a key is not after the query; the queries are the last."""
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return mask.tril(n_keys - n_queries)


def added_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Makes a mask that is added to scores, 0 or -inf, of one that is true where a key may be seen:
    once for all layers, where each would make its own. `dtype`: of the queries, but float32 where
    keys lie by channel."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
