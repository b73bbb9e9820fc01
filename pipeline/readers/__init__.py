"""One reader per input format: the rows of a shard as images or tokens, in order, good or bad."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.readers.chunk import Chunk, ReadOptions
from pipeline.readers.images import read_image_files
from pipeline.readers.parquet import read_parquet
from pipeline.readers.webdataset import read_tars
from pipeline.shards import Shard

SOURCES: dict[str, Callable[[Shard, ReadOptions], Iterator[Chunk]]] = {
    "images": read_image_files,
    "parquet": read_parquet,
    "tokens": read_parquet,
    "webdataset": read_tars,
}


def read_shard(
    shard: Shard,
    *,
    format: str,
    image_column: str | None = None,
    id_column: str | None = None,
    passthrough: pa.Schema | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[Chunk]:
    """All rows of a shard, in order, a few megabytes at a time. What comes next is read while
    the caller works on a chunk. A row that cannot be read is there with its error.

    The arguments are fields of the shard's plan; `storage_options` those of the input alone.
    """
    passthrough = pa.schema([]) if passthrough is None else passthrough
    options = ReadOptions(image_column, id_column, passthrough, storage_options or {}, format)
    return SOURCES[format](shard, options)
