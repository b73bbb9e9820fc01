"""A run of many shards: what the driver holds and what a shard costs, as their number grows.

    python benchmarks/scale.py --chain 1000 10000 100000 --whole 1000 10000

`chain` is the driver's own part: shards of one row are handed through Ray to a stage in place of
the model, which only sleeps a hundredth of a second, and counted. `whole` is a run with all that a
shard costs beside its images: ids are named, parts written and synced, the run directory listed,
the report made. Each number of shards has a process of its own, whose memory is the driver's.
Prints a table, then one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from igpt_core.files.model_files import EMBEDDED
from pipeline import rows
from pipeline.batch.execute import execute
from pipeline.engine import cluster
from pipeline.engine.dispatch import dispatch_shards
from pipeline.engine.stage import Resources, Stage
from pipeline.inputs.source import Source
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import new_record
from pipeline.stages.blocks import tokens_array, with_seconds
from pipeline.stages.generate import NameSamples
from pipeline.stages.write_parts import WriteParts

SIDE = 8
MODEL_ACTORS = 4
SLEEP_SECONDS = 0.01


class Sleep:
    """In place of a model: named rows -> the same with tokens, after a while."""

    def __call__(self, block: pa.Table) -> pa.Table:
        time.sleep(SLEEP_SECONDS)
        if rows.ROW_ID not in block.column_names:  # a block of the plan
            return block.select(["shard"])
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


def chain(n_shards: int) -> int:
    """Shards that came back out of so many."""
    plan = Source.numbered(n_shards).cut(1)
    stage = Stage(Sleep, {}, Resources(actors=MODEL_ACTORS, num_cpus=0.2))
    return sum(1 for _ in dispatch_shards(plan, plan.shards, [stage]))


def whole(n_shards: int) -> int:
    """Rows of a run of so many shards."""
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.at(f"{folder}/run", {})
        record = new_record("sample", command="", options={})
        plan = Source.numbered(n_shards).cut(1)
        directory.create(record)
        directory.write_plan(plan)
        lease = Lease(directory.location, {}, record["run"])
        lease.acquire()
        summary = execute(
            directory,
            plan,
            stages(directory.location, lease),
            finished=set(),
            lease=lease,
            max_error_fraction=0,
            progress="quiet",
        )
        return summary.figures.rows


KINDS = {"chain": chain, "whole": whole}


def measure(kind: str, n_shards: int) -> None:
    """Runs one of the two in this process and prints a line of JSON."""
    with cluster.connected(None):
        before, begun = peak_mb(), time.perf_counter()
        assert KINDS[kind](n_shards) == n_shards
        seconds = time.perf_counter() - begun
    facts = {
        "kind": kind,
        "shards": n_shards,
        "seconds": round(seconds, 1),
        "ms_per_shard": round(1000 * seconds / n_shards, 2),
        "driver_cpu_ms_per_shard": round(1000 * time.process_time() / n_shards, 2),
        "driver_peak_mb": peak_mb(),
        "driver_mb_before": before,
    }
    print(json.dumps(facts))


def peak_mb() -> int:
    """Returns the peak of this process; what `getrusage` says may be its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chain", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--whole", type=int, nargs="*", default=[1_000])
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "SHARDS"))
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure[0], int(arguments.measure[1]))
        return
    found = []
    for kind in KINDS:
        for n in getattr(arguments, kind):
            words = [sys.executable, __file__, "--measure", kind, str(n)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(found[-1], file=sys.stderr, flush=True)
    for name in found[0]:
        print(f"{name:>24}" + "".join(f"{facts[name]!s:>10}" for facts in found))
    print(json.dumps({"benchmark": "scale", "runs": found}))


if __name__ == "__main__":
    main()
