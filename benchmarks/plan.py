"""Planning a large input: a million image files in one folder, ten thousand Parquet files.

    python benchmarks/plan.py

The files are made in a temporary folder (the images are empty, the Parquet files hold three rows).
Each input is then planned by a process of its own, as a job does it: files found and counted, cut
into shards, the plan made the content of plan.parquet, a block made of it for each shard; and the
plan read again, as at a resume. Prints a table, then one line of JSON. What is aimed at: under a
minute, under 1 GB.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.source import find_source
from pipeline.run_directory.layout import parquet_bytes
from pipeline.shards import Plan
from pipeline.storage.redact import redacted_location

SHARD_SIZE = {"images": 1024, "parquet": 4}
FILES = {"images": 1_000_000, "parquet": 10_000}


def make(folder: Path, format: str) -> None:
    """Writes the files of an input."""
    content = b""
    if format == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.table({"image": [b"x"] * 3, "label": [0, 1, 2]}), buffer)
        content = buffer.getvalue()
    extension = {"images": "jpg", "parquet": "parquet"}[format]
    folder.mkdir()
    for i in range(FILES[format]):
        (folder / f"{i:08d}.{extension}").write_bytes(content)


def measure(folder: str, format: str) -> None:
    """Plans the input in this process and prints a line of JSON with the seconds and the memory."""
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    begun = time.perf_counter()
    source = find_source(folder)
    found = time.perf_counter()
    plan = source.cut(SHARD_SIZE[format])
    written = parquet_bytes(plan.with_paths(redacted_location).to_table())
    table = plan.to_table()
    blocks = [table.slice(row, 1) for row in range(table.num_rows)]
    planned = time.perf_counter()
    facts = {"rows": plan.rows, "shards": len(blocks)}
    del source, plan, table, blocks  # another process reads the plan again
    again = Plan.from_table(pq.read_table(io.BytesIO(written)))
    ended = time.perf_counter()
    assert (again.rows, len(again.shards)) == tuple(facts.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    facts = {
        "input": format,
        "files": FILES[format],
        **facts,
        "find_seconds": round(found - begun, 2),
        "cut_and_write_seconds": round(planned - found, 2),
        "read_again_seconds": round(ended - planned, 2),
        "peak_rss_mb": peak,
        "rss_mb_after_imports": imported,
        "plan_file_mb": round(len(written) / 1e6, 1),
    }
    print(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "FORMAT"))
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    found = []
    with tempfile.TemporaryDirectory() as root:
        for format in FILES:
            folder = Path(root, format)
            make(folder, format)
            command = [sys.executable, __file__, "--measure", str(folder), format]
            found.append(json.loads(subprocess.check_output(command)))
    for name in found[0]:
        print(" ".join([f"{name:22}", *(f"{facts[name]:>10}" for facts in found)]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
