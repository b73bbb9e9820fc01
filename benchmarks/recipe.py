"""Trials of training at equal compute: width and depth, batch, learning rate, weight decay.

    python benchmarks/recipe.py --train 'cifar10/train-*.parquet' --test test.parquet

Each trial trains a model of its own on the same images with the operations that are given, counted
by `flops_per_token`; then nats per pixel of the first test images are computed. Prints a table as
it goes, then one line of JSON. Takes 1.5e14 / (operations per second) for each: five minutes on
two cores.
"""

import argparse
import json
import time

import numpy as np
import torch

from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.speed import flops_per_token
from igpt_core.learning.training import (
    TrainingConfig,
    TrainingState,
    evaluate,
    make_optimizer,
    train,
)
from igpt_core.model.config import ImageGPTConfig
from pipeline.readers.input_rows import MAX_IMAGE_BYTES
from pipeline.training.images import read_images

SIDE = 32
BASE = {"n_layer": 6, "n_embd": 320, "n_head": 5, "batch_size": 8, "learning_rate": 1.5e-3}
TRIALS = {
    "6 x 320": {},
    "6 x 192": {"n_embd": 192, "n_head": 6, "learning_rate": 2e-3},
    "9 x 256": {"n_layer": 9, "n_embd": 256, "n_head": 4},
    "4 x 384": {"n_layer": 4, "n_embd": 384, "n_head": 6},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "learning rate 8e-4": {"learning_rate": 8e-4},
    "batch 16": {"batch_size": 16, "learning_rate": 2e-3},
    "batch 4": {"batch_size": 4, "learning_rate": 1e-3},
    "weight decay 0.1": {"weight_decay": 0.1},
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
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model_config = ImageGPTConfig(n_positions=SIDE**2, **shape, **no_dropout)
    per_step = flops_per_token(model_config) * SIDE**2 * options["batch_size"]
    config = TrainingConfig(steps=max(round(flops / per_step), 1), **options)
    torch.manual_seed(0)
    objective = NextPixel(ImageGPTForCausalImageModeling(model_config))
    begun = time.monotonic()
    train(
        objective,
        make_optimizer(objective, config),
        tokens,
        config,
        image_size=SIDE,
        state=TrainingState(),
        on_step=lambda *_: None,
    )
    took = time.monotonic() - begun
    with torch.autocast("cpu", torch.bfloat16):
        nats = evaluate(objective.model, held_out)
    n = objective.model.num_parameters()
    return {"parameters": n, "steps": config.steps, "seconds": round(took), "nats": round(nats, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--flops", type=float, default=1.5e14)
    parser.add_argument("--limit", type=int, default=512, help="test images")
    options = parser.parse_args()
    tokens, held_out = images(options.train, None), images(options.test, options.limit)
    found = {}
    for name, changes in TRIALS.items():
        found[name] = trial(changes, tokens, held_out, options.flops)
        line = " ".join(f"{key} {value}" for key, value in found[name].items())
        print(f"{name:20} {line}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
