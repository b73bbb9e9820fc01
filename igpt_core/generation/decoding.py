"""Decoding of a batch: prefill, then passes until all is drawn.

Input position i holds the start token (i = 0) or pixel i - 1, and its logits are those of pixel i;
the last pixel is never fed. See `speculation` for windows; one pixel at a time is a window of one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from igpt_core.errors import NonFiniteError
from igpt_core.generation.passes import (
    CausalModel,
    call,
    has_own_forward,
    next_logits,
    pass_of,
)
from igpt_core.generation.speculation import Windows
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.layers import CacheSlots
from igpt_core.model.self_check import takes_starts
from igpt_core.model.spans import whole_units
from igpt_core.model.transformer import product_dtype


def feed(
    model: CausalModel, tokens: Tensor, *, n_samples: int, capacity: int, window: int = 1
) -> tuple[Tensor, KVCache]:
    """Runs tokens once, then shares the result among the samples.

    Args:
        tokens: (B, T) int64, fed as they are: with the start token in front if it is to be.
        n_samples: sequences that go on from each row.
        capacity: positions of the cache that is returned, more than T; to a multiple of SPAN_UNIT.
        window: positions that later passes feed at once.

    Returns:
        Logits behind the tokens, (B * n_samples, V), and the cache; row r of the batch is rows
        r * n_samples ... of both.
    """
    logits, cache = feed_prompts(model, tokens, window=window)
    cache = cache.repeat(n_samples, capacity=whole_units(capacity), shares=True)
    return logits.repeat_interleave(n_samples, dim=0), cache


def feed_prompts(model: CausalModel, tokens: Tensor, *, window: int = 1) -> tuple[Tensor, KVCache]:
    """Runs tokens (B, T) as they are. Returns logits (B, V) behind them, and a cache of these
    alone, as `new_cache` makes it for such windows."""
    n_given = tokens.shape[1]
    cache = new_cache(model, len(tokens), capacity=n_given, window=window)
    if has_own_forward(model):
        logits = call(model, tokens, cache)[:, -1:]
    else:
        positions = torch.arange(n_given, device=tokens.device)
        cache_slots = CacheSlots(cache, span=n_given)
        hidden = model.transformer.hidden(tokens, positions, cache_slots=cache_slots, mask=None)
        logits = next_logits(model, hidden[:, -1:])
    cache.length = n_given
    return logits[:, 0], cache


def new_cache(
    model: CausalModel,
    rows: int,
    *,
    capacity: int,
    window: int = 1,
    n_each: int = 1,
    shared_length: int = 0,
    eight_bits: bool = False,
) -> KVCache:
    """Makes an empty cache for a model's passes over windows of this size; see `KVCache`.

    Raises ValueError for one of 8 bits where the kernel that reads it is left aside, or not asked.
    """
    weight, head_size = model.transformer.wte.weight, model.config.head_size
    by_start = not model.training and takes_starts(weight, head_size, eight_bits=eight_bits)
    if eight_bits and (not by_start or has_own_forward(model)):
        raise ValueError(
            f"expected a GPU with a kernel for caches of 8 bits, found {weight.device} without, or "
            "a model with hooks or a forward of its own; next: no kv_cache_dtype"
        )
    return KVCache(
        model.config,
        batch_size=rows,
        capacity=capacity,
        device=weight.device,
        dtype=product_dtype(weight),
        n_queries=window,
        by_start=by_start,
        eight_bits=eight_bits,
        n_each=n_each,
        shared_length=shared_length,
    )


def decode(
    model: CausalModel,
    cache: KVCache,
    windows: Windows,
    *,
    apart: bool = False,
    refill: Callable[[], None] | None = None,
) -> None:
    """Draws all tokens that are not known, one pass over a window after the other.

    Args:
        cache: holds the tokens before those that are to be drawn, of the rows that have begun.
        windows: the tokens of the rows.
        apart: whether the rows may stand at different positions, which they do not in windows of
            one pixel that begin at one position. Not found from where they stand: a row is
            computed in the same way whatever stands beside it.
        refill: called before each pass, lets other rows begin in the place of those that are over.

    Raises:
        NonFiniteError: logits that are no distribution: NaN, +inf, or all of them -inf.
    """
    # On which kernels, captures and events are.
    with torch.cuda.device_of(windows.tokens):  # type: ignore[no-untyped-call]
        _decode(model, cache, windows, apart or windows.size > 1, refill or (lambda: None))


def _decode(
    model: CausalModel, cache: KVCache, windows: Windows, apart: bool, refill: Callable[[], None]
) -> None:
    refill()  # how many passes there will be decides how they are made
    run_pass = pass_of(model, cache, windows, apart=apart)
    if cache.by_start:  # the host need not know where they are
        windows.read_late()
    while True:
        if windows.is_done:
            break
        starts = windows.starts
        at = windows.positions(starts)
        cache.length = windows.furthest
        logits = run_pass(windows.fed(at), at)
        cache.length += windows.size
        windows.draw(logits, starts)
        refill()
    if not windows.is_finite:
        raise NonFiniteError.of("logits", product_dtype(model.transformer.wte.weight))
