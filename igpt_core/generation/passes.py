"""Passes of a model over windows of tokens, behind what its cache holds."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from igpt_core.generation.captured import CapturedPass, Pass, captures_pay
from igpt_core.generation.packed import is_customized
from igpt_core.generation.speculation import Windows
from igpt_core.model.attention_inputs import added_mask
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.layers import CacheSlots
from igpt_core.model.spans import steady_spans
from igpt_core.model.transformer import ImageGPTModel


class CausalModel(nn.Module):
    """What decoding needs of a model: the transformer, and the head on it that predicts pixels."""

    config: ImageGPTConfig
    transformer: ImageGPTModel
    lm_head: nn.Linear


def next_logits(model: CausalModel, hidden: Tensor) -> Tensor:
    """Computes logits (R, T, n_colors) after positions. A head tied to the input embedding has a
    row for the start token too, which is no pixel."""
    return model.lm_head(hidden)[..., : model.config.n_colors]  # type: ignore[no-any-return]


def has_own_forward(model: CausalModel) -> bool:
    """Tells whether calling the model, or its transformer as a whole, may do other than what its
    class here does: by hooks, or by a forward of a subclass or in its place."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)
        or not type(module).forward.__module__.startswith(("igpt_core.", "torch.nn."))
        for module in (model, model.transformer)
    )


def call(model: CausalModel, tokens: Tensor, cache: KVCache) -> Tensor:
    """Returns the logits (R, T, n_colors) behind tokens (R, T) that come after what a cache holds,
    by the model's own forward."""
    held = cache.length
    output = model(tokens, past_key_values=cache, use_cache=True, return_dict=True)
    cache.length = held  # the caller counts
    return output.logits[..., : model.config.n_colors]  # type: ignore[no-any-return]


def decode_window(
    model: CausalModel,
    tokens: Tensor,
    positions: Tensor | None,
    cache: KVCache,
    *,
    span: int,
) -> Tensor:
    """Feeds a window of tokens per row, and returns the logits of the pixels behind each.

    Of fixed shape for a given span, beyond whose seen positions the others are masked: where the
    positions are a tensor, a captured pass can be replayed for every one below its span.

    Args:
        tokens: (R, W) int64, one after the other.
        positions: int64, the input positions of the tokens: (W,), or (R, W) of each row its own;
            those from cache.length on where None, which takes less time.
        cache: holds the positions before them and takes these.
        span: positions of the cache to attend to. Where it is cache.length + 1, of a window of one,
            no mask is needed.

    Returns:
        (R, W, V) logits in the model's dtype.
    """
    window = tokens.shape[1]
    cache_slots = CacheSlots(cache, span, positions)
    by_start = cache.by_start and positions is not None
    if positions is None:
        positions = torch.arange(cache.length, cache.length + window, device=tokens.device)
    mask = None
    if not by_start and (window > 1 or positions.dim() > 1 or span > cache.length + 1):
        seen = torch.arange(span, device=tokens.device) <= positions[..., None]
        seen = seen[:, None] if positions.dim() > 1 else seen  # all heads alike
        dtype = model.transformer.wte.weight.dtype
        mask = added_mask(seen, torch.float32 if cache.by_channel else dtype)
    hidden = model.transformer.hidden(tokens, positions, cache_slots=cache_slots, mask=mask)
    return next_logits(model, hidden)


def pass_of(model: CausalModel, cache: KVCache, windows: Windows, *, apart: bool) -> Pass:
    """Returns what computes the logits (R, W, V) behind tokens (R, W) at positions (R, W), those
    from cache.length on.

    Args:
        apart: as of `decode`.
    """
    if has_own_forward(model):
        if apart:
            raise ValueError(
                "expected rows that stand at one position, as hooks or a forward of its own on the "
                "whole model ask for; next: a window of 1, prompts of one length, and no padding"
            )
        return lambda tokens, _: call(model, tokens, cache)
    if cache.by_start:
        run: Pass = partial(_pass_by_start, model, cache, apart)
        pays = captures_pay(cache.keys[0].device, windows.n_rows, windows.fewest_passes)
        # What hooks do is not in a capture.
        return CapturedPass(run) if pays and not is_customized(model) else run
    weight = model.transformer.wte.weight
    spans = steady_spans(
        cache.capacity,
        n_queries=windows.size,
        head_size=model.config.head_size,
        dtype=weight.dtype,
        device=weight.device,
        by_channel=cache.by_channel,
    )
    return partial(_pass_by_span, model, cache, spans, apart)


def _pass_by_start(
    model: CausalModel, cache: KVCache, apart: bool, tokens: Tensor, positions: Tensor
) -> Tensor:
    """Runs a pass of whose launches none depends on the positions."""
    positions = positions if apart else positions[0]
    return decode_window(model, tokens, positions, cache, span=cache.capacity)


def _pass_by_span(
    model: CausalModel,
    cache: KVCache,
    spans: Sequence[int],
    apart: bool,
    tokens: Tensor,
    positions: Tensor,
) -> Tensor:
    """Runs a pass over as many positions as the furthest row needs. On a CPU a change of them costs
    a copy of a cache that lies by channel, so it has few there always."""
    on_cpu = tokens.device.type == "cpu"
    span = cache.length + tokens.shape[1]
    if on_cpu or apart:
        span = spans[bisect_left(spans, span)]
    if on_cpu and cache.by_channel:
        cache.repack(span)
    index = positions if apart else None if on_cpu else positions[0]
    return decode_window(model, tokens, index, cache, span=span)
