"""The model classes with a head on the transformer, and `load_model`.

Axes: B batch, T positions, C channels (n_embd), H heads, D head size, V colors, L layers.
"""

import copy
import os
from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igpt_core.errors import check_whole, whole_tensor
from igpt_core.generation.generate import GenerationMixin
from igpt_core.model.checkpoint import ImageGPTPreTrainedModel
from igpt_core.model.config import VARIANTS, ImageGPTConfig
from igpt_core.model.outputs import CausalOutput, ClassifierOutput
from igpt_core.model.transformer import ImageGPTModel, Past


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel, GenerationMixin):
    """The transformer with a head that gives the next pixel's color.

    With tie_word_embeddings the head is the input embedding itself, so that V counts the start
    token; else V is n_colors.
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        config = self.config
        self.transformer = ImageGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.n_colors, bias=False)
        if config.tie_word_embeddings:
            self.tie_weights()
        else:
            nn.init.normal_(self.lm_head.weight, std=config.initializer_range)

    def tie_weights(self) -> None:
        """Makes one parameter of those that the configuration ties."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
    ) -> CausalOutput | tuple[Any, ...]:
        """Computes logits of the next pixel at every position; see `ImageGPTModel.forward`.

        Args:
            labels: (B, T) integer colors; shifted here, so that position i is held against
                labels[:, i + 1]. The loss is the mean in nats over those that are not -100.
        """
        hidden = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            pixel_values=pixel_values,
        )
        logits = self.lm_head(hidden.last_hidden_state)
        loss = None
        if labels is not None:
            behind = whole_tensor("labels", labels)[:, 1:]
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), behind.flatten())
        output = CausalOutput(
            loss=loss,
            logits=logits,
            past_key_values=hidden.past_key_values,
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
            cross_attentions=hidden.cross_attentions,
        )
        by_name = self.config.return_dict if return_dict is None else return_dict
        return output if by_name else output.to_tuple()


class ImageGPTForImageClassification(ImageGPTPreTrainedModel):
    """The transformer with a linear layer on the mean of its last hidden state over positions.

    It is fed the pixels alone, without a start token, as in transformers.
    """

    new_head = "score.weight"

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        config = self.config
        self.transformer = ImageGPTModel(config)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        nn.init.normal_(self.score.weight, std=config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Past | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
    ) -> ClassifierOutput | tuple[Any, ...]:
        """Computes logits of the classes (B, num_labels); see `ImageGPTModel.forward`.

        The mean is over all positions given, padding included, as in transformers.

        Args:
            labels: (B,) integer classes, for the cross entropy in nats; (B, num_labels) floats in
                [0, 1], for the mean binary cross entropy of each class; where num_labels is 1,
                (B,) floats, for the mean squared error. The configuration's problem_type
                ("single_label_classification", "multi_label_classification", "regression")
                overrides what the labels look like.
        """
        hidden = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            pixel_values=pixel_values,
        )
        logits = self.score(hidden.last_hidden_state.mean(dim=1))
        output = ClassifierOutput(
            loss=None if labels is None else _class_loss(logits, labels, self.config),
            logits=logits,
            past_key_values=hidden.past_key_values,
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )
        by_name = self.config.return_dict if return_dict is None else return_dict
        return output if by_name else output.to_tuple()


def _class_loss(logits: Tensor, labels: Tensor, config: ImageGPTConfig) -> Tensor:
    kind = config.problem_type
    if kind is None and config.num_labels == 1:
        kind = "regression"
    elif kind is None:
        kind = f"{'multi' if labels.is_floating_point() else 'single'}_label_classification"
    if kind == "regression":
        return F.mse_loss(logits, labels.view(logits.shape).to(logits.dtype))
    if kind == "single_label_classification":
        classes = whole_tensor("labels", labels).flatten()
        if len(classes) != len(logits):
            raise ValueError(
                f"expected labels ({len(logits)},), a class of each row, found "
                f"{tuple(labels.shape)}; next: floats {tuple(logits.shape)} for several of each"
            )
        return F.cross_entropy(logits, classes)
    if kind == "multi_label_classification":
        if labels.shape != logits.shape:
            raise ValueError(
                f"expected labels {tuple(logits.shape)}, a share of each class, found "
                f"{tuple(labels.shape)}; next: integers ({len(logits)},) for one class of each row"
            )
        shares = labels if labels.is_floating_point() else labels.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, shares)
    raise ValueError(f"config: unknown problem_type {kind!r}")


# What `load_model` can put on the transformer.
HEADS: dict[str | None, type[ImageGPTPreTrainedModel]] = {
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
) -> ImageGPTPreTrainedModel:
    """Loads the model of a folder with one of the heads in HEADS; see `from_pretrained`.

    Raises:
        ValueError: an unknown head. CheckpointError: a folder that does not hold the model.
    """
    if head not in HEADS:
        raise ValueError(f"expected head to be one of {list(HEADS)}, found {head!r}")
    return HEADS[head].from_pretrained(
        path_or_uri, device=device, dtype=dtype, storage_options=storage_options
    )


def random_model(variant: str, *, seed: int) -> ImageGPTForCausalImageModeling:
    """Makes a model of a published size with random weights, float32 on the CPU, for benchmarks.

    The same seed gives the same weights; torch's global generator is left as it was.
    """
    seed = check_whole("seed", seed)
    if variant not in VARIANTS:
        raise ValueError(f"expected variant to be one of {list(VARIANTS)}, found {variant!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageGPTForCausalImageModeling(copy.deepcopy(VARIANTS[variant])).eval()
