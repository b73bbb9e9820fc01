"""How fast training is: operations of a step against what the device does in plain products."""

import time

import torch

from igpt_core.model.config import ImageGPTConfig

# Of a product that fills the matrix units of a processor: (rows, in, out).
_SHAPE = (8192, 384, 1536)
_SECONDS = 0.5


def flops_per_token(config: ImageGPTConfig) -> int:
    """Counts the operations of a training step for each of n_positions tokens of an image: those of
    matrix products, an addition and a multiplication each, forward once and backward twice.

    A position attends to half of the others on average (arXiv 2001.08361, 2.1).
    """
    width = config.n_embd
    weights = config.n_layer * width * (4 * width + 2 * config.inner_size)
    attention = config.n_layer * width * config.n_positions  # two products with half of the keys
    return 3 * 2 * (weights + width * config.n_colors + attention)


@torch.no_grad()
def product_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Measures operations per second of plain matrix products, in half a second."""
    rows, n_in, n_out = _SHAPE
    x = torch.randn(rows, n_in, device=device).to(dtype)
    weight = torch.randn(n_out, n_in, device=device).to(dtype)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        best = min(best, _seconds(x, weight))
    return 2 * rows * n_in * n_out / best


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    begun = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begun
