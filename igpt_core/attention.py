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
        mask: boolean, true where a key may be seen, broadcastable to (B, H, Tq, Tk); it takes
            the place of the causal rule, so it must contain it.
        scale: factor on the scores; 1 / sqrt(D) unless given.
        dropout: share of the attention weights dropped, 0 outside training.

    Returns:
        (B, H, Tq, D), the dtype of q.
    """
    n_queries, n_keys = q.shape[2], k.shape[2]
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
