"""What callers ask of any model in transformers: its parts, its size, changes of its shape."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from igpt_core.errors import refuse_unserved
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.passing import PassesAs


class ModelMethods(PassesAs, nn.Module):
    """Methods and attributes of the model classes, by the names that transformers has."""

    passes_as = ("transformers.modeling_utils", "PreTrainedModel")
    config: ImageGPTConfig
    config_class: ClassVar[type[ImageGPTConfig]] = ImageGPTConfig
    base_model_prefix: ClassVar[str] = "transformer"
    main_input_name: ClassVar[str] = "input_ids"
    framework: ClassVar[str] = "pt"
    is_parallelizable: ClassVar[bool] = False
    supports_gradient_checkpointing: ClassVar[bool] = True
    # Of whole modules that a placement on several devices does not split, and of weights that a
    # trainer leaves out of its files.
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _keys_to_ignore_on_save: ClassVar[list[str] | None] = None

    name_or_path = ""  # where it comes from
    generation_config: Any  # of classes with `generate`, see there
    _gradient_hook: Any = None  # see `enable_input_require_grads`

    def __init__(self, config: Any = None) -> None:
        """Keeps a configuration, one of transformers as one of here."""
        super().__init__()
        if config is not None:
            is_ours = isinstance(config, ImageGPTConfig)
            self.config = config if is_ours else ImageGPTConfig.from_dict(config.to_dict())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @classmethod
    def from_config(cls, config: ImageGPTConfig, **fields: Any) -> Self:
        """Makes a model with new weights, as `cls(config)`, with other values of some fields."""
        return cls(config.with_fields(**fields) if fields else config)

    @property
    def base_model(self) -> Any:
        """Returns the bare transformer, itself where there is no head."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def num_labels(self) -> int:
        """Counts the classes of a classifier."""
        return self.config.num_labels

    def post_init(self) -> None:
        """Ties what the configuration ties; weights are drawn as modules are made."""
        self.tie_weights()

    @classmethod
    def can_generate(cls) -> bool:
        """Tells whether it has `generate`."""
        return hasattr(cls, "generate")

    def get_input_embeddings(self) -> nn.Module:
        """Returns the colors' embedding, whose last row is the start token's."""
        return self.base_model.wte  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.wte = value

    def get_output_embeddings(self) -> nn.Module | None:
        """Returns the layer that gives the colors' logits; None where there is none."""
        return self._modules.get("lm_head")

    def get_position_embeddings(self) -> nn.Module:
        """Returns the positions' embedding."""
        return self.base_model.wpe  # type: ignore[no-any-return]

    def set_output_embeddings(self, value: nn.Module) -> None:
        if self.get_output_embeddings() is None:
            raise ValueError(f"{type(self).__name__} has no layer that gives colors' logits")
        self._modules["lm_head"] = value

    def tie_weights(self) -> None:
        """Makes one parameter of those that the configuration ties: none where there is no head."""

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Counts the numbers in the weights, tied ones once.

        Args:
            only_trainable: leave out those that take no gradient.
            exclude_embeddings: leave out the embeddings of colors and positions.
        """
        embeddings = [m for m in self.modules() if isinstance(m, nn.Embedding)]
        left_out = {id(m.weight) for m in embeddings} if exclude_embeddings else set()
        return sum(
            weight.numel()
            for weight in self.parameters()
            if id(weight) not in left_out and (weight.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Counts the bytes of the weights, tied ones once, and of the buffers if they are to be."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in held)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Changes how attention is computed; see `ImageGPTConfig.attn_implementation`."""
        self.config.attn_implementation = attn_implementation
        self.base_model.config.attn_implementation = attn_implementation

    def enable_input_require_grads(self) -> None:
        """Lets the embeddings' results take gradients, as adapters on frozen weights need where
        gradient checkpointing is on."""
        embeddings = self.get_input_embeddings()
        self._gradient_hook = embeddings.register_forward_hook(
            lambda _, __, output: output.requires_grad_(True)
        )

    def disable_input_require_grads(self) -> None:
        """Takes back what `enable_input_require_grads` did."""
        if self._gradient_hook is not None:
            self._gradient_hook.remove()
            self._gradient_hook = None

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        """Does what `gradient_checkpointing_enable` does, of which it is the new name."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **arguments)

    def activation_checkpointing_disable(self) -> None:
        self.gradient_checkpointing_disable()

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        **arguments: Any,
    ) -> None:
        """Keeps no activations of blocks in training: the backward pass computes them again.

        Args:
            every_n_layers: of so many blocks it is the first.
            arguments: of transformers, `offload`, which is not there.
            gradient_checkpointing_kwargs: of torch.utils.checkpoint; use_reentrant is false unless
                given.
        """
        refuse_unserved("gradient_checkpointing_enable", arguments, {"offload": (None, False)}, {})
        if arguments:
            name = next(iter(arguments))
            raise TypeError(f"gradient_checkpointing_enable: there is no argument {name!r}")
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        self.base_model.checkpointing = options
        self.base_model.checkpoint_every = every_n_layers

    def gradient_checkpointing_disable(self) -> None:
        self.base_model.checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.base_model.checkpointing is not None

    @property
    def is_activation_checkpointing(self) -> bool:
        """Returns the same, by the name that transformers 5 has for it."""
        return self.is_gradient_checkpointing

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Module:
        """Changes the number of tokens, the start token among them, which stays the last; returns
        the embedding.

        New colors come before the start token, their weights drawn as those of a new model are. A
        head that gives colors' logits gets rows for them too; transformers gives it one more, for
        the start token, and then cannot load what it has saved.
        """
        old = self.config.vocab_size
        size = old if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size < 2:
            raise ValueError(f"expected 2 tokens or more, a color and the start, found {size}")
        base, head = self.base_model, self.get_output_embeddings()
        if size != old:
            base.wte = self._resized(base.wte, size, last=True)
            self.config.vocab_size = base.config.vocab_size = size
            if head is not None and not self.config.tie_word_embeddings:
                self.set_output_embeddings(self._resized(head, size - 1, last=False))
            self.tie_weights()
        return base.wte  # type: ignore[no-any-return]

    def _resized(self, layer: nn.Module, size: int, *, last: bool) -> nn.Module:
        """Copies a layer with so many rows of weights; `last`: the last row stays the last."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        rows = weight.new_empty(size, *weight.shape[1:])
        rows.normal_(std=self.config.initializer_range)
        kept = min(size, len(weight)) - last
        rows[:kept] = weight[:kept]
        if last:
            rows[-1] = weight[-1]
        resized = copy.copy(layer)
        resized._parameters = dict(layer._parameters)
        resized.weight = nn.Parameter(rows, requires_grad=weight.requires_grad)
        if isinstance(resized, nn.Embedding):
            resized.num_embeddings = size
        elif isinstance(resized, nn.Linear):
            resized.out_features = size
        return resized

    @torch.no_grad()
    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Takes attention heads out: what they add to the residual stream is zero from now on.

        The weights keep their shapes, so that folders and caches stay as they are.

        Args:
            heads_to_prune: numbers of heads by those of their layers.

        Raises ValueError for a layer or a head that is not there.
        """
        n_layer, n_head, size = (
            self.config.n_layer,
            self.config.n_head,
            self.config.head_size,
        )
        for layer, heads in heads_to_prune.items():
            for head in heads:
                if not (0 <= layer < n_layer and 0 <= head < n_head):
                    raise ValueError(
                        f"expected layers below {n_layer} and heads below {n_head}, found layer "
                        f"{layer} and head {head}"
                    )
                rows = self.base_model.h[layer].attn.c_proj.weight
                rows[head * size : (head + 1) * size] = 0

    def init_weights(self) -> None:
        """Draws all weights anew, as those of a new model are."""
        fresh = type(self)(self.config)
        with torch.no_grad():
            for mine, drawn in zip(self.parameters(), fresh.parameters(), strict=True):
                mine.copy_(drawn)
