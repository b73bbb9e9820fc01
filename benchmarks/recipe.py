"""Trials of training at equal compute: optimizer, learning rate, batch, decay, dropout, shape.

    python benchmarks/recipe.py --train 'cifar10/train-*.parquet' --test test.parquet

Each trial trains a model of its own on the same images with the operations that are given, counted
by `flops_per_token`; then nats per pixel of the first test images are computed. Prints a table as
it goes, then one line of JSON. Takes 1e14 / (operations per second) for each: four minutes on
two cores. `--only` takes the names of some, which run in their order.
"""

import argparse
import json
import time

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.optimizer import make_optimizer
from igpt_core.learning.speed import flops_per_token
from igpt_core.learning.training import (
    TrainingState,
    evaluate,
    train,
)
from igpt_core.learning.training_config import TrainingConfig
from igpt_core.model.config import ImageGPTConfig
from pipeline.readers.input_rows import MAX_IMAGE_BYTES
from pipeline.training.images import read_images

SIDE = 32
BASE = {"n_layer": 6, "n_embd": 320, "n_head": 5, "batch_size": 8, "learning_rate": 3e-3}
BASE |= {"weight_decay": 0.05, "optimizer": "muon", "warmup_steps": 30, "dropout": 0.0, "ema": None}
TRIALS = {
    "6 x 320, Muon 3e-3, batch 8": {},
    "AdamW 1.5e-3": {"optimizer": "adamw", "learning_rate": 1.5e-3},
    "AdamW 3e-3": {"optimizer": "adamw"},
    "learning rate 6e-3": {"learning_rate": 6e-3},
    "learning rate 1.5e-3": {"learning_rate": 1.5e-3},
    "batch 16": {"batch_size": 16, "learning_rate": 4e-3},
    "batch 4": {"batch_size": 4, "learning_rate": 2e-3},
    "weight decay 0.01": {"weight_decay": 0.01},
    "weight decay 0.2": {"weight_decay": 0.2},
    "dropout 0.1": {"dropout": 0.1},
    "mean of weights, decay 0.99": {"ema": 0.99},
    "9 x 256": {"n_layer": 9, "n_embd": 256, "n_head": 4},
    "4 x 384": {"n_layer": 4, "n_embd": 384, "n_head": 6},
    "6 x 192": {"n_embd": 192, "n_head": 6},
}


def images(location: str, limit: int | None) -> np.ndarray:
    """Reads images as the tokens of the shipped palette."""
    return read_images(
        location,
        palette="embedded",
        image_size=SIDE,
        resize="exact",
        crop="squash",
        limit=limit,
        format="auto",
        image_column=None,
        url_column=None,
        label_column=None,
        label_from_folder=False,
        max_error_fraction=0.0,
        max_image_bytes=MAX_IMAGE_BYTES,
        input_options={},
        model_options={},
        shown=False,
    ).tokens


def trial(options: dict, tokens: np.ndarray, held_out: np.ndarray, flops: float) -> dict:
    """Trains once; returns steps, seconds and the loss on held-out images."""
    options = {**BASE, **options}
    shape = {name: options.pop(name) for name in ("n_layer", "n_embd", "n_head")}
    drop, decay = options.pop("dropout"), options.pop("ema")
    dropout = {"resid_pdrop": drop, "embd_pdrop": drop, "attn_pdrop": 0.0}
    model_config = ImageGPTConfig(n_positions=SIDE**2, **shape, **dropout)
    per_step = flops_per_token(model_config) * SIDE**2 * options["batch_size"]
    config = TrainingConfig(steps=max(round(flops / per_step), 1), **options)
    torch.manual_seed(0)
    objective = NextPixel(ImageGPTForCausalImageModeling(model_config))
    mean = None
    if decay is not None:
        mean = AveragedModel(objective.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    begun = time.monotonic()
    train(
        torch.compile(objective, dynamic=False),
        make_optimizer(objective, config),
        tokens,
        config,
        image_size=SIDE,
        state=TrainingState(),
        on_step=lambda *_: mean and mean.update_parameters(objective.model),
    )
    took = time.monotonic() - begun
    model = objective.model if mean is None else mean.module.eval()
    with torch.autocast("cpu", torch.bfloat16):
        nats = evaluate(model, held_out)
    n = objective.model.num_parameters()
    return {"parameters": n, "steps": config.steps, "seconds": round(took), "nats": round(nats, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--flops", type=float, default=1e14)
    parser.add_argument("--limit", type=int, default=512, help="test images")
    parser.add_argument("--only", nargs="*", default=list(TRIALS), choices=list(TRIALS))
    options = parser.parse_args()
    tokens, held_out = images(options.train, None), images(options.test, options.limit)
    found = {}
    for name in options.only:
        found[name] = trial(TRIALS[name], tokens, held_out, options.flops)
        line = " ".join(f"{key} {value}" for key, value in found[name].items())
        print(f"{name:28} {line}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
