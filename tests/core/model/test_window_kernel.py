"""Attention of windows in Triton, on the GPU where there is one and else by Triton's interpreter.

The interpreter has no product of bfloat16, so it stands for no kernel of that dtype.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from igpt_core.model.attention_inputs import Prefix, Scales
from igpt_core.model.kv_cache import to_eight_bits
from igpt_core.model.window_kernel import SPLIT, attend_windows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3}
if DEVICE == "cuda":
    TOLERANCES[torch.bfloat16] = 2e-2


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def by_torch(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float) -> Tensor:
    """What torch's own attention makes of it, in float64."""
    positions = starts[:, None] + torch.arange(q.shape[2], device=DEVICE)
    seen = torch.arange(k.shape[2], device=DEVICE) <= positions[:, None, :, None]
    return F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=seen, scale=scale
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("window", "head_size", "n_keys"), [(1, 64, 1024), (4, 32, 320), (16, 96, 257), (20, 8, 64)]
)
def test_it_is_torchs_attention(
    window: int, head_size: int, n_keys: int, dtype: torch.dtype
) -> None:
    q = drawn(5, 3, window, head_size, dtype=dtype)
    k, v = drawn(2, 5, 3, n_keys, head_size, dtype=dtype, seed=1)
    starts = torch.tensor([0, 1, n_keys // 2, n_keys - window - 1, n_keys - window], device=DEVICE)
    found = attend_windows(q, k, v, starts=starts, scale=0.3)
    assert found.dtype == dtype
    error = (found.double() - by_torch(q, k, v, starts, 0.3)).abs().max().item()
    assert error <= TOLERANCES[dtype]


def test_tensors_need_not_lie_side_by_side() -> None:
    """As those of a cache do not: a span of it, and queries that were split from one product."""
    q = drawn(3, 4, 2, 3, 32)[..., 1, :].transpose(1, 2)  # (B, T, H, D)
    k, v = (drawn(3, 2, 500, 32, seed=seed)[:, :, :300] for seed in (1, 2))
    starts = torch.tensor([290], device=DEVICE).expand(3)
    q = q.transpose(1, 2)[:, :2]
    found = attend_windows(q, k, v, starts=starts, scale=1.0)
    assert (found - by_torch(q, k, v, starts, 1.0)).abs().max() <= TOLERANCES[torch.float32]


@pytest.mark.parametrize(("n_shared", "n_each"), [(64, 2), (320, 4), (256, 8)])
@pytest.mark.parametrize("window", [1, 4, 9])
def test_rows_may_share_what_lies_before_their_keys(
    window: int, n_shared: int, n_each: int
) -> None:
    q = drawn(8, 2, window, 32)
    k, v = drawn(2, 8, 2, 300, 32, seed=1)
    prefix = Prefix(*drawn(2, 8 // n_each, 2, n_shared, 32, seed=2))
    starts = n_shared + torch.arange(8, device=DEVICE) * (300 - window) // 7
    found = attend_windows(q, k, v, starts=starts, scale=0.3, prefix=prefix)
    expected = by_torch(q, *prefix.before(k, v), starts, 0.3)
    assert (found - expected).abs().max() <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCES.keys() - {torch.float16})
@pytest.mark.parametrize(("window", "head_size"), [(1, 64), (9, 32), (20, 8)])
def test_keys_and_values_in_8_bits_are_those_that_their_scales_make_of_them(
    window: int, head_size: int, dtype: torch.dtype
) -> None:
    q = drawn(4, 2, window, head_size, dtype=dtype)
    # Of sizes that differ a hundredfold from position to position.
    sizes = 10 ** (2 * torch.rand(2, 4, 2, 300, 1, generator=torch.Generator().manual_seed(3)))
    wide = drawn(2, 4, 2, 300, head_size, seed=1) * sizes.to(DEVICE) / 30
    shared = drawn(2, 2, 2, 256, head_size, seed=2)
    (k, k_scales), (v, v_scales) = map(to_eight_bits, wide)
    (first_k, first_k_scales), (first_v, first_v_scales) = map(to_eight_bits, shared)
    prefix = Prefix(first_k, first_v, Scales(first_k_scales, first_v_scales))
    starts = 256 + torch.tensor([0, 100, 255, 299 - window], device=DEVICE)
    found = attend_windows(
        q, k, v, starts=starts, scale=0.3, prefix=prefix, scales=Scales(k_scales, v_scales)
    )
    rounded = Prefix(first_k * first_k_scales, first_v * first_v_scales)
    k, v = rounded.before(k * k_scales, v * v_scales)
    expected = by_torch(q, k, v, starts, 0.3)
    assert found.dtype == dtype
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[dtype]


@pytest.mark.parametrize("n_shared", [0, 128])
@pytest.mark.parametrize("window", [1, 5])
def test_a_row_has_the_same_bits_beside_any_others_and_with_any_room(
    window: int, n_shared: int
) -> None:
    q = drawn(6, 2, window, 32)
    k, v = drawn(2, 6, 2, 600, 32, seed=1)
    shared = drawn(2, 3, 2, n_shared, 32, seed=2)
    starts = n_shared + torch.tensor([3, 70, 255, 256, 300, 590], device=DEVICE)

    def found(rows: slice, room: int) -> Tensor:
        groups = slice(rows.start // 2, rows.stop // 2)
        prefix = Prefix(*shared[:, groups]) if n_shared else None
        own = (k[rows, :, :room], v[rows, :, :room])
        return attend_windows(q[rows], *own, starts=starts[rows], scale=0.3, prefix=prefix)

    together = found(slice(0, 6), 600)
    for rows, room in ((slice(0, 2), 80), (slice(2, 4), 320), (slice(2, 6), 600)):
        assert torch.equal(found(rows, room), together[rows])


def test_what_lies_behind_a_query_does_not_matter() -> None:
    q = drawn(2, 2, 3, 32)
    k, v = drawn(2, 2, 2, 300, 32, seed=1)
    starts = torch.tensor([10, 260], device=DEVICE)
    expected = attend_windows(q, k, v, starts=starts, scale=0.3)
    for row, start in enumerate(starts.tolist()):
        k[row, :, start + 3 :] = 1e3
        v[row, :, start + 3 :] = -1e3
    assert torch.equal(attend_windows(q, k, v, starts=starts, scale=0.3), expected)


@pytest.mark.parametrize("n_shared", [SPLIT, 2 * SPLIT])
@pytest.mark.parametrize("window", [1, 3])
def test_sharing_whole_splits_changes_no_bit(window: int, n_shared: int) -> None:
    """So a sample does not depend on how many are drawn."""
    q = drawn(4, 2, window, 32)
    k, v = drawn(2, 4, 2, 300, 32, seed=1)
    prefix = Prefix(*drawn(2, 2, 2, n_shared, 32, seed=2))
    starts = n_shared + torch.tensor([0, 100, 255, 290], device=DEVICE)
    shared = attend_windows(q, k, v, starts=starts, scale=0.3, prefix=prefix)
    whole = attend_windows(q, *prefix.before(k, v), starts=starts, scale=0.3)
    assert torch.equal(shared, whole)
