"""What callers hand over, to arrays: images to tokens, names to ids, masks to known pixels."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from igpt_core.generation.known_pixels import known_in_mask
from igpt_core.images.image_inputs import is_tensor, rgb_images
from igpt_core.images.palette import Palette
from igpt_core.images.pixels import Crop, Resize, load_pixels
from igpt_core.images.raster_formats import ImageError

ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any] | torch.Tensor
)
ImageList: TypeAlias = list[Any] | tuple[Any, ...]  # of ImageInput


@dataclass(frozen=True)
class Inputs:
    """How images become what a model knows: `side` x `side` pixels in the colors of a palette.
    `resize`, `crop`: as of `load_pixels`."""

    palette: Palette
    side: int
    resize: Resize
    crop: Crop

    def tokens(self, images: Any) -> npt.NDArray[np.int64]:
        """Loads and quantizes images, one or a list, to tokens (N, side ** 2).

        Raises as `loadable` and `load_pixels`; of a list the message begins with the place in it.
        """
        listed = as_list(images)
        tokens = np.empty((len(listed), self.side**2), np.int64)
        for place, image in enumerate(listed):
            with _at(f"images[{place}]: " if is_list(images) else ""):
                image = loadable(image)
                pixels = load_pixels(image, self.side, resize=self.resize, crop=self.crop)
            tokens[place] = self.palette.encode(pixels).ravel()
        return tokens

    def known(self, known: Any, n_images: int) -> npt.NDArray[np.bool_]:
        """Reads which pixels are known, of all images or of each of a list: (n_images, side ** 2).

        Raises ValueError for another number or shape, and as `tokens`.
        """
        masks = as_list(known)
        if is_list(known) and len(masks) != n_images:
            raise ValueError(
                f"known: expected one mask or {n_images}, as many as images, found {len(masks)}"
            )
        with _at("known: "):
            found = np.reshape([self._known(mask) for mask in masks], (-1, self.side**2))
        return np.broadcast_to(found, (n_images, self.side**2))

    def _known(self, mask: Any) -> npt.NDArray[np.bool_]:
        if is_tensor(mask):
            mask = mask.numpy(force=True)
        if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_):
            return known_in_mask(loadable(mask), self.side, crop=self.crop)
        if mask.shape != (self.side, self.side):
            raise ValueError(
                f"expected an array of bool ({self.side}, {self.side}), true for known pixels, "
                f"found {mask.shape}; next: an image of any size, black for known pixels"
            )
        return mask.ravel()


def ids_of(images: Any, ids: str | Sequence[str] | None) -> list[str]:
    """Returns the id of each image, one or a list: those given, else the file's name of a path, of
    other images their number.

    Raises ValueError where there are not as many as images.
    """
    listed = as_list(images)
    if ids is None:
        numbered = enumerate(listed)
        return [os.path.basename(i) if is_path(i) else str(place) for place, i in numbered]
    if isinstance(ids, str) == is_list(images) or len(as_list(ids)) != len(listed):
        wanted = f"a list of {len(listed)} ids" if is_list(images) else "one id, a string,"
        raise ValueError(f"ids: expected {wanted} for the images given, found {ids!r}")
    return as_list(ids)


def loadable(image: Any) -> bytes | Image.Image:
    """Returns what `load_pixels` takes: a path's bytes, an array (H, W) or (H, W, C) as a PIL
    image, bytes and PIL images as they are.

    Raises ImageError for a file that cannot be read, ValueError for an array of another shape,
    TypeError for something else than an image.
    """
    if is_path(image):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise ImageError(f"expected an image file, found {reason}: {image}") from error
    if isinstance(image, np.ndarray) or is_tensor(image):
        if image.ndim != 2 and (image.ndim != 3 or image.shape[2] not in (1, 3, 4)):
            raise ValueError(
                "expected an image (H, W) or (H, W, C) with 1, 3 or 4 channels, found an array "
                f"{tuple(image.shape)}; next: a list for several images, np.moveaxis for channels "
                "that come first"
            )
        return next(rgb_images(image, input_data_format="channels_last"))
    if isinstance(image, bytes | Image.Image):
        return image
    raise TypeError(
        "expected an image as a path, encoded bytes, PIL image or array, found "
        f"{type(image).__name__}"
    )


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Puts `where` before the message of what an image cannot be used for."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}{error}") from error


def is_list(value: Any) -> bool:
    """Tells whether there is one for each of several images."""
    return isinstance(value, list | tuple)


def as_list(value: Any) -> list[Any]:
    """Returns a list of one or several as a list."""
    return list(value) if is_list(value) else [value]


def is_path(image: Any) -> bool:
    """Tells whether an image is given by its file."""
    return isinstance(image, str | os.PathLike)
