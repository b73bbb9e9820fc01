"""How many images a model computes together: what the memory of its device holds."""

from dataclasses import dataclass

import torch

from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache

# Of what is free: allocators leave gaps, and kernels take room of their own.
_SHARE = 0.8


@dataclass(frozen=True)
class Memory:
    """What a batch may take, weights included, in bytes; and the most images looked at, and the
    most sequences drawn together, beyond which no more is gained."""

    bytes: int
    most_images: int
    most_sequences: int

    @classmethod
    def of_gpu(cls, free: int) -> "Memory":
        """Of a GPU with so many free bytes."""
        return cls(int(_SHARE * free), most_images=256, most_sequences=512)


# A core gains nothing from larger batches, and every actor of a machine has such a share of it.
CPU = Memory(1 << 30, most_images=16, most_sequences=16)


def forward_images(config: ImageGPTConfig, n_positions: int, *, dtype: str, memory: Memory) -> int:
    """Images of one forward without gradients; one at least."""
    room = memory.bytes - _weights(config, dtype)
    return max(1, min(room // _activations(config, n_positions, dtype), memory.most_images))


def sampling_images(
    config: ImageGPTConfig, n_positions: int, *, n: int, dtype: str, memory: Memory
) -> int:
    """Images that are decoded together, n sequences of each; one at least.

    An image takes the activations and the cache of its prefill, and the cache of each sequence.
    """
    row = KVCache.bytes_per_row(config, n_positions, getattr(torch, dtype))
    image = _activations(config, n_positions, dtype) + row * (1 + n)
    room = memory.bytes - _weights(config, dtype)
    return max(1, min(room // image, memory.most_sequences // n))


def _activations(config: ImageGPTConfig, n_positions: int, dtype: str) -> int:
    """Bytes of one layer at once: the input, the normed one, q, k and v, the output, and the two
    of the MLP."""
    width = 6 * config.n_embd + 2 * config.inner_size
    return int(width * n_positions * getattr(torch, dtype).itemsize)


def _weights(config: ImageGPTConfig, dtype: str) -> int:
    """Bytes of the matrices: four of attention and two of the MLP in each layer, and those of
    colors and positions."""
    width = config.n_embd
    layer = width * (4 * width + 2 * config.inner_size)
    tables = (2 * config.vocab_size + config.n_positions) * width
    return int((config.n_layer * layer + tables) * getattr(torch, dtype).itemsize)
