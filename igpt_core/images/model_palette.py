"""The palette and the image size of a model folder, or the palette of a file of its own.

Without torch, which takes two seconds to import: what only makes tokens of images needs no more.
"""

import os
from collections.abc import Mapping
from typing import Any

from igpt_core.errors import CheckpointError
from igpt_core.files.model_files import model_files
from igpt_core.images.image_processor import PREPROCESSOR_FILE, ImageGPTImageProcessor
from igpt_core.images.palette import Palette


def load_palette(
    path_or_uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Palette:
    """Loads the palette of a model folder (its `clusters`) or of an `.npy` file (`Palette.load`).

    Raises CheckpointError; ValueError for a file that is not a palette.
    """
    where = os.fspath(path_or_uri)
    if where.endswith(".npy"):
        folder, name = os.path.split(where)
        (file,) = model_files(folder or ".", (name,), storage_options=storage_options)
        try:
            return Palette.load(file)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    processor = ImageGPTImageProcessor.from_pretrained(where, storage_options=storage_options)
    try:
        if processor.clusters is None:
            raise ValueError("expected clusters, the palette, found none")
        return Palette(processor.clusters)
    except ValueError as error:
        raise CheckpointError(f"{where}: {PREPROCESSOR_FILE}: {error}") from error


def load_image_size(
    path_or_uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> int:
    """Reads the side in pixels of the images of a model folder, which must be square.

    Raises CheckpointError for other images and as `model_files` does.
    """
    where = os.fspath(path_or_uri)
    processor = ImageGPTImageProcessor.from_pretrained(where, storage_options=storage_options)
    size = processor.size
    if size["height"] != size["width"]:
        raise CheckpointError(f"{where}: {PREPROCESSOR_FILE}: expected a square, found {size}")
    return size["height"]
