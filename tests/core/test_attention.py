"""attend against softmax(q k^T * scale) v written out in float64.

For one query on a CPU there are two kernels, one of them for inference alone: all tests run with
gradients enabled and without.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from igpt_core.attention import attend

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
    assert torch.equal(attend(q, keys, values), attend(q, k, v))


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    # All weights are 1/64 and all values 1: the output is the kept weights' sum over 1 - p.
    q, k, v = torch.zeros(500, 1, 1, 8), torch.zeros(500, 1, 64, 8), torch.ones(500, 1, 64, 8)
    torch.manual_seed(0)
    sums = attend(q, k, v, dropout=0.25)[:, 0, 0, 0]
    assert sums.unique().numel() > 10
    # 32,000 weights: the mean's deviation is 0.0032; seven of them, odds 3e-12.
    assert abs(sums.mean().item() - 1) < 7 * math.sqrt(0.25 / 0.75 / 32_000)
