"""Log-likelihood of the tokens of an image under a model."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from igpt_core.heads import ImageGPTForCausalImageModeling


def with_start(tokens: Tensor, start_token: int) -> Tensor:
    """Shifts tokens (B, T) as they are fed in training: the start token, then all but the last."""
    start = tokens.new_full((tokens.shape[0], 1), start_token)
    return torch.cat([start, tokens[:, :-1]], dim=1)


def token_nll(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    """Computes the negative log-likelihood of each token given those before it.

    Args:
        model: a causal model; gradients flow where they are enabled.
        tokens: (B, T) int64 colors in [0, n_colors), T <= n_positions.

    Returns:
        (B, T) float32, nats. The mean over T is the image's nats per pixel; see
        `bits_per_pixel`.
    """
    inputs = with_start(tokens, model.config.start_token)
    logits = model(inputs, use_cache=False).logits.float()  # (B, T, V)
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def bits_per_pixel(nats: Tensor) -> Tensor:
    """Converts nats to bits: divides by ln 2."""
    return nats / math.log(2)
