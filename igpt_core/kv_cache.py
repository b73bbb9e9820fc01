"""KVCache: keys and values of the positions seen so far, allocated once."""

import torch
from torch import Tensor

from igpt_core.config import ImageGPTConfig


class KVCache:
    """Preallocated keys and values of every layer; one length for the whole batch.

    Attributes:
        keys, values: a tensor a layer, (B, H, S, D); S is `capacity` unless `lay_out` changed it.
            Positions not yet filled hold finite numbers, as masked attention needs.
        capacity: the most positions that it holds.
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
        shape = (batch_size, config.n_head, capacity, config.head_size)
        # One tensor a layer: a slice of a single 5-d block would carry its strides everywhere.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros_like(layer) for layer in self.keys]
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

    def lay_out(self, span: int) -> None:
        """Put the rows' first `span` positions side by side, within the same memory.

        The views that `write` returns for this span then have no gaps, which products on a CPU
        need: they copy anything else at each call. Takes as long as reading and writing what is
        filled twice, so it is for a span that serves many steps.

        Args:
            span: from `length` to `capacity`.
        """
        if not self.length <= span <= self.capacity:
            raise ValueError(
                f"the cache holds {self.length} positions and has room for {self.capacity}, "
                f"so it cannot be laid out for {span}"
            )
        if span != self.keys[0].shape[2]:
            self.keys = [_lay_out(layer, span, self.length) for layer in self.keys]
            self.values = [_lay_out(layer, span, self.length) for layer in self.values]

    def fan_out(self, n: int, *, capacity: int) -> "KVCache":
        """A cache of another capacity in which row r becomes rows r*n ... r*n + n-1."""
        grown = object.__new__(KVCache)
        grown.capacity, grown.length = capacity, self.length
        grown.keys = [_fan_out(layer, n, capacity, self.length) for layer in self.keys]
        grown.values = [_fan_out(layer, n, capacity, self.length) for layer in self.values]
        return grown


def _lay_out(layer: Tensor, span: int, length: int) -> Tensor:
    """The layer's memory seen as (B, H, span, D), its filled positions moved to their places."""
    batch, heads, _, head_size = layer.shape
    filled = layer[:, :, :length].clone()  # its old and new places overlap
    strides = (heads * span * head_size, span * head_size, head_size, 1)
    layer = layer.as_strided((batch, heads, span, head_size), strides)
    layer[:, :, :length] = filled
    return layer


def _fan_out(layer: Tensor, n: int, capacity: int, length: int) -> Tensor:
    rows, heads, _, head_size = layer.shape
    grown = layer.new_zeros(rows * n, heads, capacity, head_size)
    by_row = grown.view(rows, n, heads, capacity, head_size)
    by_row[:, :, :, :length] = layer[:, None, :, :length]
    return grown
