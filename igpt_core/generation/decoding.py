"""Decoding of a batch: prefill, passes until all is drawn, whole images.

Input position i holds the start token (i = 0) or pixel i - 1, and its logits are those of pixel i;
the last pixel is never fed. See `speculation` for windows; one pixel at a time is a window of one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from igpt_core.errors import NonFiniteError
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import CausalModel, next_logits, pass_of
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.generation.speculation import Windows
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.layers import CacheSlots
from igpt_core.model.self_check import takes_starts
from igpt_core.model.spans import whole_units


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
    model: CausalModel, prompt: Tensor, *, n_samples: int, capacity: int, window: int = 1
) -> tuple[Tensor, KVCache]:
    """Runs the start token and the prompt once, then shares the result among the samples.

    Args:
        prompt: (B, P) int64 colors; P = 0 for the start token alone.
        n_samples: sequences that go on from each prompt.
        capacity: positions of the cache that is returned, more than P.
        window: positions that later passes feed at once.

    Returns:
        Logits of pixel P, (B * n_samples, V), and the cache; row r of the batch is rows
        r * n_samples ... of both.
    """
    start = prompt.new_full((prompt.shape[0], 1), model.config.start_token)
    tokens = torch.cat([start, prompt], dim=1)
    return feed(model, tokens, n_samples=n_samples, capacity=capacity, window=window)


def feed(
    model: CausalModel, tokens: Tensor, *, n_samples: int, capacity: int, window: int = 1
) -> tuple[Tensor, KVCache]:
    """Runs tokens (B, T) as they are, the start token among them if it is to be fed: `prefill`.

    The cache has room for a multiple of SPAN_UNIT.
    """
    n_given = tokens.shape[1]
    cache = new_cache(model, len(tokens), capacity=n_given, window=window)
    positions = torch.arange(n_given, device=tokens.device)
    cache_slots = CacheSlots(cache, span=n_given)
    hidden = model.transformer.hidden(tokens, positions, cache_slots=cache_slots, mask=None)
    cache.length = n_given
    logits = next_logits(model, hidden[:, -1:])[:, 0].repeat_interleave(n_samples, dim=0)
    return logits, cache.repeat(n_samples, capacity=whole_units(capacity), shares=True)


def new_cache(model: CausalModel, rows: int, *, capacity: int, window: int = 1) -> KVCache:
    """Makes an empty cache for a model's passes over windows of this size."""
    weight = model.transformer.wte.weight
    return KVCache(
        model.config,
        batch_size=rows,
        capacity=capacity,
        device=weight.device,
        dtype=weight.dtype,
        n_queries=window,
        by_start=not model.training and takes_starts(weight, model.config.head_size),
    )


def decode(
    model: CausalModel,
    logits: Tensor,
    cache: KVCache,
    windows: Windows,
    *,
    apart: bool = False,
    passes: list[int] | None = None,
) -> Tensor:
    """Draws all tokens that are not known, one pass over a window after the other.

    Args:
        logits: (R, V) of the first token to draw of each row.
        cache: holds the tokens before these.
        windows: the tokens of the rows, of which nothing was drawn yet.
        apart: whether the rows may stand at different positions, which they do not in windows of
            one pixel that begin at one position. Not found from where they stand: a row is
            computed in the same way whatever stands beside it.
        passes: as of `complete`.

    Returns:
        (R, L) int64, the tokens by input position.

    Raises:
        NonFiniteError: logits that are no distribution: NaN, +inf, or all of them -inf.
    """
    # On which kernels, captures and events are.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        return _decode(model, logits, cache, windows, apart or windows.size > 1, passes)


def _decode(
    model: CausalModel,
    logits: Tensor,
    cache: KVCache,
    windows: Windows,
    apart: bool,
    passes: list[int] | None,
) -> Tensor:
    run_pass = pass_of(model, cache, windows, apart=apart)
    if cache.by_start:  # the host need not know where they are
        windows.read_late()
    highest = [logits[:, None].amax(dim=-1)]  # NaN where there is one
    windows.draw_first(logits)
    while not windows.is_done:
        starts = windows.starts
        at = windows.positions(starts)
        cache.length = windows.furthest
        logits = run_pass(windows.fed(at), at)
        cache.length += windows.size
        windows.draw(logits, starts)
        most = logits.amax(dim=-1)
        if windows.size > 1:  # what the model makes of a wrong guess does not count
            most = most.where(windows.is_decided(at + 1), 0)
        highest.append(most)
    # Looked at once: a GPU would be waited for at each pass.
    if not torch.cat(highest, dim=1).isfinite().all():
        raise NonFiniteError.of("logits", logits.dtype)
    if passes is not None:
        passes += windows.passes
    return windows.tokens


