"""Batches that fit in memory."""

import pytest
import torch

from igpt_core.heads import random_model
from igpt_core.interface.batch_size import Memory, forward_images, sampling_images
from igpt_core.model.config import VARIANTS
from igpt_core.model.kv_cache import KVCache

GIB = 1 << 30


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_caches_and_weights_of_a_sampled_batch_fit(variant, n):
    """By the sizes of real tensors, on a GPU of 24 GB; one image more would be too much, but for
    the share that is kept back."""
    config = VARIANTS[variant]
    memory = Memory.of_gpu(24 * GIB)
    images = sampling_images(config, 1024, n=n, dtype=torch.bfloat16, memory=memory)
    row = KVCache(config, batch_size=1, capacity=1024, device="meta", dtype=torch.bfloat16)
    cache = sum(t.numel() * t.itemsize for t in [*row.keys, *row.values])
    with torch.device("meta"):
        weights = sum(p.numel() * 2 for p in random_model(variant, seed=0).parameters())
    assert weights + images * n * cache < 0.8 * 24 * GIB
    if images * n < 512 - n:
        assert weights + (images + 1) * ((n + 1) * cache + 200e6) > 0.8 * 24 * GIB


def test_a_batch_with_a_cache_of_8_bits_is_nearly_twice_as_large():
    how = {"n": 16, "dtype": torch.bfloat16, "memory": Memory.of_gpu(100 * GIB)}
    images = sampling_images(VARIANTS["large"], 1024, **how)
    eight_bits = sampling_images(VARIANTS["large"], 1024, **how, kv_cache_dtype=torch.int8)
    assert 1.6 < eight_bits / images < 2


def test_batches_grow_with_memory_up_to_a_bound_and_hold_one_image_at_least():
    small = VARIANTS["small"]
    sizes = [
        sampling_images(small, 1024, n=2, dtype=torch.bfloat16, memory=Memory.of_gpu(free * GIB))
        for free in (1, 8, 24, 80, 140)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[-1] == 256
    cpu = Memory.of_cpu(GIB)
    for size in (sampling_images, forward_images):
        more = {"n": 8} if size is sampling_images else {}
        tight = Memory.of_gpu(1 << 20)
        assert size(VARIANTS["large"], 1024, dtype=torch.bfloat16, memory=tight, **more) == 1
        assert 1 <= size(VARIANTS["large"], 1024, dtype=torch.float32, memory=cpu, **more) <= 16
