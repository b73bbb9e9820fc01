"""The sheets of docs/: completions of test images and samples of nothing, by the shipped model.

    python benchmarks/sheets.py --test cifar10/test-00000-of-00001.parquet

Draws the first 64 images of the file, as they come, and seeds 0 to 63: none is chosen. Writes
docs/completions.png (upper half, 4 completions, original) and docs/samples.png, enlarged twice.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from igpt_core.generation.completion import complete
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import encode_png
from pipeline.training.images import read_images

N, N_SAMPLES, SIDE = 64, 4, 32
SCALE, GAP, PAPER = 2, 3, 255
TOP_P = 0.9


def sheet(pictures: NDArray[np.uint8], across: int) -> NDArray[np.uint8]:
    """Lays strips (N, K, SIDE, SIDE, 3) out, so many in a row; returns (H, W, 3)."""
    large = pictures.repeat(SCALE, axis=2).repeat(SCALE, axis=3)
    n, k, side = large.shape[:3]
    down, cell = -(-n // across), side + GAP
    strip = k * cell + 3 * GAP * (k > 1)
    page = np.full((down * cell + GAP, across * strip + GAP, 3), PAPER, np.uint8)
    for i, j in np.ndindex(n, k):
        top, left = GAP + i // across * cell, GAP + i % across * strip + j * cell
        page[top : top + side, left : left + side] = large[i, j]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--output", default="docs")
    options = parser.parse_args()
    model = load_model(options.model, device="cpu", dtype=torch.bfloat16)
    palette = load_palette(options.model)
    found = read_images(options.test, palette=options.model, image_size=SIDE, limit=N).tokens
    tokens = torch.from_numpy(found.astype(np.int64))
    half = SIDE**2 // 2
    sampling = {"sampling": SamplingConfig(top_p=TOP_P), "n_positions": SIDE**2}
    seeds = torch.arange(N)
    drawn = complete(model, tokens[:, :half], seeds=seeds, n_samples=N_SAMPLES, **sampling)
    strips = torch.cat([tokens[:, None], drawn, tokens[:, None]], dim=1).numpy().astype(np.uint16)
    pixels = palette.decode(strips.reshape(N, -1, SIDE, SIDE))
    pixels[:, 0, SIDE // 2 :] = 128  # not given
    samples = complete(model, tokens[:, :0], seeds=seeds, **sampling).numpy().astype(np.uint16)
    alone = palette.decode(samples.reshape(N, 1, SIDE, SIDE))
    folder = Path(options.output)
    for name, page in (("completions", sheet(pixels, 4)), ("samples", sheet(alone, 16))):
        (folder / f"{name}.png").write_bytes(encode_png(page))
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
