"""The parts of a block: projections, norm, attention to the positions and to an encoder, MLP.

Axes as in transformer.py. Parameter names, shapes and order are those of the published checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igpt_core.model.attention import attend, attend_with_weights
from igpt_core.model.attention_inputs import Prefix, Scales
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.passing import PassesAs
from igpt_core.model.training_functions import quick_gelu, rms_norm

# By transformers' names; ImageGPT was trained with quick_gelu.
_GELU_BY_TANH = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    **dict.fromkeys(("gelu", "gelu_python"), F.gelu),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"), _GELU_BY_TANH),
    "relu": F.relu,
    **dict.fromkeys(("silu", "swish"), F.silu),
    "tanh": torch.tanh,
}


class Activation(nn.Module):
    """One of ACTIVATIONS as a module, which callers hook or put another in the place of."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Conv1D(PassesAs, nn.Module):
    """x @ weight + bias; weight (in, out), the transposed layout of the checkpoints."""

    passes_as = ("transformers.pytorch_utils", "Conv1D")

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.nx, self.nf = n_in, n_out  # transformers' names
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class LayerNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight: no mean is taken away and there is no bias."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True)
class CacheSlots:
    """Where new positions' keys and values go in a cache, and how much of it they attend to."""

    cache: KVCache
    span: int  # the first positions of the cache
    index: Tensor | None = None  # (T,) or (B, T) int64; None: behind those that are filled


@dataclass(frozen=True)
class AttentionOptions:
    """What callers of the model classes can ask of attention; decoding asks for none of it.

    Attributes:
        padding: (B, Tk) boolean, true for keys that no query may see.
        head_mask: (L, H) factors of the heads' attention weights.
        weights: where each layer appends its attention weights (B, H, Tq, Tk).
        plain: no fused kernel is used, whether weights are asked for or not.
    """

    padding: Tensor | None = None
    head_mask: Tensor | None = None
    weights: list[Tensor] | None = None
    plain: bool = False


@dataclass(frozen=True)
class Encoder:
    """What cross-attention attends to."""

    states: Tensor  # (B, S, C)
    options: AttentionOptions


NO_ATTENTION_OPTIONS = AttentionOptions()


class Attention(nn.Module):
    """Attention of each position to itself and those before it."""

    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.heads = Heads(config, layer)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.embed_dim = self.split_size = config.n_embd  # transformers' names
        self.num_heads, self.head_dim, self.layer_idx = config.n_head, config.head_size, layer
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        cache_slots: CacheSlots | None = None,
        mask: Tensor | None = None,
        options: AttentionOptions = NO_ATTENTION_OPTIONS,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what is added to the residual stream, (B, T, C), and the weights, None where a
        fused kernel computes: a tuple, as hooks on transformers' attention get."""
        qkv = self.c_attn(hidden_states)
        y, weights = self.heads.of_all(qkv, cache_slots, mask, options, self.attn_dropout)
        return self.resid_dropout(self.c_proj(y)), weights


class CrossAttention(nn.Module):
    """Attention of each position to all states of an encoder."""

    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = Conv1D(config.n_embd, 2 * config.n_embd)
        self.q_attn = Conv1D(config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.heads = Heads(config, layer)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.embed_dim, self.num_heads = config.n_embd, config.n_head  # transformers' names
        self.head_dim, self.layer_idx = config.head_size, layer
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
        """Returns what `Attention` does."""
        (q,) = self.heads.split(self.q_attn(x), 1)
        k, v = self.heads.split(self.c_attn(encoder.states), 2)
        all_seen = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device)
        y, weights = self.heads(q, k, v, all_seen, encoder.options, self.attn_dropout)
        return self.resid_dropout(self.c_proj(y)), weights


