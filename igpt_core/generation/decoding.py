"""Lockstep decoding of a batch: prefill, one step, n steps, whole images.

All rows stand at the same position. Input position i holds the start token (i = 0) or pixel i - 1,
and its logits are those of pixel i; the last pixel is never fed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from igpt_core.errors import NonFiniteError
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.packed import prepacked
from igpt_core.generation.sampling import SamplingConfig, sample_tokens
from igpt_core.model.attention import added_mask
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.layers import CacheSlots
from igpt_core.model.transformer import ImageGPTModel

# On a CPU a step attends to this many positions or a multiple: each change costs a copy of a cache
# that lies by channel, each position beyond the filled ones is read for nothing.
SPAN_UNIT = 64
_NOISE_AT_ONCE = 1 << 18  # numbers, which stay in the processor's cache while they are made


class CausalModel(nn.Module):
    """What decoding needs of a model: the transformer, and the head on it that predicts pixels."""

    config: ImageGPTConfig
    transformer: ImageGPTModel
    lm_head: nn.Linear


@dataclass(frozen=True)
class Pinned:
    """Known pixels, wherever they lie: these are not drawn.

    The public names `Pinned` and `pinned=` stand for known pixels.

    Attributes:
        image: (B, N) int64 colors in [0, n_colors); any number where it is not given.
        given: (B, N) bool, true where the image's pixel is known.
    """

    image: Tensor
    given: Tensor

    def over(self, tokens: Tensor, positions: slice | int) -> Tensor:
        """Replaces the known ones of the tokens of these positions by the image's."""
        return torch.where(self.given[:, positions], self.image[:, positions], tokens)

    def check(self, shape: tuple[int, int]) -> None:
        """Raises ValueError for tensors of another shape or dtype."""
        parts = {"image": (self.image, torch.int64), "given": (self.given, torch.bool)}
        for name, (part, dtype) in parts.items():
            if part.shape != shape or part.dtype != dtype:
                raise ValueError(
                    f"complete: expected pinned.{name} to be {dtype} of shape {shape}, found "
                    f"{part.dtype} of {tuple(part.shape)}"
                )


def prefill(
    model: CausalModel, prompt: Tensor, *, n_samples: int, capacity: int
) -> tuple[Tensor, KVCache]:
    """Runs the start token and the prompt once, then shares the result among the samples.

    Args:
        prompt: (B, P) int64 colors; P = 0 for the start token alone.
        n_samples: sequences that go on from each prompt.
        capacity: positions of the cache that is returned, more than P.

    Returns:
        Logits of pixel P, (B * n_samples, V), and the cache; row r of the batch is rows
        r * n_samples ... of both.
    """
    start = prompt.new_full((prompt.shape[0], 1), model.config.start_token)
    tokens = torch.cat([start, prompt], dim=1)
    return feed(model, tokens, n_samples=n_samples, capacity=capacity)


def feed(
    model: CausalModel, tokens: Tensor, *, n_samples: int, capacity: int
) -> tuple[Tensor, KVCache]:
    """Runs tokens (B, T) as they are, the start token among them if it is to be fed: `prefill`."""
    rows, n_given = tokens.shape
    weight = model.transformer.wte.weight
    cache = KVCache(
        model.config, batch_size=rows, capacity=n_given, device=weight.device, dtype=weight.dtype
    )
    positions = torch.arange(n_given, device=weight.device)
    cache_slots = CacheSlots(cache, span=n_given)
    hidden = model.transformer.hidden(tokens, positions, cache_slots=cache_slots, mask=None)
    cache.length = n_given
    logits = _next_logits(model, hidden).repeat_interleave(n_samples, dim=0)
    return logits, cache.repeat(n_samples, capacity=capacity)


def _next_logits(model: CausalModel, hidden: Tensor) -> Tensor:
    """Computes logits (R, n_colors) after the last position. A head tied to the input embedding has
    a row for the start token too, which is no pixel."""
    return model.lm_head(hidden[:, -1])[:, : model.config.n_colors]  # type: ignore[no-any-return]


def decode_step(
    model: CausalModel,
    tokens: Tensor,
    position: Tensor | None,
    cache: KVCache,
    *,
    span: int,
) -> Tensor:
    """Feeds one token per row and returns the logits of the next pixel.

    Of fixed shape for a given span, beyond whose filled positions the others are masked: where the
    position is a tensor, a captured step can be replayed for every one below its span.

    Args:
        tokens: (R,) int64, the pixels before the input position.
        position: (1,) int64, the input position, below `span`; cache.length where None, which
            takes less time.
        cache: holds the positions before it and takes this one.
        span: positions of the cache to attend to. Where it is cache.length + 1 no mask is needed.

    Returns:
        (R, V) logits in the model's dtype.
    """
    cache_slots = CacheSlots(cache, span, position)
    if position is None:
        position = torch.tensor([cache.length], device=tokens.device)
    mask = None
    if span > cache.length + 1:
        seen = (torch.arange(span, device=tokens.device) <= position)[None]
        mask = added_mask(seen, model.transformer.wte.weight)
    hidden = model.transformer.hidden(tokens[:, None], position, cache_slots=cache_slots, mask=mask)
    return _next_logits(model, hidden)


