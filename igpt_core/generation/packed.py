"""Models whose matrix products read weights that are prepacked in oneDNN's own layout."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from igpt_core.model.layers import MLP, Conv1D

Model = TypeVar("Model", bound=nn.Module)

# Of torch.ops.mkldnn. They are not documented; torch's own compiler emits calls of them.
OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")


# The width of an MLP is brought to a multiple of this. torch computes activations in steps of two
# vector registers, 32 numbers of float32 and 64 of bfloat16, and what is left over at the end, of
# all or of each of two threads' halves, one by one and rounded otherwise: in the last row alone.
WIDTH_UNIT = 128


class PrepackedLinear(nn.Module):
    """x @ weight + bias for inference on a CPU, the weight prepacked when the module is made."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Prepacks a weight (out, in), of any strides; bias: (out,)."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self.weight, self.bias, "none", [], ""
        )


def prepacked(model: Model) -> Model:
    """Prepacks a model's weights for inference on a CPU.

    Returns the model itself where that does not apply, is done already, or would pass over what
    the user has put into the model: hooks of a forward, or modules of other classes.

    A product with few rows costs as much as reading its weights. torch brings them into oneDNN's
    layout at every call, which doubles that; here it is done once. It also makes a row's result
    independent of its place among the rows, with one thread or two: MKL's float32 products are not
    for every number of rows, nor activations for every width of an MLP.

    The result shares all other parameters with the model and does not follow a later change of
    its weights.
    """
    if not any(isinstance(module, Conv1D | nn.Linear) for module in model.modules()):
        return model  # prepacked already, or nothing to prepack
    if _is_customized(model) or not _onednn_serves(next(model.parameters())):
        return model
    shared = {id(parameter): parameter for parameter in model.parameters()}
    result = copy.deepcopy(model, shared)  # a memo that holds the parameters: they are not copied
    for parent in list(result.modules()):
        if isinstance(parent, MLP):
            _prepack_mlp(parent)
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                setattr(parent, name, PrepackedLinear(child.weight.t(), child.bias))
            elif isinstance(child, nn.Linear):
                setattr(parent, name, PrepackedLinear(child.weight, child.bias))
    return result


def _prepack_mlp(mlp: MLP) -> None:
    """Replaces the projections, between them as many more channels as WIDTH_UNIT asks for: zeros,
    which all activations keep and the second projection adds nothing for."""
    into, out = mlp.c_fc, mlp.c_proj
    more = -len(into.bias) % WIDTH_UNIT
    into_weight, into_bias = F.pad(into.weight.t(), (0, 0, 0, more)), F.pad(into.bias, (0, more))
    mlp.c_fc = PrepackedLinear(into_weight, into_bias)  # type: ignore[assignment]
    mlp.c_proj = PrepackedLinear(F.pad(out.weight.t(), (0, more)), out.bias)  # type: ignore[assignment]


def _is_customized(model: nn.Module) -> bool:
    """Tells whether calling a module of the model may do other than its class here or in torch.nn
    does. Parametrizations and compiled modules have classes of their own."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)  # replaced, as some libraries do in place of a hook
        or not type(module).__module__.startswith(("torch.nn.modules.", "igpt_core."))
        for module in model.modules()
    )


def _onednn_serves(weight: Tensor) -> bool:
    """Tells whether this build of torch and this processor have the prepacked product."""
    if (
        weight.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        or not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)
    ):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
