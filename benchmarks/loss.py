"""Nats per pixel of a model on test images, against two counted baselines on the same tokens.

    python benchmarks/loss.py --train 'train-*.parquet' --test test.parquet

The baselines are counted on the training images: the frequency of each color; and the color
given its left and upper neighbors, backed off to each neighbor alone and to the frequencies.
The weight of the back-off is the best of several on the test images themselves, so the second
baseline is a little better than it could know. Prints a table, then one line of JSON.
"""

import argparse
import json
from functools import partial

import numpy as np
import torch

from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_image_size, load_palette
from igpt_core.learning.training import evaluate
from pipeline.training.images import read_images

BACK_OFF_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0)


def neighbors(tokens: np.ndarray, side: int, n_colors: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the left and upper neighbor of each pixel, (N, T) int64; n_colors beyond the edge."""
    images = tokens.reshape(-1, side, side).astype(np.int64)
    left = np.full_like(images, n_colors)
    left[:, :, 1:] = images[:, :, :-1]
    upper = np.full_like(images, n_colors)
    upper[:, 1:] = images[:, :-1]
    return left.ravel(), upper.ravel()


class Counts:
    """How often each color followed each context, as sorted keys: contexts are many and sparse."""

    def __init__(self, context: np.ndarray, colors: np.ndarray, n_colors: int) -> None:
        self._n_colors = n_colors
        self._pairs, self._pair_counts = np.unique(context * n_colors + colors, return_counts=True)
        self._contexts, first = np.unique(self._pairs // n_colors, return_index=True)
        self._context_counts = np.add.reduceat(self._pair_counts, first)

    def estimate(
        self, context: np.ndarray, colors: np.ndarray, below: np.ndarray, weight: float
    ) -> np.ndarray:
        """Returns (n(context, color) + weight * below) / (n(context) + weight)."""
        seen = _look_up(self._pairs, self._pair_counts, context * self._n_colors + colors)
        total = _look_up(self._contexts, self._context_counts, context)
        return (seen + weight * below) / (total + weight)


def _look_up(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0)


def baselines(train: np.ndarray, test: np.ndarray, side: int, n_colors: int) -> tuple[float, float]:
    """Nats per pixel of the color frequencies, and of the neighbors with back-off."""
    seen, colors = train.ravel().astype(np.int64), test.ravel().astype(np.int64)
    frequency = (np.bincount(seen, minlength=n_colors) + 1) / (len(seen) + n_colors)
    by_frequency = frequency[colors]
    left, upper = neighbors(train, side, n_colors)
    test_left, test_upper = neighbors(test, side, n_colors)
    beyond = n_colors + 1
    by_left, by_upper, by_both = (
        Counts(context, seen, n_colors) for context in (left, upper, left * beyond + upper)
    )
    losses = []
    for weight in BACK_OFF_WEIGHTS:
        one = by_left.estimate(test_left, colors, by_frequency, weight)
        other = by_upper.estimate(test_upper, colors, by_frequency, weight)
        both = by_both.estimate(test_left * beyond + test_upper, colors, (one + other) / 2, weight)
        losses.append(-np.log(both).mean())
    return float(-np.log(by_frequency).mean()), float(min(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--train", required=True, help="images to count on")
    parser.add_argument("--test", required=True, help="test images")
    parser.add_argument("--limit", type=int, help="first N test images only")
    options = parser.parse_args()

    palette, side = load_palette(options.model), load_image_size(options.model)
    read = partial(read_images, palette=options.model, image_size=side)
    train = read(options.train).tokens
    test = read(options.test, limit=options.limit).tokens
    frequencies, with_neighbors = baselines(train, test, side, len(palette))
    model = load_model(options.model, device="cpu", dtype=torch.float32)
    result = {
        "train_images": len(train),
        "test_images": len(test),
        "color_frequencies": round(frequencies, 4),
        "neighbors_with_back_off": round(with_neighbors, 4),
        "model": round(evaluate(model, test), 4),
    }
    print(f"nats per pixel on {len(test)} images, counted on {len(train)}")
    for name in ("color_frequencies", "neighbors_with_back_off", "model"):
        print(f"{name.replace('_', ' '):28} {result[name]:.4f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