def decode(
    model: CausalModel,
    logits: Tensor,
    cache: KVCache,
    noise: GumbelNoise,
    sampling: SamplingConfig,
    *,
    n_new: int,
    pinned: Pinned | None = None,
    on_logits: Callable[[Tensor, KVCache], None] | None = None,
) -> Tensor:
    """Draws one token after the other, from `prefill`'s logits and cache on.

    Args:
        logits: (R, V) of the first pixel to draw.
        noise: of the R sequences.
        n_new: tokens to draw, 1 or more.
        pinned: (R, n_new), known pixels, which take the place of those drawn.
        on_logits: is called before each draw with the logits of pixel cache.length - 1 and the
            cache, and may change rows of both in place.

    Returns:
        (R, n_new) int64.

    Raises:
        NonFiniteError: logits that are no distribution: NaN, +inf, or all of them -inf.
    """
    rows, n_colors = logits.shape
    device, first = logits.device, cache.length
    # Positions (cache.length) of what is fed; pixels are counted from 0, behind the start token.
    positions = torch.arange(first, first + n_new, device=device)
    noise_of = _noise_ahead(noise, positions - 1, n_colors)
    highest = torch.empty(rows, n_new, dtype=logits.dtype, device=device)

    def draw(logits: Tensor, column: int) -> Tensor:
        if on_logits is not None:
            on_logits(logits, cache)
        highest[:, column] = logits.amax(dim=-1)  # NaN where there is one
        own = None if sampling.greedy else noise_of(column)
        tokens = sample_tokens(logits, own, sampling)
        return tokens if pinned is None else pinned.over(tokens, column)

    drawn = torch.empty(rows, n_new, dtype=torch.int64, device=device)
    drawn[:, 0] = draw(logits, 0)
    for step in range(1, n_new):
        span = cache.length + 1
        position: Tensor | None = positions[step - 1 : step]
        if device.type == "cpu":
            position = None
            span = min(-(-span // SPAN_UNIT) * SPAN_UNIT, cache.capacity)
            if cache.by_channel:
                cache.repack(span)
        logits = decode_step(model, drawn[:, step - 1], position, cache, span=span)
        cache.length += 1
        drawn[:, step] = draw(logits, step)
    if not highest.isfinite().all():  # looked at once: a GPU would be waited for at each step
        raise NonFiniteError.of("logits", logits.dtype)
    return drawn


def _noise_ahead(noise: GumbelNoise, pixels: Tensor, n_colors: int) -> Callable[[int], Tensor]:
    """Returns what gives the noise (R, V) of pixels (N,), by their place among them, in order: it
    is made for several at once, which takes a fraction of the calls."""
    at_once = max(_NOISE_AT_ONCE // (len(noise.seeds) * n_colors), 1)
    made: dict[int, Tensor] = {}

    def noise_of(column: int) -> Tensor:
        begin = column - column % at_once
        if begin not in made:
            made.clear()
            made[begin] = noise.at(pixels[begin : begin + at_once], n_colors)
        return made[begin][:, column - begin]

    return noise_of


@torch.inference_mode()
def complete(
    model: CausalModel,
    prompt: Tensor,
    *,
    n_positions: int,
    seeds: Tensor,
    sampling: SamplingConfig,
    n_samples: int = 1,
    pinned: Pinned | None = None,
) -> Tensor:
    """Finishes images from their first pixels, and from others that are known.

    Sample k of a row depends on (model, prompt, known pixels, row seed, k) and the compute shape
    alone: neither on the other rows nor on the number of samples drawn. A pixel sees the known
    ones before it, in raster order, and none behind it.

    Args:
        model: in eval mode, on the prompt's device.
        prompt: (B, P) int64 colors in [0, n_colors), 0 <= P <= n_positions; P = 0 draws
            unconditional samples.
        n_positions: pixels of a whole image, at most the model's positions.
        seeds: (B,) of any integer dtype, one per row; see `row_seed`.
        sampling: how tokens are drawn.
        n_samples: images for each prompt.
        pinned: (B, n_positions), known pixels, which all samples of a row share. Others are drawn
            with the same noise as without it. It overrides the prompt too.

    Returns:
        (B, n_samples, n_positions) int64: the prompt and what is drawn, with the known pixels in
        place of either.

    Raises:
        ValueError: sizes that do not fit together, or a dtype of `seeds` or `pinned`.
        NonFiniteError: a model that overflows in its dtype.
    """
    rows, n_given = prompt.shape
    limit = model.config.n_positions
    if not n_given <= n_positions <= limit:
        raise ValueError(
            f"complete: expected prompt <= n_positions <= the model's {limit} positions, "
            f"found a prompt of {n_given} and n_positions {n_positions}"
        )
    if seeds.shape != (rows,):
        raise ValueError(f"complete: expected one seed per row, ({rows},), found {seeds.shape}")
    if n_samples < 1:
        raise ValueError(f"complete: n_samples must be 1 or more, found {n_samples}")
    if pinned is not None:
        pinned.check((rows, n_positions))
        prompt = pinned.over(prompt, slice(n_given))
        pinned = Pinned(
            pinned.image[:, n_given:].repeat_interleave(n_samples, dim=0),
            pinned.given[:, n_given:].repeat_interleave(n_samples, dim=0),
        )
    given = prompt[:, None].expand(rows, n_samples, n_given)
    if n_given == n_positions:
        return given.clone()
    noise, n_new = GumbelNoise(seeds, n_samples), n_positions - n_given
    model = prepacked(model)
    logits, cache = prefill(model, prompt, n_samples=n_samples, capacity=n_positions)
    drawn = decode(model, logits, cache, noise, sampling, n_new=n_new, pinned=pinned)
    return torch.cat([given, drawn.view(rows, n_samples, -1)], dim=2)
