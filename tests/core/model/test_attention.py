"""attend against softmax(q k^T * scale) v written out in float64.

For one query on a CPU there are two kernels, one of them for inference alone: all tests run with
gradients enabled and without.
"""

import math
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from igpt_core.model import cpu_attention
from igpt_core.model.attention import attend, attend_with_weights
from igpt_core.model.attention_inputs import Prefix, added_mask

# Largest difference of an output, relative to the largest value: the kernels round products and
# weights to the dtype (half a unit in the last place is 2^-24 and 2^-9) and sum them in float32.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True, params=["gradients", "inference"])
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.inference_mode(request.param == "inference"):
        yield


def plain(q: Tensor, k: Tensor, v: Tensor, *, seen: Tensor, scale: float) -> Tensor:
    """One head, one query at a time; `seen` (Tq, Tk)."""
    q, k, v = q.double(), k.double(), v.double()
    result = torch.empty_like(q)
    for batch, head, query in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        keys = seen[query].nonzero().flatten()
        scores = k[batch, head, keys] @ q[batch, head, query] * scale
        weights = scores.exp() / scores.exp().sum()
        result[batch, head, query] = weights @ v[batch, head, keys]
    return result


def inputs(
    n_queries: int, n_keys: int, head_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_queries + 100 * n_keys + head_size)
    shapes = [(2, 3, n, head_size) for n in (n_queries, n_keys, n_keys)]
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= TOLERANCES[found.dtype] * expected.abs().max()


