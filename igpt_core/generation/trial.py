"""A trial of a GPU's fast ways on a small model, before pixels of images depend on them."""

import torch
from torch import nn

from igpt_core.generation.completion import complete
from igpt_core.generation.passes import CausalModel
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.self_check import left_aside, takes_starts
from igpt_core.model.transformer import ImageGPTModel

_PIXELS = 72  # enough for a captured pass to pay
_COLORS = 16


def try_fast_ways(
    device: torch.device,
    dtype: torch.dtype,
    head_size: int,
    *,
    kv_cache_dtype: torch.dtype | None = None,
) -> list[str]:
    """Draws a few images by a random model, which compares kernel and capture with plain ways; see
    `window_kernel_works` and `CapturedPass`.

    Returns what this process leaves aside from now on, each with the reason; nothing on a CPU. It
    tries a cache of 8 bits too, where it is asked for one.
    """
    like = torch.empty(0, device=device, dtype=dtype)
    if kv_cache_dtype is not None and not takes_starts(like, head_size, eight_bits=True):
        return left_aside()
    config = ImageGPTConfig(
        vocab_size=_COLORS + 1, n_positions=_PIXELS, n_embd=2 * head_size, n_layer=2, n_head=2
    )
    with torch.random.fork_rng(devices=[]):  # the caller's numbers stay as they are
        model = CausalModel()
        model.config, model.transformer = config, ImageGPTModel(config)
        model.lm_head = nn.Linear(config.n_embd, _COLORS, bias=False)
    complete(
        model.to(device, dtype).eval(),
        torch.zeros(2, 0, dtype=torch.int64, device=device),
        n_positions=_PIXELS,
        seeds=torch.arange(2, device=device),
        sampling=SamplingConfig(),
        n_samples=2,
        kv_cache_dtype=kv_cache_dtype,
    )
    return left_aside()
