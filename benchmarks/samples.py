"""What samples of one prompt cost beside as many prompts of one sample, in time and in memory.

    python benchmarks/samples.py --input photos/

Completes upper halves of images, 8 samples of each of two, and 16 of one sample each; by turns, the
best of the rounds counts. `--model small`, `medium` or `large` has random weights. The last line is
JSON.
"""

import argparse
import json
import time

import torch
from window import DTYPES, halves

from igpt_core.generation.completion import complete
from igpt_core.generation.decoding import new_cache
from igpt_core.generation.packed import prepacked
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.heads import load_model, random_model
from igpt_core.model.config import VARIANTS
from igpt_core.model.kv_cache import KVCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True)
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--model", default="embedded", help=f"a folder, or {', '.join(VARIANTS)}")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of torch; an actor has one")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype, n = DTYPES[options.dtype], options.samples
    if options.model in VARIANTS:
        model = random_model(options.model, seed=0).to(dtype)
    else:
        model = load_model(options.model, device="cpu", dtype=dtype, head="causal")
    model = prepacked(model)
    n_positions = model.config.n_positions
    side = int(n_positions**0.5)
    prompts = halves(options.input, options.image_column, "embedded", options.rows, side)

    ways = {"samples": (prompts, n), "prompts": (prompts.repeat_interleave(n, dim=0), 1)}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(options.rounds):
        for name, (given, n_samples) in ways.items():
            begun = time.perf_counter()
            complete(
                model,
                given,
                n_positions=n_positions,
                seeds=torch.arange(len(given)),
                sampling=SamplingConfig(),
                n_samples=n_samples,
            )
            best[name] = min(best[name], time.perf_counter() - begun)
    prompt = new_cache(model, 1, capacity=prompts.shape[1] + 1)
    prompt.length = prompts.shape[1] + 1  # the start token before it
    memory = {
        "samples": taken(prompt.repeat(n, capacity=n_positions, shares=True)),
        "prompts": taken(prompt.repeat(1, capacity=n_positions)) * n,
    }
    result = {
        "seconds": {name: round(seconds, 3) for name, seconds in best.items()},
        "time": round(best["samples"] / best["prompts"], 3),
        "cache_bytes_per_prompt": memory,
        "memory": round(memory["samples"] / memory["prompts"], 3),
    }
    print(f"{options.rows} x {n}, {options.model}, {options.dtype}, {options.threads} thread(s)")
    print(
        f"seconds: {best['samples']:.2f} as samples, {best['prompts']:.2f} as prompts: "
        f"{result['time']:.0%}; memory of the cache {result['memory']:.0%}"
    )
    print(json.dumps({"benchmark": "samples", **vars(options), **result}))


def taken(cache: KVCache) -> int:
    """The bytes of a cache, by its memory."""
    return sum(layer.untyped_storage().nbytes() for layer in [*cache.keys, *cache.values])


if __name__ == "__main__":
    main()
