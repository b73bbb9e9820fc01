"""Rows of a user's own dataset to what model stages take, and back from what they make."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from igpt_core.images.image_inputs import rgb_images
from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import Crop, Resize
from igpt_core.images.raster_formats import ImageError
from pipeline import rows
from pipeline.rows import RowError
from pipeline.stages.blocks import in_place
from pipeline.stages.result_columns import RESULTS
from pipeline.stages.tokenize import Tokenizer

ERROR = "error"
STAGE = "input"


class TokenizeRows:
    """Blocks with a column of images -> the same without it and with the columns of a block.

    Args:
        image_column: of encoded images (binary, or a struct with `bytes`), of arrays (H, W, C) as
            ray.data.read_images makes them, or of tokens.
        id_column: of names of rows, which stays; None where results do not depend on them.
        others: as of `Tokenizer`.
    """

    def __init__(
        self,
        *,
        image_column: str,
        id_column: str | None,
        palette: str,
        image_size: int,
        resize: Resize,
        crop: Crop,
        model_options: Mapping[str, Any],
        prompts: bool = False,
    ) -> None:
        self._image_column, self._id_column = image_column, id_column
        self._tokenizer = Tokenizer(
            palette=palette,
            image_size=image_size,
            resize=resize,
            crop=crop,
            model_options=model_options,
            prompts=prompts,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        missing = {self._image_column, self._id_column} - {None, *block.column_names}
        if missing:
            raise ValueError(
                f"expected column {', '.join(map(str, missing))}, found "
                f"{', '.join(block.column_names)}"
            )
        found = [self._tokens(value) for value in block[self._image_column].to_pylist()]
        ids = pa.nulls(len(found), pa.string())
        if self._id_column is not None:
            ids = block[self._id_column].cast(pa.string())
        columns = {rows.ROW_ID: ids, **self._tokenizer.columns(found)}
        block = block.drop_columns(self._image_column)
        for name, column in columns.items():
            block = block.append_column(name, column)
        return block

    def _tokens(self, value: Any) -> Any:
        """Tokenizes a value of the image column, as Arrow gives it, or says why it cannot."""
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None or len(value) == 0:
            return RowError(STAGE, "EmptyImage", "there is no image in this row")
        if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim == 1):
            return self._tokenizer.tokens(np.asarray(value))
        if isinstance(value, np.ndarray):
            try:
                (value,) = rgb_images(value, input_data_format="channels_last")
            except (ImageError, ValueError) as error:
                return RowError.of(STAGE, error)
        return self._tokenizer.tokens(value)


class FinishRows:
    """Blocks of finished rows -> the user's columns, the job's, and `error`, null in good rows.

    Args:
        job: which of `rows.JOBS`.
        columns: names of what it adds.
        palette, image_size, model_options: as of `Tokenizer`.
    """

    def __init__(
        self,
        *,
        job: str,
        columns: list[str],
        palette: str,
        image_size: int,
        model_options: Mapping[str, Any],
    ) -> None:
        self._make, self._columns = RESULTS.get(job), columns
        self._palette = load_palette(palette, storage_options=model_options)
        self._side = image_size

    def __call__(self, block: pa.Table) -> pa.Table:
        valid = pc.is_null(block[rows.ERROR_STAGE]).to_numpy()
        made = {}
        if self._make is not None:
            good = block.filter(pa.array(valid))
            made = self._make(good, self._palette, self._side)
        users = [
            name
            for name in block.column_names
            if not name.startswith(rows.PREFIX) and name not in self._columns
        ]
        columns = {name: block[name] for name in users}
        for name in self._columns:
            columns[name] = in_place(_array(made[name]), valid) if name in made else block[name]
        columns[ERROR] = pa.array(_errors(block), pa.string())
        return pa.table(columns)


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _errors(block: pa.Table) -> Iterator[str | None]:
    """Yields `Class: message` of each row, None of good ones."""
    pairs = zip(
        block[rows.ERROR_CLASS].to_pylist(), block[rows.ERROR_MESSAGE].to_pylist(), strict=True
    )
    return (kind and f"{kind}: {message}" for kind, message in pairs)
