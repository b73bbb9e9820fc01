"""What callers hand over as images: arrays, tensors, encoded bytes, PIL images, batches of them."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt_core.images.pixels import open_rgb, to_uint8

if TYPE_CHECKING:  # it takes seconds to import, and images are mostly none of its tensors
    import torch

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA


def is_tensor(value: Any) -> "TypeGuard[torch.Tensor]":
    """Tells whether a value is a tensor of torch, without importing it: who has one has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def rgb_images(images: Any, *, input_data_format: str | None = None) -> Iterator[Image.Image]:
    """Yields each image as an upright RGB one, in order.

    Args:
        images: a PIL image of any mode, encoded bytes, a numpy array or torch tensor (H, W),
            (H, W, C) or (C, H, W) with 1, 3 or 4 channels (gray, RGB, RGBA), a batch of these
            along a fourth axis, or a list of any, nested too. Values: see `to_uint8`.
        input_data_format: "channels_first" or "channels_last", of arrays; None: where 1, 3 or 4
            channels are, first if in doubt.

    Raises:
        ImageError: an image cannot be decoded. ValueError: an array of another shape.
        TypeError: something else than an image.
    """
    if isinstance(images, list | tuple) or (
        (isinstance(images, np.ndarray) or is_tensor(images)) and images.ndim == 4
    ):
        for image in images:
            yield from rgb_images(image, input_data_format=input_data_format)
    else:
        yield _as_rgb(images, input_data_format)


def _as_rgb(image: Any, input_data_format: str | None) -> Image.Image:
    if is_tensor(image):
        # numpy has no bfloat16
        image = (image.float() if image.is_floating_point() else image).numpy(force=True)
    if isinstance(image, np.ndarray):
        image = _array_to_image(image, input_data_format)
    if not isinstance(image, bytes | Image.Image):
        raise TypeError(
            "expected a PIL image, encoded bytes, a numpy array or a torch tensor, "
            f"found {type(image).__name__}"
        )
    return open_rgb(image)


def _array_to_image(array: npt.NDArray[Any], input_data_format: str | None) -> Image.Image:
    hwc = array[..., None] if array.ndim == 2 else array
    first = input_data_format == "channels_first" or (
        input_data_format is None and hwc.ndim == 3 and hwc.shape[0] in _CHANNELS
    )
    if array.ndim == 3 and first:
        hwc = np.moveaxis(hwc, 0, -1)
    if hwc.ndim != 3 or hwc.shape[-1] not in _CHANNELS:
        raise ValueError(
            "expected an array (H, W), or (H, W, C) or (C, H, W) with 1, 3 or 4 channels, found "
            f"{array.shape} with input_data_format={input_data_format!r}"
        )
    wide = np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8
    if wide and hwc.shape[0] == 1 < hwc.shape[1]:
        raise ValueError(
            f"expected an image, found {array.dtype} {array.shape}, a row of tokens by its looks; "
            "next: the model itself for tokens, uint8 for an image of one row"
        )
    pixels = np.ascontiguousarray(to_uint8(hwc))
    return Image.fromarray(pixels[..., 0] if hwc.shape[-1] == 1 else pixels)
