"""The last shard of a Parquet file that is one large row group, alone in a new process.

    python benchmarks/row_group.py

25,000 images of 20 KB (500 MB) with labels, with and without an offset index. The last 1,000 rows
are read by a process of their own, as by an actor that begins there: by igpt's reader, and by
pyarrow's `iter_batches`, which begins with the group. Prints a table, then one line of JSON. Both
must give the same rows.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.source import find_source
from pipeline.readers import read_shard

ROWS, IMAGE_BYTES, SHARD = 25_000, 20_000, 1_000


def make(path: Path, *, index: bool) -> None:
    bytes_of = np.random.default_rng(0).bytes
    images = [{"bytes": bytes_of(IMAGE_BYTES), "path": f"{i}.jpg"} for i in range(ROWS)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(range(ROWS))})
    pq.write_table(table, path, row_group_size=ROWS, write_page_index=index)


def by_igpt(path: str) -> list[bytes]:
    """The images of the last shard."""
    plan = find_source(path).cut(SHARD)
    chunks = read_shard(
        plan.shards[-1],
        format="parquet",
        image_column=plan.image_column,
        passthrough=plan.passthrough,
    )
    return [image for chunk in chunks for image in chunk.images]


def by_pyarrow(path: str) -> list[bytes]:
    found: list[bytes] = []
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(SHARD):
            found = batch.column("image").field("bytes").to_pylist()
    return found


READERS = {"igpt": by_igpt, "pyarrow": by_pyarrow}


def measure(path: str, reader: str) -> None:
    """Read the last shard in this process; a line of JSON."""
    read_before, begun = bytes_read(), time.perf_counter()
    images = READERS[reader](path)
    facts = {
        "seconds": round(time.perf_counter() - begun, 2),
        "read_mb": round((bytes_read() - read_before) / 1e6, 1),
        "peak_rss_mb": peak_kb() >> 10,
    }
    assert len(images) == SHARD
    print(json.dumps(facts | {"content": hashlib.sha256(b"".join(images)).hexdigest()}))


def peak_kb() -> int:
    """Of this process; what `getrusage` says may be its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def bytes_read() -> int:
    """By this process, from disks and their cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "READER"))
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(*arguments.measure)
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index in (False, True):
            path = Path(folder, f"{index}.parquet")
            make(path, index=index)
            for reader in READERS:
                words = [sys.executable, __file__, "--measure", str(path), reader]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
                found.append({"index": index, "reader": reader, **json.loads(done.stdout)})
            path.unlink()
    assert len({facts.pop("content") for facts in found}) == 1
    for name in found[0]:
        print(f"{name:>12}" + "".join(f"{facts[name]!s:>10}" for facts in found))
    print(json.dumps({"benchmark": "row_group", "runs": found}))


if __name__ == "__main__":
    main()
