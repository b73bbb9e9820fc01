"""Small models with random weights that are large enough to look at their input."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.generation.decoding import feed
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.images.palette import Palette
from igpt_core.model.checkpoint import save_checkpoint
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.kv_cache import KVCache
from pictures import SIDE

TINY = {"vocab_size": 33, "n_positions": SIDE**2, "n_embd": 32, "n_layer": 2, "n_head": 2}


def make_model(config: ImageGPTConfig, cls=ImageGPTForCausalImageModeling, *, std, seed=0):
    """Makes a model in eval mode, all parameters normal with a standard deviation of `std`: the
    small initial weights would ignore their input."""
    torch.manual_seed(seed)
    model = cls(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def prefill(model, prompt: Tensor, **options) -> tuple[Tensor, KVCache]:
    """Runs the start token and prompts (B, P) of colors once; see `feed`."""
    return feed(model, pad(prompt, (1, 0), value=model.config.start_token), **options)


def save_tiny(folder: Path, cls=ImageGPTForCausalImageModeling, *, std, **fields) -> str:
    """Saves a tiny model for images of 8 x 8 pixels in 32 colors, with its palette; returns its
    folder."""
    model = make_model(ImageGPTConfig(**TINY, **fields), cls, std=std)
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3)))
    save_checkpoint(model, folder, palette=palette, image_size=SIDE)
    return str(folder)
