"""Attention on a CPU for inference, where the fused kernel is slow: by sums, in blocks."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from igpt_core.model.attention_inputs import Prefix, added_mask, causal_mask
from igpt_core.model.processor import has_tiles, multiplies_bfloat16

# Up to so many queries per row weighted sums are faster than the fused kernel; see attend_by_sums.
FEW_QUERIES = 8
_BLOCK = 128  # queries of one product; see attend_in_blocks


def reads_by_channel(like: Tensor, n_queries: int) -> bool:
    """Returns whether keys of this dtype and device should lie by channel for `attend` with so many
    queries per row.

    With matrix tiles (AMX) the fused kernel is the faster one in bfloat16: 1.6 against 1.8 ms for a
    layer of ImageGPT-small, 16 rows and 768 positions, 0.12 against 0.2 for one row.
    """
    if like.device.type != "cpu" or n_queries > FEW_QUERIES:
        return False
    return like.dtype != torch.bfloat16 or not has_tiles()


def blocks_pay(q: Tensor) -> bool:
    """Returns whether `attend_in_blocks` is faster than the fused kernel."""
    is_long = q.dtype == torch.bfloat16 and q.shape[2] >= _BLOCK
    return is_long and multiplies_bfloat16() and not has_tiles()


def attend_by_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    scale: float | None,
    prefix: Prefix | None,
) -> Tensor:
    """Computes `attend` for few queries per row on a CPU, for inference.

    Both products are sums of rows with weights: the scores are the channels' rows of keys weighted
    by the query, the result is the rows of values weighted by the softmax. With few queries the
    time goes into reading keys and values; these sums read them as they lie at 30 GB/s a core,
    where the fused kernel and batched matrix products, which rearrange them first, come to 3 and 13
    (bfloat16 on a processor without matrix tiles). Sums over the same rows, of the queries of one
    row or of rows that share a prefix, come one after the other: all but the first find them in the
    processor's cache. No sum depends on the others.
    """
    rows, heads, n_queries, head_size = q.shape
    n_groups = rows if prefix is None else len(prefix.k)
    n_each, n_own = rows // max(n_groups, 1), k.shape[2]
    scale = head_size**-0.5 if scale is None else scale

    def in_order(x: Tensor) -> Tensor:  # (rows, heads, ...) to (groups, heads, rows of each, ...)
        return x.view(n_groups, n_each, *x.shape[1:]).transpose(1, 2)

    bias = torch.zeros(1, dtype=torch.float32)
    if mask is not None:
        bias = added_mask(mask, torch.float32) if mask.dtype == torch.bool else mask
        bias = in_order(bias[(None,) * (4 - bias.dim())].expand(rows, -1, -1, -1))
    queries = in_order(q).reshape(-1, head_size)
    shape = (n_groups, heads, n_each, n_queries)
    own = _weighted_sums(queries, k.transpose(2, 3), _bags(*shape, head_size))
    own = own.view(*shape, n_own)
    if prefix is None:
        scores = torch.add(bias, own, alpha=scale)  # of float32, as the bias is
        weights = scores.softmax(dim=-1).to(q.dtype)
        sums = _weighted_sums(weights.flatten(0, -2), v, _bags(*shape, n_own))
    else:
        n_shared = prefix.k.shape[2]
        bags = _bags(n_groups, heads, 1, n_each * n_queries, head_size)
        shared = _weighted_sums(queries, prefix.k.transpose(2, 3), bags).view(*shape, n_shared)
        scores = torch.cat([shared, own], dim=-1)
        weights = torch.add(bias, scores, alpha=scale).softmax(dim=-1).to(q.dtype)
        bags = _bags(*shape, n_own, n_shared)
        sums = _weighted_sums(weights.flatten(0, -2), _side_by_side(prefix.v, v), bags)
    return sums.view(*shape, head_size).transpose(1, 2).reshape(q.shape)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
    """Computes `attend` of all positions to those up to themselves on a CPU, for inference.

    A block of queries after the other: batched products take half the time of the fused kernel in
    bfloat16 on a processor that multiplies it but has no matrix tiles (Zen 5: 32 against 63 ms for
    8 images of 1,024 positions and 6 heads of 32). Scores are rounded to the dtype, as those of few
    queries are and transformers' are, where the fused kernel keeps float32: its error is a half of
    this one's with scores of order 1, an eighth with 10. Each row is multiplied by itself, so that
    its result depends on no other.
    """
    n_positions, head_size = q.shape[2:]
    scale = head_size**-0.5 if scale is None else scale
    result = torch.empty_like(q)
    for row, keys in enumerate(k.transpose(2, 3)):
        for start in range(0, n_positions, _BLOCK):
            end = min(start + _BLOCK, n_positions)
            scores = torch.bmm(q[row, :, start:end], keys[..., :end])
            scores = torch.add(_causal_bias(start, end), scores, alpha=scale)  # of float32
            weights = scores.softmax(dim=-1).to(q.dtype)
            result[row, :, start:end] = torch.bmm(weights, v[row, :, :end])
    return result


@lru_cache(maxsize=16)
def _causal_bias(start: int, end: int) -> Tensor:
    """Makes what is added to the scores of queries from `start` to `end` and keys up to these."""
    return added_mask(causal_mask(end - start, end, torch.device("cpu")), torch.float32)


def _weighted_sums(weights: Tensor, rows: Tensor, bags: Tensor) -> Tensor:
    """Sums rows (..., W) by weights (R, N), those that `bags` (R, N) names by number, to (R, W), in
    float32 and rounded once.

    Rows that have gaps between them are copied first.
    """
    return F.embedding_bag(
        bags, rows.reshape(-1, rows.shape[-1]), mode="sum", per_sample_weights=weights
    )


@lru_cache(maxsize=8)  # up to four of each step
def _bags(
    n_groups: int, n_heads: int, n_each: int, n_queries: int, n_own: int, n_shared: int = 0
) -> Tensor:
    """Numbers the rows of each sum (groups * heads * each * queries, n_shared + n_own): those of
    (groups, heads, n_shared), then behind all of these those of (groups, each, heads, n_own)."""
    own = torch.arange(n_groups * n_each * n_heads).view(n_groups, n_each, n_heads).transpose(1, 2)
    behind = n_groups * n_heads * n_shared
    rows = behind + own.reshape(-1, 1) * n_own + torch.arange(n_own)
    if n_shared:
        shared = torch.arange(behind).view(-1, n_shared).repeat_interleave(n_each, dim=0)
        rows = torch.cat([shared, rows], dim=1)
    return rows.int().repeat_interleave(n_queries, dim=0)


def _side_by_side(first: Tensor, then: Tensor) -> Tensor:
    """Returns all rows of two tensors (..., D), (N, D): without a copy where they lie so."""
    width, end = first.shape[-1], first.storage_offset() + first.numel()
    shares = first.untyped_storage().data_ptr() == then.untyped_storage().data_ptr()
    if shares and then.storage_offset() == end and then.is_contiguous():
        return first.as_strided(((first.numel() + then.numel()) // width, width), (width, 1))
    return torch.cat([first.reshape(-1, width), then.reshape(-1, width)])
