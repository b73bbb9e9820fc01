"""Models for inference: blocks that do little beside their products, which on a CPU read weights
prepacked in oneDNN's own layout."""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from igpt_core.model.layers import (
    ACTIVATIONS,
    MLP,
    NO_ATTENTION_OPTIONS,
    Activation,
    AttentionOptions,
    Block,
    CacheSlots,
    Conv1D,
    Encoder,
)

Model = TypeVar("Model", bound=nn.Module)

# Of torch.ops.mkldnn. They are not documented; torch's own compiler emits calls of them.
OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")


class _PostOperation(NamedTuple):
    """What a product does to its result, by oneDNN's names."""

    name: str = "none"
    algorithm: str = ""
    # The activation is this function of x * scale, divided by scale.
    scale: float = 1.0


_NOTHING = _PostOperation()
# By the names of ACTIVATIONS.
_POST_OPERATIONS = {
    "quick_gelu": _PostOperation("swish", scale=1.702),
    **dict.fromkeys(("gelu", "gelu_python"), _PostOperation("gelu", "none")),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"),
        _PostOperation("gelu", "tanh"),
    ),
    "relu": _PostOperation("relu"),
    "silu": _PostOperation("swish"),
    "swish": _PostOperation("swish"),
    "tanh": _PostOperation("tanh"),
}


class PrepackedLinear(nn.Module):
    """x @ weight + bias for inference on a CPU, the weight prepacked when the module is made."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, then: _PostOperation = _NOTHING
    ) -> None:
        """Prepacks a weight (out, in), of any strides; bias: (out,). `then`: see `forward`."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()
        self._then = then

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Multiplies x (..., in); then applies the operation, or adds a tensor (..., out)."""
        if added is not None:
            product = torch.ops.mkldnn._linear_pointwise.binary
            return product(x, added, self.weight, self.bias, "add")  # type: ignore[no-any-return]
        name, algorithm, _ = self._then
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self.weight, self.bias, name, [], algorithm
        )


# By the names of post-operations and their algorithms.
_ACTIVATIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("swish", ""): F.silu,
    ("gelu", "none"): F.gelu,
    ("gelu", "tanh"): partial(F.gelu, approximate="tanh"),
    ("relu", ""): F.relu,
    ("tanh", ""): torch.tanh,
}


class FoldedLinear(nn.Module):
    """What PrepackedLinear is, of torch's operations, for GPUs: of these an activation whose scale
    is in the weights is one that reads and writes its input once."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, then: _PostOperation = _NOTHING
    ) -> None:
        super().__init__()
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self._activation = _ACTIVATIONS.get((then.name, then.algorithm))

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        product = F.linear(x, self.weight, self.bias)
        if added is not None:
            return added + product
        return product if self._activation is None else self._activation(product)


def _linear(
    weight: Tensor, bias: Tensor | None, then: _PostOperation = _NOTHING
) -> PrepackedLinear | FoldedLinear:
    """Makes the product of the weight's device."""
    return (FoldedLinear if weight.is_cuda else PrepackedLinear)(weight, bias, then)


class PackedBlock(nn.Module):
    """A Block for inference: four products, which take the norms' gains into their weights, and
    activation and residual into themselves."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        then = _POST_OPERATIONS[mlp.activation_function]
        self.heads, self.attn_dropout = attention.heads, attention.attn_dropout
        self.ln_1 = block.ln_1  # which is asked for by itself, for features
        self.norm = _Norm(len(block.ln_1.weight), block.ln_1.eps)
        self.into_heads = _packed(attention.c_attn, gain=block.ln_1.weight)
        self.out_of_heads = _packed(attention.c_proj)
        self.into_mlp = _packed(mlp.c_fc, gain=block.ln_2.weight, scale=then.scale, then=then)
        self.out_of_mlp = _packed(mlp.c_proj, scale=1 / then.scale)
        if hasattr(block, "crossattention"):
            self.crossattention = block.crossattention
            self.ln_cross_attn = block.ln_cross_attn

    def forward(
        self,
        x: Tensor,
        cache_slots: CacheSlots | None = None,
        mask: Tensor | None = None,
        options: AttentionOptions = NO_ATTENTION_OPTIONS,
        encoder: Encoder | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes what `Block` does."""
        together = self.into_heads(self.norm(x))
        y, weights = self.heads.of_all(together, cache_slots, mask, options, self.attn_dropout)
        x = self.out_of_heads(y, x)
        if encoder is not None:
            x = x + self.crossattention(self.ln_cross_attn(x), encoder)[0]
        return self.out_of_mlp(self.into_mlp(self.norm(x)), x), weights


