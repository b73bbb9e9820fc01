"""The transformer, and the classes of the Hugging Face page that put a head on it.

Axes: B batch, T positions, C channels (n_embd), H heads, D head size, V colours, L layers.
Parameter names, shapes and order are those of the published Hugging Face checkpoints.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igpt_core.attention import attend
from igpt_core.checkpoint import PreTrained
from igpt_core.config import VARIANTS, ImageGPTConfig
from igpt_core.kv_cache import KVCache


class Output:
    """Fields by name; those that are not None also by key and by position, as in transformers."""

    def keys(self) -> list[str]:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return [name for name in names if getattr(self, name) is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            return dict(zip(self.keys(), self.to_tuple(), strict=True))[key]
        return self.to_tuple()[key]


@dataclass
class ModelOutput(Output):
    """last_hidden_state (B, T, C); hidden_states: L + 1 of them, 0 the embedding, L the normed."""

    last_hidden_state: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class CausalOutput(Output):
    """loss () in nats, logits (B, T, V) of the next pixel's colour."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class ClassifierOutput(Output):
    """loss (), logits (B, num_labels)."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Conv1D(nn.Module):
    """x @ weight + bias; weight (in, out), the transposed layout of the checkpoints."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
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
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Slots:
    """Where new positions go in a cache, and how many of its positions they may look at."""

    cache: KVCache
    index: Tensor  # (T,) int64
    span: int


class Attention(nn.Module):
    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.attn_pdrop
        self.scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, slots: Slots | None, mask: Tensor | None) -> Tensor:
        batch, n_new, width = x.shape
        heads = self.c_attn(x).view(batch, n_new, 3, self.n_head, width // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D)
        if slots is not None:
            k, v = slots.cache.write(self.layer, k, v, slots=slots.index, span=slots.span)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, mask=mask, scale=self.scale, dropout=dropout)
        y = y.transpose(1, 2).reshape(batch, n_new, width)
        return self.resid_dropout(self.c_proj(y))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        if config.activation_function != "quick_gelu":
            raise ValueError(
                "config: activation_function must be quick_gelu, the one ImageGPT was trained "
                f"with, found {config.activation_function!r}"
            )
        self.c_fc = Conv1D(config.n_embd, config.inner_size)
        self.c_proj = Conv1D(config.inner_size, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        h = h * torch.sigmoid(1.702 * h)
        return self.dropout(self.c_proj(h))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: ImageGPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, slots: Slots | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), slots, mask)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class ImageGPTModel(PreTrained):
    """The bare transformer: tokens or embeddings in, hidden states out."""

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        _initialise(self, config)

    def hidden(
        self, tokens: Tensor, positions: Tensor, *, slots: Slots, mask: Tensor | None
    ) -> Tensor:
        """The last hidden state (B, T, C) of new positions whose keys go into a cache.

        Args:
            tokens: (B, T) int64.
            positions: (T,) int64.
            slots: where the cache takes them.
            mask: as in `attend`.
        """
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x, slots, mask)
        return self.ln_f(x)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Hidden states of every position, each seeing itself and those before it.

        Args:
            input_ids: (B, T) int64 in [0, vocab_size), T <= n_positions. Either these or
            inputs_embeds: (B, T, C) in place of the colours' embedding.
            position_ids: (B, T) or (1, T) int64; 0 ... T-1 unless given.
            output_hidden_states: return the L + 1 hidden states as well; what the configuration
                says, else false, unless given.
            return_dict: a tuple of the fields that are not None where false; what the
                configuration says, else true, unless given.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds; more than n_positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and only one of them")
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if x.shape[1] > self.config.n_positions:
            raise ValueError(
                f"the model has {self.config.n_positions} positions, found {x.shape[1]}"
            )
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)
        x = self.drop(x + self.wpe(position_ids))
        keep = _choice(output_hidden_states, self.config, "output_hidden_states", default=False)
        states = []  # of each layer (B, T, C): too large to keep unasked
        for block in self.h:
            if keep:
                states.append(x)
            x = block(x, None, None)
        x = self.ln_f(x)
        output = ModelOutput(last_hidden_state=x, hidden_states=(*states, x) if keep else None)
        by_name = _choice(return_dict, self.config, "return_dict", default=True)
        return output if by_name else output.to_tuple()


