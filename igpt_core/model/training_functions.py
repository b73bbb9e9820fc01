"""Norm and activation with gradients on a CPU, in fewer passes over memory than torch takes.

Each saves what it is given alone, so that gradients of any order are right.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from igpt_core.model.tracing import is_traced

_SLOPE = 1.702


def is_trained_on_cpu(*tensors: Tensor) -> bool:
    """Tells whether gradients of these are to be made by an autograd function of here: what follows
    the operations, or maps them, could not follow it."""
    if not torch.is_grad_enabled() or any(x.device.type != "cpu" for x in tensors):
        return False
    return any(x.requires_grad for x in tensors) and not (
        is_traced()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def quick_gelu(x: Tensor) -> Tensor:
    """Computes x * sigmoid(1.702 x)."""
    if is_trained_on_cpu(x):
        return _QuickGelu.apply(x)  # type: ignore[no-any-return,no-untyped-call]
    return x * torch.sigmoid(_SLOPE * x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Computes x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    if x.dtype == weight.dtype == torch.float32 and is_trained_on_cpu(x, weight):
        return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return,no-untyped-call]
    return F.rms_norm(x, weight.shape, weight, eps)


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x * _SLOPE).mul_(1 / _SLOPE)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The slope in front of silu takes the one behind it away."""
        (x,) = ctx.saved_tensors
        scaled = x * _SLOPE
        if torch.is_grad_enabled():  # torch's operation has no gradient itself
            share = torch.sigmoid(scaled)
            return gradient * share * (1 + scaled * (1 - share))  # type: ignore[no-any-return]
        return torch.ops.aten.silu_backward(gradient, scaled)  # type: ignore[no-any-return]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return (x * _inverse_root(x, eps)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n = x * r, of which r is the inverse root: the gradient g of n gives that of x,
        (g - n * mean(g * n)) * r."""
        x, weight = ctx.saved_tensors
        root = _inverse_root(x, ctx.eps)
        normed = x * root
        of_weight = (gradient * normed).reshape(-1, x.shape[-1]).sum(dim=0)
        of_normed = gradient * weight
        mean = (of_normed * normed).mean(dim=-1, keepdim=True)
        return torch.addcmul(of_normed, normed, mean, value=-1).mul_(root), of_weight, None


def _inverse_root(x: Tensor, eps: float) -> Tensor:
    """Computes 1 / sqrt(mean(x^2) + eps) of (..., C), as (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (norm.square() / x.shape[-1] + eps).rsqrt()  # type: ignore[no-any-return]
