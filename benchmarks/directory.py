"""A finished run of many shards: what its directory costs those who read it, as shards grow.

    python benchmarks/directory.py 10000 1000000

The parts and stats are links to a few real ones, so that a million of them fit on a disk. Each
reading has a process of its own: `finished` is the listing at the start of a run, `report` what
the driver does at its end and `igpt report` does, `status` is `igpt status`. Prints a table, then
one line of JSON.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from scale import peak_mb

from igpt_core.images.pixels import encode_png
from pipeline.inputs.source import Source
from pipeline.report.write import write_report
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import FOLDERS, parquet_bytes, part_name
from pipeline.run_directory.record import new_record
from pipeline.run_directory.status import read_status

ROWS, SIDE, STATS = 16, 32, 64  # rows of a shard, pixels a side, different files of stats
READINGS = {
    "finished": lambda location: RunDirectory.at(location, {}).finished(),
    "report": write_report,
    "status": lambda location: read_status(RunDirectory.at(location, {})),
}


def make(folder: str, n_shards: int) -> None:
    """Makes the directory of a run of embed, finished but for its report."""
    directory = RunDirectory.at(folder, {})
    facts = {"image_size": SIDE, "columns": [], "passthrough": []}
    directory.create(new_record("embed", command="igpt embed", options={}, **facts))
    directory.write_plan(Source.numbered(n_shards * ROWS).cut(ROWS))
    for name in (*FOLDERS, "kept"):
        os.makedirs(f"{folder}/{name}")
    ids = pa.table({"id": [f"photo-{i}.jpg" for i in range(ROWS)]})
    Path(folder, "kept/part").write_bytes(parquet_bytes(ids))
    for i in range(STATS):
        Path(folder, f"kept/{i}").write_text(json.dumps(stats(i)))
    for shard in range(n_shards):
        os.symlink("../kept/part", f"{folder}/{part_name('data', shard)}")
        os.symlink(f"../kept/{shard % STATS}", f"{folder}/{part_name('stats', shard)}")


def stats(seed: int) -> dict[str, object]:
    """Stats of a shard, 4 to 5 KB, most of it the picture of an example."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    return {
        "shard": seed,
        "rows": ROWS,
        "errors": 0,
        "tokens": 0,
        "bytes": 20_000,
        "finished": 1.8e9 + 10 * seed,
        "seconds": {"read": 0.5, "decode": 1.5, "model": 7.0, "write": 1.0},
        "host": "box",
        "started": 1.8e9 - 60,
        "examples": [{"row": 3, "png": base64.b64encode(encode_png(pixels)).decode()}],
    }


def measure(reading: str, location: str) -> None:
    """Does one reading in this process and prints a line of JSON."""
    before, begun = peak_mb(), time.perf_counter()
    READINGS[reading](location)
    seconds = round(time.perf_counter() - begun, 1)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "mb_before": before}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=int, nargs="*", default=[10_000])
    parser.add_argument("--measure", nargs=2, metavar=("READING", "LOCATION"))
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(*arguments.measure)
        return
    found = []
    for n in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            make(f"{folder}/run", n)
            for reading in READINGS:
                words = [sys.executable, __file__, "--measure", reading, f"{folder}/run"]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
                facts = json.loads(done.stdout.splitlines()[-1])
                found.append({"shards": n, "reading": reading, **facts})
    print(f"{'shards':>10}  {'reading':10}{'seconds':>9}{'peak MB':>9}{'MB before':>11}")
    for facts in found:
        print(
            "{shards:10,}  {reading:10}{seconds:9}{peak_mb:9}{mb_before:11}".format(**facts),
        )
    print(json.dumps({"benchmark": "directory", "runs": found}))


if __name__ == "__main__":
    main()
