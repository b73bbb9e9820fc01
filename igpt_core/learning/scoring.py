"""Log-likelihood of the tokens of an image under a model."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from igpt_core.errors import whole_tensor
from igpt_core.heads import ImageGPTForCausalImageModeling


def checked_tokens(tokens: Tensor, below: int) -> Tensor:
    """Returns tokens (B, T) of any integer dtype as int64.

    Raises ValueError for another dtype or shape, and for tokens outside [0, below): the last one is
    never fed, so that no embedding would miss it, and to a loss -100 is a token to leave out.
    """
    # torch.compile would part its graph where the host looks at values.
    is_compiled = torch.compiler.is_compiling()
    tokens = whole_tensor("tokens", tokens, below=None if is_compiled else below)
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise ValueError(f"expected tokens (B, T) with T >= 1, found {tuple(tokens.shape)}")
    return tokens


def with_start(tokens: Tensor, start_token: int) -> Tensor:
    """Shifts tokens (B, T) as they are fed in training: the start token, then all but the last."""
    start = tokens.new_full((tokens.shape[0], 1), start_token)
    return torch.cat([start, tokens[:, :-1]], dim=1)


def token_nll(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    """Computes the negative log-likelihood of each token given those before it.

    Args:
        model: a causal model; gradients flow where they are enabled.
        tokens: (B, T) of any integer dtype, colors in [0, n_colors), 1 <= T <= n_positions.

    Returns:
        (B, T) float32, nats. The mean over T is the image's nats per pixel; see
        `bits_per_pixel`.

    Raises:
        ValueError: tokens of another dtype or shape, or that are no colors.
    """
    tokens = checked_tokens(tokens, model.config.n_colors)
    inputs = with_start(tokens, model.config.start_token)
    logits = model(inputs, use_cache=False).logits.float()  # (B, T, V)
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def bits_per_pixel(nats: Tensor) -> Tensor:
    """Converts nats to bits: divides by ln 2."""
    return nats / math.log(2)
