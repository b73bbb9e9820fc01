"""The rows that stand for a whole run in its report, as pictures."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from igpt_core.images.palette import Palette
from igpt_core.images.pixels import encode_png
from pipeline import rows
from pipeline.report.heat_map import draw_heat_map, scale_top
from pipeline.run_directory.layout import spread
from pipeline.run_directory.stats import row_count

ROWS = 24
MAX_SAMPLES = 6
_THREADS = 8
_BATCH_ROWS = 64
_PICTURE = rows.PREFIX + "picture"  # of a row, beside its columns


@dataclass(frozen=True)
class Picture:
    """A PNG with a title.

    `side`: height and width of the full square. The PNG may hold only the upper rows of it (None:
    none), and transparent pixels: the rest was not given. `made_from`: first row with pixels that
    the model made, None: none. `heat_top`: nats of the brightest color of a heat map.
    """

    title: str
    png: bytes | None
    side: int
    made_from: int | None = None
    heat_top: float | None = None


@dataclass(frozen=True)
class Entry:
    """A row of the results as pictures, in the order in which they stand side by side, and what
    is said of them."""

    id: str
    pictures: tuple[Picture, ...]
    caption: str = ""


def read_entries(
    fs: AbstractFileSystem,
    parts: Sequence[str],
    *,
    job: str,
    image_size: int,
    passthrough: Collection[str] = (),
    palette: Palette | None = None,
    examples: Mapping[str, Mapping[int, bytes]] | None = None,
    n: int = ROWS,
) -> list[Entry]:
    """Up to n rows at even distances over all parts, the same for the same parts.

    Opens at most n parts, of those the row groups that are needed. Pictures of tokens take the
    run's palette: without it, quantize has none and the list is empty. Jobs whose results hold no
    images have the rows of `examples` alone, PNG by part and row. Columns of `passthrough` are the
    input's and not the job's, whatever their names.
    """
    if job == "quantize" and palette is None:
        return []
    columns, entry = _JOBS[job]
    columns = [name for name in columns if name not in passthrough]
    examples = examples or {}
    with ThreadPoolExecutor(_THREADS) as pool:
        if job in _BY_EXAMPLE:
            there = [(path, row) for path in parts for row in sorted(examples.get(path, ()))]
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
            values | {_PICTURE: examples.get(path, {}).get(row)}
            for path, values_read in zip(wanted, found, strict=True)
            for row, values in zip(wanted[path], values_read, strict=True)
        ]
    heat_top = scale_top([values[rows.NLL_MAP] for values in read if rows.NLL_MAP in values])
    look = _Look(image_size, palette, heat_top)
    return [entry(values, look) for values in read]


def _by_part(
    parts: Sequence[str], counts: Sequence[int], picks: Sequence[int]
) -> dict[str, list[int]]:
    """Rows of all parts together as rows of each."""
    wanted: dict[str, list[int]] = {}
    starts = np.cumsum([0, *counts])
    for pick in picks:
        part = int(np.searchsorted(starts, pick, side="right")) - 1
        wanted.setdefault(parts[part], []).append(pick - int(starts[part]))
    return wanted


def _read_rows(
    fs: AbstractFileSystem, path: str, wanted: Sequence[int], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The wanted rows (ascending) of a part, reading only their row groups, a batch at a time.
    Of `columns` those that are there."""
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


@dataclass(frozen=True)
class _Look:
    """What all pictures of a report share."""

    side: int
    palette: Palette | None
    heat_top: float


def _completion(row: Mapping[str, Any], look: _Look) -> Entry:
    side = look.side
    given = int(row[rows.PROMPT_LENGTH]) // side
    images = row[rows.IMAGES]
    numbers = range(1, len(images) + 1)
    titles = [f"completion {i}" for i in numbers] if len(images) > 1 else ["completion"]
    prompt, original = row[rows.PROMPT], row.get(rows.ORIGINAL)
    nats = ", ".join(f"{nll:.2f}" for nll in row.get(rows.NLL, ())[:MAX_SAMPLES])
    return Entry(
        row[rows.ID],
        (
            Picture("given", prompt and prompt["bytes"], side),
            *(
                Picture(title, image["bytes"], side, given)
                for title, image in zip(titles, images[:MAX_SAMPLES], strict=False)
            ),
            *((Picture("original", original["bytes"], side),) if original else ()),
        ),
        f"{nats} nats per pixel" if nats else "",
    )


def _sampled(row: Mapping[str, Any], look: _Look) -> Entry:
    nats = f"{row[rows.NLL]:.2f} nats per pixel" if rows.NLL in row else ""
    return Entry(row[rows.ID], (Picture("sampled", row[rows.PICTURE]["bytes"], look.side),), nats)


def _quantized(row: Mapping[str, Any], look: _Look) -> Entry:
    assert look.palette is not None  # read_entries sees to it
    tokens = np.array(row[rows.TOKENS], np.uint16).reshape(look.side, look.side)
    png = encode_png(look.palette.decode(tokens))
    return Entry(row[rows.ID], (Picture("quantized", png, look.side),))


def _classified(row: Mapping[str, Any], look: _Look) -> Entry:
    found = row.get(rows.PREDICTED_NAME, row[rows.PREDICTED_LABEL])
    return _by_example(row, look, f"{found}, {row[rows.PROBABILITY]:.0%}")


def _scored(row: Mapping[str, Any], look: _Look) -> Entry:
    says = f"{row[rows.NLL]:.2f} nats, {row[rows.BITS_PER_PIXEL]:.2f} bits per pixel"
    entry = _by_example(row, look, says)
    if rows.NLL_MAP not in row:
        return entry
    nats = np.array(row[rows.NLL_MAP], np.float32).reshape(look.side, look.side)
    heat = Picture("surprise", draw_heat_map(nats, look.heat_top), look.side, None, look.heat_top)
    return Entry(entry.id, (*entry.pictures, heat), says)


def _by_example(row: Mapping[str, Any], look: _Look, caption: str = "") -> Entry:
    return Entry(row[rows.ID], (Picture("quantized", row[_PICTURE], look.side),), caption)


_Reader = Callable[[Mapping[str, Any], _Look], Entry]
_JOBS: dict[str, tuple[Sequence[str], _Reader]] = {
    "complete": (
        [rows.ID, rows.IMAGES, rows.PROMPT, rows.ORIGINAL, rows.PROMPT_LENGTH, rows.NLL],
        _completion,
    ),
    "quantize": ([rows.ID, rows.TOKENS], _quantized),
    "sample": ([rows.ID, rows.PICTURE, rows.NLL], _sampled),
    "classify": (
        [rows.ID, rows.PREDICTED_LABEL, rows.PREDICTED_NAME, rows.PROBABILITY],
        _classified,
    ),
    "score": ([rows.ID, rows.NLL, rows.BITS_PER_PIXEL, rows.NLL_MAP], _scored),
    "embed": ([rows.ID], _by_example),
}
_BY_EXAMPLE = {"classify", "embed", "score"}  # jobs whose results hold no images
