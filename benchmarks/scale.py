"""A run of many shards: what the driver holds and what a shard costs, as their number grows.

    python benchmarks/scale.py --shards 1000 10000 100000

A real run but for its model, which sleeps a hundredth of a second for each shard of one image: ids
are named, parts written and synced, the run directory listed, the report made. So what is measured
is everything that a shard costs beside its images. Each number of shards has a process of its own,
whose peak memory is the driver's. Prints a table, then one line of JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from igpt_core.checkpoint import load_palette
from igpt_core.model_files import EMBEDDED
from pipeline import cluster, rows
from pipeline.blocks import tokens_array, with_seconds
from pipeline.lease import Lease
from pipeline.parts import WriteParts
from pipeline.planning import Source
from pipeline.run import execute
from pipeline.run_directory import RunDirectory, new_record
from pipeline.stage import Resources, Stage
from pipeline.stages.generate import NameSamples

SIDE = 8
MODEL_ACTORS = 4
SLEEP_SECONDS = 0.01


class Sleep:
    """In place of a model: named rows -> the same with tokens, after a while."""

    def __call__(self, block: pa.Table) -> pa.Table:
        time.sleep(SLEEP_SECONDS)
        tokens = np.zeros(block.num_rows * SIDE**2, np.uint16)
        block = block.append_column(rows.ROW_TOKENS, tokens_array(tokens, SIDE**2))
        return with_seconds(block, "model", SLEEP_SECONDS)


def stages(output: str, lease: Lease) -> list[Stage]:
    share = Resources(num_cpus=0.2)
    write = {
        "output": output,
        "lease": lease,
        "job": "sample",
        "schema": rows.schema_for(
            "sample", rows.sample_columns(SIDE**2), passthrough=pa.schema([])
        ),
        "image_size": SIDE,
        "palette": EMBEDDED,
        "examples": 0,
        "output_options": {},
        "model_options": {},
    }
    return [
        Stage(NameSamples, {}, share),
        Stage(Sleep, {}, Resources(actors=MODEL_ACTORS, num_cpus=0.1)),
        Stage(WriteParts, write, share),
    ]


def measure(folder: str, n_shards: int) -> None:
    """A run of so many shards in this process; a line of JSON."""
    directory = RunDirectory.at(folder, {})
    palette = load_palette(EMBEDDED)
    record = new_record("sample", command="", options={})
    plan = Source.numbered(n_shards).cut(1)
    with cluster.connected(None):
        directory.begin(record | {"palette": {"fingerprint": palette.fingerprint}})
        directory.write_plan(plan)
        lease = Lease(folder, {}, record["run"])
        lease.take()
        before = peak_mb()
        begun = time.perf_counter()
        report = execute(
            directory,
            plan,
            stages(folder, lease),
            lease=lease,
            max_error_fraction=0,
            progress="quiet",
        )
        seconds = time.perf_counter() - begun
        lease.release()
    assert report["rows"] == n_shards
    facts = {
        "shards": n_shards,
        "seconds": round(seconds, 1),
        "ms_per_shard": round(1000 * seconds / n_shards, 2),
        "driver_peak_rss_mb": peak_mb(),
        "driver_rss_mb_before": before,
    }
    print(json.dumps(facts))


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--measure", metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure, arguments.shards[0])
        return
    found = []
    for n in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--shards", str(n), "--measure", f"{folder}/run"]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{Path(__file__).name}: {n} shards: {found[-1]}", file=sys.stderr, flush=True)
    for name in found[0]:
        print(f"{name:>22}" + "".join(f"{facts[name]:>12,}" for facts in found))
    print(json.dumps({"benchmark": "scale", "runs": found}))


if __name__ == "__main__":
    main()
