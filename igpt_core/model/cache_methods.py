"""What callers ask of a cache in transformers, and caches of transformers as arguments."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class CacheMethods:
    """Methods of caches of calls of the model, by the names that transformers 5 has."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int
    capacity: int

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Counts the positions filled, as many in each layer."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last positions away: as many as a negative number says, or all but as many as a
        positive one does, which is what it was before."""
        n = tokens_to_remove
        self.length = min(self.length, n) if n > 0 else max(self.length + n, 0)
        # What is behind these may belong to a graph, so that it is not written over.
        self.capacity = min(self.capacity, self.length)

    def reset(self) -> None:
        """Takes all positions away."""
        self.crop(-self.length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Leaves the rows of these numbers, in this order; one may come more than once."""
        for kept in (self.keys, self.values):
            # By the order in memory, which indexing would change where keys lie by channel.
            kept[:] = [
                rows.mT[indices].mT if rows.stride(3) != 1 else rows[indices] for rows in kept
            ]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Does what `batch_select_indices` does."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Puts so many copies of each row in its place."""
        rows = torch.arange(len(self.keys[0]), device=self.keys[0].device)
        self.batch_select_indices(rows.repeat_interleave(repeats))


def is_cache_of_transformers(past: Any) -> bool:
    """Tells whether keys and values are in an object such as its DynamicCache."""
    return hasattr(past, "update") and hasattr(past, "get_seq_length")


def extended(cache: Any, by: Iterable[Sequence[Tensor]], n_new: int) -> Any:
    """Returns a cache of transformers with the last positions of these keys and values."""
    for layer, (k, v) in enumerate(by):
        cache.update(k[:, :, -n_new:], v[:, :, -n_new:], layer)
    return cache


def held_by(cache: Any) -> Sequence[Sequence[Tensor]] | None:
    """Returns what a cache of transformers holds, a pair for each layer; None of an empty one.

    Raises TypeError for one whose tensors have places that are not filled.
    """
    length = cache.get_seq_length()
    if not length:
        return None
    pairs = [(layer.keys, layer.values) for layer in getattr(cache, "layers", ())]
    if not pairs or pairs[0][0].shape[2] != length:
        raise TypeError(
            "past_key_values: expected a KVCache, tuples of keys and values, or a DynamicCache of "
            f"transformers 5, found {type(cache).__name__}"
        )
    return pairs
