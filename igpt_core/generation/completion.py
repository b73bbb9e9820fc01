"""Completion of images: from their first pixels, from known pixels anywhere, or from nothing."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.errors import check_whole
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.noise import check_seeds
from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import CausalModel
from igpt_core.generation.places import Drawing, Images, Places
from igpt_core.generation.sampling import SamplingConfig


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
    at_once: int | None = None,
    kv_cache_dtype: torch.dtype | None = None,
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
        at_once: rows that are computed together, all unless given: part of the compute shape. One
            that is drawn gives its place to the next.
        kv_cache_dtype: torch.int8 keeps keys and values in 8 bits with a scale for each head and
            position, on GPUs, but for the prompt's own pass; the model's dtype unless given.
        passes: where it is given, it is extended by the passes that each sequence took, the
            prompt's among them: B * n_samples numbers, those of a row side by side.

    Returns:
        (B, n_samples, n_positions) int64: the prompt and what is drawn, with the known pixels in
        place of either.

    Raises:
        ValueError: sizes that do not fit together, a dtype of `seeds` or `pinned`, or a cache of 8
            bits where no GPU reads it.
        NonFiniteError: a model that overflows in its dtype.
    """
    how = Drawing(n_samples, window, sampling, draft, at_once, kv_cache_dtype)
    rows, n_given = _checked_sizes(how, prompt, model, seeds)
    limit = model.config.n_positions
    if not n_given <= n_positions <= limit:
        raise ValueError(
            f"complete: expected prompt <= n_positions <= the model's {limit} positions, "
            f"found a prompt of {n_given} and n_positions {n_positions}"
        )
    image = pad(prompt, (0, n_positions - n_given))
    known = torch.arange(n_positions, device=prompt.device).expand(rows, -1) < n_given
    if pinned is not None:
        pinned.check((rows, n_positions))
        image = torch.where(pinned.given, pinned.image, image)
        known = known | pinned.given
    images = Images(image, known, [n_given] * rows, seeds)
    how = replace(how, window=min(window, max(n_positions - n_given - 1, 1)))  # no more are fed
    return _drawn(model, images, how, passes, apart=False)


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
    at_once: int | None = None,
    kv_cache_dtype: torch.dtype | None = None,
    passes: list[int] | None = None,
) -> Tensor:
    """Finishes images each from a prompt of its own length.

    Each prompt is prefilled by itself, and each row stands at its own position. So sample k of a
    row depends on (model, prompt, row seed, k) and the compute shape alone, as that of `complete`
    does, and on a CPU in float32 it is the same. Rows that are computed together take as many
    passes as the one that needs the most, so rows of like lengths belong side by side.

    Args:
        model: in eval mode, on the image's device.
        image: (B, N) int64 colors in [0, n_colors), of which the first `lengths` are the prompt and
            the others any; N is at most the model's positions.
        lengths: (B,) int64 in [0, N]. A row with N has nothing to draw.
        seeds, sampling, n_samples, window, draft, at_once, kv_cache_dtype, passes: as of
            `complete`.

    Returns:
        (B, n_samples, N) int64: the prompts and what is drawn.

    Raises:
        ValueError: sizes that do not fit together, or lengths beyond the image.
    """
    how = Drawing(n_samples, window, sampling, draft, at_once, kv_cache_dtype)
    rows, n_positions = _checked_sizes(how, image, model, seeds)
    limit = model.config.n_positions
    if n_positions > limit or lengths.shape != (rows,):
        raise ValueError(
            f"complete_prompts: expected images of at most {limit} positions and a length of each, "
            f"found images {tuple(image.shape)} and lengths {tuple(lengths.shape)}"
        )
    by_row = lengths.tolist()
    shortest, longest = min(by_row, default=0), max(by_row, default=0)
    if shortest < 0 or longest > n_positions:
        raise ValueError(
            f"complete_prompts: expected lengths from 0 to {n_positions}, found {shortest} to "
            f"{longest}"
        )
    is_prompt = torch.arange(n_positions, device=image.device) < lengths[:, None]
    images = Images(torch.where(is_prompt, image, 0), is_prompt, by_row, seeds)
    how = replace(how, window=min(window, n_positions))
    return _drawn(model, images, how, passes, apart=True)


def _checked_sizes(
    how: Drawing, image: Tensor, model: CausalModel, seeds: Tensor
) -> tuple[int, int]:
    """Returns the sizes (B, N) of images or prompts. Raises ValueError for what does not fit
    them, each other or the model."""
    if image.dim() != 2 or image.dtype != torch.int64:
        raise ValueError(
            f"expected colors (B, N) of int64, found {image.dtype} of {tuple(image.shape)}"
        )
    rows, length = image.shape
    if seeds.shape != (rows,):
        raise ValueError(f"expected one seed per row, ({rows},), found {tuple(seeds.shape)}")
    for name in ("n_samples", "window", "at_once"):
        number = getattr(how, name)
        if number is not None:
            check_whole(name, number, least=1)
    if how.kv_cache_dtype not in (None, torch.int8):
        raise ValueError(f"kv_cache_dtype must be torch.int8, found {how.kv_cache_dtype}")
    n_colors = model.config.n_colors
    if how.draft is not None and how.draft.frequencies.shape != (n_colors,):
        raise ValueError(
            f"expected a draft of the model's {n_colors} colors, found one of "
            f"{len(how.draft.frequencies)}"
        )
    return rows, length


def _drawn(
    model: CausalModel, images: Images, how: Drawing, passes: list[int] | None, *, apart: bool
) -> Tensor:
    """Draws what is not known; see `complete`. `apart`: whether the lengths may differ.

    Returns images (B, n_samples, N) for use beyond inference: in a training step, or to be edited.
    """
    n = how.n_samples
    check_seeds(images.seeds)
    known, n_colors = images.image[images.known], model.config.n_colors
    if known.numel() and not 0 <= known.min() <= known.max() < n_colors:
        raise ValueError(
            f"expected known pixels to be colors from 0 to {n_colors - 1}, found "
            f"{known.min()} to {known.max()}; next: prompts without the start token"
        )
    result = images.image[:, None].repeat(1, n, 1)
    n_passes = torch.zeros(result.shape[:2], dtype=torch.int64, device=result.device)
    if not images.known.all():
        with torch.inference_mode():
            Places(prepacked(model), images, how, result, n_passes, apart=apart).decode()
    if passes is not None:
        passes += n_passes.flatten().tolist()
    return result
