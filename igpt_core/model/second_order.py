"""Gradients of gradients, which fused attention kernels do not have: the line that says so."""

from typing import Any

import torch
from torch import Tensor

from igpt_core.model.tracing import is_traced


class _Identity(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps nothing."""


class _SecondOrder(_Identity):
    """The identity, whose gradient there is not."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError(
            "expected gradients of the first order: the fused kernel of attention has no others; "
            "next: attn_implementation='eager' for the model, or torch.nn.attention.sdpa_kernel("
            "SDPBackend.MATH) around the forward pass"
        )


class _FirstOrder(_Identity):
    """The identity, whose gradient has no gradient."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return _SecondOrder.apply(gradient) if gradient.requires_grad else gradient  # type: ignore[no-untyped-call]


def takes_fused_kernels() -> bool:
    """Tells whether callers have left attention a kernel whose gradients have no gradients."""
    cuda = torch.backends.cuda
    return bool(cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled())  # type: ignore[no-untyped-call]


def of_first_order(x: Tensor) -> Tensor:
    """Returns what goes into a fused kernel, so that a gradient of its gradient fails with a line
    that names the way round; x itself where there is none to fail."""
    # What follows the operations cannot follow these.
    if is_traced() or not (torch.is_grad_enabled() and x.requires_grad):
        return x
    if not takes_fused_kernels():
        return x
    return _FirstOrder.apply(x)  # type: ignore[no-any-return, no-untyped-call]
