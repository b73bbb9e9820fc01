"""KVCache: keys and values of the positions seen so far, allocated once."""

import torch
from torch import Tensor

from igpt_core.config import ImageGPTConfig


class KVCache:
    """Preallocated keys and values of every layer; one length for the whole batch.

    Attributes:
        keys, values: (L, B, H, S, D), S = `capacity`, the most positions that it holds.
        length: positions filled so far.
    """

    def __init__(
        self,
        config: ImageGPTConfig,
        *,
        batch_size: int,
        capacity: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.n_layer, batch_size, config.n_head, capacity, config.head_size)
        # One tensor a layer: a slice of a single 5-d block would carry its strides everywhere.
        self.keys = [torch.empty(shape[1:], device=device, dtype=dtype) for _ in range(shape[0])]
        self.values = [torch.empty_like(layer) for layer in self.keys]
        self.capacity = capacity
        self.length = 0

    @staticmethod
    def bytes_per_row(config: ImageGPTConfig, capacity: int, dtype: torch.dtype) -> int:
        """Bytes that one sequence of `capacity` positions takes."""
        return 2 * config.n_layer * config.n_embd * capacity * dtype.itemsize

    def write(
        self, layer: int, k: Tensor, v: Tensor, *, slots: Tensor, span: int
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new positions; return the first `span` of all.

        Args:
            layer: index of the layer.
            k, v: (B, H, T, D) of the new positions.
            slots: (T,) int64, where they go. A tensor, so that a captured step can be replayed.
            span: how many positions to return, a host number.

        Returns:
            Two views (B, H, span, D) into the cache.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, slots, k)
        values.index_copy_(2, slots, v)
        return keys[:, :, :span], values[:, :, :span]

    def fan_out(self, n: int, *, capacity: int) -> "KVCache":
        """A cache of another capacity in which row r becomes rows r*n ... r*n + n-1."""
        grown = object.__new__(KVCache)
        grown.capacity, grown.length = capacity, self.length
        grown.keys = [_fan_out(layer, n, capacity, self.length) for layer in self.keys]
        grown.values = [_fan_out(layer, n, capacity, self.length) for layer in self.values]
        return grown


def _fan_out(layer: Tensor, n: int, capacity: int, length: int) -> Tensor:
    rows, heads, _, head_size = layer.shape
    grown = layer.new_empty(rows * n, heads, capacity, head_size)
    by_row = grown.view(rows, n, heads, capacity, head_size)
    by_row[:, :, :, :length] = layer[:, None, :, :length]
    return grown
