"""attend: the only place that picks an attention kernel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from igpt_core.model.second_order import of_first_order
from igpt_core.model.training_attention import attend_in_blocks, trains_in_blocks

# Up to so many queries per row weighted sums are faster than the fused kernel; see _attend_by_sums.
_FEW_QUERIES = 8
_BLOCK = 128  # queries of one product; see _attend_in_blocks


class Scales(NamedTuple):
    """Factors (B, H, T, 1) float32 of keys and values in 8 bits, one for each head and position."""

    k: Tensor
    v: Tensor


class Prefix(NamedTuple):
    """Keys and values (B / n, H, P, D) before those of B rows, n of which share each."""

    k: Tensor
    v: Tensor
    scales: Scales | None = None

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the keys and values (B, H, P + T, D) of all positions, for each row."""
        n = len(k) // max(len(self.k), 1)
        return (
            torch.cat([self.k.repeat_interleave(n, dim=0), k], dim=2),
            torch.cat([self.v.repeat_interleave(n, dim=0), v], dim=2),
        )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    starts: Tensor | None = None,
    scales: Scales | None = None,
) -> Tensor:
    """Computes softmax(q k^T * scale + mask) v, causal where the queries are several.

    Args:
        q: (B, H, Tq, D) queries. They are the last Tq of the Tk positions.
        k: (B, H, Tk, D) keys, Tk >= Tq.
        v: (B, H, Tk, D) values.
        mask: (..., Tq, Tk), boolean, true where a key may be seen, or as `added_mask` has it; it
            broadcasts, and it takes the place of the causal rule, so it must contain it. Keys and
            values that are not seen must be finite.
        padding: see `attend_with_weights`, which then computes the result.
        scale: factor on the scores; 1 / sqrt(D) unless given.
        dropout: share of the attention weights dropped, 0 outside training.
        prefix: keys and values before these, which count among the Tk positions. Where keys lie by
            channel they are read once for all rows that share them, and a result has the bits that
            it would have without.
        starts: (B,) int64, where `takes_starts` says so, for inference: the position of each row's
            first query, which with those behind it sees the keys up to its own. It takes the place
            of a mask and of the causal rule.
        scales: of keys and values in int8, which `starts` alone goes with.

    Returns:
        (B, H, Tq, D), the dtype of q.
    """
    n_queries = q.shape[2]
    if starts is not None:
        from igpt_core.model.window_kernel import attend_windows  # Triton, which GPUs alone have

        scale = q.shape[3] ** -0.5 if scale is None else scale
        return attend_windows(q, k, v, starts=starts, scale=scale, prefix=prefix, scales=scales)
    if q.device.type == "cpu" and not (dropout or torch.is_grad_enabled() or padding is not None):
        by_channel = k.stride(3) != 1
        if by_channel and (n_queries == 1 or (mask is not None and n_queries <= _FEW_QUERIES)):
            return _attend_by_sums(q, k, v, mask=mask, scale=scale, prefix=prefix)
        is_whole = mask is None and prefix is None and n_queries == k.shape[2]
        if is_whole and _blocks_pay(q):
            return _attend_in_blocks(q, k, v, scale=scale)
    if prefix is not None:
        k, v = prefix.before(k, v)
    n_keys = k.shape[2]
    if padding is not None:
        return attend_with_weights(
            q, k, v, mask=mask, padding=padding, scale=scale, dropout=dropout
        )[0]
    if mask is None and not dropout and trains_in_blocks(q, k):
        return attend_in_blocks(
            of_first_order(q), k, v, q.shape[3] ** -0.5 if scale is None else scale
        )
    if mask is None and 1 < n_queries < n_keys:
        # The kernel's own causal flag aligns the first query with the first key.
        mask = _causal(n_queries, n_keys, q.device)
    causal = mask is None
    if n_queries == 1:  # no comparison as a value: it is no bool while torch.compile or jit traces
        causal = False
    if k.stride(3) != 1:
        k = k.contiguous()  # keys by channel: the fused kernel would not take them
    fused = partial(
        F.scaled_dot_product_attention,
        of_first_order(q),
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
    )
    if torch.compiler.is_compiling():  # which cannot follow the switch
        return fused()
    with _without_cudnn():
        return fused()


