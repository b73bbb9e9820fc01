"""What callers hand over, to arrays: images to tokens, names to ids, masks to known pixels."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from igpt_core.generation.known_pixels import known_in_mask
from igpt_core.images.image_inputs import (
    CHANNELS,
    decodable,
    is_file,
    is_path,
    is_tensor,
    rgb_images,
    to_numpy,
)
from igpt_core.images.palette import Palette
from igpt_core.images.pixels import Crop, Resize, load_pixels

Result = TypeVar("Result")


class BinaryFile(Protocol):
    """An open file of bytes."""

    def read(self) -> bytes:
        """Returns the rest of the file."""


ImageInput: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryFile
    | Image.Image
    | npt.NDArray[Any]
    | torch.Tensor
)
ImageList: TypeAlias = list[Any] | tuple[Any, ...] | Iterator[Any]  # of ImageInput


@dataclass(frozen=True)
class TokenizedImages:
    """Images as a model knows them.

    Attributes:
        tokens: (N, side ** 2).
        names: the file's name of a path or an open file, of other images their number.
        is_list: whether several were handed over, and not one.
    """

    tokens: npt.NDArray[np.int64]
    names: list[str]
    is_list: bool

    def ids(self, given: str | Sequence[str] | None) -> list[str]:
        """Returns those given, one or a list as the images are, or else the names.

        Raises ValueError where there are not as many as images.
        """
        if given is None:
            return self.names
        ids, n_images = _as_list(given), len(self.names)
        if isinstance(given, str) == self.is_list or len(ids) != n_images:
            wanted = f"a list of {n_images} ids" if self.is_list else "one id, a string,"
            raise ValueError(f"ids: expected {wanted} for the images given, found {given!r}")
        return ids

    def results(self, found: list[Result]) -> Result | list[Result]:
        """Returns a list of N results for a list of images, the only one for one image."""
        return found if self.is_list else found[0]


@dataclass(frozen=True)
class Inputs:
    """How images become what a model knows: `side` x `side` pixels in the colors of a palette.
    `resize`, `crop`: as of `load_pixels`."""

    palette: Palette
    side: int
    resize: Resize
    crop: Crop

    def read(self, images: Any) -> TokenizedImages:
        """Loads and quantizes images, one or several, one after the other.

        Raises as `loadable` and `load_pixels`, and ValueError for tokens; of several the message
        begins with the place.
        """
        several = is_list(images)
        tokens: list[npt.NDArray[Any]] = []
        names: list[str] = []
        for place, image in enumerate(images if several else [images]):
            names.append(_file_name(image) or str(place))
            with _at(f"images[{place}]: " if several else ""):
                self._refuse_tokens(image)
                content = loadable(image)
                pixels = load_pixels(content, self.side, resize=self.resize, crop=self.crop)
            tokens.append(self.palette.encode(pixels))
        rows = np.reshape(np.array(tokens, np.int64), (-1, self.side**2))
        return TokenizedImages(rows, names, several)

    def _refuse_tokens(self, image: Any) -> None:
        """Raises ValueError for a few rows of tokens, which could be a wide gray image: of an
        integer dtype that images hardly have, as wide as a row, and of the palette's colors."""
        n_pixels = self.side**2
        if tuple(getattr(image, "shape", ()))[1:] != (n_pixels,):
            return
        rows = to_numpy(image) if is_tensor(image) else np.asarray(image)
        few, wide = 1 < len(rows) <= n_pixels // 8, rows.dtype in (np.int32, np.int64)
        if few and wide and rows.min() >= 0 and rows.max() < len(self.palette):
            raise ValueError(
                f"expected an image, found {rows.dtype} {rows.shape}, rows of tokens by its looks; "
                "next: the model itself for tokens, uint8 for an image"
            )

    def known(self, known: Any, n_images: int) -> npt.NDArray[np.bool_]:
        """Reads which pixels are known, of all images or of each of several: (n_images, side ** 2).

        Raises ValueError for another number or shape, for arrays of zeros and ones that are not
        bool, and as `read`.
        """
        masks = _as_list(known)
        if is_list(known) and len(masks) != n_images:
            raise ValueError(
                f"known: expected one mask or {n_images}, as many as images, found {len(masks)}"
            )
        with _at("known: "):
            found = np.reshape([self._known(mask) for mask in masks], (-1, self.side**2))
        return np.broadcast_to(found, (n_images, self.side**2))

    def _known(self, mask: Any) -> npt.NDArray[np.bool_]:
        to_bool = ".bool()" if is_tensor(mask) else ".astype(bool)"
        if is_tensor(mask):
            mask = to_numpy(mask)
        if isinstance(mask, np.ndarray):
            if mask.dtype == np.bool_:
                return self._known_as_bool(mask)
            if mask.size and np.isin(mask, (0, 1)).all():
                # Meant as bool most likely, of which an image is the opposite: black is known.
                raise ValueError(
                    "expected bool, true for known pixels, found zeros and ones alone in an array "
                    f"of {mask.dtype}; next: {to_bool}, or 0 and 255 for an image, black for known "
                    "pixels"
                )
        return known_in_mask(loadable(mask), self.side, crop=self.crop)

    def _known_as_bool(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        if mask.shape != (self.side, self.side):
            raise ValueError(
                f"expected an array of bool ({self.side}, {self.side}), true for known pixels, "
                f"found {mask.shape}; next: an image of any size, black for known pixels"
            )
        return mask.ravel()


def loadable(image: Any) -> bytes | Image.Image:
    """Returns what `load_pixels` takes: an array as a PIL image, anything else as `decodable`.

    Raises as `decodable`, and ValueError for an array of another shape.
    """
    if isinstance(image, np.ndarray) or is_tensor(image):
        return _array_image(image)
    if isinstance(image, list | tuple):  # as of a DataLoader: images and labels
        raise TypeError(
            f"expected an image, found {type(image).__name__}; next: one batch at a time, its "
            "images alone"
        )
    return decodable(image)


def _array_image(array: Any) -> Image.Image:
    """Makes an RGB image of an array or tensor (H, W), (H, W, C) or (C, H, W), which of the two by
    where 1, 3 or 4 channels are; last if in doubt."""
    shape = tuple(array.shape)
    channels_last = len(shape) == 2 or (len(shape) == 3 and shape[2] in CHANNELS)
    channels_first = not channels_last and len(shape) == 3 and shape[0] in CHANNELS
    if not (channels_last or channels_first):
        # A batch by itself is several images; here it is one of several.
        several = "one batch at a time" if len(shape) == 4 else "a list for several images"
        raise ValueError(
            "expected an image (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, found an "
            f"array {shape}; next: {several}"
        )
    layout = "channels_last" if channels_last else "channels_first"
    return next(rgb_images(array, input_data_format=layout))


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Puts `where` before the message of what an image cannot be used for."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}{error}") from error


def is_list(value: Any) -> bool:
    """Tells whether there is one for each of several images: a list, a tuple, an iterator, which
    can be gone through once, or a batch along a fourth axis."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        return value.ndim == 4
    return isinstance(value, list | tuple | Iterator) and not is_file(value)


def _as_list(value: Any) -> list[Any]:
    """Returns a list of one or several as a list."""
    return list(value) if is_list(value) else [value]


def _file_name(image: Any) -> str | None:
    """Returns the name of an image's file, None where it has none; of some open files it is a
    number."""
    source = getattr(image, "name", None) if is_file(image) else image
    return os.path.basename(source) if is_path(source) else None
