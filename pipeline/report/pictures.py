"""A row of results as pictures: one function per job."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from igpt_core.images.palette import Palette
from igpt_core.images.pixels import encode_png
from pipeline import rows
from pipeline.report.heat_map import draw_heat_map

MAX_SAMPLES = 6
QUANTIZED_PNG = rows.PREFIX + "quantized_png"  # of a row, beside its columns


@dataclass(frozen=True)
class Picture:
    """A PNG with a title.

    `side`: height and width of the full square. The PNG may hold only the upper rows of it (None:
    none), and transparent pixels: the rest is unknown. `generated_from`: first row with generated
    pixels, None: none. `nll_top`: nats of the brightest color of a heat map.
    """

    title: str
    png: bytes | None
    side: int
    generated_from: int | None = None
    nll_top: float | None = None


@dataclass(frozen=True)
class Example:
    """A row of the results: its pictures in the order in which they stand side by side, and a
    line about them."""

    id: str
    pictures: tuple[Picture, ...]
    caption: str = ""


@dataclass(frozen=True)
class PictureContext:
    """What the pictures of all examples share."""

    side: int
    palette: Palette | None
    nll_top: float


def _complete(row: Mapping[str, Any], context: PictureContext) -> Example:
    side = context.side
    known_rows = int(row[rows.PROMPT_LENGTH]) // side
    images = row[rows.IMAGES]
    numbers = range(1, len(images) + 1)
    titles = [f"completion {i}" for i in numbers] if len(images) > 1 else ["completion"]
    prompt, original = row[rows.PROMPT], row.get(rows.ORIGINAL)
    nats = ", ".join(f"{nll:.2f}" for nll in row.get(rows.NLL, ())[:MAX_SAMPLES])
    return Example(
        row[rows.ID],
        (
            Picture("prompt", prompt and prompt["bytes"], side),
            *(
                Picture(title, image["bytes"], side, known_rows)
                for title, image in zip(titles, images[:MAX_SAMPLES], strict=False)
            ),
            *((Picture("original", original["bytes"], side),) if original else ()),
        ),
        f"{nats} nats per pixel" if nats else "",
    )


def _sample(row: Mapping[str, Any], context: PictureContext) -> Example:
    nats = f"{row[rows.NLL]:.2f} nats per pixel" if rows.NLL in row else ""
    picture = Picture("sample", row[rows.PICTURE]["bytes"], context.side)
    return Example(row[rows.ID], (picture,), nats)


def _quantize(row: Mapping[str, Any], context: PictureContext) -> Example:
    assert context.palette is not None  # read_examples sees to it
    tokens = np.array(row[rows.TOKENS], np.uint16).reshape(context.side, context.side)
    png = encode_png(context.palette.decode(tokens))
    return Example(row[rows.ID], (Picture("quantized", png, context.side),))


def _classify(row: Mapping[str, Any], context: PictureContext) -> Example:
    label = row.get(rows.PREDICTED_NAME, row[rows.PREDICTED_LABEL])
    return _quantized(row, context, f"{label}, {row[rows.PROBABILITY]:.0%}")


def _score(row: Mapping[str, Any], context: PictureContext) -> Example:
    caption = f"{row[rows.NLL]:.2f} nats, {row[rows.BITS_PER_PIXEL]:.2f} bits per pixel"
    example = _quantized(row, context, caption)
    if rows.NLL_MAP not in row:
        return example
    nats = np.array(row[rows.NLL_MAP], np.float32).reshape(context.side, context.side)
    png = draw_heat_map(nats, context.nll_top)
    heat_map = Picture("nats per pixel", png, context.side, nll_top=context.nll_top)
    return Example(example.id, (*example.pictures, heat_map), caption)


def _quantized(row: Mapping[str, Any], context: PictureContext, caption: str = "") -> Example:
    return Example(row[rows.ID], (Picture("quantized", row[QUANTIZED_PNG], context.side),), caption)


class JobPictures(NamedTuple):
    """How a row of a job becomes an example.

    `columns` are those read of its results. Results of jobs `by_stats` hold no images: stats/
    holds the quantized images of a few rows.
    """

    columns: Sequence[str]
    to_example: Callable[[Mapping[str, Any], PictureContext], Example]
    by_stats: bool = False


JOB_PICTURES = {
    "complete": JobPictures(
        [rows.ID, rows.IMAGES, rows.PROMPT, rows.ORIGINAL, rows.PROMPT_LENGTH, rows.NLL],
        _complete,
    ),
    "quantize": JobPictures([rows.ID, rows.TOKENS], _quantize),
    "sample": JobPictures([rows.ID, rows.PICTURE, rows.NLL], _sample),
    "classify": JobPictures(
        [rows.ID, rows.PREDICTED_LABEL, rows.PREDICTED_NAME, rows.PROBABILITY],
        _classify,
        by_stats=True,
    ),
    "score": JobPictures(
        [rows.ID, rows.NLL, rows.BITS_PER_PIXEL, rows.NLL_MAP], _score, by_stats=True
    ),
    "embed": JobPictures([rows.ID], _quantized, by_stats=True),
}
