"""The rows that stand for a whole run in its report, as pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from igpt_core.palette import Palette
from igpt_core.pixels import encode_png
from pipeline import rows
from pipeline.run_record import row_count

ROWS = 24
MAX_SAMPLES = 6
_THREADS = 8
_BATCH_ROWS = 64


@dataclass(frozen=True)
class Picture:
    """A PNG with a title. `side`: height and width of the full square, of which the PNG may hold
    only the upper rows (None: none). `made_from`: first row that the model made, None: none."""

    title: str
    png: bytes | None
    side: int
    made_from: int | None = None


@dataclass(frozen=True)
class Entry:
    """A row of the results as pictures, in the order in which they stand side by side."""

    id: str
    pictures: tuple[Picture, ...]


def read_entries(
    fs: AbstractFileSystem,
    parts: Sequence[str],
    *,
    job: str,
    image_size: int,
    palette: Palette | None = None,
    n: int = ROWS,
) -> list[Entry]:
    """Up to n rows at even distances over all parts, the same for the same parts.

    Opens at most n parts, of those the row groups that are needed. Pictures of tokens take the
    run's palette: without it, quantize has none and the list is empty.
    """
    if job == "quantize" and palette is None:
        return []
    columns, entry = _JOBS[job]
    chosen = [parts[i] for i in spread(len(parts), n)]
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(lambda path: row_count(fs, path), chosen))
        wanted = _by_part(counts, spread(sum(counts), n))
        found = pool.map(
            lambda item: list(_read_rows(fs, chosen[item[0]], item[1], columns)), wanted.items()
        )
        return [entry(row, image_size, palette) for part in found for row in part]


def spread(total: int, n: int) -> list[int]:
    """n indices of range(total) at even distances, each in the middle of its stretch; all of them
    where there are no more than n."""
    n = min(n, total)
    return [(2 * i + 1) * total // (2 * n) for i in range(n)]


def _by_part(counts: Sequence[int], picks: Sequence[int]) -> dict[int, list[int]]:
    """Rows of all parts together as rows of each."""
    wanted: dict[int, list[int]] = {}
    starts = np.cumsum([0, *counts])
    for pick in picks:
        part = int(np.searchsorted(starts, pick, side="right")) - 1
        wanted.setdefault(part, []).append(pick - int(starts[part]))
    return wanted


def _read_rows(
    fs: AbstractFileSystem, path: str, wanted: Sequence[int], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The wanted rows (ascending) of a part, reading only their row groups, a batch at a time."""
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


def _completion(row: Mapping[str, Any], side: int, palette: Palette | None) -> Entry:
    given = int(row[rows.PROMPT_LENGTH.name]) // side
    images = row[rows.IMAGES.name]
    numbers = range(1, len(images) + 1)
    titles = [f"completion {i}" for i in numbers] if len(images) > 1 else ["completion"]
    prompt, original = row[rows.PROMPT.name], row[rows.ORIGINAL.name]
    return Entry(
        row[rows.ID.name],
        (
            Picture("given", prompt and prompt["bytes"], side),
            *(
                Picture(title, image["bytes"], side, given)
                for title, image in zip(titles, images[:MAX_SAMPLES], strict=False)
            ),
            Picture("original", original["bytes"], side),
        ),
    )


def _quantized(row: Mapping[str, Any], side: int, palette: Palette | None) -> Entry:
    assert palette is not None  # read_entries sees to it
    tokens = np.array(row[rows.TOKENS.name], np.uint16).reshape(side, side)
    png = encode_png(palette.decode(tokens))
    return Entry(row[rows.ID.name], (Picture("quantized", png, side),))


_Reader = Callable[[Mapping[str, Any], int, Palette | None], Entry]
_JOBS: dict[str, tuple[Sequence[str], _Reader]] = {
    "complete": (
        [c.name for c in (rows.ID, rows.IMAGES, rows.PROMPT, rows.ORIGINAL, rows.PROMPT_LENGTH)],
        _completion,
    ),
    "quantize": ([rows.ID.name, rows.TOKENS.name], _quantized),
}