def reads_by_channel(like: Tensor, n_queries: int) -> bool:
    """Returns whether keys of this dtype and device should lie by channel for `attend` with so many
    queries per row.

    With matrix tiles (AMX) the fused kernel is the faster one in bfloat16: 1.6 against 1.8 ms for a
    layer of ImageGPT-small, 16 rows and 768 positions, 0.12 against 0.2 for one row.
    """
    if like.device.type != "cpu" or n_queries > _FEW_QUERIES:
        return False
    return like.dtype != torch.bfloat16 or not has_tiles()


def multiplies_bfloat16() -> bool:
    """Returns whether the processor multiplies bfloat16 itself; others widen it first."""
    return torch.cpu._is_avx512_bf16_supported() or has_tiles()


def _blocks_pay(q: Tensor) -> bool:
    """Returns whether `_attend_in_blocks` is faster than the fused kernel."""
    is_long = q.dtype == torch.bfloat16 and q.shape[2] >= _BLOCK
    return is_long and multiplies_bfloat16() and not has_tiles()


def has_tiles() -> bool:
    """Returns whether the processor has matrix tiles (AMX)."""
    return torch.cpu._is_amx_tile_supported()


def added_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Makes a mask that is added to scores, 0 or -inf, of one that is true where a key may be seen:
    once for all layers, where each would make its own. `dtype`: of the queries, but float32 where
    keys lie by channel."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leaves torch the other kernels: flash attention, the memory-efficient one, plain products.

    From H100 on torch prefers cuDNN's, which builds a plan for each number of keys: 23 to 37 ms at
    each step of a process's first batch. On B200 it may be wrong below 8 heads (pytorch issue
    193893). torch.nn.attention.sdpa_kernel would switch on what a user has switched off, and takes
    12 us a call, these switches 1.5.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


def attend_with_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
    dropout: float | Callable[[Tensor], Tensor] = 0.0,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes `attend` without a kernel, for its weights and for padding, which kernels get wrong.

    A query that may see padding alone, as the first of a row padded in front, takes the mean over
    what is either padding or not to be seen, but not both: so it is in transformers, where a
    classifier's mean over positions depends on it. The kernels' gradients are wrong there.

    Args:
        padding: boolean (B, Tk), true for keys that no query sees, beside those of `mask`.
        dropout: share of the weights dropped, or what drops them.
        factors: of the weights, that broadcast.

    Returns:
        (B, H, Tq, D), and the weights (B, H, Tq, Tk) after dropout and factors. Scores and
        softmax are of float32 or finer whatever the dtype, as in the kernels.
    """
    if mask is None:
        mask = _causal(q.shape[2], k.shape[2], q.device)
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.promote_types(q.dtype, torch.float32)
        lowest = torch.finfo(wide).min
        scores = q.to(wide) @ k.to(wide).transpose(2, 3)
        scores = scores * (q.shape[3] ** -0.5 if scale is None else scale)
        scores = scores.masked_fill(~mask, lowest)
        if padding is not None:
            # Added: beside it a score vanishes, and twice the lowest is -inf.
            scores = scores + padding[:, None, None].to(wide) * lowest
        weights = scores.softmax(dim=-1).to(v.dtype)
        weights = dropout(weights) if callable(dropout) else F.dropout(weights, dropout)
        weights = weights if factors is None else weights * factors
        return weights @ v, weights


def _causal(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Makes a mask (Tq, Tk), true where a key is not after the query; the queries are the last."""
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return mask.tril(n_keys - n_queries)


def _attend_by_sums(
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


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
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
    return added_mask(_causal(end - start, end, torch.device("cpu")), torch.float32)


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
