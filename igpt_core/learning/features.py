"""Features of images: hidden states averaged over positions, layer by layer, with early exit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from igpt_core.errors import check_whole
from igpt_core.heads import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
)
from igpt_core.learning.scoring import checked_tokens, with_start
from igpt_core.model.transformer import ImageGPTModel

Model = ImageGPTModel | ImageGPTForCausalImageModeling | ImageGPTForImageClassification


@torch.no_grad()
def pooled_features(
    model: Model,
    tokens: Tensor,
    layers: Sequence[int],
    *,
    sos: bool = True,
    normed: bool = False,
) -> dict[int, Tensor]:
    """Averages hidden states of some layers over positions.

    Blocks above the highest of the layers are not run, and no state outlives its average: the
    middle layer costs half of the last one.

    Args:
        model: in eval mode, on the tokens' device; a head is not looked at.
        tokens: (B, T) of any integer dtype, colors in [0, n_colors), 1 <= T <= n_positions.
        layers: as in transformers' `hidden_states`: 0 is the embedding, n_layer the output of the
            final norm; in any order.
        sos: feed the start token and all tokens but the last, as in training; else the tokens
            alone, as in the example of transformers' documentation; the start token may be among
            them then.
        normed: average a layer's state after the first norm of the block that reads it, n^l of
            "Generative Pretraining from Pixels"; for n_layer, which is normed, that changes
            nothing.

    Returns:
        For each of the layers (B, C) float32, in the order asked for; no gradients.

    Raises:
        ValueError: no layers, a layer that does not exist, or tokens of another dtype or shape or
            that are no colors.
        TypeError: layers that are no whole numbers.
    """
    transformer = model if isinstance(model, ImageGPTModel) else model.transformer
    config, n_layer = transformer.config, transformer.config.n_layer
    layers = [check_whole("each of the layers", layer) for layer in layers]
    if not layers or not all(0 <= layer <= n_layer for layer in layers):
        raise ValueError(f"expected layers from 0 to {n_layer}, one at least, found {layers}")
    tokens = checked_tokens(tokens, config.n_colors if sos else config.vocab_size)
    inputs = with_start(tokens, config.start_token) if sos else tokens
    means = {}
    # In this order, so that no state is asked for once the layers are at an end.
    for layer, state in zip(range(max(layers) + 1), transformer.states(inputs), strict=False):
        if layer in layers:
            if normed and layer < n_layer:
                state = transformer.h[layer].ln_1(state)  # type: ignore[operator]
            means[layer] = state.mean(dim=1, dtype=torch.float32)
    return {layer: means[layer] for layer in layers}


def chosen_layers(names: str, n_layer: int) -> tuple[int, ...]:
    """Parses layers as people name them, ascending: "middle" (n_layer // 2), "all" (0 to n_layer)
    or numbers such as "8,12".

    Raises ValueError for another text and for a layer that does not exist, TypeError for what is no
    text.
    """
    if not isinstance(names, str):
        raise TypeError(f"expected layers as text such as 'middle' or '8,12', found {names!r}")
    n_layer = check_whole("n_layer", n_layer, least=1)
    if names == "middle":
        return (n_layer // 2,)
    if names == "all":
        return tuple(range(n_layer + 1))
    numbers = [number.strip() for number in names.split(",")]
    if all(number.isascii() and number.isdigit() for number in numbers):
        layers = sorted({int(number) for number in numbers})
        if layers[-1] <= n_layer:
            return tuple(layers)
    raise ValueError(
        f"expected layers to be middle, all, or numbers from 0 to {n_layer} with commas between "
        f"them, found {names!r}"
    )
