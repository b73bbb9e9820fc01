"""What callers hand over as images: files, bytes, PIL images, arrays, tensors, batches of them."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt_core.images.pixels import open_rgb, to_uint8
from igpt_core.images.raster_formats import ImageError

if TYPE_CHECKING:  # it takes seconds to import, and images are mostly none of its tensors
    import torch

CHANNELS = (1, 3, 4)  # gray, RGB, RGBA

_URL = re.compile(r"(data|[a-z][\w+.-]+(?=:/)):", re.IGNORECASE)


def is_tensor(value: Any) -> "TypeGuard[torch.Tensor]":
    """Tells whether a value is a tensor of torch, without importing it: who has one has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(tensor: "torch.Tensor") -> npt.NDArray[Any]:
    """Returns a tensor of any device as an array, floats as float32."""
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    array: npt.NDArray[Any] = tensor.numpy(force=True)
    return array


def is_path(value: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Tells whether a value is the path of a file."""
    return isinstance(value, str | os.PathLike)


def is_file(value: Any) -> bool:
    """Tells whether a value is an open file."""
    return hasattr(value, "read")


def rgb_images(images: Any, *, input_data_format: str | None = None) -> Iterator[Image.Image]:
    """Yields each image as an upright RGB one, in order.

    Args:
        images: the path of a local file, encoded bytes, an open binary file, a PIL image of any
            mode, a numpy array or torch tensor (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4
            channels (gray, RGB, RGBA), a batch of these along a fourth axis, or a list of any,
            nested too. Values: see `to_uint8`.
        input_data_format: "channels_first" or "channels_last", of arrays; None: where 1, 3 or 4
            channels are, first if in doubt.

    Raises:
        ImageError: an image cannot be read or decoded. ValueError: an array of another shape.
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
        image = to_numpy(image)
    if isinstance(image, np.ndarray):
        image = _array_to_image(image, input_data_format)
    return open_rgb(decodable(image))


def decodable(image: Any) -> bytes | Image.Image:
    """Returns the encoded bytes of a path, an open file or a buffer; bytes and PIL images as they
    are.

    Raises ImageError for a file that cannot be read, TypeError for something else.
    """
    if isinstance(image, bytes | Image.Image):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if is_path(image) or is_file(image):
        return _content(image)
    several = "; next: list(...) of it for several images" if isinstance(image, Iterable) else ""
    raise TypeError(
        "expected an image as a path, encoded bytes, open file, PIL image or array, found "
        f"{type(image).__name__}{several}"
    )


def _content(source: Any) -> bytes:
    """Reads the file of a path, or what is left of an open one."""
    if getattr(source, "closed", False):
        raise ImageError("expected an open file, found a closed one; next: open it again")
    try:
        content = Path(source).read_bytes() if is_path(source) else source.read()
    except UnicodeDecodeError:  # an image's bytes in a file opened as text
        content = ""
    except OSError as error:
        # Only now: a folder may be called s3: too. A URL may hold secrets, so it is not shown.
        if is_path(source) and (url := _URL.match(os.fspath(source))):
            raise ImageError(
                f"expected an image file on this machine, found a URL of {url[1]}; next: fetch it "
                "first, as by fsspec.open(url).open().read()"
            ) from None
        reason = error.strerror or error
        raise ImageError(f"expected an image file, found {reason}: {source}") from error
    if not isinstance(content, bytes):
        raise TypeError(
            "expected an open file whose read() returns bytes, found "
            f"{type(content).__name__}; next: open it with mode 'rb'"
        )
    return content


def _array_to_image(array: npt.NDArray[Any], input_data_format: str | None) -> Image.Image:
    hwc = array[..., None] if array.ndim == 2 else array
    first = input_data_format == "channels_first" or (
        input_data_format is None and hwc.ndim == 3 and hwc.shape[0] in CHANNELS
    )
    if array.ndim == 3 and first:
        hwc = np.moveaxis(hwc, 0, -1)
    if hwc.ndim != 3 or hwc.shape[-1] not in CHANNELS:
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