def _packed(
    projection: Conv1D,
    *,
    gain: Tensor | None = None,
    scale: float = 1.0,
    then: _PostOperation = _NOTHING,
) -> PrepackedLinear | FoldedLinear:
    """Packs (x * gain * scale) @ weight + bias. What an activation asks for, a scale of all that
    it gets, is one of the bias too."""
    weight, bias = projection.weight.t(), projection.bias
    factors = scale if gain is None else gain.float() * scale
    if gain is not None or scale != 1:  # in float32, rounded once
        weight = (weight.float() * factors).to(weight.dtype)
    return _linear(weight, (bias.float() * then.scale).to(bias.dtype), then)


class _Norm(nn.Module):
    """LayerNorm without its gain, for inference, in fewer operations: on a CPU torch takes rms_norm
    apart into ten and more."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self._size = size
        self._epsilon = torch.tensor([epsilon], dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return F.rms_norm(x, (self._size,), eps=float(self._epsilon))
        wide = x.float()
        lengths = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        factors = torch.addcmul(self._epsilon, lengths, lengths, value=1 / self._size).rsqrt_()
        return (wide * factors).to(x.dtype)


def prepacked(model: Model) -> Model:
    """Packs a model's weights for inference.

    Returns the model itself where that does not apply, is done already, or would pass over what
    the user has put into the model: hooks of a forward, or modules of other classes; and one in
    training, whose dropout is left out here.

    On a CPU a product with few rows costs as much as reading its weights. torch brings them into
    oneDNN's layout at every call, which doubles that; here it is done once. It also makes a row's
    result independent of its place among the rows, with one thread or two: MKL's float32 products
    are not for every number of rows, nor torch's activations for every width.

    The result shares all other parameters with the model and does not follow a later change of
    its weights.
    """
    if not any(isinstance(module, Conv1D | nn.Linear) for module in model.modules()):
        return model  # prepacked already, or nothing to prepack
    weights = list(model.parameters())
    is_of_one_dtype = len({weight.dtype for weight in weights}) == 1
    if is_customized(model) or not is_of_one_dtype or not _is_served(weights[0]):
        return model
    result = _copied(model, {})
    _pack_below(result)
    return result.eval()  # as all modules of the model are, and new ones are not


def _copied(module: Model, copies: dict[int, nn.Module]) -> Model:
    """Copies a tree of modules, and nothing that they hold: locks and generators have no copies,
    and parameters are to be the same."""
    if id(module) not in copies:
        copies[id(module)] = result = copy.copy(module)
        result._modules = {
            name: None if child is None else _copied(child, copies)
            for name, child in module._modules.items()
        }
    return copies[id(module)]  # type: ignore[return-value]


def _pack_below(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        if isinstance(child, Block):
            setattr(parent, name, packed := PackedBlock(child))
            _pack_below(packed)  # attention to an encoder
        elif isinstance(child, Conv1D):
            setattr(parent, name, _linear(child.weight.t(), child.bias))
        elif isinstance(child, nn.Linear):
            setattr(parent, name, _linear(child.weight, child.bias))
        else:
            _pack_below(child)


def is_customized(model: nn.Module) -> bool:
    """Tells whether calling a module of the model may do other than its class here or in torch.nn
    does for inference. Parametrizations and compiled modules have classes of their own."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)  # replaced, as some libraries do in place of a hook
        or (isinstance(module, MLP) and not _is_named(module.act, module.activation_function))
        or not type(module).__module__.startswith(("torch.nn.modules.", "igpt_core."))
        for module in model.modules()
    )


def _is_named(activation: nn.Module, name: str) -> bool:
    """Tells whether an MLP's activation is the one whose name it has."""
    return type(activation) is Activation and activation.function is ACTIVATIONS[name]


def _is_served(weight: Tensor) -> bool:
    """Tells whether this build of torch and this device have the packed product."""
    if weight.is_cuda:
        return weight.dtype in (torch.bfloat16, torch.float32)
    if (
        weight.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")  # which does not know these products
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        or not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)
    ):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
