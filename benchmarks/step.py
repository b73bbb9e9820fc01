"""What a step of decoding takes beside its matrix products and its attention, on a CPU.

    python benchmarks/step.py --dtype bfloat16

One pixel of each row, ImageGPT small with random weights, 256 and 768 positions filled. The
products and the attention of the same step are timed alone in the same run, on the same weights and
cache; the attention by that of torch's kernels which is the fastest here, on keys as it likes them.
1.00 would be a step that does nothing else. Prints a table, then one line of JSON. Wants an idle
machine.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from igpt_core.generation.decoding import feed
from igpt_core.generation.packed import PackedBlock, prepacked
from igpt_core.generation.passes import decode_window
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.model.attention import attend
from igpt_core.model.config import VARIANTS

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ROUNDS = 7


def best_seconds(*works: Callable[[], object]) -> list[float]:
    """The best of some rounds for each, in turns, after one that does not count."""
    best = [float("inf")] * len(works)
    for work in works:
        work()
    for _ in range(ROUNDS):
        for i, work in enumerate(works):
            begun = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - begun)
    return best


@torch.inference_mode()
def measure(model, rows: int, filled: int) -> dict[str, float]:
    config, blocks = model.config, list(model.transformer.h)
    assert all(isinstance(block, PackedBlock) for block in blocks), "no prepacked products here"
    dtype, width = model.transformer.wte.weight.dtype, config.n_embd
    _, cache = feed(model, torch.zeros(1, 1, dtype=torch.int64), n_samples=rows, capacity=1024)
    cache.length = filled - 1
    if cache.by_channel:
        cache.repack(filled)
    tokens = torch.randint(config.n_colors, (rows,))
    x = torch.randn(rows, width).to(dtype)
    wide = torch.randn(rows, config.inner_size).to(dtype)
    q = torch.randn(rows, config.n_head, 1, config.head_size).to(dtype)
    keys = [layer[:, :, :filled] for layer in cache.keys]
    values = [layer[:, :, :filled] for layer in cache.values]
    for part in (*keys, *values):
        part.normal_()
    by_row = [k.contiguous() for k in keys]
    by_channel = [k.transpose(2, 3).contiguous().transpose(2, 3) for k in keys]
    gapless = [v.contiguous() for v in values]

    def step() -> None:
        decode_window(model, tokens[:, None], None, cache, span=filled)

    def products() -> None:
        for block in blocks:
            block.into_heads(x)
            block.out_of_heads(x)
            block.into_mlp(x)
            block.out_of_mlp(wide)
        model.lm_head(x)

    def attend_all(keys: list[torch.Tensor]) -> None:
        for k, v in zip(keys, gapless, strict=True):
            attend(q, k, v)

    *seconds, kernel_1, kernel_2 = best_seconds(
        step, products, lambda: attend_all(by_row), lambda: attend_all(by_channel)
    )
    milliseconds = [1e3 * each for each in (*seconds, min(kernel_1, kernel_2))]
    return dict(zip(("step", "products", "attention"), milliseconds, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(VARIANTS["small"]).to(DTYPES[options.dtype]).eval()
    model = prepacked(model)
    print(f"{options.dtype}, {options.threads} threads, ms")
    print("| rows | positions | step | products | attention | step / (products + attention) |")
    print("|---|---|---|---|---|---|")
    found = []
    for rows in options.rows:
        for filled in (256, 768):
            ms = measure(model, rows, filled)
            ratio = ms["step"] / (ms["products"] + ms["attention"])
            print(
                f"| {rows} | {filled} | {ms['step']:.2f} | {ms['products']:.2f} | "
                f"{ms['attention']:.2f} | {ratio:.2f} |",
                flush=True,
            )
            found.append({"rows": rows, "positions": filled, **ms, "ratio": ratio})
    print(json.dumps({"dtype": options.dtype, "threads": options.threads, "steps": found}))


if __name__ == "__main__":
    main()
