"""What windows of guesses gain: lower halves of images, by the number of pixels that a pass is fed.

    python benchmarks/window.py --input test.parquet --dtype float32 --rows 16

The images are those of the column of a Parquet file (Hub layout), the model is one whose guesses
mean something: random weights flatter them. Alternates between the windows; checks that in float32
the tokens are those of one pixel at a time. Prints a table, then one line of JSON. Wants an idle
machine.
"""

import argparse
import json
import time

import pyarrow.parquet as pq
import torch

from igpt_core import SamplingConfig, complete, load_model, load_palette, load_pixels
from igpt_core.generation import decoding
from igpt_core.generation.packed import prepacked

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ROUNDS = 2


def halves(path: str, column: str, model: str, rows: int, side: int) -> torch.Tensor:
    """The upper halves of the first images as tokens (rows, side * side / 2)."""
    palette = load_palette(model)
    images = pq.read_table(path, columns=[column])[column].slice(0, rows).to_pylist()
    tokens = [palette.encode(load_pixels(image["bytes"], side)) for image in images]
    found = torch.stack([torch.from_numpy(each.astype("int64").reshape(-1)) for each in tokens])
    return found[:, : side * side // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", required=True)
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch; an actor has one")
    parser.add_argument("--windows", default="1,4,8,16,32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, device="cpu", dtype=DTYPES[options.dtype], head="causal")
    model, n_positions = prepacked(model), model.config.n_positions
    side = int(n_positions**0.5)
    prompts = halves(options.input, options.image_column, options.model, options.rows, side)

    passes = [0]
    real = decoding.decode_window

    def counted(*args, **named):
        passes[0] += 1
        return real(*args, **named)

    decoding.decode_window = counted
    windows = [int(window) for window in options.windows.split(",")]
    best = dict.fromkeys(windows, float("inf"))
    needed, images = {}, {}
    for _ in range(ROUNDS):
        for window in windows:
            passes[0], begun = 0, time.perf_counter()
            images[window] = complete(
                model,
                prompts,
                n_positions=n_positions,
                seeds=torch.arange(options.rows),
                sampling=SamplingConfig(),
                window=window,
            )
            best[window] = min(best[window], time.perf_counter() - begun)
            needed[window] = passes[0]
    if options.dtype == "float32":
        assert all(torch.equal(found, images[windows[0]]) for found in images.values())
    n_drawn = n_positions - prompts.shape[1]
    print(f"{options.rows} rows, {options.dtype}, {options.threads} thread(s)")
    print("window  images/s  passes  times a window of", windows[0])
    for window in windows:
        gain = best[windows[0]] / best[window]
        print(f"{window:6}  {options.rows / best[window]:8.2f}  {needed[window]:6}  {gain:.2f}")
    result = {
        "benchmark": "window",
        "dtype": options.dtype,
        "rows": options.rows,
        "threads": options.threads,
        "drawn": n_drawn,
        "seconds": best,
        "passes": needed,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
