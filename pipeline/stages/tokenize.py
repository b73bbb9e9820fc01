"""Tokenizing what rows hold, encoded images or ready tokens, into columns of tokens and errors."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import (
    Crop,
    Pixels,
    Resize,
    load_pixels,
    open_rgb,
    resize_rgb,
)
from igpt_core.images.raster_formats import ImageError, open_raster
from pipeline import rows
from pipeline.readers.input_rows import STAGE, RowContent
from pipeline.rows import RowError
from pipeline.stages.blocks import tokens_array
from pipeline.storage.redact import redacted

Tokens = NDArray[np.uint16]
DECODE = "decode"
_FAR_FROM_SQUARE = 2  # the longer side by the shorter


class Tokenizer:
    """Makes tokens of images, and checks tokens that are there already.

    Args:
        palette: location of a model folder or of a palette's .npy file.
        image_size: pixels a side.
        resize, crop: as in `load_pixels`.
        model_options: fsspec options of the palette's location.
        prompts: the input is of the beginnings of images: tokens, or pictures of the upper part.
    """

    def __init__(
        self,
        *,
        palette: str,
        image_size: int,
        resize: Resize,
        crop: Crop,
        model_options: Mapping[str, Any],
        prompts: bool = False,
    ) -> None:
        self._palette = load_palette(palette, storage_options=model_options)
        self._decode: Callable[..., Pixels | RowError]
        if prompts:
            self._decode = partial(decode_upper_part, size=image_size)
        else:
            self._decode = partial(decode, size=image_size, resize=resize, crop=crop)
        self.n_positions = image_size**2
        self._prompts = prompts

    def tokens(self, content: RowContent | Image.Image) -> Tokens | RowError:
        """Returns the tokens of a row, flat: n_positions, or fewer of a prompt; or why there are
        none."""
        if isinstance(content, np.ndarray):
            return self._checked(content)
        pixels = self._decode(content)
        return pixels if isinstance(pixels, RowError) else self._palette.encode(pixels).reshape(-1)

    def columns(self, found: Sequence[Tokens | RowError]) -> dict[str, pa.Array]:
        """Makes block columns of rows: tokens, errors and, of prompts, their lengths. Zeros are
        put after a prompt."""
        good = [item for item in found if not isinstance(item, RowError)]
        errors = [item if isinstance(item, RowError) else None for item in found]
        tokens = np.zeros((len(good), self.n_positions), np.uint16)
        for row, given in zip(tokens, good, strict=True):
            row[: len(given)] = given
        valid = [error is None for error in errors]
        columns = {
            rows.ROW_TOKENS: tokens_array(tokens.reshape(-1), self.n_positions, valid=valid),
            rows.ERROR_STAGE: pa.array([error and error.stage for error in errors], pa.string()),
            rows.ERROR_CLASS: pa.array([error and error.error for error in errors], pa.string()),
            rows.ERROR_MESSAGE: pa.array(
                [error and redacted(error.message) for error in errors], pa.string()
            ),
        }
        if self._prompts:
            lengths = [None if isinstance(item, RowError) else len(item) for item in found]
            columns[rows.PROMPT_LENGTH] = pa.array(lengths, pa.int32())
        return columns

    def _checked(self, tokens: NDArray[np.integer[Any]]) -> Tokens | RowError:
        n, colors = self.n_positions, len(self._palette)
        if len(tokens) >= n if self._prompts else len(tokens) != n:
            expected = f"fewer than {n}" if self._prompts else str(n)
            return RowError(STAGE, "BadTokens", f"expected {expected} tokens, found {len(tokens)}")
        wrong = tokens[(tokens < 0) | (tokens >= colors)]
        if len(wrong):
            return RowError(
                STAGE, "BadTokens", f"expected tokens from 0 to {colors - 1}, found {wrong[0]}"
            )
        return tokens.astype(np.uint16)


def decode(
    image: bytes | Image.Image | RowError, *, size: int, resize: Resize, crop: Crop
) -> Pixels | RowError:
    """Decodes a row's image to pixels (size, size, 3) uint8, or says why it cannot."""
    if isinstance(image, RowError):
        return image
    try:
        return load_pixels(image, size, resize=resize, crop=crop)
    except ImageError as error:
        return RowError.of(DECODE, error)


def decode_upper_part(image: bytes | Image.Image | RowError, *, size: int) -> Pixels | RowError:
    """Decodes a row's picture of the upper part of a square image to pixels (height, size, 3)
    uint8, of its own shape, or says why it cannot."""
    if isinstance(image, RowError):
        return image
    try:
        rgb = open_rgb(image)
    except ImageError as error:
        return RowError.of(DECODE, error)
    height = round(size * rgb.height / rgb.width)
    if not 0 < height < size:
        return RowError(
            DECODE,
            "WrongShape",
            f"expected the upper part of a square, 1 to {size - 1} of its {size} rows, found "
            f"{rgb.width} x {rgb.height} pixels: {height} rows",
        )
    return resize_rgb(rgb, height, size)


def is_far_from_square(image: bytes) -> bool:
    """Tells whether an image that was decoded is at least twice as wide as high, or as high as
    wide."""
    # For a warning alone: what else Pillow may say of the header is no fault of the row.
    with suppress(Exception), open_raster(image) as header:
        return max(header.size) >= _FAR_FROM_SQUARE * min(header.size)
    return False
