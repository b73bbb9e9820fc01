"""CPU stages that turn encoded images into pixels and tokens."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igpt_core.checkpoint import load_palette
from igpt_core.palette import ColorHistogram
from igpt_core.pixels import Crop, ImageError, Pixels, Resize, load_pixels
from pipeline import rows
from pipeline.blocks import tokens_array, with_seconds
from pipeline.chunks import STAGE, Chunk, RowInput
from pipeline.masks import Masks
from pipeline.rows import RowError
from pipeline.shards import Shard, shards_in
from pipeline.sources import read_shard

# What CountColors makes of a shard.
COLORS = pa.schema(
    [
        pa.field("rows", pa.int64()),
        pa.field("errors", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("colors", pa.list_(pa.int64())),  # packed 0xRRGGBB
        pa.field("counts", pa.list_(pa.int64())),
    ]
)


class ReadImages:
    """Blocks of the plan -> blocks of rows: read, decode, resize, quantize.

    An image that cannot be read or decoded becomes a row without tokens and with its error, so
    every shard leaves with as many rows as the plan gives it, or as there are where it gives none.
    So does a row whose id an earlier row of the shard has, and tokens that are not those of an
    image.

    Args:
        format, image_column, id_column, passthrough: as in the `Plan`.
        palette: location of a model folder or of a palette's .npy file.
        image_size: pixels a side.
        resize, crop: as in `load_pixels`.
        input_options, model_options: fsspec options of the two locations.
        mask: location of masks, as in `Masks`, whose rows then have `rows.PINNED`.
        prompts: the input is of tokens that begin images. Zeros are put after them, and a column
            `rows.PROMPT_LENGTH` (int32, null beside an error) says how many were there.
    """

    def __init__(
        self,
        *,
        format: str,
        image_column: str | None,
        id_column: str | None,
        passthrough: pa.Schema,
        palette: str,
        image_size: int,
        resize: Resize,
        crop: Crop,
        input_options: Mapping[str, Any],
        model_options: Mapping[str, Any],
        mask: str | None = None,
        prompts: bool = False,
    ) -> None:
        self._reading = {
            "format": format,
            "image_column": image_column,
            "id_column": id_column,
            "passthrough": passthrough,
            "storage_options": input_options,
        }
        self._decoding = {"size": image_size, "resize": resize, "crop": crop}
        self._n_positions = image_size**2
        self._prompts = prompts
        self._palette = load_palette(palette, storage_options=model_options)
        self._masks = None
        if mask is not None:
            self._masks = Masks(mask, image_size=image_size, crop=crop, options=input_options)

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.concat_tables(self._read(shard) for shard in shards_in(block))

    def _read(self, shard: Shard) -> pa.Table:
        begun = time.perf_counter()
        decode_seconds = 0.0
        tables = []
        sources: dict[str, str] = {}  # by id
        for chunk in read_shard(shard, **self._reading):
            _refuse_duplicates(chunk, sources)
            decode_begun = time.perf_counter()
            tables.append(self._quantize(chunk, shard))
            decode_seconds += time.perf_counter() - decode_begun
        table = pa.concat_tables(tables)
        expected = table.num_rows if shard.rows is None else shard.rows
        column = pa.array(np.full(table.num_rows, expected, np.int32))
        table = table.append_column(rows.SHARD_ROWS, column)
        read_seconds = time.perf_counter() - begun - decode_seconds
        table = with_seconds(table, "read", read_seconds)
        return with_seconds(table, "decode", decode_seconds)

    def _quantize(self, chunk: Chunk, shard: Shard) -> pa.Table:
        found = [self._tokens(image) for image in chunk.images]
        own = {}
        if self._masks is not None:
            pins = self._masks.given(chunk.ids)
            found = [_worse(*pair) for pair in zip(found, pins, strict=True)]
            own[rows.PINNED] = _pins_array(pins, self._n_positions)
        good = [item for item in found if not isinstance(item, RowError)]
        errors = [item if isinstance(item, RowError) else None for item in found]
        tokens = np.zeros((len(good), self._n_positions), np.uint16)
        for row, given in zip(tokens, good, strict=True):
            row[: len(given)] = given
        n = len(chunk.ids)
        own |= {
            rows.SHARD: pa.array(np.full(n, shard.index, np.int32)),
            rows.ROW_ID: pa.array(chunk.ids, pa.string()),
            rows.SOURCE: pa.array(chunk.sources, pa.string()),
            rows.ROW_TOKENS: tokens_array(
                tokens.reshape(-1), self._n_positions, valid=[error is None for error in errors]
            ),
            rows.ERROR_STAGE: pa.array([error and error.stage for error in errors], pa.string()),
            rows.ERROR_CLASS: pa.array([error and error.error for error in errors], pa.string()),
            rows.ERROR_MESSAGE: pa.array(
                [error and error.message for error in errors], pa.string()
            ),
        }
        if self._prompts:
            lengths = [None if isinstance(item, RowError) else len(item) for item in found]
            own[rows.PROMPT_LENGTH] = pa.array(lengths, pa.int32())
        columns = {name: chunk.columns[name] for name in chunk.columns.column_names}
        return pa.table({**own, **columns})

    def _tokens(self, image: RowInput) -> NDArray[np.uint16] | RowError:
        """The tokens of a row, flat: n_positions, or the length of a prompt."""
        if isinstance(image, np.ndarray):
            return self._checked(image)
        pixels = decoded(image, **self._decoding)
        return pixels if isinstance(pixels, RowError) else self._palette.encode(pixels).reshape(-1)

    def _checked(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.uint16] | RowError:
        n, colors = self._n_positions, len(self._palette)
        if len(tokens) >= n if self._prompts else len(tokens) != n:
            expected = f"fewer than {n}" if self._prompts else str(n)
            return RowError(STAGE, "BadTokens", f"expected {expected} tokens, found {len(tokens)}")
        wrong = tokens[(tokens < 0) | (tokens >= colors)]
        if len(wrong):
            return RowError(
                STAGE, "BadTokens", f"expected tokens from 0 to {colors - 1}, found {wrong[0]}"
            )
        return tokens.astype(np.uint16)


def _refuse_duplicates(chunk: Chunk, sources: dict[str, str]) -> None:
    """Make errors of the rows whose id an earlier row of the shard has; `sources` knows those."""
    for index, (id_, source) in enumerate(zip(chunk.ids, chunk.sources, strict=True)):
        first = sources.setdefault(id_, source)
        if first != source:
            chunk.images[index] = RowError(
                STAGE, "DuplicateId", f"expected ids that differ, found that of {first}: {id_}"
            )


def decoded(image: bytes | RowError, *, size: int, resize: Resize, crop: Crop) -> Pixels | RowError:
    """The pixels (size, size, 3) uint8 of a row, or why there are none."""
    if isinstance(image, RowError):
        return image
    try:
        return load_pixels(image, size, resize=resize, crop=crop)
    except ImageError as error:
        return RowError.of("decode", error)


def _worse(
    tokens: NDArray[np.uint16] | RowError, pins: NDArray[np.bool_] | RowError
) -> NDArray[np.uint16] | RowError:
    """The tokens, or the first reason why a row has none."""
    return pins if isinstance(pins, RowError) and not isinstance(tokens, RowError) else tokens


def _pins_array(
    pins: Sequence[NDArray[np.bool_] | RowError], n_positions: int
) -> pa.FixedSizeListArray:
    nothing = np.zeros(n_positions, bool)
    flat = np.concatenate([nothing if isinstance(pin, RowError) else pin for pin in pins])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), n_positions)


class CountColors:
    """Blocks of the plan -> a row a shard: its colours, their counts, rows and bad rows.

    Args as of `ReadImages`.
    """

    def __init__(
        self,
        *,
        format: str,
        image_column: str | None,
        image_size: int,
        resize: Resize,
        crop: Crop,
        input_options: Mapping[str, Any],
    ) -> None:
        self._reading = {
            "format": format,
            "image_column": image_column,
            "storage_options": input_options,
        }
        self._decoding = {"size": image_size, "resize": resize, "crop": crop}

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._count(shard) for shard in shards_in(block)], COLORS)

    def _count(self, shard: Shard) -> dict[str, Any]:
        begun = time.perf_counter()
        parts, good_rows, errors = [], 0, 0
        for chunk in read_shard(shard, **self._reading):
            pixels = [decoded(image, **self._decoding) for image in chunk.images]
            good = [item for item in pixels if not isinstance(item, RowError)]
            good_rows += len(good)
            errors += len(pixels) - len(good)
            if good:
                parts.append(ColorHistogram.of(np.stack(good)))
        total = ColorHistogram.total(parts)
        return {
            "rows": good_rows,
            "errors": errors,
            "seconds": time.perf_counter() - begun,
            "colors": total.colors,
            "counts": total.counts,
        }
