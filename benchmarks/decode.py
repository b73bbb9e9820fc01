"""Decoding speed against transformers: the same weights, settings and machine, in one run.

    python benchmarks/decode.py --device cpu

Both make whole images of ImageGPT small with random weights from the start token alone, with top-k
sampling. transformers' `generate` uses its dynamic cache, the only correct one it has for this
model. Prints a table, then one line of JSON.

Each step has to read all weights and the keys and values of all positions so far. The last column
is the memory bandwidth that this alone takes, as a share of what a plain sum over a large array
reaches: 100 % is the limit for weights and cache beyond the processor's own caches.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from igpt_core.generation.decoding import complete
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.model.config import VARIANTS, ImageGPTConfig
from igpt_core.model.kv_cache import KVCache

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WARM_UP_PIXELS = 4


def our_images(model, options: argparse.Namespace, n_pixels: int) -> torch.Tensor:
    prompt = torch.empty(options.images, 0, dtype=torch.int64, device=options.device)
    seeds = torch.arange(options.images, device=options.device)
    sampling = SamplingConfig(top_k=options.top_k)
    return complete(model, prompt, n_positions=n_pixels, seeds=seeds, sampling=sampling)[:, 0]


def their_images(model, options: argparse.Namespace, n_pixels: int) -> torch.Tensor:
    start = torch.full((options.images, 1), model.config.vocab_size - 1, device=options.device)
    drawn = model.generate(
        start, max_length=n_pixels + 1, do_sample=True, top_k=options.top_k, use_cache=True
    )
    return drawn[:, 1:]


def seconds_for(images: Callable, model, options: argparse.Namespace) -> float:
    images(model, options, WARM_UP_PIXELS)
    synchronize(options.device)
    begun = time.perf_counter()
    drawn = images(model, options, options.pixels)
    synchronize(options.device)
    seconds = time.perf_counter() - begun
    assert drawn.shape == (options.images, options.pixels), "an image ended early"
    return seconds


def read_bandwidth(device: str) -> float:
    """Bytes per second of a sum over 1 GiB, the best of five."""
    array = torch.ones(2**28, device=device)
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        begun = time.perf_counter()
        array.sum()
        synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return array.numel() * array.itemsize / best


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def load_transformers(ours: ImageGPTForCausalImageModeling, config: ImageGPTConfig):
    import transformers

    transformers.utils.logging.set_verbosity_error()
    reference = transformers.ImageGPTForCausalImageModeling(
        transformers.ImageGPTConfig(**config.to_dict())
    )
    reference.load_state_dict(ours.state_dict())
    return reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--variant", choices=VARIANTS, default="small")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=1024, help="of each image")
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--skip-transformers", action="store_true")
    options = parser.parse_args()
    if options.pixels <= WARM_UP_PIXELS:
        parser.error(f"--pixels must be more than {WARM_UP_PIXELS}, found {options.pixels}")

    config, dtype = VARIANTS[options.variant], DTYPES[options.dtype]
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(config)
    contenders = [("igpt_core", model, our_images)]
    if not options.skip_transformers:
        contenders.append(("transformers", load_transformers(model, config), their_images))
    bandwidth = read_bandwidth(options.device)
    weights = dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())
    cache = options.images * KVCache.bytes_per_row(config, options.pixels, dtype)
    bytes_needed = options.pixels * (weights + cache / 2)  # a cache is half full on average
    rows = []
    for name, contender, images in contenders:
        seconds = seconds_for(images, contender.to(options.device, dtype).eval(), options)
        rows.append(
            {
                "name": name,
                "seconds": round(seconds, 2),
                "tokens_per_second": round(options.images * options.pixels / seconds, 1),
                "bandwidth_share": round(bytes_needed / seconds / bandwidth, 3),
            }
        )
    print(
        f"{options.variant}, {options.dtype}, {options.device}, {options.images} images of "
        f"{options.pixels} pixels, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"reads {bandwidth / 1e9:.0f} GB/s"
    )
    for row in rows:
        print(
            "{name:14} {seconds:9.2f} s {tokens_per_second:10.1f} tokens/s "
            "{bandwidth_share:7.0%} of the bandwidth".format(**row)
        )
    result = {**vars(options), "torch": torch.__version__, "rows": rows}
    if len(rows) == 2:
        result["ratio"] = round(rows[1]["seconds"] / rows[0]["seconds"], 2)
        print(f"ratio {result['ratio']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