class Heads(nn.Module):
    """What both kinds of attention share: channels split into heads, attention, heads merged."""

    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def split(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        """Splits x (B, T, n * C) into n tensors (B, H, T, D)."""
        batch, positions, width = x.shape
        by_head = x.view(batch, positions, n, self.n_head, width // n // self.n_head)
        return by_head.permute(2, 0, 3, 1, 4).unbind()

    def of_all(
        self,
        x: Tensor,
        cache_slots: CacheSlots | None,
        mask: Tensor | None,
        options: AttentionOptions,
        dropout: nn.Module,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends with queries, keys and values (B, T, 3 * C) to these positions and, with a cache,
        to those that it holds; returns what `forward` does."""
        q, k, v = self.split(x, 3)
        if cache_slots is None:
            return self(q, k, v, mask, options, dropout)  # type: ignore[no-any-return]
        cache, index, span = cache_slots.cache, cache_slots.index, cache_slots.span
        held = cache.write(self.layer, k, v, positions=index, span=span)
        # Where all is new, k and v are the same numbers, and gradients need no cache.
        k, v = held if span > k.shape[2] else (k, v)
        starts, scales = None, cache.scales[self.layer]
        # A forward that computes in another dtype than the weights have, as accelerate makes it.
        q = q if scales else q.to(k.dtype)
        if cache.by_start and index is not None:
            starts = index[..., 0].expand(len(q))
        prefix = cache.prefixes[self.layer]
        return self(q, k, v, mask, options, dropout, prefix, starts, scales)  # type: ignore[no-any-return]

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        options: AttentionOptions,
        dropout: nn.Module,
        prefix: Prefix | None = None,
        starts: Tensor | None = None,
        scales: Scales | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends with each head and puts their outputs side by side, (B, T, C); returns them with
        the weights (B, H, Tq, Tk), None where a fused kernel computes."""
        seen = {"mask": mask, "padding": options.padding}
        head_mask = options.head_mask
        factors = None if head_mask is None else head_mask[self.layer].view(1, -1, 1, 1)
        weights = None
        if not (options.weights is not None or options.plain or _is_custom(dropout)):
            y = attend(
                q,
                k,
                v,
                **seen,
                scale=self.scale,
                # Whose share and mode callers change by themselves.
                dropout=dropout.p if dropout.training else 0.0,  # type: ignore[arg-type]
                prefix=prefix,
                starts=starts,
                scales=scales,
            )
            if factors is not None:
                y = y * factors  # a factor of all weights of a head is one of their sum
        else:
            k, v = (k, v) if prefix is None else prefix.before(k, v)
            y, weights = attend_with_weights(
                q, k, v, **seen, scale=self.scale, dropout=dropout, factors=factors
            )
            if options.weights is not None:
                options.weights.append(weights)
        return y.transpose(1, 2).flatten(2), weights


def _is_custom(dropout: nn.Module) -> bool:
    """Tells whether it does something else than a kernel does by its share."""
    hooked = dropout._forward_hooks or dropout._forward_pre_hooks or "forward" in vars(dropout)
    return type(dropout) is not nn.Dropout or bool(hooked)


class MLP(nn.Module):
    """Two projections with an activation between them, on each position by itself."""

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        if config.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"config: activation_function must be one of {list(ACTIVATIONS)}, found "
                f"{config.activation_function!r}"
            )
        self.activation_function = config.activation_function
        self.act = Activation(ACTIVATIONS[config.activation_function])
        self.c_fc = Conv1D(config.n_embd, config.inner_size)
        self.c_proj = Conv1D(config.inner_size, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention and an MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        if config.add_cross_attention:
            self.crossattention = CrossAttention(config, layer)
            self.ln_cross_attn = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        cache_slots: CacheSlots | None = None,
        mask: Tensor | None = None,
        options: AttentionOptions = NO_ATTENTION_OPTIONS,
        encoder: Encoder | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Adds to hidden states (B, T, C) what attention and the MLP make of them. Returns them
        with the weights of attention, None where a fused kernel computes: a tuple, as hooks on
        transformers' blocks get.

        Args:
            cache_slots: where keys and values go, if they are to be cached.
            mask: as in `attend`, like the padding of `options`.
            encoder: for the cross-attention of a configuration that adds it; passed over without.
        """
        y, weights = self.attn(self.ln_1(hidden_states), cache_slots, mask, options)
        x = hidden_states + y
        if encoder is not None:
            x = x + self.crossattention(self.ln_cross_attn(x), encoder)[0]
        return x + self.mlp(self.ln_2(x)), weights
