"""Spans: the numbers of keys that decoding attends to."""

from functools import lru_cache

import torch
from torch import Tensor

from igpt_core.model.attention import attend
from igpt_core.model.attention_inputs import added_mask

SPAN_UNIT = 64  # of which spans are multiples


def whole_units(n_positions: int) -> int:
    """Rounds up to a multiple of SPAN_UNIT."""
    return -(-n_positions // SPAN_UNIT) * SPAN_UNIT


@lru_cache(maxsize=64)
def steady_spans(
    capacity: int,
    *,
    n_queries: int,
    head_size: int,
    dtype: torch.dtype,
    device: torch.device,
    by_channel: bool,
) -> tuple[int, ...]:
    """Finds the numbers of keys with which `attend` computes the same bits as with `capacity`, all
    that are not seen being masked: so a row's bits do not depend on how far the others reach.

    Multiples of SPAN_UNIT, ascending; the last is `capacity`, itself one. Found by trying, as it is
    up to the processor: an odd number is rounded otherwise on many, and matrix products that sum
    keys in blocks of 192 (MKL on Zen 5, float32) do 256 and 320 otherwise than any others.
    `by_channel`: how keys lie, which decides how they are attended to.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn((2, 1, 1, capacity, head_size), generator=generator)
    k, v = drawn.to(device, dtype)
    q = torch.randn((1, 1, n_queries, head_size), generator=generator).to(device, dtype)
    mask_dtype = torch.float32 if by_channel else dtype

    def attended(span: int, n_seen: int) -> Tensor:
        last = torch.arange(n_seen - n_queries, n_seen, device=device)
        seen = torch.arange(span, device=device) <= last[:, None]
        keys, values = k[:, :, :span], v[:, :, :span]
        if by_channel:
            keys = keys.transpose(2, 3).contiguous().transpose(2, 3)
        return attend(q, keys, values, mask=added_mask(seen, mask_dtype))

    candidates = tuple(range(SPAN_UNIT, capacity, SPAN_UNIT))
    if dtype.itemsize < torch.float32.itemsize:  # whose rounding hides most of a difference
        candidates = steady_spans(
            capacity,
            n_queries=n_queries,
            head_size=head_size,
            dtype=torch.float32,
            device=device,
            by_channel=by_channel,
        )[:-1]
    with torch.inference_mode():
        steady = [
            span
            for span in candidates
            if span >= n_queries and torch.equal(attended(span, span), attended(capacity, span))
        ]
    return (*steady, capacity)
