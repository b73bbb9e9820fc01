"""A whole job against a bare loop over its stages, and against Ray Data with transformers.

    python benchmarks/job.py --images 64

Lower halves of images, by the shipped model on all cores: `igpt complete` as it is by default, and
with `--dtype float32`; a loop in one process that loads, quantizes, completes and writes with
igpt_core in float32; and `ray_transformers.py`, in float32 too. Each is a process of its own, timed
from its start to its end, so that the start of Ray and of the actors counts. Without `--input` the
images are made. Prints a table, then one line of JSON. Wants an idle machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from quantize import made_images, read_images

from igpt_core import SamplingConfig, complete, load_model, load_palette, load_pixels, row_seed
from igpt_core.files.model_files import resolve
from igpt_core.generation.packed import prepacked
from igpt_core.generation.speculation import best_window

SIDE, BATCH = 32, 32
HERE = Path(__file__).parent


def bare_loop(folder: Path, output: Path) -> None:
    """What the job does, without Ray, shards, errors and reports, on all cores of torch."""
    palette = load_palette("embedded")
    model = prepacked(load_model("embedded", device="cpu", dtype=torch.float32, head="causal"))
    files = sorted(folder.iterdir())
    tokens = [palette.encode(load_pixels(file.read_bytes(), SIDE)).reshape(-1) for file in files]
    images = []
    for first in range(0, len(files), BATCH):
        batch = [torch.from_numpy(each.astype("int64")) for each in tokens[first : first + BATCH]]
        names = [file.name for file in files[first : first + BATCH]]
        images += complete(
            model,
            torch.stack(batch)[:, : SIDE**2 // 2],
            n_positions=SIDE**2,
            seeds=torch.tensor([row_seed(0, name) for name in names]),
            sampling=SamplingConfig(),
            window=best_window("cpu", BATCH, torch.float32),
        )[:, 0].tolist()
    pq.write_table(pa.table({"id": [file.name for file in files], "samples": images}), output)


def seconds(*command: str | Path) -> float:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--bare-loop", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare_loop:
        bare_loop(*options.bare_loop)
        return
    images = read_images(options.input, options.images) if options.input else None
    images = images or made_images(options.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder, root = Path(temporary, "images"), Path(temporary)
        folder.mkdir()
        for i, image in enumerate(images):
            (folder / f"{i:06d}.jpg").write_bytes(image)
        job = ["-m", "jobs", "complete", "--input", folder, "--device", "cpu", "--quiet"]
        found = {
            "igpt complete": seconds(*job, "--output", root / "run"),
            "the same, float32": seconds(*job, "--output", root / "wide", "--dtype", "float32"),
            "bare loop": seconds(__file__, "--bare-loop", folder, root / "loop.parquet"),
            "Ray Data, transformers": seconds(
                HERE / "ray_transformers.py", folder, resolve("embedded"), root / "theirs"
            ),
        }
        reports = [json.loads((root / run / "report.json").read_text()) for run in ("run", "wide")]
        assert [report["rows"] for report in reports] == [len(images)] * 2
        assert pq.read_table(root / "theirs").num_rows == len(images)
    print(f"{len(images)} images, wall time with all starts")
    theirs = found["Ray Data, transformers"]
    for name, spent in found.items():
        print(f"{name:24} {spent:8.1f} s {len(images) / spent:8.2f} images/s {theirs / spent:6.2f}")
    working = [round(report["images_per_second"], 2) for report in reports]
    print(f"igpt complete while working: {working[0]} images/s, in float32 {working[1]}")
    result = {"images": len(images), "seconds": found, "working": working}
    print(json.dumps({"benchmark": "pipeline", **result}))


if __name__ == "__main__":
    main()
