"""Quantizing photographs to tokens: ours, transformers' processor, and what Pillow alone takes.

    python benchmarks/quantize.py --input photos/

Encoded images in memory become 32 x 32 tokens of the shipped palette of 512 colors, one after the
other in one thread, as a reader does it; each way takes the same images in turn, and the fastest of
some rounds counts. Without `--input` the images are made: JPEGs of 500 x 375 pixels. Checks that
ours are transformers' tokens. Prints a table, then one line of JSON. Wants an idle machine.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from igpt_core import load_palette, load_pixels

SIDE = 32
SIZE = (500, 375)
SUFFIXES = {".jpg", ".jpeg", ".png"}


def made_images(n: int) -> list[bytes]:
    """JPEGs of smooth random pictures."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(n):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    return images


def read_images(folder: Path, n: int) -> list[bytes]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    return [file.read_bytes() for file in files[:n]]


def ways() -> dict[str, Callable[[bytes], object]]:
    palette = load_palette("embedded")
    theirs = transformers.ImageGPTImageProcessor(
        clusters=palette.colors.tolist(), size={"height": SIDE, "width": SIDE}
    )

    def ours(image: bytes, *, resize: str) -> np.ndarray:
        return palette.encode(load_pixels(image, SIDE, resize=resize)).reshape(-1)

    def reference(image: bytes) -> np.ndarray:
        # A gray or palette image ends it with an error, so all are made RGB first.
        rgb = Image.open(io.BytesIO(image)).convert("RGB")
        return np.asarray(theirs(rgb, return_tensors="np")["input_ids"]).reshape(-1)

    def pillow(image: bytes) -> Image.Image:
        rgb = Image.open(io.BytesIO(image)).convert("RGB")
        return rgb.resize((SIDE, SIDE), Image.Resampling.BILINEAR)

    return {
        "igpt, --resize exact": lambda image: ours(image, resize="exact"),
        "igpt, --resize fast": lambda image: ours(image, resize="fast"),
        "Pillow alone": pillow,
        "transformers": reference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=200, help="at most")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = read_images(options.input, options.images) if options.input else None
    images = images or made_images(options.images)
    found = ways()
    exact, _, _, theirs = found.values()
    same = np.mean([np.mean(exact(image) == theirs(image)) for image in images[:50]])
    best = dict.fromkeys(found, float("inf"))
    for _ in range(options.rounds):
        for name, way in found.items():
            begun = time.perf_counter()
            for image in images:
                way(image)
            best[name] = min(best[name], time.perf_counter() - begun)
    print(f"{len(images)} images to {SIDE} x {SIDE} tokens, one thread, torch {torch.__version__}")
    rates = {name: len(images) / spent for name, spent in best.items()}
    for name, rate in rates.items():
        print(f"{name:22} {rate:8.1f} images/s {rate / rates['transformers']:8.2f}")
    print(f"equal tokens: {same:.4%}")
    print(json.dumps({"benchmark": "quantize", "images_per_second": rates, "equal": same}))


if __name__ == "__main__":
    main()
