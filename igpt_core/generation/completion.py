"""Completion of images: from their first pixels, from known pixels anywhere, or from nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.errors import check_whole, whole_tensor
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import CausalModel
from igpt_core.generation.places import Drawing, Images, Places
from igpt_core.generation.sampling import SamplingConfig


@dataclass(frozen=True)
class Pinned:
    """Known pixels, wherever they lie: these are not drawn.

    The public names `Pinned` and `pinned=` stand for known pixels.

    Attributes:
        image: (B, N) colors in [0, n_colors); any number where it is not given.
        given: (B, N) bool, true where the image's pixel is known.
    """

    image: Tensor
    given: Tensor

    def checked(self, shape: tuple[int, int]) -> "Pinned":
        """Returns it with colors of int64. Raises ValueError for tensors of another shape, or what
        is given as other than bool."""
        pinned = Pinned(whole_tensor("pinned.image", self.image), self.given)
        parts = {"image": (pinned.image, torch.int64), "given": (pinned.given, torch.bool)}
        for name, (part, dtype) in parts.items():
            if part.shape != shape or part.dtype != dtype:
                raise ValueError(
                    f"complete: expected pinned.{name} to be {dtype} of shape {shape}, found "
                    f"{part.dtype} of {tuple(part.shape)}"
                )
        return pinned


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
    on_progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Finishes images from their first pixels, and from others that are known.

    Sample k of a row depends on (model, prompt, known pixels, row seed, k) and the compute shape
    alone: neither on the other rows nor on the number of samples drawn. A pixel sees the known
    ones before it, in raster order, and none behind it.

    Args:
        model: in eval mode, on the prompt's device.
        prompt: (B, P) colors of any integer dtype in [0, n_colors), 0 <= P <= n_positions; P = 0
            draws unconditional samples.
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
        on_progress: is called before the first pass and after each with the share of the pixels
            to be drawn that are, at least, from 0 to 1.

    Returns:
        (B, n_samples, n_positions) int64: the prompt and what is drawn, with the known pixels in
        place of either.

    Raises:
        ValueError: sizes that do not fit together, a dtype of `seeds` or `pinned`, or a cache of 8
            bits where no GPU reads it.
        NonFiniteError: a model that overflows in its dtype.
    """
    how = _checked(Drawing(n_samples, window, sampling, draft, at_once, kv_cache_dtype), model)
    prompt, seeds = _checked_rows("prompt", prompt, seeds)
    (rows, n_given), limit = prompt.shape, model.config.n_positions
    n_positions = check_whole("n_positions", n_positions, least=0)
    if not n_given <= n_positions <= limit:
        raise ValueError(
            f"complete: expected prompt <= n_positions <= the model's {limit} positions, "
            f"found a prompt of {n_given} and n_positions {n_positions}"
        )
    image = pad(prompt, (0, n_positions - n_given))
    known = torch.arange(n_positions, device=prompt.device).expand(rows, -1) < n_given
    if pinned is not None:
        pinned = pinned.checked((rows, n_positions))
        image = torch.where(pinned.given, pinned.image, image)
        known = known | pinned.given
    images = Images(image, known, [n_given] * rows, seeds)
    how = replace(how, window=min(how.window, max(n_positions - n_given - 1, 1)))  # no more are fed
    return _drawn(model, images, how, passes, on_progress, apart=False)


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
        image: (B, N) colors of any integer dtype in [0, n_colors), of which the first `lengths` are
            the prompt and the others any; N is at most the model's positions.
        lengths: (B,) of any integer dtype in [0, N]. A row with N has nothing to draw.
        seeds, sampling, n_samples, window, draft, at_once, kv_cache_dtype, passes: as of
            `complete`.

    Returns:
        (B, n_samples, N) int64: the prompts and what is drawn.

    Raises:
        ValueError: sizes that do not fit together, or lengths beyond the image.
    """
    how = _checked(Drawing(n_samples, window, sampling, draft, at_once, kv_cache_dtype), model)
    image, seeds = _checked_rows("image", image, seeds)
    lengths = whole_tensor("lengths", lengths)
    (rows, n_positions), limit = image.shape, model.config.n_positions
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
    how = replace(how, window=min(how.window, n_positions))
    return _drawn(model, images, how, passes, None, apart=True)


def _checked(how: Drawing, model: CausalModel) -> Drawing:
    """Returns it with its numbers as ints. Raises TypeError and ValueError for what is none or does
    not fit the model."""
    n_samples = check_whole("n_samples", how.n_samples, least=1)
    window = check_whole("window", how.window, least=1)
    at_once = None if how.at_once is None else check_whole("at_once", how.at_once, least=1)
    if how.kv_cache_dtype not in (None, torch.int8):
        raise ValueError(f"kv_cache_dtype must be torch.int8, found {how.kv_cache_dtype}")
    n_colors = model.config.n_colors
    if how.draft is not None and how.draft.frequencies.shape != (n_colors,):
        raise ValueError(
            f"expected a draft of the model's {n_colors} colors, found one of "
            f"{len(how.draft.frequencies)}"
        )
    return replace(how, n_samples=n_samples, window=window, at_once=at_once)


def _checked_rows(name: str, image: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Returns images or prompts (B, N) and seeds (B,) as int64. Raises ValueError for other shapes
    and for numbers that are not whole."""
    image, seeds = whole_tensor(name, image), whole_tensor("seeds", seeds)
    if image.dim() != 2:
        raise ValueError(f"expected colors (B, N) as {name}, found {tuple(image.shape)}")
    if seeds.shape != image.shape[:1]:
        raise ValueError(f"expected one seed per row, ({len(image)},), found {tuple(seeds.shape)}")
    return image, seeds


def _drawn(
    model: CausalModel,
    images: Images,
    how: Drawing,
    passes: list[int] | None,
    on_progress: Callable[[float], None] | None,
    *,
    apart: bool,
) -> Tensor:
    """Draws what is not known; see `complete`. `apart`: whether the lengths may differ.

    Returns images (B, n_samples, N) for use beyond inference: in a training step, or to be edited.
    """
    n = how.n_samples
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
            places = Places(prepacked(model), images, how, result, n_passes, apart=apart)
            places.decode(on_progress)
    if passes is not None:
        passes += n_passes.flatten().tolist()
    return result
