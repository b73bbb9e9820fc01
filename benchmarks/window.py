"""What windows of guesses gain: lower halves of images, by the number of pixels that a pass is fed.

    python benchmarks/window.py --input test.parquet --dtype float32 --rows 16

The images are those of the column of a Parquet file (Hub layout), the model is one whose guesses
mean something: random weights flatter them. Each window is tried without a draft, and with the
tables of neighboring pixels that lie beside the model. Alternates between them; checks that in
float32 the tokens are those of one pixel at a time. Prints a table, then one line of JSON. Wants an
idle machine.
"""

import argparse
import json
import statistics
import time

import pyarrow.parquet as pq
import torch

from igpt_core import (
    NeighborTables,
    SamplingConfig,
    complete,
    load_model,
    load_palette,
    load_pixels,
)
from igpt_core.generation.packed import prepacked

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, device="cpu", dtype=DTYPES[options.dtype], head="causal")
    model, n_positions = prepacked(model), model.config.n_positions
    side = int(n_positions**0.5)
    prompts = halves(options.input, options.image_column, options.model, options.rows, side)

    tables = NeighborTables.load(options.model, n_colors=model.config.n_colors)
    assert tables is not None, "the model has no tables of neighbors"
    drafts = {"none": None, "tables": tables}
    windows = [int(window) for window in options.windows.split(",")]
    ways = [(w, name) for w in windows for name in drafts if w > 1 or name == "none"]
    best = dict.fromkeys(ways, float("inf"))
    passes: dict[tuple[int, str], list[int]] = {}
    images = {}
    for _ in range(options.rounds):
        for window, name in ways:
            passes[window, name] = []
            begun = time.perf_counter()
            images[window, name] = complete(
                model,
                prompts,
                n_positions=n_positions,
                seeds=torch.arange(options.rows),
                sampling=SamplingConfig(top_p=options.top_p),
                window=window,
                draft=drafts[name],
                passes=passes[window, name],
            )
            spent = time.perf_counter() - begun
            best[window, name] = min(best[window, name], spent)
    if options.dtype == "float32":
        assert all(torch.equal(found, images[ways[0]]) for found in images.values())
    n_drawn = n_positions - prompts.shape[1]
    found = []
    print(f"{options.rows} rows, {options.dtype}, {options.threads} thread(s)")
    print("window  draft   images/s  tokens per pass  rows waiting  times a window of", windows[0])
    for way in ways:
        mean, most = statistics.mean(passes[way]), max(passes[way])
        row = {
            "window": way[0],
            "draft": way[1],
            "images_per_second": round(options.rows / best[way], 3),
            "tokens_per_pass": round(n_drawn / mean, 2),
            "waiting": round(1 - mean / most, 3),  # share of the rows of a pass that are done
            "gain": round(best[ways[0]] / best[way], 2),
        }
        found.append(row)
        print(
            "{window:6}  {draft:6}  {images_per_second:8.2f}  {tokens_per_pass:15.2f}  "
            "{waiting:12.0%}  {gain:.2f}".format(**row)
        )
    print(json.dumps({"benchmark": "window", **vars(options), "drawn": n_drawn, "found": found}))


if __name__ == "__main__":
    main()
