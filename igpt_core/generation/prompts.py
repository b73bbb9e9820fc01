"""Completion of prompts of different lengths in one batch."""

import torch
from torch import Tensor

from igpt_core.generation.decoding import CausalModel, Pinned, decode, prefill
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.packed import prepacked
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.model.kv_cache import KVCache


@torch.inference_mode()
def complete_prompts(
    model: CausalModel,
    image: Tensor,
    lengths: Tensor,
    *,
    seeds: Tensor,
    sampling: SamplingConfig,
    n_samples: int = 1,
) -> Tensor:
    """Finishes images each from a prompt of its own length.

    All rows stand at one position, from the shortest prompt's end on. Each prompt is prefilled by
    itself, and its row joins when the others have come to its end. So sample k of a row depends on
    (model, prompt, row seed, k) and the compute shape alone, as that of `complete` does, and on a
    CPU in float32 it is the same. A batch takes as many steps as its shortest prompt, so rows of
    like lengths belong together.

    Args:
        model: in eval mode, on the image's device.
        image: (B, N) int64 colors in [0, n_colors), of which the first `lengths` are the prompt and
            the others any; N is at most the model's positions.
        lengths: (B,) int64 in [0, N]. A row with N has nothing to draw and costs nothing.
        seeds, sampling, n_samples: as of `complete`.

    Returns:
        (B, n_samples, N) int64: the prompts and what is drawn.

    Raises:
        ValueError: sizes that do not fit together, or lengths beyond the image.
    """
    rows, n_positions = image.shape
    limit = model.config.n_positions
    if n_positions > limit or lengths.shape != (rows,) or seeds.shape != (rows,):
        raise ValueError(
            f"complete_prompts: expected images of at most {limit} positions, and a length and a "
            f"seed of each, found images {tuple(image.shape)}, lengths {tuple(lengths.shape)} and "
            f"seeds {tuple(seeds.shape)}"
        )
    ends: dict[int, list[int]] = {}  # of prompts: the rows that join there
    for row, length in enumerate(lengths.tolist()):
        ends.setdefault(length, []).append(row)
    first = min(ends, default=n_positions)
    if first < 0 or max(ends, default=0) > n_positions:
        raise ValueError(
            f"complete_prompts: expected lengths from 0 to {n_positions}, found {first} to "
            f"{max(ends)}"
        )
    images = image.repeat_interleave(n_samples, dim=0)
    if first == n_positions:
        return images.view(rows, n_samples, -1)
    model = prepacked(model)

    def join(logits: Tensor, cache: KVCache) -> None:
        length = cache.length - 1
        if length == 0:
            return  # all rows have the start token in common
        for row in ends.get(length, []):
            prompt = image[row : row + 1, :length]
            own_logits, own = prefill(model, prompt, n_samples=n_samples, capacity=cache.length)
            logits[row * n_samples : (row + 1) * n_samples] = own_logits
            cache.copy_rows(own, first=row * n_samples)

    if first == 0:
        logits, cache = prefill(model, image[:, :0], n_samples=n_samples, capacity=n_positions)
    else:
        logits, cache = _nothing_yet(model, len(images), length=first + 1, capacity=n_positions)
    is_prompt = torch.arange(n_positions, device=image.device) < lengths[:, None]
    noise = GumbelNoise(seeds, n_samples)
    pinned = Pinned(images[:, first:], is_prompt[:, first:].repeat_interleave(n_samples, dim=0))
    images[:, first:] = decode(
        model,
        logits,
        cache,
        noise,
        sampling,
        n_new=n_positions - first,
        pinned=pinned,
        on_logits=join,
    )
    return images.view(rows, n_samples, -1)


def _nothing_yet(
    model: CausalModel, rows: int, *, length: int, capacity: int
) -> tuple[Tensor, KVCache]:
    """Makes logits (rows, V) and a cache of `length` positions, as of `prefill`, all of zeros."""
    weight = model.transformer.wte.weight
    cache = KVCache(
        model.config, batch_size=rows, capacity=capacity, device=weight.device, dtype=weight.dtype
    )
    cache.length = length
    return weight.new_zeros(rows, model.config.n_colors), cache
