"""attend: the only place that picks an attention kernel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from igpt_core.model import cpu_attention
from igpt_core.model.attention_inputs import Prefix, Scales, causal_mask
from igpt_core.model.second_order import of_first_order
from igpt_core.model.training_attention import attend_in_blocks, trains_in_blocks


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
        if by_channel and (
            n_queries == 1 or (mask is not None and n_queries <= cpu_attention.FEW_QUERIES)
        ):
            return cpu_attention.attend_by_sums(q, k, v, mask=mask, scale=scale, prefix=prefix)
        is_whole = mask is None and prefix is None and n_queries == k.shape[2]
        if is_whole and cpu_attention.blocks_pay(q):
            return cpu_attention.attend_in_blocks(q, k, v, scale=scale)
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
        mask = causal_mask(n_queries, n_keys, q.device)
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
        mask = causal_mask(q.shape[2], k.shape[2], q.device)
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
