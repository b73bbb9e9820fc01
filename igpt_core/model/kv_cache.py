"""KVCache: keys and values of the positions seen so far, allocated once."""

import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from igpt_core.model.attention_inputs import Prefix, Scales
from igpt_core.model.cache_methods import CacheMethods
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.cpu_attention import reads_by_channel
from igpt_core.model.spans import SPAN_UNIT


class KVCache(CacheMethods):
    """Preallocated keys and values of every layer; one length for the whole batch.

    It reads as transformers' past_key_values: a pair of keys and values for each layer.

    Attributes:
        keys, values: one tensor (B, H, S, D) per layer, of the positions from `n_shared` on; with
            these S is `capacity` unless `repack` changed it. Positions not yet filled hold finite
            numbers, as masked attention needs.
        scales: per layer, the factors of keys and values in 8 bits; None for each without.
        prefixes: per layer, what `n_shared` first positions hold, which rows of one prompt share;
            None for each where they share nothing.
        n_shared: how many positions these are.
        n_each: rows of each prompt, which lie side by side.
        by_channel: the keys lie in memory as (B, H, D, S), the order in which `attend` reads them
            on some processors.
        by_start: `attend` takes the start of each row's window in place of a mask.
        capacity: the most positions that it holds without taking memory anew.
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
        n_queries: int = 1,
        by_start: bool = False,
        eight_bits: bool = False,
        n_each: int = 1,
        shared_length: int = 0,
    ) -> None:
        """Makes an empty cache.

        Args:
            n_queries: positions that are fed at once, once it is filled with a prompt.
            by_start: see above.
            eight_bits: keys and values are rounded to int8, each head and position with a scale of
                its own; `by_start` alone.
            n_each: rows of each prompt.
            shared_length: of prompts of this length they share what they can; see `repeat`.
        """
        if eight_bits and not by_start:
            raise ValueError("a cache of 8 bits is for a kernel that takes starts alone")
        memory = torch.empty(0, device=device, dtype=dtype)
        self.by_channel = not eight_bits and reads_by_channel(memory, n_queries)
        self.by_start = by_start
        memory = memory.to(torch.int8) if eight_bits else memory
        shape = (batch_size, config.n_head, capacity, config.head_size)
        self._allocate(config.n_layer, shape, n_each, shared_length, like=memory)
        self.length = 0

    def _allocate(
        self, n_layers: int, shape: "Shape", n_each: int, shared_length: int, *, like: Tensor
    ) -> None:
        """Takes memory for rows of a shape (B, H, S, D), zeros."""
        n_shared = self._n_shareable(n_each, shared_length)
        self.n_each, self.n_shared, self.capacity = n_each, n_shared, shape[2]
        self.keys, self.values, self.scales, self.prefixes = [], [], [], []
        zeros = partial(_zeros, n_each=n_each, n_shared=n_shared)
        # One tensor per layer: a slice of a single 5-d block would carry its strides everywhere.
        for _ in range(n_layers):
            first_k, own_k = zeros(shape, self.by_channel, like=like)
            first_v, own_v = zeros(shape, False, like=like)
            first_scales, own_scales = None, None
            if like.dtype == torch.int8:
                wide = like.float()
                pairs = [zeros((*shape[:3], 1), False, like=wide) for _ in range(2)]
                first_scales, own_scales = (Scales(*each) for each in zip(*pairs, strict=True))
            self.keys.append(own_k)
            self.values.append(own_v)
            self.scales.append(own_scales)
            self.prefixes.append(Prefix(first_k, first_v, first_scales) if n_shared else None)

    @classmethod
    def of_layers(
        cls, config: ImageGPTConfig, layers: Sequence[Sequence[Tensor]], *, room: int
    ) -> "KVCache":
        """Makes a cache that begins with given keys and values, a pair (B, H, T, D) per layer.

        It has room for `room` more positions. Gradients flow back to what is given. Raises
        ValueError for another number of layers than the configuration's, or another shape.
        """
        batch_size, _, length, _ = layers[0][0].shape
        shape = (batch_size, config.n_head, length, config.head_size)
        found = [tuple(tensor.shape) for pair in layers for tensor in pair]
        if found != [shape] * 2 * config.n_layer:
            raise ValueError(
                f"expected keys and values of {config.n_layer} layers, each of one shape "
                f"(B, {config.n_head}, T, {config.head_size}), found {found}"
            )
        cache = cls.for_calls(config, batch_size, length + room, like=layers[0][0])
        for layer, (k, v) in enumerate(layers):
            cache.write(layer, k, v, span=length)
        cache.length = length
        return cache

    @classmethod
    def for_calls(
        cls, config: ImageGPTConfig, batch_size: int, capacity: int, *, like: Tensor
    ) -> "KVCache":
        """Makes an empty cache on the device and in the dtype of a tensor, for calls of the model:
        without memory where these append to it, see `write`."""
        capacity = 0 if _appends() else capacity
        return cls(
            config,
            batch_size=batch_size,
            capacity=capacity,
            device=like.device,
            dtype=like.dtype,
        )

    def __deepcopy__(self, _: Any) -> "KVCache":
        """Copies what is held, within its graph where it has one."""
        copied = copy.copy(self)
        copied.keys = [keys.clone() for keys in self.keys]
        copied.values = [values.clone() for values in self.values]
        copied.scales = [None if s is None else Scales(*map(torch.clone, s)) for s in self.scales]
        copied.prefixes = list(self.prefixes)  # which are not written any more
        return copied

    def __len__(self) -> int:
        """Counts the layers, as in a tuple of (keys, values)."""
        return len(self.keys)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values at filled positions, (B, H, length, D): two views where
        nothing is shared. Of a cache of 8 bits they are without their scales."""
        filled = slice(self.length - self.n_shared)
        k, v = self.keys[layer][:, :, filled], self.values[layer][:, :, filled]
        prefix = self.prefixes[layer]
        return (k, v) if prefix is None else prefix.before(k, v)

    def _own(self, layer: int) -> tuple[Tensor, ...]:
        """Returns all that is kept of a layer for each row."""
        return (self.keys[layer], self.values[layer], *(self.scales[layer] or ()))

    def _as_kept(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Returns what is kept of keys and values, in the order of `_own`."""
        if self.scales[layer] is None:
            return k, v
        (k, k_scales), (v, v_scales) = to_eight_bits(k), to_eight_bits(v)
        return k, v, k_scales, v_scales

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[layer] for layer in range(len(self)))

    @property
    def layers(self) -> list[SimpleNamespace]:
        """Returns the keys and values of each layer as attributes, as transformers 5 has them."""
        return [SimpleNamespace(keys=k, values=v) for k, v in self]

    def reserve(self, config: ImageGPTConfig, n_new: int) -> None:
        """Makes room for `n_new` more positions: twice as many as before, where it takes a copy.
        None is needed where these are appended; see `write`."""
        needed = self.length + n_new
        if needed > self.capacity and not _appends():
            capacity = max(needed, min(2 * self.capacity, config.n_positions))
            vars(self).update(vars(self.repeat(1, capacity=capacity)))

    @staticmethod
    def bytes_per_row(config: ImageGPTConfig, capacity: int, dtype: torch.dtype) -> int:
        """Counts the bytes that one sequence of `capacity` positions takes in a dtype, int8 for a
        cache of 8 bits."""
        of_position = config.n_embd * dtype.itemsize
        if dtype == torch.int8:
            of_position += config.n_head * torch.float32.itemsize
        return 2 * config.n_layer * capacity * of_position

    def write(
        self, layer: int, k: Tensor, v: Tensor, *, span: int, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of new positions; returns the first `span` of all.

        Where gradients are enabled, torch.compile traces or there is no room, they are appended in
        new memory in place of the layer's: what a graph refers to must not be written again.

        Args:
            layer: index of the layer.
            k, v: (B, H, T, D) of the new positions.
            span: how many positions to return, a host number.
            positions: (T,) int64, where they go, or (B, T) of each row its own: a tensor, so that a
                captured step can be replayed. Behind those that are filled unless given, which
                takes a fraction of the time.

        Returns:
            Two views (B, H, span, D) into the cache; without the positions that are shared.
        """
        keys, values, span = self.keys[layer], self.values[layer], span - self.n_shared
        if positions is None:
            start = self.length - self.n_shared
            if _appends() or start + k.shape[2] > keys.shape[2]:
                self.capacity = self.length  # of what it then holds no more is written
                if start:
                    k = torch.cat([keys[:, :, :start], k], dim=2)
                    v = torch.cat([values[:, :, :start], v], dim=2)
                self.keys[layer], self.values[layer] = k, v
                return k, v
            new = slice(start, start + k.shape[2])
            for own, part in zip(self._own(layer), self._as_kept(layer, k, v), strict=True):
                own[:, :, new] = part
            return keys[:, :, :span], values[:, :, :span]
        if self.n_shared:
            positions = positions - self.n_shared
        if positions.dim() == 2:
            rows = torch.arange(len(k), device=k.device)[:, None]
        for own, part in zip(self._own(layer), self._as_kept(layer, k, v), strict=True):
            if positions.dim() == 2:
                own[rows, :, positions] = part.transpose(1, 2)
            else:
                own.index_copy_(2, positions, part)
        return keys[:, :, :span], values[:, :, :span]

    def put(self, prompts: "KVCache", places: Sequence[int]) -> None:
        """Copies what a cache holds of prompts, of at most this one's capacity, each to all rows of
        one place: the places are numbered as the prompts of this cache are.

        Raises ValueError for prompts in 8 bits, which are not rounded a second time.
        """
        if any(prompts.scales):
            raise ValueError("a cache of 8 bits is not copied: copy the one that it was made of")
        held = self.n_shared + self.keys[0].shape[2]
        if prompts.length > held:
            length, self.length = self.length, held  # all rows stay, however far they are
            self.repack(self.capacity)
            self.length = length
        filled, n_places = prompts.length - self.n_shared, len(self.keys[0]) // self.n_each
        at = torch.tensor(places, device=self.keys[0].device)
        for layer, (k, v) in enumerate(prompts):
            prefix = self.prefixes[layer]
            parts = self._as_kept(layer, k[: len(places)], v[: len(places)])
            if prefix is not None:
                firsts = (prefix.k, prefix.v, *(prefix.scales or ()))
                for first, part in zip(firsts, parts, strict=True):
                    first[at] = part[:, :, : self.n_shared]
            for own, part in zip(self._own(layer), parts, strict=True):
                by_place = own.view(n_places, self.n_each, *own.shape[1:])
                by_place[at, :, :, :filled] = part[:, None, :, self.n_shared :]

    def repack(self, span: int) -> None:
        """Puts the first `span` positions of all rows side by side, within the same memory.

        The views that `write` returns for this span then have no gaps, which `attend` needs where
        keys lie `by_channel`: it would copy them at each step. Takes as long as reading and writing
        what is filled twice, so it is for a span that serves many steps.

        Args:
            span: from `length` to `capacity`.
        """
        if not self.length <= span <= self.capacity:
            raise ValueError(
                f"the cache holds {self.length} positions and has room for {self.capacity}, "
                f"so it cannot be repacked for {span}"
            )
        span, length, by_channel = (
            span - self.n_shared,
            self.length - self.n_shared,
            self.by_channel,
        )
        if span != self.keys[0].shape[2]:
            self.keys = [_repack(layer, span, length, by_channel) for layer in self.keys]
            self.values = [_repack(layer, span, length, False) for layer in self.values]

    def repeat(self, n: int, *, capacity: int, shares: bool = False) -> "KVCache":
        """Makes a cache of another capacity in which row r becomes rows r*n ... r*n + n-1.

        Args:
            shares: where keys lie `by_channel` or are read `by_start`, these share whole units of
                the positions that are filled, but for the last position, which may be written
                again.
        """
        grown, (rows, heads, _, head_size) = copy.copy(self), self.keys[0].shape
        shape = (rows * n, heads, capacity, head_size)
        grown._allocate(len(self), shape, n, self.length if shares else 0, like=self.keys[0])
        grown.put(self, range(rows))
        return grown

    def _n_shareable(self, n_each: int, length: int) -> int:
        """Counts the positions that so many rows of a prompt of this length may share."""
        if n_each == 1 or not (self.by_channel or self.by_start):
            return 0
        unit = SPAN_UNIT
        if self.by_start:  # sums over keys are split in the same way as without sharing
            from igpt_core.model.window_kernel import SPLIT as unit
        return max(length - 1, 0) // unit * unit


Shape = tuple[int, int, int, int]  # B, H, S, D


def _appends() -> bool:
    """Tells whether new positions are appended in new memory; see `KVCache.write`."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def _strides(shape: Shape, by_channel: bool) -> Shape:
    """Computes the strides of a tensor that lies in memory as (B, H, S, D) or as (B, H, D, S)."""
    _, heads, span, head_size = shape
    within = (1, span) if by_channel else (head_size, 1)
    return heads * span * head_size, span * head_size, *within


def to_eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds x (..., D) to int8 and factors (..., 1) float32, whose product is nearest to it."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
    return (wide / scales).round().to(torch.int8), scales


def _zeros(
    shape: Shape, by_channel: bool, *, n_each: int, n_shared: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Makes what n_each rows share of a shape (B, H, S, D), (B / n_each, H, n_shared, D), and
    behind it in the same memory what each has for itself, (B, H, S - n_shared, D)."""
    rows, heads, capacity, head_size = shape
    first: Shape = (rows // n_each, heads, n_shared, head_size)
    own: Shape = (rows, heads, capacity - n_shared, head_size)
    n_first = math.prod(first)
    memory = like.new_zeros(n_first + math.prod(own))
    behind = memory[n_first:]
    return _laid_out(memory, first, by_channel), _laid_out(behind, own, by_channel)


def _laid_out(memory: Tensor, shape: Shape, by_channel: bool) -> Tensor:
    """Views memory, from its first number on, as a tensor of this shape."""
    return memory.as_strided(shape, _strides(shape, by_channel))


def _repack(layer: Tensor, span: int, length: int, by_channel: bool) -> Tensor:
    """Views the layer's memory as (B, H, span, D), its filled positions moved to their places."""
    batch, heads, _, head_size = layer.shape
    filled = layer[:, :, :length].clone()  # its old and new places overlap
    layer = _laid_out(layer, (batch, heads, span, head_size), by_channel)
    layer[:, :, :length] = filled
    layer[:, :, length:] = 0  # of other rows, which may be NaN
    return layer
