"""The rows that a report shows of a run, evenly spread over all of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from pipeline.run_directory.layout import spread
from pipeline.run_directory.stats import row_count

MAX_EXAMPLES = 24
_THREADS = 8
_BATCH_ROWS = 64


def read_examples(
    fs: AbstractFileSystem,
    parts: Sequence[str],
    *,
    job: str,
    image_size: int,
    passthrough: Collection[str] = (),
    palette: Palette | None = None,
    quantized: Mapping[str, Mapping[int, bytes]] | None = None,
    n: int = MAX_EXAMPLES,
) -> list[Example]:
    """Reads up to n rows at even distances over all parts, the same for the same parts.

    Opens at most n parts, of those the row groups that are needed. Pictures of tokens take the
    run's palette: without it, quantize has none and the list is empty. Jobs whose results hold no
    images have the rows of `quantized` alone, PNG by part and row. Columns of `passthrough` are the
    input's and not the job's, whatever their names.
    """
    if job == "quantize" and palette is None:
        return []
    pictures = JOB_PICTURES[job]
    columns = [name for name in pictures.columns if name not in passthrough]
    quantized = quantized or {}
    with ThreadPoolExecutor(_THREADS) as pool:
        if pictures.by_stats:
            there = [(path, row) for path in parts for row in sorted(quantized.get(path, ()))]
            wanted: dict[str, list[int]] = {}
            for path, row in (there[i] for i in spread(len(there), n)):
                wanted.setdefault(path, []).append(row)
        else:
            chosen = [parts[i] for i in spread(len(parts), n)]
            counts = list(pool.map(lambda path: row_count(fs, path), chosen))
            wanted = _by_part(chosen, counts, spread(sum(counts), n))
        found = pool.map(
            lambda path: list(_read_rows(fs, path, wanted[path], columns)), list(wanted)
        )
        read = [
            values | {QUANTIZED_PNG: quantized.get(path, {}).get(row)}
            for path, values_read in zip(wanted, found, strict=True)
            for row, values in zip(wanted[path], values_read, strict=True)
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


def _by_part(
    parts: Sequence[str], counts: Sequence[int], picks: Sequence[int]
) -> dict[str, list[int]]:
    """Turns rows counted over all parts into rows of each part."""
    wanted: dict[str, list[int]] = {}
    starts = np.cumsum([0, *counts])
    for pick in picks:
        part = int(np.searchsorted(starts, pick, side="right")) - 1
        wanted.setdefault(parts[part], []).append(pick - int(starts[part]))
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
