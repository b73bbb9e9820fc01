"""ImageGPTModel: the transformer, from tokens to hidden states.

Axes: B batch, T positions, C channels (n_embd), H heads, D head size, V colors, L layers.
Parameter names, shapes and order are those of the published Hugging Face checkpoints.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from igpt_core.model.cache_methods import extended, held_by, is_cache_of_transformers
from igpt_core.model.checkpoint import ImageGPTPreTrainedModel
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.layers import AttentionOptions, Block, CacheSlots, Encoder, LayerNorm
from igpt_core.model.outputs import ModelOutput
from igpt_core.model.tracing import is_traced

Past = KVCache | Sequence[Sequence[Tensor]] | Any  # the latter a cache of transformers


class ImageGPTModel(ImageGPTPreTrainedModel):
    """The bare transformer: tokens or embeddings in, hidden states out."""

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        config = self.config
        self.checkpointing: dict[str, Any] | None = None  # options of torch.utils.checkpoint
        self.checkpoint_every = 1  # of so many blocks the first is run again
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        _initialize(self, config)

    def hidden(
        self, tokens: Tensor, positions: Tensor, *, cache_slots: CacheSlots, mask: Tensor | None
    ) -> Tensor:
        """Computes the last hidden state (B, T, C) of new positions whose keys go into a cache.

        Args:
            tokens: (B, T) int64.
            positions: (T,) int64, or (B, T) of each row its own.
            cache_slots: where their keys and values go.
            mask: as in `attend`.
        """
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x, cache_slots, mask)[0]
        return self.ln_f(x)  # type: ignore[no-any-return]

    def states(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yields the L + 1 hidden states (B, T, C) of `forward`, each computed when asked for.

        Args:
            tokens: (B, T) int64 in [0, vocab_size).

        Raises:
            ValueError: more than n_positions.
        """
        self._check_length(tokens.shape[1])
        x = self.drop(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])
        for block in self.h:
            yield x
            x = block(x)[0]
        yield self.ln_f(x)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Computes hidden states of every position, each seeing itself and those before it.

        Args:
            input_ids: (B, T) int64 in [0, vocab_size). Either these or inputs_embeds.
            past_key_values: P positions before these, as an earlier call returned them, or a pair
                of keys and values (B, H, P, D) per layer, or a DynamicCache of transformers 5.
                P + T <= n_positions. A cache is extended in place, unless use_cache is false: to
                go on from it twice, copy it (deepcopy).
            attention_mask: (B, P + T), zero or false for padding, which no position sees.
            token_type_ids: (B, T) int64 in [0, vocab_size): their embeddings are added.
            position_ids: (B, T) or (1, T) int64; P ... P + T - 1 unless given.
            head_mask: (H,) or (L, H) factors of the heads' attention weights; 0 takes a head out.
            inputs_embeds: (B, T, C) in place of the tokens' embeddings.
            encoder_hidden_states: (B, S, C) for the cross-attention of a configuration with
                add_cross_attention, which is passed over without them.
            encoder_attention_mask: (B, S), zero or false for padding.
            use_cache: return past_key_values; never while gradient checkpointing. This, like those
                that follow, is what the configuration says unless given.
            output_attentions: return the attention weights, computed without a fused kernel.
            output_hidden_states: return the L + 1 hidden states.
            return_dict: a tuple of the fields that are not None where false.
            pixel_values: the name of input_ids in old versions of transformers.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds; more than n_positions;
                shapes that do not fit together; an encoder without add_cross_attention.
        """
        config = self.config
        if pixel_values is not None:
            warnings.warn("pixel_values is an old name of input_ids", FutureWarning, stacklevel=2)
            if input_ids is not None:
                raise ValueError("pixel_values is an old name of input_ids: give only one of them")
            input_ids = pixel_values
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and only one of them")
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if x.ndim != 3:
            given = inputs_embeds if input_ids is None else input_ids
            raise ValueError(
                "expected input_ids (B, T) or inputs_embeds (B, T, C), found "
                f"{tuple(given.shape)}; next: .view(B, T) of them, as a batch of rows"  # type: ignore[union-attr]
            )
        use_cache = config.use_cache if use_cache is None else use_cache
        use_cache = use_cache and not self._is_checkpointing
        cache = self._cache(past_key_values, x, use_cache)
        n_new, n_past = x.shape[1], 0 if cache is None else cache.length
        positions = torch.arange(n_past, n_past + n_new, device=x.device)
        cache_slots = None
        if cache is not None:
            cache_slots = CacheSlots(cache, span=n_past + n_new)
        if output_attentions is None:
            output_attentions = config.output_attentions
        options = AttentionOptions(
            padding=_padding("attention_mask", attention_mask, (x.shape[0], n_past + n_new)),
            head_mask=self._head_mask(head_mask, x.dtype),
            weights=[] if output_attentions else None,
            plain=config._attn_implementation == "eager",
        )
        encoder = self._encoder(encoder_hidden_states, encoder_attention_mask, options)

        x = x + self.wpe(positions if position_ids is None else position_ids)
        if token_type_ids is not None:
            x = x + self.wte(token_type_ids)
        x = self.drop(x)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        states = []  # of each layer (B, T, C): too large to keep unasked
        for layer, block in enumerate(self.h):
            if output_hidden_states:
                states.append(x)
            again = self._is_checkpointing and layer % self.checkpoint_every == 0
            x = self._run(block, x, cache_slots, options, encoder, again=again)
        x = self.ln_f(x)
        output = ModelOutput(
            last_hidden_state=x,
            past_key_values=_extended(past_key_values, cache, n_new) if use_cache else None,
            hidden_states=(*states, x) if output_hidden_states else None,
            attentions=_tuple(options.weights),
            cross_attentions=None if encoder is None else _tuple(encoder.options.weights),
        )
        by_name = config.return_dict if return_dict is None else return_dict
        return output if by_name else output.to_tuple()

    @property
    def _is_checkpointing(self) -> bool:
        return self.training and self.checkpointing is not None

    def _run(
        self,
        block: nn.Module,
        x: Tensor,
        cache_slots: CacheSlots | None,
        options: AttentionOptions,
        encoder: Encoder | None,
        *,
        again: bool,
    ) -> Tensor:
        """Runs a block, `again` in the backward pass where nothing of it is kept."""
        given = (x, cache_slots, None, options, encoder)
        if again:
            return checkpoint(block, *given, **(self.checkpointing or {}))[0]  # type: ignore[no-any-return]
        return block(*given)[0]  # type: ignore[no-any-return]

    def _cache(self, past: Past | None, x: Tensor, use_cache: bool) -> KVCache | None:
        """Returns the cache for a call, with room for its T positions and, if new, for no more."""
        if is_cache_of_transformers(past):
            past = held_by(past)
        batch_size, n_new, _ = x.shape
        if past is None:
            n_rows, n_past = batch_size, 0
        elif isinstance(past, KVCache):  # whose pairs may take a copy
            n_rows, n_past = len(past.keys[0]), past.length
        else:
            n_rows, _, n_past, _ = past[0][0].shape
        if n_rows != batch_size:
            raise ValueError(f"past_key_values has {n_rows} rows, the input {batch_size}")
        self._check_length(n_new, n_past=n_past)
        if isinstance(past, KVCache):
            past.reserve(self.config, n_new)
            return past
        if past is not None:
            return KVCache.of_layers(self.config, past, room=n_new)
        if not use_cache:
            return None
        like = x.new_empty(0, dtype=product_dtype(x))
        return KVCache.for_calls(self.config, batch_size, n_new, like=like)

    def _check_length(self, n_new: int, *, n_past: int = 0) -> None:
        limit = self.config.n_positions
        if n_past + n_new > limit:
            raise ValueError(
                f"the model has {limit} positions, found {n_past + n_new}"
                + (f", {n_past} of them in past_key_values" if n_past else "")
            )

    def _head_mask(self, head_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if head_mask is None:
            return None
        shape = (self.config.n_layer, self.config.n_head)
        if head_mask.shape not in (shape, shape[1:]):
            found = tuple(head_mask.shape)
            raise ValueError(f"expected a head_mask of {shape[1:]} or {shape}, found {found}")
        return head_mask.to(dtype).expand(shape)

    def _encoder(
        self, states: Tensor | None, mask: Tensor | None, options: AttentionOptions
    ) -> Encoder | None:
        if states is None:
            return None
        if not self.config.add_cross_attention:
            raise ValueError(
                "encoder_hidden_states need cross-attention: make the model with "
                "add_cross_attention=True in its configuration"
            )
        padding = _padding("encoder_attention_mask", mask, states.shape[:2])
        weights: list[Tensor] | None = None if options.weights is None else []
        return Encoder(states, AttentionOptions(padding, options.head_mask, weights, options.plain))


def _extended(given: Past | None, cache: KVCache | None, n_new: int) -> Any:
    """Returns the cache with the new positions that were written into it; what was given, where
    that is one of transformers."""
    assert cache is not None
    cache.length += n_new
    return extended(given, cache, n_new) if is_cache_of_transformers(given) else cache


def _padding(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Inverts an attention mask: true for padding; None where there is none.

    Most masks are of ones, and attention is faster without one.
    """
    if mask is None:
        return None
    if mask.shape != shape:
        raise ValueError(
            f"expected {name} to have a number for each row and position, past ones included, "
            f"{tuple(shape)}, found {tuple(mask.shape)}"
        )
    # What is traced is for other masks too.
    return mask == 0 if is_traced() or not mask.all() else None


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype that queries, keys and values have: autocast's, where that is on."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _tuple(tensors: list[Tensor] | None) -> tuple[Tensor, ...] | None:
    return None if tensors is None else tuple(tensors)


def _initialize(model: ImageGPTModel, config: ImageGPTConfig) -> None:
    """Draws the weights: normal with initializer_range; projections into the residual scaled by
    1/sqrt(2 L)."""
    drawn = ("wte.weight", "wpe.weight", "c_attn.weight", "q_attn.weight", "c_fc.weight")
    for name, parameter in model.named_parameters():
        if name.endswith(drawn):
            nn.init.normal_(parameter, std=config.initializer_range)
        elif name.endswith("c_proj.weight"):
            nn.init.normal_(parameter, std=config.initializer_range / (2 * config.n_layer) ** 0.5)
