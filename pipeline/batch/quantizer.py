"""What makes tokens of images, as the driver knows it. Without torch: see `model_palette`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from igpt_core.files.model_files import resolve_revision
from igpt_core.images.image_processor import PREPROCESSOR_FILE
from igpt_core.images.model_palette import load_image_size, load_palette
from igpt_core.images.palette import Palette
from pipeline.storage.filesystem import absolute_model


@dataclass(frozen=True)
class Quantizer:
    """What makes tokens of pixels: where the palette lies, and the size of the images."""

    location: str
    palette: Palette
    image_size: int


def find_quantizer(location: str, image_size: int | None, options: Mapping[str, Any]) -> Quantizer:
    """Returns the palette and image size of a model folder, or of a palette file with a size."""
    location = resolve_revision(absolute_model(location), (PREPROCESSOR_FILE,))
    palette = load_palette(location, storage_options=options)
    if image_size is None:
        image_size = load_image_size(location, storage_options=options)
    return Quantizer(location, palette, image_size)
