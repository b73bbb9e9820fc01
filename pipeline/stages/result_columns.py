"""Columns of results that do not stand in a finished block as they are: tokens, PNGs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igpt_core.images.palette import Palette
from igpt_core.images.pixels import encode_png
from pipeline import rows
from pipeline.stages.blocks import bits_of, tokens_of


def _quantize_columns(good: pa.Table, palette: Palette, side: int) -> dict[str, Any]:
    return {rows.TOKENS: good[rows.ROW_TOKENS]}


def _sample_columns(good: pa.Table, palette: Palette, side: int) -> dict[str, Any]:
    tokens = good[rows.ROW_TOKENS]
    return {rows.TOKENS: tokens, rows.PICTURE: pictures(list(tokens_of(tokens)), palette, side)}


def _complete_columns(good: pa.Table, palette: Palette, side: int) -> dict[str, Any]:
    tokens = tokens_of(good[rows.ROW_TOKENS])
    samples = good[rows.SAMPLES].combine_chunks()
    lists = pa.concat_arrays(samples.chunks) if isinstance(samples, pa.ChunkedArray) else samples
    images = list(tokens_of(pa.chunked_array([lists.flatten()])))
    return {
        rows.TOKENS: good[rows.ROW_TOKENS],
        rows.IMAGES: pa.ListArray.from_arrays(
            _offsets(lists), pictures(images, palette, side), type=pa.list_(rows.IMAGE)
        ),
        rows.PROMPT: _prompts(good, tokens, palette, side),
        rows.ORIGINAL: pictures(list(tokens), palette, side),
    }


def _prompts(
    good: pa.Table, tokens: NDArray[np.uint16], palette: Palette, side: int
) -> pa.StructArray:
    """Encodes what the model was given as PNGs: the rows that hold known pixels, the others
    transparent."""
    known = np.arange(side * side) < good[rows.PROMPT_LENGTH].to_numpy()[:, None]
    if rows.KNOWN_PIXELS in good.column_names:
        known |= bits_of(good[rows.KNOWN_PIXELS])
    return _images([_prompt(*row, palette, side) for row in zip(tokens, known, strict=True)])


def _prompt(
    tokens: NDArray[np.uint16], known: NDArray[np.bool_], palette: Palette, side: int
) -> bytes | None:
    """Encodes the known pixels of an image as PNG; None where there are none."""
    if not known.any():
        return None
    given = slice(0, -(-(int(np.flatnonzero(known)[-1]) + 1) // side) * side)
    pixels = palette.decode(tokens[given].reshape(-1, side))
    if not known[given].all():
        opacity = np.where(known[given], 255, 0).astype(np.uint8).reshape(-1, side, 1)
        pixels = np.concatenate([pixels * (opacity > 0), opacity], axis=2)
    return encode_png(pixels)


def _offsets(lists: pa.ListArray) -> pa.Array:
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def pictures(images: list[NDArray[np.uint16]], palette: Palette, side: int) -> pa.StructArray:
    """Makes a column of `rows.IMAGE`: each image's tokens, whole rows of `side` pixels, as PNG."""
    return _images([encode_png(palette.decode(tokens.reshape(-1, side))) for tokens in images])


def _images(pngs: list[bytes | None]) -> pa.StructArray:
    return pa.StructArray.from_arrays(
        [pa.array(pngs, pa.binary()), pa.nulls(len(pngs), pa.string())],
        fields=list(rows.IMAGE),
        mask=pa.array([png is None for png in pngs], pa.bool_()),  # `datasets` opens what is there
    )


# The columns of each job's results that do not stand in the block as they are.
RESULTS: dict[str, Callable[[pa.Table, Palette, int], dict[str, Any]]] = {
    "quantize": _quantize_columns,
    "complete": _complete_columns,
    "sample": _sample_columns,
}
