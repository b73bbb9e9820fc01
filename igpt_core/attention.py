"""attend: the only place that picks an attention kernel."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T * scale + mask) v, causal where the queries are several.

    Args:
        q: (B, H, Tq, D) queries. They are the last Tq of the Tk positions.
        k: (B, H, Tk, D) keys, Tk >= Tq.
        v: (B, H, Tk, D) values.
        mask: boolean (..., Tq, Tk), true where a key may be seen; it broadcasts, and it takes the
            place of the causal rule, so it must contain it. Keys and values that are not seen
            must be finite.
        scale: factor on the scores; 1 / sqrt(D) unless given.
        dropout: share of the attention weights dropped, 0 outside training.

    Returns:
        (B, H, Tq, D), the dtype of q.
    """
    n_queries, n_keys = q.shape[2], k.shape[2]
    if q.device.type == "cpu" and n_queries == 1 and not dropout:
        return _attend_by_products(q, k, v, mask=mask, scale=scale)
    if mask is None and 1 < n_queries < n_keys:
        # The kernel's own causal flag aligns the first query with the first key.
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device)
        mask = mask.tril(n_keys - n_queries)
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and n_queries > 1,
        scale=scale,
    )


def _attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float | None
) -> Tensor:
    """The same for one query a row, as two batched matrix products.

    The fused kernel is made for many queries: with one it reads bfloat16 keys and values at 3 GB/s
    a core where there are no matrix tiles, the products at 12. They copy keys or values that
    have gaps between their rows, see `KVCache.lay_out`.
    """
    batch, heads, n_keys, head_size = k.shape
    bias = q.new_zeros(1)
    if mask is not None:
        bias = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    scores = torch.baddbmm(
        bias.expand(batch, heads, 1, n_keys).flatten(0, 1),
        q.flatten(0, 1),
        k.flatten(0, 1).transpose(1, 2),
        alpha=head_size**-0.5 if scale is None else scale,
    )  # (B * H, 1, Tk)
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).view(batch, heads, 1, head_size)