def causal(n_queries: int, n_keys: int) -> Tensor:
    return torch.tensor(
        [[key <= n_keys - n_queries + query for key in range(n_keys)] for query in range(n_queries)]
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("head_size", [4, 64, 96, 128])
@pytest.mark.parametrize(
    ("n_queries", "n_keys"), [(1, 1), (1, 37), (7, 7), (5, 37), (36, 37), (2, 2)]
)
def test_queries_are_the_last_positions_and_see_none_after_them(
    n_queries: int, n_keys: int, head_size: int, dtype: torch.dtype
) -> None:
    q, k, v = inputs(n_queries, n_keys, head_size, dtype)
    found = attend(q, k, v)
    assert found.dtype == dtype
    seen = causal(n_queries, n_keys)
    assert_near(found, plain(q, k, v, seen=seen, scale=1 / math.sqrt(head_size)))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_queries", [1, 6])
def test_a_mask_takes_the_place_of_the_causal_rule(n_queries: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(n_queries, 24, 96, dtype)
    seen = torch.rand(n_queries, 24, generator=torch.Generator().manual_seed(0)) < 0.4
    seen[:, 3] = True  # every query sees something
    expected = plain(q, k, v, seen=seen, scale=0.25)
    assert_near(attend(q, k, v, mask=seen, scale=0.25), expected)
    # Keys that are not seen may hold anything: a cache's unfilled positions do.
    unseen = ~seen.any(dim=0)
    assert unseen.any()
    k[:, :, unseen], v[:, :, unseen] = 1e4, -1e4
    assert_near(attend(q, k, v, mask=seen, scale=0.25), expected)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_cudnn_is_never_chosen_and_what_others_choose_is_left_alone(
    enabled: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seen by a stand-in for torch's choice, which looks at these switches on a GPU."""
    switches = torch.backends.cuda
    seen: list[tuple[bool, bool, bool, bool]] = []

    def kernel(q: Tensor, *_: object, **options: object) -> Tensor:
        seen.append(state())
        if fails:
            raise RuntimeError("out of memory")
        return q

    def state() -> tuple[bool, bool, bool, bool]:
        return (
            switches.cudnn_sdp_enabled(),
            switches.flash_sdp_enabled(),
            switches.mem_efficient_sdp_enabled(),
            switches.math_sdp_enabled(),
        )

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    before = state()
    switches.enable_cudnn_sdp(enabled)
    switches.enable_mem_efficient_sdp(False)
    try:
        outer = state()
        for shape in [(5, 5), (3, 9)]:
            with suppress(RuntimeError):
                attend(*inputs(*shape, 32, torch.float32))
        assert seen == [(False, *outer[1:])] * 2
        assert state() == outer
    finally:
        switches.enable_cudnn_sdp(before[0])
        switches.enable_mem_efficient_sdp(before[2])


def test_one_mask_for_all_queries() -> None:
    q, k, v = inputs(3, 12, 64, torch.float32)
    seen = (torch.arange(12) <= 8)[None]
    expected = plain(q, k, v, seen=seen.expand(3, 12), scale=1 / 8)
    assert_near(attend(q, k, v, mask=seen), expected)
    one = plain(q[:, :, :1], k, v, seen=seen, scale=1 / 8)
    assert_near(attend(q[:, :, :1], k, v, mask=seen), one)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_each_row_and_head_may_have_a_mask_of_its_own(dtype: torch.dtype) -> None:
    q, k, v = inputs(1, 12, 64, dtype)
    seen = torch.rand(2, 3, 1, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    seen[..., 7] = True
    found = attend(q, k, v, mask=seen)
    for row, head in [(0, 0), (0, 2), (1, 1)]:
        one = (slice(row, row + 1), slice(head, head + 1))
        expected = plain(q[one], k[one], v[one], seen=seen[row, head], scale=1 / 8)
        assert_near(found[one], expected)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_queries", [1, 6])
@pytest.mark.parametrize("by_channel", [True, False])
def test_keys_may_lie_in_either_order_and_both_may_have_gaps(
    by_channel: bool, n_queries: int, dtype: torch.dtype
) -> None:
    q, k, v = inputs(n_queries, 20, 96, dtype)
    keys, values = (torch.full((2, 3, 50, 96), torch.nan, dtype=dtype) for _ in range(2))
    if by_channel:
        keys = torch.full((2, 3, 96, 50), torch.nan, dtype=dtype).transpose(2, 3)
    keys, values = keys[:, :, :20], values[:, :, :20]
    keys[:], values[:] = k, v
    if by_channel:
        k = k.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(attend(q, keys, values), attend(q, k, v))
    seen = torch.ones(n_queries, 20, dtype=torch.bool).tril(20 - n_queries)
    assert_near(attend(q, keys, values), plain(q, k, v, seen=seen, scale=96**-0.5))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_few_queries_have_the_bits_of_each_alone(dtype: torch.dtype) -> None:
    """Where keys lie by channel; elsewhere the kernel for one query is another than for several."""
    q, k, v = inputs(8, 64, 32, dtype)
    k = k.transpose(2, 3).contiguous().transpose(2, 3)
    mask = added_mask(causal(8, 64), torch.float32)
    with torch.inference_mode():
        together = attend(q, k, v, mask=mask)
        alone = [attend(q[:, :, i : i + 1], k, v, mask=mask[i : i + 1]) for i in range(8)]
    assert torch.equal(together, torch.cat(alone, dim=2))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_queries", [1, 4, 9])
@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("in_one_memory", [True, False])
def test_a_shared_prefix_gives_what_a_repeated_one_does(
    in_one_memory: bool, by_channel: bool, n_queries: int, dtype: torch.dtype
) -> None:
    """Two prompts of 64 positions, and three samples of each, at positions of their own."""
    generator = torch.Generator().manual_seed(n_queries)
    memory = torch.randn(2 * 2 * 3 * 64 * 32 * 4, generator=generator).to(dtype)
    shared = memory[: 2 * 2 * 3 * 64 * 32].view(2, 2, 3, 64, 32)
    k, v = memory[shared.numel() :].view(2, 6, 3, 64, 32)
    prefix = Prefix(shared[0], shared[1])
    if in_one_memory:  # as in a cache, whose values follow their prefix
        together = torch.cat([prefix.v.flatten(), v.flatten()])
        prefix = prefix._replace(v=together[: prefix.v.numel()].view(2, 3, 64, 32))
        v = together[prefix.v.numel() :].view(6, 3, 64, 32)
    q = torch.randn(6, 3, n_queries, 32, generator=generator).to(dtype) / 4  # scores round too
    starts = torch.tensor([64, 70, 119, 64, 90, 80])[:, None] + torch.arange(n_queries)
    seen = (torch.arange(128) <= starts[..., None])[:, None]
    keys, values = prefix.before(k, v)
    if by_channel:
        k, keys = (each.transpose(2, 3).contiguous().transpose(2, 3) for each in (k, keys))
        prefix = prefix._replace(k=prefix.k.transpose(2, 3).contiguous().transpose(2, 3))
    found = attend(q, k, v, mask=seen, prefix=prefix)
    assert torch.equal(found, attend(q, keys, values, mask=seen))
    for row in range(6):
        alone = (part[row : row + 1] for part in (q, keys, values))
        assert_near(found[row : row + 1], plain(*alone, seen=seen[row, 0], scale=32**-0.5))


@pytest.mark.parametrize("head_size", [32, 192])
@pytest.mark.parametrize("n_positions", [128, 300])
def test_products_by_blocks_are_causal_and_of_each_row_alone(n_positions, head_size) -> None:
    """Whatever the processor, of which some use the fused kernel for it."""
    with torch.inference_mode():
        q, k, v = inputs(n_positions, n_positions, head_size, torch.bfloat16)
        q = q.transpose(1, 2).contiguous().transpose(1, 2)  # as heads are split
        found = cpu_attention.attend_in_blocks(q, k, v, scale=head_size**-0.5)
        seen = causal(n_positions, n_positions)
        exact = attend(q.double(), k.double(), v.double(), mask=seen)
        # Scores of order 4 are rounded too, by 2^-9 of that.
        assert (found - exact).abs().max() <= 2 * TOLERANCES[q.dtype] * exact.abs().max()
        for rows in ([1], [1, 0, 1], [0] * 9 + [1]):
            several = cpu_attention.attend_in_blocks(
                q[rows], k[rows], v[rows], scale=head_size**-0.5
            )
            assert torch.equal(several, found[rows])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_new", [3, 9, 130])
def test_a_prefix_counts_where_no_mask_is_given(n_new: int, dtype: torch.dtype) -> None:
    """Past bugs: the mask was made without it, and products by blocks passed over it."""
    q, k, v = inputs(n_new, n_new + 64, 32, dtype)
    prefix = Prefix(k[:1, :, :64], v[:1, :, :64])
    own_k, own_v = k[:, :, 64:], v[:, :, 64:]
    found = attend(q, own_k, own_v, prefix=prefix)
    keys, values = prefix.before(own_k, own_v)
    assert_near(found, attend(q.double(), keys.double(), values.double()).to(dtype))


@pytest.mark.parametrize("n_queries", [1, 4])
def test_no_rows_and_masks_of_fewer_dimensions_where_keys_lie_by_channel(n_queries: int) -> None:
    q, k, v = inputs(n_queries, 64, 32, torch.float32)
    k = k.transpose(2, 3).contiguous().transpose(2, 3)
    seen = causal(n_queries, 64).expand(3, -1, -1)  # of each head
    with torch.inference_mode():
        assert torch.equal(attend(q, k, v, mask=seen), attend(q, k, v, mask=seen[0]))
        assert attend(q[:0], k[:0], v[:0], mask=seen[0]).shape == (0, 3, n_queries, 32)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    # All weights are 1/64 and all values 1: the output is the kept weights' sum over 1 - p.
    q, k, v = torch.zeros(500, 1, 1, 8), torch.zeros(500, 1, 64, 8), torch.ones(500, 1, 64, 8)
    torch.manual_seed(0)
    sums = attend(q, k, v, dropout=0.25)[:, 0, 0, 0]
    assert sums.unique().numel() > 10
    # 32,000 weights: the mean's deviation is 0.0032; seven of them, odds 3e-12.
    assert abs(sums.mean().item() - 1) < 7 * math.sqrt(0.25 / 0.75 / 32_000)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 37), (7, 7), (5, 37)])
def test_written_out_it_is_the_same_and_has_its_weights(
    n_queries: int, n_keys: int, dtype: torch.dtype
) -> None:
    q, k, v = inputs(n_queries, n_keys, 96, dtype)
    found, weights = attend_with_weights(q, k, v)
    seen = causal(n_queries, n_keys)
    assert found.dtype == weights.dtype == dtype
    assert_near(found, plain(q, k, v, seen=seen, scale=96**-0.5))
    assert weights.shape == (2, 3, n_queries, n_keys)
    assert not weights[:, :, ~seen].any()
    assert_near(found, weights.double() @ v.double())
    some = torch.ones(n_queries, n_keys, dtype=torch.bool)
    some[:, 0] = False
    some[:, n_keys // 2] = True
    found, _ = attend_with_weights(q, k, v, mask=some, scale=0.25)
    assert_near(found, plain(q, k, v, seen=some, scale=0.25))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_queries", [1, 6])
def test_no_query_sees_padding(n_queries: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(n_queries, 12, 64, dtype)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[0, 2:4] = padding[1, 0] = True
    found = attend(q, k, v, padding=padding)
    for row in range(2):
        one = slice(row, row + 1)
        seen = causal(n_queries, 12) & ~padding[row]
        assert_near(found[one], plain(q[one], k[one], v[one], seen=seen, scale=1 / 8))


def test_a_query_with_nothing_but_padding_takes_a_mean() -> None:
    """Over the padding it may see and what else it may not, but not the padding after it."""
    q, k, v = inputs(5, 5, 4, torch.float32)
    padding = torch.tensor([[True, True, False, False, True]]).expand(2, 5)
    found = attend(q, k, v, padding=padding)
    assert_near(found[:, :, 0], v[:, :, [0, 2, 3]].mean(dim=2))
    assert_near(found[:, :, 1], v[:, :, [0, 1, 2, 3]].mean(dim=2))
    assert_near(found[:, :, 2], v[:, :, 2])
