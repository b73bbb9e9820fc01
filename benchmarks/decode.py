"""Decoding speed against transformers: the same weights, settings and machine, in one run.

    python benchmarks/decode.py --device cpu

Both make whole images of ImageGPT small with random weights from the start token alone, with top-k
sampling. transformers' `generate` uses its dynamic cache, the only correct one it has for this
model. Prints a table, then one line of JSON. The last column is the share of the memory bandwidth
that reading weights and cache once a step would need: decoding is limited by that traffic.
"""

import argparse
import json
import time

import torch

from igpt_core.config import VARIANTS, ImageGPTConfig
from igpt_core.decoding import complete
from igpt_core.kv_cache import KVCache
from igpt_core.model import ImageGPTForCausalImageModeling
from igpt_core.sampling import SamplingConfig

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def time_ours(model, options, config) -> float:
    prompt = torch.empty(options.images, 0, dtype=torch.int64, device=options.device)
    seeds = torch.arange(options.images, device=options.device)
    sampling = SamplingConfig(top_k=options.top_k)
    complete(model, prompt, n_positions=4, seeds=seeds, sampling=sampling)
    synchronize(options.device)
    begun = time.perf_counter()
    complete(model, prompt, n_positions=options.pixels, seeds=seeds, sampling=sampling)
    synchronize(options.device)
    return time.perf_counter() - begun


def time_theirs(model, options, config) -> float:
    start = torch.full((options.images, 1), config.start_token, device=options.device)
    settings = {"do_sample": True, "top_k": options.top_k, "use_cache": True}
    model.generate(start, max_length=5, **settings)
    synchronize(options.device)
    begun = time.perf_counter()
    model.generate(start, max_length=options.pixels + 1, **settings)
    synchronize(options.device)
    return time.perf_counter() - begun


def synchronize(device: str) -> None:
    if device == "cuda":
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
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--skip-transformers", action="store_true")
    options = parser.parse_args()

    config, dtype = VARIANTS[options.variant], DTYPES[options.dtype]
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(config)
    rows = []
    contenders = [("igpt_core", model, time_ours)]
    if not options.skip_transformers:
        contenders.append(("transformers", load_transformers(model, config), time_theirs))
    weight_bytes = dtype.itemsize * sum(p.numel() for p in model.parameters())
    cache_bytes = KVCache.bytes_per_row(config, options.pixels, dtype) * options.images / 2
    for name, contender, clock in contenders:
        seconds = clock(contender.to(options.device, dtype).eval(), options, config)
        rows.append(
            {
                "name": name,
                "seconds": round(seconds, 2),
                "tokens_per_second": round(options.images * options.pixels / seconds, 1),
                "gigabytes_per_second": round(
                    (weight_bytes + cache_bytes) * options.pixels / seconds / 1e9, 2
                ),
            }
        )
    print(
        f"{options.variant}, {options.dtype}, {options.device}, {options.images} images of "
        f"{options.pixels} pixels, {torch.get_num_threads()} threads"
    )
    for row in rows:
        print(
            "{name:14} {seconds:9} s {tokens_per_second:9} tokens/s "
            "{gigabytes_per_second:7} GB/s needed".format(**row)
        )
    result = {**vars(options), "rows": rows}
    if len(rows) == 2:
        result["ratio"] = round(rows[1]["seconds"] / rows[0]["seconds"], 2)
        print(f"ratio {result['ratio']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
