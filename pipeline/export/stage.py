"""The stage that exports a run: a part in, the files of a format out."""

import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from igpt_core.images.model_palette import load_palette
from pipeline.export.formats import EXPORTS
from pipeline.export.part import Contents, Part
from pipeline.inputs.parquet_schema import parquet_errors
from pipeline.run_directory.layout import parquet_file
from pipeline.shards import Shard, shard_in
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import join, open_location, read_bytes
from pipeline.storage.redact import redacted_line

EXPORTED = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("rows", pa.int32()),
        pa.field("seconds", pa.float64()),
    ]
)
_WRITING_THREADS = 16  # files of a part written at once: stores and disks have latency


class ExportParts:
    """Takes rows of a plan whose shards are the parts of a run, writes the files of each part in
    another format, and returns one row of EXPORTED per part.

    Holds one part at a time. The file that means "done" is written last.

    Args:
        to: which of EXPORTS.
        job, passthrough: of the run, see `Contents.of`.
        n_samples, image_size: of the run.
        palette: its location, None where the run's pictures need none.
        output: where the files go.
        input_options, output_options, model_options: fsspec options of run, output and palette.
    """

    def __init__(
        self,
        *,
        to: str,
        job: str,
        passthrough: Collection[str],
        n_samples: int,
        image_size: int,
        palette: str | None,
        output: str,
        input_options: Mapping[str, Any],
        output_options: Mapping[str, Any],
        model_options: Mapping[str, Any],
    ) -> None:
        self._format = EXPORTS[to]
        self._job, self._passthrough = job, passthrough
        self._n_samples, self._side = n_samples, image_size
        self._palette = None
        if palette is not None:
            self._palette = load_palette(palette, storage_options=model_options)
        self._fs, self._output = open_location(output, output_options)
        self._input_options = input_options

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        part = self._read(shard_in(block))
        *files, done = self._format.files(part)
        with ThreadPoolExecutor(_WRITING_THREADS) as pool:
            for _ in pool.map(self._write, files):  # raises what a thread raised
                pass
        self._write(done)
        exported = {
            "shard": part.index,
            "rows": part.table.num_rows,
            "seconds": time.perf_counter() - begun,
        }
        return pa.Table.from_pylist([exported], schema=EXPORTED)

    def _read(self, shard: Shard) -> Part:
        (file_slice,) = shard.slices
        fs, path = open_location(file_slice.path, self._input_options)
        try:
            file = parquet_file(read_bytes(fs, path))
            contents = Contents.of(self._job, file.schema_arrow, self._passthrough)
            table = file.read(contents.columns)
        except parquet_errors() as error:
            raise RuntimeError(f"cannot read {file_slice.path}: {redacted_line(error)}") from error
        return Part(shard.index, table, contents, self._n_samples, self._palette, self._side)

    def _write(self, file: tuple[str, bytes]) -> None:
        name, content = file
        write_atomic(self._fs, join(self._output, name), content)
