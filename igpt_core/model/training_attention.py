"""Attention with gradients on a CPU in bfloat16: blocks of queries by batched products.

The fused kernel of torch takes twice the time, forward and backward, on a processor without matrix
tiles (benchmarks/RESULTS.md).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from igpt_core.model.processor import has_tiles
from igpt_core.model.second_order import takes_fused_kernels
from igpt_core.model.training_functions import is_trained_on_cpu

_BLOCK = 128  # queries of one product: of the keys a half of the last block is for nothing
_ROWS = 12  # heads of so many images at most in one product: what it makes stays in the cache


def trains_in_blocks(q: Tensor, k: Tensor) -> bool:
    """Tells whether `attend_in_blocks` is for these (B, H, T, D), and may be used here."""
    is_served = q.device.type == "cpu" and q.dtype == k.dtype == torch.bfloat16
    is_served = is_served and not has_tiles()  # with which the fused kernel is the faster one
    is_long = q.shape == k.shape and q.shape[2] >= 2 * _BLOCK
    return is_served and is_long and is_trained_on_cpu(q, k) and takes_fused_kernels()


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Computes causal attention of all positions (B, H, T, D), whose gradients are of the first
    order.

    Scores and weights are rounded to the dtype, as transformers' are, where the fused kernel keeps
    float32; the gradients' error is 1.3 times that of the kernel's. The weights are kept for the
    backward pass, T * T / 2 numbers for each head.
    """
    return _InBlocks.apply(q, k, v, scale)  # type: ignore[no-any-return,no-untyped-call]


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        shape = q.shape
        q, k, v = (_in_groups(x, shape) for x in (q * scale, k, v))
        by_channel = k.mT.contiguous()  # products with a part of it as it lies take twice the time
        later = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool, device="cpu").triu(1)
        bias = torch.zeros_like(later, dtype=q.dtype).masked_fill_(later, -torch.inf)
        result, kept = torch.empty_like(q), []
        for group, start, end in _blocks(q):
            scores = torch.bmm(q[group, :, start:end], by_channel[group, :, :, :end])
            scores[..., start:] += bias[: end - start, : end - start]
            weights = scores.softmax(dim=-1)
            torch.bmm(weights, v[group, :, :end], out=result[group, :, start:end])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, result, *kept)
        ctx.scale, ctx.shape = scale, shape
        return result.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Goes by the chain rule: of weights P and their gradient dP, the scores' is
        P * (dP - sum(P * dP)), where the sum over keys is that of result * its gradient."""
        q, k, v, result, *kept = ctx.saved_tensors
        gradient = _in_groups(gradient, ctx.shape)
        by_channel = v.mT.contiguous()
        of_q = torch.empty_like(q)
        # Sums over blocks, in float32.
        of_k, of_v = (torch.zeros_like(q, dtype=torch.float32) for _ in range(2))
        sums = (gradient * result).sum(dim=-1, keepdim=True)
        for (group, start, end), weights in zip(_blocks(q), kept, strict=True):
            own = gradient[group, :, start:end]
            of_scores = torch.bmm(own, by_channel[group, :, :, :end])
            of_scores -= sums[group, :, start:end]
            of_scores *= weights
            torch.bmm(of_scores, k[group, :, :end], out=of_q[group, :, start:end])
            of_k[group, :, :end] += torch.bmm(of_scores.mT, q[group, :, start:end])
            of_v[group, :, :end] += torch.bmm(weights.mT, own)
        found = (of_q.mul_(ctx.scale), of_k.to(q.dtype), of_v.to(q.dtype))
        return (*(x.view(ctx.shape) for x in found), None)


def _in_groups(x: Tensor, shape: torch.Size) -> Tensor:
    """Views or copies (B, H, T, D) as (G, R, T, D), R heads of one or several images."""
    images, heads = shape[:2]
    most = max(_ROWS // heads, 1)
    n_each = max(n for n in range(1, most + 1) if images % n == 0)
    return x.reshape(-1, n_each * heads, *shape[2:])


def _blocks(q: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yields each group with the ends of each block of queries."""
    for group in range(len(q)):
        for start in range(0, q.shape[2], _BLOCK):
            yield group, start, min(start + _BLOCK, q.shape[2])
