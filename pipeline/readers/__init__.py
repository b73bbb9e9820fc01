"""From a shard to rows, good or failed: one file per format, listed in READERS.

Uses storage and inputs, for what planning knows of the formats."""

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.readers.images import read_image_files
from pipeline.readers.input_rows import MAX_IMAGE_BYTES, InputRows, ReadOptions
from pipeline.readers.parquet import read_parquet
from pipeline.readers.urls import read_urls
from pipeline.readers.webdataset import read_webdataset
from pipeline.shards import Shard

READERS: dict[str, Callable[[Shard, ReadOptions], Iterator[InputRows]]] = {
    "images": read_image_files,
    "parquet": read_parquet,
    "tokens": read_parquet,
    "urls": read_urls,
    "webdataset": read_webdataset,
}


def read_shard(
    shard: Shard,
    *,
    format: str,
    image_column: str | None = None,
    id_column: str | None = None,
    passthrough: pa.Schema | None = None,
    storage_options: Mapping[str, Any] | None = None,
    kept: Container[str] = (),
    max_image_bytes: int = MAX_IMAGE_BYTES,
) -> Iterator[InputRows]:
    """Reads all rows of a shard, in order, a few megabytes at a time; what comes next is read
    while the caller works. A row that cannot be read is there with its error.

    The arguments are fields of the shard's plan; `storage_options` those of the input alone. Of the
    rows whose ids are in `kept` the caller wants no images. Encoded images of more than
    `max_image_bytes` are errors; of files that say their size they are not read.

    Raises what is no row's fault: what the store raises where that may be gone soon
    (`is_transient`) or is the place's (`faults`), and UnreadableTar.
    """
    passthrough = pa.schema([]) if passthrough is None else passthrough
    options = ReadOptions(
        image_column, id_column, passthrough, storage_options or {}, format, kept, max_image_bytes
    )
    for read in READERS[format](shard, options):
        for row, image in enumerate(read.images):
            if isinstance(image, bytes) and (error := options.refused(len(image))):
                read.images[row] = error
        yield read
