"""What 8 bits cost in nats per pixel: keys and values, weights, or both rounded to them.

    python benchmarks/eight_bits.py --test test.parquet

Keys and values are rounded as `--kv-cache-dtype int8` keeps them, a scale for each head and
position; a prompt's own pass, which is exact there, is rounded too. Weights have a scale for each
output. Sums are of the dtype. Prints a table, then one line of JSON.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from igpt_core.heads import load_model
from igpt_core.images.model_palette import load_image_size
from igpt_core.learning.training import evaluate
from igpt_core.model import layers
from igpt_core.model.kv_cache import to_eight_bits
from igpt_core.model.layers import Conv1D
from pipeline.training.images import read_images


def rounded(x: Tensor) -> Tensor:
    """The nearest numbers (..., D) in 8 bits with a scale for each (...)."""
    codes, scales = to_eight_bits(x)
    return (codes * scales).to(x.dtype)


@contextmanager
def rounded_keys_and_values() -> Iterator[None]:
    attend = layers.attend

    def with_8_bits(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return attend(q, rounded(k), rounded(v), **options)

    layers.attend = with_8_bits
    try:
        yield
    finally:
        layers.attend = attend


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Rounds all matrices of products, in place."""
    for module in model.modules():
        if isinstance(module, Conv1D):  # (in, out)
            module.weight.copy_(rounded(module.weight.t()).t())
        elif isinstance(module, nn.Linear):
            module.weight.copy_(rounded(module.weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--test", required=True, help="test images")
    parser.add_argument("--limit", type=int, help="first N of them only")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    side = load_image_size(options.model)
    test = read_images(
        options.test, palette=options.model, image_size=side, limit=options.limit
    ).tokens

    model = load_model(options.model, device="cpu", dtype=getattr(torch, options.dtype))
    nats = {"exact": evaluate(model, test)}
    with rounded_keys_and_values():
        nats["keys and values"] = evaluate(model, test)
    round_weights(model)
    nats["weights"] = evaluate(model, test)
    with rounded_keys_and_values():
        nats["both"] = evaluate(model, test)
    print(f"nats per pixel on {len(test)} images, {options.dtype}")
    for name, found in nats.items():
        print(f"{name:16} {found:.5f}  {found - nats['exact']:+.5f}")
    print(json.dumps({"benchmark": "eight_bits", **vars(options), "nats": nats}))


if __name__ == "__main__":
    main()
