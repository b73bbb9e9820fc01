"""The names of what a run directory holds, and which of its parts are there."""

import io
import re

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.storage.filesystem import join, retry_on
from pipeline.storage.walk import scan_folder

FORMAT = 1  # of run.json and report.json
FOLDERS = ("data", "errors", "stats")
RUN_FILE = "run.json"
PLAN_FILE = "plan.parquet"
REPORT_FILE = "report.json"
LEASE_FILE = ".owner"  # hidden, like the next: neither input nor result
_STOP = ".stop-"
ROW_GROUP_ROWS = 1024
_PART = re.compile(r"part-(\d{6,})\.parquet")  # not a copy that somebody made of one


def part_name(folder: str, shard: int) -> str:
    """Returns the name of a part in the run directory, such as data/part-000042.parquet."""
    extension = "json" if folder == "stats" else "parquet"
    return f"{folder}/part-{shard:06d}.{extension}"


def stop_file(holder: str) -> str:
    """Returns the name, in the run directory, of the file that tells actors of a driver to stop."""
    return f"{_STOP}{holder}"


def is_stop_file(name: str) -> bool:
    """Returns whether `stop_file` makes such a name."""
    return name.startswith(_STOP)


def finished_shards(fs: AbstractFileSystem, output: str) -> set[int]:
    """Returns the shards whose part of results is there: one listing."""
    return _shards_in(fs, output, "data")


def shards_with_errors(fs: AbstractFileSystem, output: str) -> set[int]:
    """Returns the shards that have a part of errors: one listing."""
    return _shards_in(fs, output, "errors")


def _shards_in(fs: AbstractFileSystem, output: str, folder: str) -> set[int]:
    def listed() -> set[int]:
        shards = (shard_of(entry.name) for entry in scan_folder(fs, join(output, folder)))
        return {shard for shard in shards if shard is not None}

    return retry_on(fs, listed)


def shard_of(path: str) -> int | None:
    """Returns the shard whose results or errors a path names; None for any other file."""
    part = _PART.fullmatch(path.rpartition("/")[2])
    return int(part[1]) if part else None


def spread(total: int, n: int) -> list[int]:
    """Returns n indices of range(total) at even distances, each in the middle of its stretch; all
    where there are no more than n."""
    n = min(n, total)
    return [(2 * i + 1) * total // (2 * n) for i in range(n)]


def parquet_file(content: bytes) -> pq.ParquetFile:
    """Opens what `parquet_bytes` returned, or any Parquet file, to be read with its checksums
    verified."""
    return pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)


def parquet_bytes(table: pa.Table) -> bytes:
    """Writes a table as a Parquet file; the same bytes for the same rows and version of pyarrow,
    however the table is cut into chunks."""
    table = table.combine_chunks()
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, table.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        if table.num_rows:  # a row group of no rows stops `datasets`
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return buffer.getvalue()
