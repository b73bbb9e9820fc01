"""Batch sizes: how many images the memory of a device holds."""

from dataclasses import dataclass

import torch

from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache

# Of what is free: allocators leave gaps, and kernels take room of their own.
_SHARE = 0.8


@dataclass(frozen=True)
class Memory:
    """What a batch may take, weights included, in bytes; and the most images of one forward pass,
    and the most sequences sampled together, beyond which no more is gained."""

    bytes: int
    most_images: int
    most_sequences: int

    @classmethod
    def of_gpu(cls, free: int) -> "Memory":
        """Returns that of a GPU with so many free bytes."""
        return cls(int(_SHARE * free), most_images=256, most_sequences=512)

    @classmethod
    def of_cpu(cls, n_bytes: int) -> "Memory":
        """Returns so many bytes of a CPU's, of which a core gains nothing from larger batches."""
        # Two processes decode 32 sequences of the shipped model in bfloat16 1.2 times as fast as
        # 16 or 64.
        return cls(n_bytes, most_images=16, most_sequences=32)


def forward_images(
    config: ImageGPTConfig, n_positions: int, *, dtype: torch.dtype, memory: Memory
) -> int:
    """Counts the images that fit one forward pass without gradients; one at least."""
    room = memory.bytes - _weights(config, dtype)
    return max(1, min(room // _activations(config, n_positions, dtype), memory.most_images))


def sampling_images(
    config: ImageGPTConfig,
    n_positions: int,
    *,
    n: int,
    dtype: torch.dtype,
    memory: Memory,
    kv_cache_dtype: torch.dtype | None = None,
) -> int:
    """Counts the images that are sampled together, n sequences of each; one at least.

    An image takes the activations and the cache of its prefill, and the cache of each sequence,
    which is of the dtype too unless that of a cache is given.
    """
    prompt, sequence = (
        KVCache.bytes_per_row(config, n_positions, each)
        for each in (dtype, kv_cache_dtype or dtype)
    )
    image = _activations(config, n_positions, dtype) + prompt + n * sequence
    room = memory.bytes - _weights(config, dtype)
    return max(1, min(room // image, memory.most_sequences // n))


def _activations(config: ImageGPTConfig, n_positions: int, dtype: torch.dtype) -> int:
    """Counts the bytes of one layer at once: the input, the normed one, q, k and v, the output,
    and the two of the MLP."""
    width = 6 * config.n_embd + 2 * config.inner_size
    return width * n_positions * dtype.itemsize


def _weights(config: ImageGPTConfig, dtype: torch.dtype) -> int:
    """Counts the bytes of the matrices: four of attention and two of the MLP in each layer, and
    those of colors and positions."""
    width = config.n_embd
    layer = width * (4 * width + 2 * config.inner_size)
    tables = (2 * config.vocab_size + config.n_positions) * width
    return (config.n_layer * layer + tables) * dtype.itemsize
