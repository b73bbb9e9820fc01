"""Decoding speed against transformers: the same weights, settings and machine, in one process.

    python benchmarks/decode.py --device cpu --rows 1,16 --windows 1,8

All make whole images of a published size with random weights, or of a model folder, from the start
token alone, with top-k sampling. transformers' `generate` uses its dynamic cache, the only correct
one it has for this model. The ways take turns, and the fastest of several rounds counts. Prints a
table, then one line of JSON. Wants an idle machine.

Random weights flatter guesses, so with them the time of a pass tells what a window costs, and
tokens per pass tell little; see window.py for these. Each pass has to read all weights and the keys
and values of all positions so far. The last but one column is the memory bandwidth that this alone
takes, as a share of what a plain sum over a large array reaches: 100 % is the limit for weights and
cache beyond the processor's own caches.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from igpt_core import NeighborTables, SamplingConfig, complete, load_model
from igpt_core.generation.packed import prepacked
from igpt_core.heads import ImageGPTForCausalImageModeling, random_model
from igpt_core.model.config import VARIANTS
from igpt_core.model.kv_cache import KVCache

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WARM_UP_PIXELS = 80  # enough for a GPU to capture a pass


@dataclass
class Way:
    """One way to make images: returns them and the passes of each, given the number of pixels."""

    name: str
    images: Callable[[int], tuple[Tensor, list[int]]]
    seconds: float = float("inf")
    passes: list[int] = field(default_factory=list)


def our_way(model, window: int, draft, options: argparse.Namespace, rows: int) -> Way:
    prompt = torch.empty(rows, 0, dtype=torch.int64, device=options.device)
    seeds = torch.arange(rows, device=options.device)
    packed = prepacked(model)

    def images(n_pixels: int) -> tuple[Tensor, list[int]]:
        passes: list[int] = []
        drawn = complete(
            packed,
            prompt,
            n_positions=n_pixels,
            seeds=seeds,
            sampling=SamplingConfig(top_k=options.top_k),
            window=window,
            draft=draft,
            passes=passes,
        )
        return drawn[:, 0], passes

    return Way(f"igpt, window {window}", images)


def their_way(model: ImageGPTForCausalImageModeling, options: argparse.Namespace, rows: int) -> Way:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    config = transformers.ImageGPTConfig(**model.config.to_dict())
    reference = transformers.ImageGPTForCausalImageModeling(config)
    reference.load_state_dict(model.state_dict())
    reference = reference.to(model.device, model.dtype).eval()
    start = torch.full((rows, 1), model.config.start_token, device=options.device)

    def images(n_pixels: int) -> tuple[Tensor, list[int]]:
        drawn = reference.generate(
            start, max_length=n_pixels + 1, do_sample=True, top_k=options.top_k, use_cache=True
        )
        return drawn[:, 1:], [n_pixels] * rows

    return Way("transformers", images)


def time_in_turn(ways: list[Way], options: argparse.Namespace, rows: int) -> None:
    for way in ways:
        way.images(min(WARM_UP_PIXELS, options.pixels))
    for _, way in itertools.product(range(options.rounds), ways):
        synchronize(options.device)
        begun = time.perf_counter()
        drawn, way.passes = way.images(options.pixels)
        synchronize(options.device)
        way.seconds = min(way.seconds, time.perf_counter() - begun)
        assert drawn.shape == (rows, options.pixels), "an image ended early"


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


def measured(way: Way, model, options: argparse.Namespace, rows: int, bandwidth: float) -> dict:
    dtype = DTYPES[options.dtype]
    weights = dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())
    cache = rows * KVCache.bytes_per_row(model.config, options.pixels, dtype)
    most = max(way.passes)
    return {
        "way": way.name,
        "rows": rows,
        "seconds": round(way.seconds, 2),
        "tokens_per_second": round(rows * options.pixels / way.seconds, 1),
        "pass_ms": round(1000 * way.seconds / most, 2),
        "tokens_per_pass": round(options.pixels / statistics.mean(way.passes), 2),
        "waiting": round(1 - statistics.mean(way.passes) / most, 3),
        # A cache is half full on average.
        "bandwidth_share": round(most * (weights + cache / 2) / way.seconds / bandwidth, 3),
    }


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--models", default="small", help=f"folders, or of {', '.join(VARIANTS)}")
    parser.add_argument("--rows", type=numbers, default=[16], help="images decoded together")
    parser.add_argument("--windows", type=numbers, default=[1])
    parser.add_argument("--pixels", type=int, default=1024, help="of each image")
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--skip-transformers", action="store_true")
    options = parser.parse_args()
    bandwidth = read_bandwidth(options.device)
    print(
        f"{options.dtype}, {options.device}, images of {options.pixels} pixels, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, reads {bandwidth / 1e9:.0f} GB/s"
    )
    print("model     rows  way               tokens/s  ms a pass  tokens a pass  waiting", end="  ")
    print("of the bandwidth  times transformers")
    found = []
    for name, rows in itertools.product(options.models.split(","), options.rows):
        is_random = name in VARIANTS
        device, dtype = options.device, DTYPES[options.dtype]
        if is_random:
            model, draft = random_model(name, seed=0).to(device, dtype).eval(), None
        else:
            model = load_model(name, device=device, dtype=dtype, head="causal")
            draft = NeighborTables.load(name, n_colors=model.config.n_colors, device=device)
        ways = [our_way(model, window, draft, options, rows) for window in options.windows]
        if not options.skip_transformers:
            ways.append(their_way(model, options, rows))
        time_in_turn(ways, options, rows)
        for way in ways:
            row = {"model": name} | measured(way, model, options, rows, bandwidth)
            if not options.skip_transformers:
                row["ratio"] = round(ways[-1].seconds / way.seconds, 2)
            found.append(row)
            print(
                "{model:8}  {rows:4}  {way:16}  {tokens_per_second:8.1f}  {pass_ms:9.2f}  "
                "{tokens_per_pass:13.2f}  {waiting:7.0%}  {bandwidth_share:16.0%}  ".format(**row)
                + str(row.get("ratio", ""))
            )
    print(json.dumps({"benchmark": "decode", **vars(options), "found": found}))


if __name__ == "__main__":
    main()
