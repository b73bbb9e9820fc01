"""What training minimizes. An objective is a module: its parameters are those that are trained,
a call with the tensors of a batch gives the loss, and `model` is what is kept at the end."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igpt_core.heads import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    load_model,
)
from igpt_core.learning.scoring import checked_tokens, token_nll
from igpt_core.model.transformer import ImageGPTModel


class NextPixel(nn.Module):
    """Pretraining: the mean nats per pixel of a causal model."""

    def __init__(self, model: ImageGPTForCausalImageModeling) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Loads the model of a folder, in float32 on the CPU.

        Raises CheckpointError as `load_model` does.
        """
        model = load_model(
            path_or_uri, device="cpu", dtype=torch.float32, storage_options=storage_options
        )
        return cls(model)

    def forward(self, tokens: Tensor) -> Tensor:
        """Computes the loss () of tokens (B, T); see `token_nll`."""
        return token_nll(self.model, tokens).mean()


class JointClassification(nn.Module):
    """Fine-tuning with the paper's joint objective: cross entropy of the classes, plus a weight
    times the mean nats per pixel, from one transformer with two heads.

    One forward serves both: the classification head is fed the pixels alone, as in transformers,
    and position i of the same hidden states predicts pixel i + 1. So there is no start token, and
    nothing predicts the first pixel.

    Args:
        model: the classifier, the transformer in it.
        lm_head: the next-pixel head, trained along and not kept; None where the weight is 0.
        next_pixel_weight: 1 in the paper.
    """

    def __init__(
        self,
        model: ImageGPTForImageClassification,
        lm_head: nn.Linear | None,
        *,
        next_pixel_weight: float,
    ) -> None:
        super().__init__()
        if (lm_head is None) != (next_pixel_weight == 0):
            raise ValueError("a next-pixel loss needs its head, and without one there is none")
        if not next_pixel_weight >= 0:
            raise ValueError(f"next_pixel_weight must be 0 or more, found {next_pixel_weight}")
        self.model = model
        self.lm_head = lm_head
        self.next_pixel_weight = next_pixel_weight

    @classmethod
    def from_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        class_names: Sequence[str],
        next_pixel_weight: float = 1.0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Loads the transformer of a model folder and gives it a new classification head, drawn
        from torch's global generator; in float32 on the CPU.

        Raises CheckpointError as `load_model` does, also where a weight above 0 asks for a
        next-pixel head and the folder has none.
        """
        transformer: ImageGPTModel
        lm_head: nn.Linear | None = None
        device, dtype = "cpu", torch.float32
        if next_pixel_weight:
            causal = load_model(
                path_or_uri, device=device, dtype=dtype, storage_options=storage_options
            )
            transformer, lm_head = causal.transformer, causal.lm_head
        else:
            transformer = load_model(
                path_or_uri, device=device, dtype=dtype, head=None, storage_options=storage_options
            )
        config = copy.deepcopy(transformer.config)
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in config.id2label.items()}
        model = ImageGPTForImageClassification(config)
        model.transformer = transformer
        return cls(model, lm_head, next_pixel_weight=next_pixel_weight)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Computes the loss () of tokens (B, T), without the start token, and classes (B,), both of
        any integer dtype.

        Raises ValueError for tokens of another dtype or shape, or that are no colors.
        """
        tokens = checked_tokens(tokens, self.model.config.n_colors)
        output = self.model(tokens, labels=labels, use_cache=False, output_hidden_states=True)
        if self.lm_head is None:
            return output.loss  # type: ignore[no-any-return]
        logits = self.lm_head(output.hidden_states[-1][:, :-1])  # (B, T - 1, V)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        return output.loss + self.next_pixel_weight * nats  # type: ignore[no-any-return]
