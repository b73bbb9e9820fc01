"""CPU stages that read a shard's images: into rows of tokens, or into counts of colors."""

import time
from collections.abc import Collection, Container, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igpt_core.images.palette import ColorHistogram
from igpt_core.images.pixels import Crop, Resize
from pipeline import rows
from pipeline.inputs.masks import Masks
from pipeline.readers import read_shard
from pipeline.readers.input_rows import MAX_IMAGE_BYTES, STAGE, InputRows
from pipeline.rows import RowError
from pipeline.shards import Shard, shard_in
from pipeline.stages.blocks import ShardMetadata, with_shard_metadata
from pipeline.stages.earlier_part import KEPT, ids_in_part
from pipeline.stages.tokenize import Tokenizer, Tokens, decode, is_far_from_square
from pipeline.storage.filesystem import open_location

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

    An image that cannot be read or decoded becomes a failed row, without tokens and with its
    error, so every shard leaves with as many rows as the plan gives it, or as there are where it
    gives none. So does a row whose id an earlier row of the shard has, and tokens that are not
    those of an image.

    Args:
        format, image_column, id_column, passthrough: as in the `Plan`.
        palette: location of a model folder or of a palette's .npy file.
        image_size: pixels a side.
        resize, crop: as in `load_pixels`.
        input_options, model_options: fsspec options of the two locations.
        mask: location of masks, as in `Masks`, whose rows then have `rows.KNOWN_PIXELS`.
        prompts: the input is of the beginnings of images: tokens, or pictures of the upper part,
            whose height follows from their shape. Zeros are put after their tokens, and a column
            `rows.PROMPT_LENGTH` (int32, null beside an error) says how many were there.
        kept_in: a run directory. A row that has its result there is not done again: the error that
            stands for it is `KEPT`.
        redone: shards of which all rows are done again.
        output_options: fsspec options of the run directory.
        max_image_bytes: as of `read_shard`.
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
        kept_in: str | None = None,
        redone: Collection[int] = (),
        output_options: Mapping[str, Any] | None = None,
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self._read_shard = partial(
            read_shard,
            format=format,
            image_column=image_column,
            id_column=id_column,
            passthrough=passthrough,
            storage_options=input_options,
            max_image_bytes=max_image_bytes,
        )
        self._tokenizer = Tokenizer(
            palette=palette,
            image_size=image_size,
            resize=resize,
            crop=crop,
            model_options=model_options,
            prompts=prompts,
        )
        self._squashes = crop == "squash" and not prompts
        self._masks = None
        if mask is not None:
            self._masks = Masks(mask, image_size=image_size, crop=crop, options=input_options)
        self._kept_in = None if kept_in is None else open_location(kept_in, output_options)
        self._redone = frozenset(redone)

    def __call__(self, block: pa.Table) -> pa.Table:
        shard = shard_in(block)
        begun = time.perf_counter()
        decode_seconds, squashed = 0.0, 0
        tables = []
        sources: dict[str, str] = {}  # by id
        kept = self._kept(shard)
        for read in self._read_shard(shard, kept=kept):
            _refuse_duplicates(read, sources)
            _keep(read, kept)
            decode_begun = time.perf_counter()
            tables.append(self._quantize(read))
            squashed += _count_far_from_square(read, tables[-1]) if self._squashes else 0
            decode_seconds += time.perf_counter() - decode_begun
        table = pa.concat_tables(tables)
        expected = table.num_rows if shard.rows is None else shard.rows
        read_seconds = time.perf_counter() - begun - decode_seconds
        seconds = {"read": read_seconds, "decode": decode_seconds}
        metadata = ShardMetadata(shard.index, expected, seconds, squashed)
        return with_shard_metadata(table, metadata)

    def _kept(self, shard: Shard) -> frozenset[str]:
        """Returns the ids of the rows that have their results."""
        if self._kept_in is None or shard.index in self._redone:
            return frozenset()
        return ids_in_part(*self._kept_in, shard.index)

    def _quantize(self, read: InputRows) -> pa.Table:
        found = [self._tokenizer.tokens(image) for image in read.images]
        own = {
            rows.ROW_ID: pa.array(read.ids, pa.string()),
            rows.SOURCE: pa.array(read.sources, pa.string()),
        }
        if self._masks is not None:
            known = self._masks.known(read.ids)
            found = [_first_error(*pair) for pair in zip(found, known, strict=True)]
            own[rows.KNOWN_PIXELS] = _known_array(known, self._tokenizer.n_positions)
        columns = {name: read.columns[name] for name in read.columns.column_names}
        return pa.table({**own, **self._tokenizer.columns(found), **columns})


def _refuse_duplicates(read: InputRows, sources: dict[str, str]) -> None:
    """Fails the rows whose id an earlier row of the shard has; `sources` knows those."""
    for index, (id_, source) in enumerate(zip(read.ids, read.sources, strict=True)):
        first = sources.setdefault(id_, source)
        if first != source:
            read.images[index] = RowError(
                STAGE, "DuplicateId", f"expected ids that differ, found that of {first}: {id_}"
            )


def _keep(read: InputRows, kept: Container[str]) -> None:
    """Marks the rows that have their results; a later row of the same id is a failed one."""
    for index, id_ in enumerate(read.ids):
        image = read.images[index]
        if id_ in kept and not (isinstance(image, RowError) and image.error == "DuplicateId"):
            read.images[index] = KEPT


def _count_far_from_square(read: InputRows, table: pa.Table) -> int:
    """Counts the images far from square among the rows that have tokens."""
    is_good = table[rows.ROW_TOKENS].is_valid().to_pylist()
    decoded = zip(read.images, is_good, strict=True)
    return sum(good and isinstance(i, bytes) and is_far_from_square(i) for i, good in decoded)


def _first_error(
    tokens: Tokens | RowError, known: NDArray[np.bool_] | RowError
) -> Tokens | RowError:
    """Returns the tokens, or the first reason why a row has none."""
    return known if isinstance(known, RowError) and not isinstance(tokens, RowError) else tokens


def _known_array(
    known: Sequence[NDArray[np.bool_] | RowError], n_positions: int
) -> pa.FixedSizeListArray:
    nothing = np.zeros(n_positions, bool)
    flat = np.concatenate([nothing if isinstance(row, RowError) else row for row in known])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), n_positions)


class CountColors:
    """Blocks of the plan -> one row of COLORS: the shard's colors and how often each comes, its
    good and its failed rows.

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
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self._read_shard = partial(
            read_shard,
            format=format,
            image_column=image_column,
            storage_options=input_options,
            max_image_bytes=max_image_bytes,
        )
        self._decode = partial(decode, size=image_size, resize=resize, crop=crop)

    def __call__(self, block: pa.Table) -> pa.Table:
        begun = time.perf_counter()
        counted, good_rows, errors = [], 0, 0
        for read in self._read_shard(shard_in(block)):
            images = cast(list[bytes | RowError], read.images)  # tokens have no colors
            pixels = [self._decode(image) for image in images]
            good = [item for item in pixels if not isinstance(item, RowError)]
            good_rows += len(good)
            errors += len(pixels) - len(good)
            if good:
                counted.append(ColorHistogram.of(np.stack(good)))
        total = ColorHistogram.total(counted)
        found = {
            "rows": good_rows,
            "errors": errors,
            "seconds": time.perf_counter() - begun,
            "colors": total.colors,
            "counts": total.counts,
        }
        return pa.Table.from_pylist([found], COLORS)
