"""Attention of windows of queries to a cache on a GPU, in Triton, which comes with torch for CUDA.

A program takes up to 16 queries of one head, and 256 positions of the cache; a second kernel merges
what several found of one query, in the order of positions. So a query's result has the same bits
however many rows there are, where the others stand and how much of the cache is filled, and nothing
of the launch depends on positions: a captured CUDA graph serves all. See "Flash-Decoding for
long-context inference" (Dao, Haziza, Massa, Sizov, 2023) for splits over keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Factors of keys and of values in int8, then both with these: tuples, as attention.py, which calls
# this, has them by name.
Scales = tuple[Tensor, Tensor] | None
Held = tuple[Tensor, Tensor, Scales]

_QUERIES = 16  # of a program: the fewest that tl.dot multiplies
_KEYS = 64  # read at once
SPLIT = 256  # positions of a program
_STAGES = 2  # of reads under way, which fit the shared memory of GPUs for workstations too


@triton.jit
def _attend_split(
    q,
    k,
    v,
    starts,
    sums,
    peaks,
    totals,
    q_row,
    q_head,
    q_position,
    k_row,
    k_head,
    k_position,
    v_row,
    v_head,
    v_position,
    k_scales,
    v_scales,
    scales_row,
    scales_head,
    scales_position,
    starts_row,
    scale,
    n_heads,
    n_each,
    window,
    n_keys,
    n_before,
    split_0,
    n_splits,
    head_size,
    EIGHT_BITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Attends with up to QUERIES of the n_each * window queries that share keys to SPLIT of these.

    Stores what is to be merged: the weighted sum of values, the highest score, the sum of weights.
    """
    group = (tl.program_id(0) // n_heads).to(tl.int64)
    head = tl.program_id(0) % n_heads
    split = tl.program_id(2)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    is_query = query < n_each * window
    row, place = group * n_each + query // window, query % window
    n_seen = tl.load(starts + row * starts_row, mask=is_query, other=-1) + place + 1 - n_before
    n_seen = tl.where(is_query, tl.minimum(n_seen, n_keys), 0)
    channel = tl.arange(0, CHANNELS)
    is_channel = channel < head_size
    queries = tl.load(
        q + (row * q_row + head * q_head + place * q_position)[:, None] + channel[None, :],
        mask=is_query[:, None] & is_channel[None, :],
        other=0.0,
    )
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sum_ = tl.zeros([QUERIES, CHANNELS], tl.float32)
    first = split * SPLIT
    for key_0 in range(first, tl.minimum(first + SPLIT, tl.max(n_seen)), KEYS):
        key = key_0 + tl.arange(0, KEYS)
        is_here = (key < n_keys)[:, None] & is_channel[None, :]
        at = group * k_row + head * k_head + key[:, None] * k_position + channel[None, :]
        keys = tl.load(k + at, mask=is_here, other=0).to(queries.dtype)
        at = group * v_row + head * v_head + key[:, None] * v_position + channel[None, :]
        values = tl.load(v + at, mask=is_here, other=0).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        at = group * scales_row + head * scales_head + key * scales_position
        if EIGHT_BITS:
            scores *= tl.load(k_scales + at, mask=key < n_keys, other=0.0)[None, :]
        scores = tl.where(key[None, :] < n_seen[:, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a query that sees nothing here
        weights = tl.exp(scores - base[:, None])
        factor = tl.exp(peak - base)
        total = total * factor + tl.sum(weights, 1)
        if EIGHT_BITS:
            weights *= tl.load(v_scales + at, mask=key < n_keys, other=0.0)[None, :]
        sum_ = sum_ * factor[:, None]
        sum_ += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        peak = higher
    slot = ((row * n_heads + head) * window + place) * n_splits + split_0 + split
    tl.store(peaks + slot, peak, mask=is_query)
    tl.store(totals + slot, total, mask=is_query)
    at = slot[:, None] * head_size + channel[None, :]
    tl.store(sums + at, sum_, mask=is_query[:, None] & is_channel[None, :])


@triton.jit
def _merge(sums, peaks, totals, result, n_splits, head_size, CHANNELS: tl.constexpr):
    """Merges what was found of a query, split after split."""
    query = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    is_channel = channel < head_size
    peak = tl.load(peaks + query * n_splits)  # which sees something: position 0
    total = tl.load(totals + query * n_splits)
    at = query * n_splits * head_size + channel
    sum_ = tl.load(sums + at, mask=is_channel, other=0.0)
    for split in range(1, n_splits):
        slot = query * n_splits + split
        other = tl.load(peaks + slot)
        higher = tl.maximum(peak, other)
        mine, its = tl.exp(peak - higher), tl.exp(other - higher)
        total = total * mine + tl.load(totals + slot) * its
        more = tl.load(sums + slot * head_size + channel, mask=is_channel, other=0.0)
        sum_ = sum_ * mine + more * its
        peak = higher
    at = query * head_size + channel
    tl.store(result + at, (sum_ / total).to(result.dtype.element_ty), mask=is_channel)


def attend_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    starts: Tensor,
    scale: float,
    prefix: Held | None = None,
    scales: Scales = None,
) -> Tensor:
    """Computes `attend` for a window of queries per row, of which the first stands at `starts`.

    Args:
        q: (B, H, W, D), a row's queries one position after the other.
        k, v: (B, H, S, D), each with its channels side by side.
        starts: (B,) int64, counted from the first position of the prefix, if there is one.
        scale: factor on the scores.
        prefix: keys and values (B / n, H, P, D) before those of n rows each, which stand behind
            them, and their scales.
        scales: factors (B, H, S, 1) float32 of keys and of values in int8.

    Returns:
        (B, H, W, D), the dtype of q.

    Triton launches on the current device, which must be that of the tensors.
    """
    rows, heads, window, head_size = q.shape
    n_shared = 0 if prefix is None else prefix[0].shape[2]
    parts: list[tuple[Held, int]] = [] if prefix is None else [(prefix, 0)]
    parts.append(((k, v, scales), n_shared))
    n_splits = [triton.cdiv(keys.shape[2], SPLIT) for (keys, _, _), _ in parts]
    channels = max(triton.next_power_of_2(head_size), 16)
    found = (rows, heads, window, sum(n_splits))
    sums = q.new_empty((*found, head_size), dtype=torch.float32)
    peaks, totals = q.new_empty((2, *found), dtype=torch.float32)
    split_0 = 0
    for ((keys, values, factors), n_before), n in zip(parts, n_splits, strict=True):
        n_each = rows // len(keys)
        k_scales, v_scales = factors or (keys, values)  # not read without
        programs = (len(keys) * heads, triton.cdiv(n_each * window, _QUERIES), n)
        _attend_split[programs](
            q,
            keys,
            values,
            starts,
            sums,
            peaks,
            totals,
            *q.stride()[:3],
            *keys.stride()[:3],
            *values.stride()[:3],
            k_scales,
            v_scales,
            *k_scales.stride()[:3],
            starts.stride(0),
            scale,
            heads,
            n_each,
            window,
            keys.shape[2],
            n_before,
            split_0,
            sum(n_splits),
            head_size,
            EIGHT_BITS=factors is not None,
            CHANNELS=channels,
            QUERIES=_QUERIES,
            KEYS=_KEYS,
            SPLIT=SPLIT,
            num_stages=_STAGES,
            enable_fp_fusion=True,  # Triton 3.10 is to have another default
        )
        split_0 += n
    result = q.new_empty(q.shape)
    _merge[(rows * heads * window,)](
        sums,
        peaks,
        totals,
        result,
        sum(n_splits),
        head_size,
        CHANNELS=channels,
        enable_fp_fusion=True,
    )
    return result
