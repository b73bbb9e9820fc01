"""Which pixels of an image are known: its upper part, and those of a mask."""

import re

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt_core.errors import check_whole
from igpt_core.images.pixels import Crop, load_pixels

_KEEP = re.compile(r"(\d+|\d*\.\d+)\s*(rows?|pixels?|px|)")


def prompt_length(keep: str, image_size: int, *, masked: bool) -> int:
    """Parses how many pixels are known, in raster order: `0.5` of the rows, `16rows` or
    `500pixels`.

    Args:
        image_size: pixels a side.
        masked: whether a mask gives pixels too; none need be known before it then.

    Raises ValueError for another text, and where nothing is known, or all is.
    """
    image_size = check_whole("image_size", image_size, least=1)
    found = _KEEP.fullmatch(keep.strip())
    if found is None:
        raise ValueError(
            "keep: expected a fraction of the rows such as 0.5, rows such as 16rows or pixels such "
            f"as 500pixels, found {keep}"
        )
    amount, unit = float(found[1]), found[2]
    if not unit:
        if not amount < 1:
            raise ValueError(
                f"keep: expected a fraction of the rows below 1 such as 0.5, found {keep}; next: "
                f"{amount:.0f}rows or {amount:.0f}pixels are numbers of rows and of pixels"
            )
        amount, unit = round(amount * image_size), "rows"
    given = round(amount) * (image_size if unit.startswith("row") else 1)
    if not (0 if masked else 1) <= given < image_size**2:
        raise ValueError(
            f"keep {keep} of images of {image_size} x {image_size} pixels is {given} pixels: "
            "expected at least one known and one to generate"
        )
    return given


def known_in_mask(
    mask: bytes | Image.Image, image_size: int, *, crop: Crop = "squash"
) -> npt.NDArray[np.bool_]:
    """Reads a mask, resized as images are: known pixels are darker than half.

    Returns (image_size ** 2,) bool in raster order. Raises ImageError as `load_pixels` does.
    """
    gray = load_pixels(mask, image_size, crop=crop).mean(axis=2)
    return np.asarray(gray.ravel() < 128)
