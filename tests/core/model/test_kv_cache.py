"""KVCache against a table of which vector was written where."""

import pytest
import torch
from torch import Tensor

from igpt_core.model.config import VARIANTS, ImageGPTConfig
from igpt_core.model.kv_cache import KVCache

CONFIG = ImageGPTConfig(vocab_size=9, n_positions=32, n_embd=12, n_layer=2, n_head=3)


def make_cache(*, batch_size: int = 2, capacity: int = 10) -> KVCache:
    return KVCache(
        CONFIG, batch_size=batch_size, capacity=capacity, device="cpu", dtype=torch.float32
    )


def vectors(position: int, *, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    """Keys and values (B, H, 1, D) that tell their position, row, head and channel apart."""
    keys = torch.arange(batch_size * 12.0).view(batch_size, 3, 1, 4) + 1000 * (position + 1)
    return keys, -keys


def write(cache: KVCache, *positions: int, span: int) -> list[tuple[Tensor, Tensor]]:
    k, v = (torch.cat(parts, dim=2) for parts in zip(*map(vectors, positions), strict=True))
    places = torch.tensor(positions)
    return [
        cache.write(layer, k * (layer + 1), v * (layer + 1), positions=places, span=span)
        for layer in range(2)
    ]


def assert_holds(views: list[tuple[Tensor, Tensor]], positions: range) -> None:
    for layer, found in enumerate(views):
        for position in positions:
            for view, expected in zip(found, vectors(position), strict=True):
                assert torch.equal(view[:, :, position : position + 1], expected * (layer + 1))


def test_write_puts_each_position_into_its_place_and_returns_the_first_of_all() -> None:
    cache = make_cache()
    write(cache, 2, 0, 1, span=3)
    views = write(cache, 3, span=4)
    assert [view.shape for view in views[0]] == [(2, 3, 4, 4)] * 2
    assert_holds(views, range(4))


def test_write_returns_views_of_its_own_memory() -> None:
    cache = make_cache()
    earlier = write(cache, 0, span=5)
    write(cache, 1, 2, 3, 4, span=5)
    assert_holds(earlier, range(5))


def test_positions_not_filled_are_finite() -> None:
    cache = make_cache(batch_size=1, capacity=500)
    grown = cache.repeat(3, capacity=600)
    grown.repack(70)
    for layer in [*cache.keys, *cache.values, *grown.keys, *grown.values]:
        assert layer.isfinite().all()


def test_repeat_repeats_each_row_and_leaves_the_first_cache_alone() -> None:
    cache = make_cache()
    write(cache, 0, 1, 2, span=3)
    cache.length = 3
    grown = cache.repeat(3, capacity=7)
    assert (grown.length, grown.capacity) == (3, 7)
    for few, many in zip(cache.keys + cache.values, grown.keys + grown.values, strict=True):
        assert many.shape == (6, 3, 7, 4)
        for row in range(6):
            assert torch.equal(many[row, :, :3], few[row // 3, :, :3])
        many.fill_(0)
    assert_holds([(cache.keys[i], cache.values[i]) for i in range(2)], range(3))


def test_repack_keeps_what_was_written_through_any_spans() -> None:
    cache = make_cache(capacity=20)
    filled = 0
    for span, wanted in [(5, 3), (12, 7), (8, 8), (20, 15), (16, 16), (17, 17), (20, 20)]:
        cache.repack(span)
        if wanted > filled:
            write(cache, *range(filled, wanted), span=span)
        filled = cache.length = wanted
        assert_holds([(cache.keys[i], cache.values[i]) for i in range(2)], range(filled))


def test_repack_closes_the_gaps_without_new_memory() -> None:
    cache = make_cache(capacity=20)
    addresses = [layer.data_ptr() for layer in cache.keys + cache.values]
    (keys, _), _ = write(cache, 0, span=6)
    assert not keys.transpose(2, 3).is_contiguous()
    cache.repack(6)
    for keys, values in write(cache, 1, span=6):
        assert keys.transpose(2, 3).is_contiguous()  # the order that attention on a CPU reads
        assert values.is_contiguous()
    assert [layer.data_ptr() for layer in cache.keys + cache.values] == addresses


@pytest.mark.parametrize("span", [3, 11])
def test_repack_refuses_to_lose_positions_and_to_leave_its_memory(span: int) -> None:
    cache = make_cache(capacity=10)
    cache.length = 4
    with pytest.raises(ValueError, match=f"4 positions and has room for 10.*for {span}"):
        cache.repack(span)


def test_bytes_per_row_are_the_bytes_taken() -> None:
    cache = make_cache(batch_size=2, capacity=10)
    taken = sum(layer.nbytes for layer in cache.keys + cache.values)
    assert taken == 2 * KVCache.bytes_per_row(CONFIG, 10, torch.float32)


def test_published_models_take_megabytes_for_an_image() -> None:
    sizes = {
        name: KVCache.bytes_per_row(config, 1024, torch.bfloat16) / 1e6
        for name, config in VARIANTS.items()
    }
    # layers * width * 2 (keys and values) * 1024 positions * 2 bytes
    assert sizes == pytest.approx({"small": 50.33, "medium": 150.99, "large": 301.99}, abs=0.01)