def complete(
    model: CausalModel,
    prompt: Tensor,
    *,
    n_positions: int,
    seeds: Tensor,
    sampling: SamplingConfig,
    n_samples: int = 1,
    window: int = 1,
    draft: NeighborTables | None = None,
    pinned: Pinned | None = None,
    passes: list[int] | None = None,
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
        window: pixels of each image that a pass of the model is fed at once, of which all but the
            first are guesses: part of the compute shape, which changes no token but by rounding.
        draft: on the prompt's device, what helps to guess; it changes no token.
        pinned: (B, n_positions), known pixels, which all samples of a row share. Others are drawn
            with the same noise as without it. It overrides the prompt too.
        passes: where it is given, it is extended by the passes that each sequence took, the
            prompt's among them: B * n_samples numbers, those of a row side by side.

    Returns:
        (B, n_samples, n_positions) int64: the prompt and what is drawn, with the known pixels in
        place of either.

    Raises:
        ValueError: sizes that do not fit together, or a dtype of `seeds` or `pinned`.
        NonFiniteError: a model that overflows in its dtype.
    """
    rows, n_given = checked_sizes(
        prompt, model, seeds, n_samples=n_samples, window=window, draft=draft
    )
    limit = model.config.n_positions
    if not n_given <= n_positions <= limit:
        raise ValueError(
            f"complete: expected prompt <= n_positions <= the model's {limit} positions, "
            f"found a prompt of {n_given} and n_positions {n_positions}"
        )
    image = torch.nn.functional.pad(prompt, (0, n_positions - n_given))
    known = torch.arange(n_positions, device=prompt.device).expand(rows, -1) < n_given
    if pinned is not None:
        pinned.check((rows, n_positions))
        image = torch.where(pinned.given, pinned.image, image)
        known = known | pinned.given
    noise = GumbelNoise(seeds, n_samples)
    if n_given == n_positions or not rows:
        if passes is not None:
            passes += [0] * rows * n_samples
        return image[:, None].repeat(1, n_samples, 1)
    window = min(window, max(n_positions - n_given - 1, 1))  # of which no more are fed
    model = prepacked(model)
    with torch.inference_mode():
        logits, cache = prefill(
            model, image[:, :n_given], n_samples=n_samples, capacity=n_positions, window=window
        )
    how: dict[str, Any] = {"size": window, "noise": noise, "sampling": sampling, "draft": draft}
    return draw_images(model, logits, cache, image, known, [n_given] * rows, passes=passes, **how)


def checked_sizes(
    image: Tensor,
    model: CausalModel,
    seeds: Tensor,
    *,
    n_samples: int,
    window: int,
    draft: NeighborTables | None,
) -> tuple[int, int]:
    """Returns the sizes (B, N) of images or prompts. Raises ValueError for what does not fit them,
    each other or the model."""
    if image.dim() != 2 or image.dtype != torch.int64:
        raise ValueError(
            f"expected colors (B, N) of int64, found {image.dtype} of {tuple(image.shape)}"
        )
    rows, length = image.shape
    if seeds.shape != (rows,):
        raise ValueError(f"expected one seed per row, ({rows},), found {tuple(seeds.shape)}")
    if n_samples < 1:
        raise ValueError(f"n_samples must be 1 or more, found {n_samples}")
    if window < 1:
        raise ValueError(f"window must be 1 or more, found {window}")
    n_colors = model.config.n_colors
    if draft is not None and draft.frequencies.shape != (n_colors,):
        raise ValueError(
            f"expected a draft of the model's {n_colors} colors, found one of "
            f"{len(draft.frequencies)}"
        )
    return rows, length


def draw_images(
    model: CausalModel,
    logits: Tensor,
    cache: KVCache,
    image: Tensor,
    known: Tensor,
    lengths: list[int],
    *,
    apart: bool = False,
    passes: list[int] | None = None,
    **how: Any,
) -> Tensor:
    """Draws what is not `known` (B, N) of images (B, N) behind their first `lengths` pixels.

    `logits` and `cache` are of all samples, those of an image side by side; `apart` and `passes` as
    of `decode`, `how` as of `Windows`. Returns images (B, n_samples, N) for use beyond inference:
    in a training step, or to be edited.
    """
    n_samples = len(logits) // len(image)
    with torch.inference_mode():
        windows = Windows.of_images(
            image.repeat_interleave(n_samples, dim=0),
            known.repeat_interleave(n_samples, dim=0),
            [length for length in lengths for _ in range(n_samples)],
            start_token=model.config.start_token,
            n_colors=model.config.n_colors,
            **how,
        )
        tokens = decode(model, logits, cache, windows, apart=apart, passes=passes)
    return tokens[:, 1:].clone().view(len(image), n_samples, -1)