class ImageGPTForCausalImageModeling(PreTrained):
    """The transformer with a head that gives the next pixel's colour."""

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        if config.tie_word_embeddings:
            raise ValueError(
                "config: tie_word_embeddings must be false, the head has no row for the start token"
            )
        self.config = config
        self.transformer = ImageGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.n_colors, bias=False)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalOutput | tuple[Any, ...]:
        """Logits of the next pixel at every position; see `ImageGPTModel.forward`.

        Args:
            labels: (B, T) int64 colours; shifted here, so that position i is held against
                labels[:, i + 1]. The loss is the mean in nats over those that are not -100.
        """
        hidden = self.transformer(
            input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(hidden.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        output = CausalOutput(loss=loss, logits=logits, hidden_states=hidden.hidden_states)
        by_name = _choice(return_dict, self.config, "return_dict", default=True)
        return output if by_name else output.to_tuple()


class ImageGPTForImageClassification(PreTrained):
    """The transformer with a linear layer on the mean of its last hidden state over positions.

    It is fed the pixels alone, without a start token, as on the Hugging Face page.
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = ImageGPTModel(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        nn.init.normal_(self.score.weight, std=config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ClassifierOutput | tuple[Any, ...]:
        """Logits of the classes (B, num_labels); see `ImageGPTModel.forward`.

        Args:
            labels: (B,) int64 classes, for the cross entropy in nats; where num_labels is 1, (B,)
                floats, for the mean squared error.
        """
        hidden = self.transformer(
            input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.score(hidden.last_hidden_state.mean(dim=1))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(1), labels.to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        output = ClassifierOutput(loss=loss, logits=logits, hidden_states=hidden.hidden_states)
        by_name = _choice(return_dict, self.config, "return_dict", default=True)
        return output if by_name else output.to_tuple()


def _choice(given: bool | None, config: ImageGPTConfig, name: str, *, default: bool) -> bool:
    """An argument of `forward`; where not given, a field that the configuration may have."""
    return bool(getattr(config, name, default)) if given is None else given


def _initialise(model: ImageGPTModel, config: ImageGPTConfig) -> None:
    """Normal with initializer_range; projections into the residual scaled by 1/sqrt(2 L)."""
    for name, parameter in model.named_parameters():
        if name.endswith(("wte.weight", "wpe.weight", "c_attn.weight", "c_fc.weight")):
            nn.init.normal_(parameter, std=config.initializer_range)
        elif name.endswith("c_proj.weight"):
            nn.init.normal_(parameter, std=config.initializer_range / (2 * config.n_layer) ** 0.5)


# What `load_model` can put on the transformer.
HEADS: dict[str | None, type[PreTrained]] = {
    "causal": ImageGPTForCausalImageModeling,
    "classification": ImageGPTForImageClassification,
    None: ImageGPTModel,
}


@overload
def load_model(
    path_or_uri: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    head: Literal["causal"] = "causal",
    storage_options: Mapping[str, Any] | None = None,
) -> ImageGPTForCausalImageModeling: ...


@overload
def load_model(
    path_or_uri: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    head: Literal["classification"],
    storage_options: Mapping[str, Any] | None = None,
) -> ImageGPTForImageClassification: ...


@overload
def load_model(
    path_or_uri: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    head: None,
    storage_options: Mapping[str, Any] | None = None,
) -> ImageGPTModel: ...


def load_model(
    path_or_uri: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    head: Literal["causal", "classification"] | None = "causal",
    storage_options: Mapping[str, Any] | None = None,
) -> PreTrained:
    """The model of a folder with one of the heads in HEADS; see `PreTrained.from_pretrained`.

    Raises:
        ValueError: an unknown head. CheckpointError: a folder that does not hold the model.
    """
    if head not in HEADS:
        raise ValueError(f"expected head to be one of {list(HEADS)}, found {head!r}")
    return HEADS[head].from_pretrained(
        path_or_uri, device=device, dtype=dtype, storage_options=storage_options
    )


def random_model(variant: str, *, seed: int) -> ImageGPTForCausalImageModeling:
    """A model of a published size with random weights, float32 on the CPU, for benchmarks.

    The same seed gives the same weights; torch's global generator is left as it was.
    """
    if variant not in VARIANTS:
        raise ValueError(f"expected variant to be one of {list(VARIANTS)}, found {variant!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageGPTForCausalImageModeling(copy.deepcopy(VARIANTS[variant])).eval()
