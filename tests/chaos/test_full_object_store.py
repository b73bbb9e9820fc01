"""A run whose blocks in flight are more than Ray's object store holds."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster

from drivers import finish
from pictures import encoded, photo
from runs import parts

STORE_MIB = 80  # Ray takes no less than 75
SHARDS, SHARD, ROW_MIB = 4, 4, 12  # no two blocks fit into the store
READERS = 3
# Ray learns how large blocks are from the first ones. Where all readers are there before one
# begins, each has been handed a shard by then.
AT_ONCE = {"RAY_DATA_DEFAULT_WAIT_FOR_MIN_ACTORS_S": "120"}


@pytest.fixture(scope="module")
def large_rows(tmp_path_factory) -> Path:
    """Images beside bytes that are passed through: much in a block, little in a file."""
    n = SHARDS * SHARD
    columns = {
        "image": [encoded(photo(i)) for i in range(n)],
        "load": [bytes([i]) * (ROW_MIB << 20) for i in range(n)],
    }
    path = tmp_path_factory.mktemp("large") / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=SHARD)
    return path


@pytest.mark.slow
def test_blocks_that_the_object_store_cannot_hold_change_no_byte(large_rows, tiny_model, tmp_path):
    """Ray moves them to disk and back. Held together they would be 192 MiB, in a store of 80."""
    words = ("quantize", f"--input={large_rows}", f"--model={tiny_model}", f"--shard-size={SHARD}")
    words, log = (*words, f"--cpu-actors={READERS}"), tmp_path / "log"
    finish(*words, f"--output={tmp_path / 'undisturbed'}", log=log)
    node = {"num_cpus": 2, "object_store_memory": STORE_MIB << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        words = (*words, f"--address={cluster.address}")
        finish(*words, f"--output={tmp_path / 'run'}", log=log, **AT_ONCE)
        said = memory_summary(cluster.address, stats_only=True)
    finally:
        cluster.shutdown()
    assert _mebibytes("Spilled", said) >= SHARD * ROW_MIB, said
    assert _mebibytes("Restored", said) >= SHARD * ROW_MIB, said
    made = parts(tmp_path / "run", "data", "errors")
    assert len(made) == SHARDS
    assert made == parts(tmp_path / "undisturbed", "data", "errors")


def _mebibytes(what: str, said: str) -> int:
    """Of blocks that were moved, from the start of the cluster on."""
    found = re.search(rf"{what} (\d+) MiB", said)
    return int(found.group(1)) if found else 0
