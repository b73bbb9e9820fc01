"""Completion of prompts of different lengths in one batch."""

from typing import Any

import torch
from torch import Tensor

from igpt_core.generation.decoding import (
    checked_sizes,
    draw_images,
    new_cache,
    prefill,
)
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import CausalModel
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.spans import whole_units


def complete_prompts(
    model: CausalModel,
    image: Tensor,
    lengths: Tensor,
    *,
    seeds: Tensor,
    sampling: SamplingConfig,
    n_samples: int = 1,
    window: int = 1,
    draft: NeighborTables | None = None,
    passes: list[int] | None = None,
) -> Tensor:
    """Finishes images each from a prompt of its own length.

    Each prompt is prefilled by itself, and each row stands at its own position. So sample k of a
    row depends on (model, prompt, row seed, k) and the compute shape alone, as that of `complete`
    does, and on a CPU in float32 it is the same. A batch takes as many passes as the row that needs
    the most, so rows of like lengths belong together.

    Args:
        model: in eval mode, on the image's device.
        image: (B, N) int64 colors in [0, n_colors), of which the first `lengths` are the prompt and
            the others any; N is at most the model's positions.
        lengths: (B,) int64 in [0, N]. A row with N has nothing to draw and costs nothing.
        seeds, sampling, n_samples, window, draft, passes: as of `complete`.

    Returns:
        (B, n_samples, N) int64: the prompts and what is drawn.

    Raises:
        ValueError: sizes that do not fit together, or lengths beyond the image.
    """
    rows, n_positions = checked_sizes(
        image, model, seeds, n_samples=n_samples, window=window, draft=draft
    )
    limit = model.config.n_positions
    if n_positions > limit or lengths.shape != (rows,):
        raise ValueError(
            f"complete_prompts: expected images of at most {limit} positions and a length of each, "
            f"found images {tuple(image.shape)} and lengths {tuple(lengths.shape)}"
        )
    by_row = lengths.tolist()
    shortest, longest = min(by_row, default=n_positions), max(by_row, default=0)
    if shortest < 0 or longest > n_positions:
        raise ValueError(
            f"complete_prompts: expected lengths from 0 to {n_positions}, found {shortest} to "
            f"{longest}"
        )
    is_prompt = torch.arange(n_positions, device=image.device) < lengths[:, None]
    prompts = torch.where(is_prompt, image, 0)
    noise = GumbelNoise(seeds, n_samples)
    if shortest == n_positions:
        if passes is not None:
            passes += [0] * rows * n_samples
        return prompts[:, None].repeat(1, n_samples, 1)
    model, window = prepacked(model), min(window, n_positions)
    with torch.inference_mode():
        logits, cache = _prefilled(model, image, by_row, n_samples=n_samples, window=window)
    starts = [min(length, n_positions - 1) for length in by_row]
    how: dict[str, Any] = {"size": window, "noise": noise, "sampling": sampling, "draft": draft}
    return draw_images(
        model, logits, cache, prompts, is_prompt, starts, apart=True, passes=passes, **how
    )


def _prefilled(
    model: CausalModel, image: Tensor, lengths: list[int], *, n_samples: int, window: int
) -> tuple[Tensor, KVCache]:
    """Runs each row's prompt by itself; returns logits (B * n_samples, V) of the pixels behind
    them, zeros where nothing is to be drawn, and one cache of all."""
    rows, n_positions = len(image) * n_samples, image.shape[1]
    cache = new_cache(model, rows, capacity=whole_units(n_positions), window=window)
    logits = model.transformer.wte.weight.new_zeros(rows, model.config.n_colors)
    for row, length in enumerate(lengths):
        if length == n_positions:
            continue
        first = row * n_samples
        prompt = image[row : row + 1, :length]
        logits[first : first + n_samples], own = prefill(
            model, prompt, n_samples=1, capacity=length + 1, window=window
        )
        cache.copy_rows(own, slice(first, first + n_samples))
    return logits, cache
