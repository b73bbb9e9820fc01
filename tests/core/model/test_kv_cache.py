"""KVCache against a table of which vector was written where."""

import pytest
import torch
from torch import Tensor

from igpt_core.model.config import VARIANTS, ImageGPTConfig
from igpt_core.model.kv_cache import KVCache, to_eight_bits

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


@pytest.mark.parametrize(("length", "shared"), [(1, 0), (64, 0), (65, 64), (130, 128)])
def test_copies_of_a_row_share_whole_units_but_for_the_last_position(length, shared) -> None:
    cache = make_cache(capacity=150)
    write(cache, *range(length), span=length)
    cache.length = length
    grown = cache.repeat(3, capacity=192, shares=True)
    assert (grown.n_shared, grown.capacity) == (shared, 192)
    assert grown.keys[0].shape == (6, 3, 192 - shared, 4)
    grown.repack(160)
    write_rows = [torch.cat([part] * 3) for part in vectors(length)]
    for layer in range(2):
        grown.write(layer, *(part * (layer + 1) for part in write_rows), span=160)
    grown.length += 1
    again = torch.full((6, 1), length - 1)  # written a second time: a window that goes back
    for layer in range(2):
        grown.write(layer, *(part * 7.0 for part in write_rows), positions=again, span=160)
    for layer, found in enumerate(grown):
        for parts, expected in zip(found, cache[layer], strict=True):
            assert parts.shape == (6, 3, length + 1, 4)
            kept = expected[:, :, : length - 1].repeat_interleave(3, dim=0)
            assert torch.equal(parts[:, :, : length - 1], kept)
        for part, expected in zip(found, write_rows, strict=True):
            assert torch.equal(part[:, :, length - 1 : length], expected * 7.0)
            assert torch.equal(part[:, :, length:], expected * (layer + 1))
    again = grown.repeat(2, capacity=200)
    assert (again.n_shared, again.prefixes) == (0, [None, None])
    for copied, shared in zip(again, grown, strict=True):
        for parts, expected in zip(copied, shared, strict=True):
            assert torch.equal(parts, expected.repeat_interleave(2, dim=0))
    other = make_cache(batch_size=8, capacity=150)
    other.put(grown, range(1, 7))
    for layer, (k, v) in enumerate(grown):
        assert torch.equal(other.keys[layer][1:7, :, : length + 1], k)
        assert torch.equal(other.values[layer][1:7, :, : length + 1], v)


def test_eight_samples_of_half_an_image_take_under_65_percent_of_eight_rows() -> None:
    half = KVCache(VARIANTS["small"], batch_size=1, capacity=513, device="cpu", dtype=torch.float32)
    half.length = 513
    grown = half.repeat(8, capacity=1024, shares=True)
    taken = sum(layer.untyped_storage().nbytes() for layer in [*grown.keys, *grown.values])
    whole = KVCache.bytes_per_row(VARIANTS["small"], 1024, torch.float32)
    assert taken == (512 + 8 * 512) / 1024 * whole < 0.65 * 8 * whole


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


def test_8_bits_are_the_nearest_to_each_number_of_a_head_and_position() -> None:
    x = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[0, 1, 2] *= 1000
    x[1, 0, 0] = 0
    codes, scales = to_eight_bits(x)
    assert (codes.dtype, codes.shape) == (torch.int8, x.shape)
    assert (scales.dtype, scales.shape) == (torch.float32, (2, 3, 5, 1))
    largest = x.float().abs().amax(dim=-1, keepdim=True)
    assert ((codes * scales - x).abs() <= largest / 254 * (1 + 1e-5)).all()
    assert (codes.abs().amax(dim=-1) == 127)[largest[..., 0] > 0].all()


def test_bytes_of_8_bits_are_the_bytes_taken() -> None:
    cache = KVCache(
        CONFIG,
        batch_size=2,
        capacity=10,
        device="cpu",
        dtype=torch.float32,
        by_start=True,
        eight_bits=True,
    )
    kept = [*cache.keys, *cache.values, *(part for pair in cache.scales for part in pair)]
    taken = sum(part.nbytes for part in kept)
    assert taken == 2 * KVCache.bytes_per_row(CONFIG, 10, torch.int8)
    small = [KVCache.bytes_per_row(VARIANTS["small"], 1, t) for t in (torch.int8, torch.bfloat16)]
    assert small[0] == pytest.approx((64 + 4) / 128 * small[1])


def test_published_models_take_megabytes_for_an_image() -> None:
    sizes = {
        name: KVCache.bytes_per_row(config, 1024, torch.bfloat16) / 1e6
        for name, config in VARIANTS.items()
    }
    # layers * width * 2 (keys and values) * 1024 positions * 2 bytes
    assert sizes == pytest.approx({"small": 50.33, "medium": 150.99, "large": 301.99}, abs=0.01)
