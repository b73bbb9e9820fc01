"""The rows that a report shows of a run, evenly spread over all of it."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from igpt_core.images.palette import Palette
from pipeline import rows
from pipeline.report.heat_map import scale_top
from pipeline.report.pictures import JOB_PICTURES, QUANTIZED_PNG, Example, PictureContext
from pipeline.run_directory.directory import RunDirectory
from pipeline.run_directory.layout import part_name, spread
from pipeline.run_directory.stats import read_pictures, row_count
from pipeline.storage.filesystem import join

MAX_EXAMPLES = 24
_THREADS = 8
_BATCH_ROWS = 64


def read_examples(
    directory: RunDirectory,
    shards: Sequence[int],
    *,
    job: str,
    image_size: int,
    passthrough: Collection[str] = (),
    palette: Palette | None = None,
    n: int = MAX_EXAMPLES,
) -> list[Example]:
    """Reads up to n rows at even distances over shards with results, the same for the same shards.

    Opens the parts of at most n shards, of those the row groups that are needed. Pictures of tokens
    take the run's palette: without it, quantize has none and the list is empty. Jobs whose results
    hold no images have the rows alone whose pictures the stats of those shards keep. Columns of
    `passthrough` are the input's and not the job's, whatever their names.
    """
    if job == "quantize" and palette is None:
        return []
    pictures = JOB_PICTURES[job]
    columns = [name for name in pictures.columns if name not in passthrough]
    chosen = [shards[i] for i in spread(len(shards), n)]
    part_of = {shard: join(directory.path, part_name("data", shard)) for shard in chosen}
    kept: dict[int, dict[int, bytes]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        if pictures.by_stats:
            found = pool.map(lambda shard: read_pictures(directory, shard), chosen)
            kept = dict(zip(chosen, found, strict=True))
            there = [(shard, row) for shard in chosen for row in sorted(kept[shard])]
            wanted = _by_shard(there[i] for i in spread(len(there), n))
        else:
            counts = pool.map(lambda shard: row_count(directory.fs, part_of[shard]), chosen)
            wanted = _at(chosen, list(counts), n)
        values_of = pool.map(
            lambda shard: list(_read_rows(directory.fs, part_of[shard], wanted[shard], columns)),
            list(wanted),
        )
        read = [
            values | {QUANTIZED_PNG: kept.get(shard, {}).get(row)}
            for shard, rows_read in zip(wanted, values_of, strict=True)
            for row, values in zip(wanted[shard], rows_read, strict=True)
        ]
    nll_top = scale_top([values[rows.NLL_MAP] for values in read if rows.NLL_MAP in values])
    context = PictureContext(image_size, palette, nll_top)
    return [pictures.to_example(values, context) for values in read]


def any_generated(examples: Sequence[Example]) -> bool:
    """Tells whether a picture marks rows with generated pixels."""
    return any(p.generated_from is not None for example in examples for p in example.pictures)


def heat_map_top(examples: Sequence[Example]) -> float | None:
    """Finds the nats of the brightest color of the heat maps; None where there are none."""
    return next((p.nll_top for example in examples for p in example.pictures if p.nll_top), None)


def _at(shards: Sequence[int], counts: Sequence[int], n: int) -> dict[int, list[int]]:
    """Chooses up to n of the rows of shards, counted over all of them, by shard."""
    starts = np.cumsum([0, *counts])
    picks = spread(sum(counts), n)
    at = [int(np.searchsorted(starts, pick, side="right")) - 1 for pick in picks]
    return _by_shard((shards[i], pick - int(starts[i])) for i, pick in zip(at, picks, strict=True))


def _by_shard(rows_of_shards: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    wanted: dict[int, list[int]] = {}
    for shard, row in rows_of_shards:
        wanted.setdefault(shard, []).append(row)
    return wanted


def _read_rows(
    fs: AbstractFileSystem, path: str, wanted: Sequence[int], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Reads the wanted rows (ascending) of a part: only their row groups, a batch at a time, of
    `columns` those that are there."""
    with fs.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        at = 0
        for group in range(parquet.num_row_groups):
            stop = at + parquet.metadata.row_group(group).num_rows
            picks = [row for row in wanted if at <= row < stop]
            batches = parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)
            while picks and picks[-1] >= at:
                batch = next(batches)
                here = [row - at for row in picks if at <= row < at + batch.num_rows]
                yield from batch.take(pa.array(here, pa.int64())).to_pylist()
                at += batch.num_rows
            at = stop
