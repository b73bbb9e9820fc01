"""What callers hand over, to arrays: images to tokens, names to ids, masks to known pixels."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from igpt_core.generation.known_pixels import known_in_mask
from igpt_core.images.image_inputs import is_tensor, rgb_images
from igpt_core.images.palette import Palette
from igpt_core.images.pixels import Crop, Resize, load_pixels
from igpt_core.images.raster_formats import ImageError

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
_URL = re.compile(r"(data|[a-z][\w+.-]+(?=:/)):", re.IGNORECASE)

Result = TypeVar("Result")


class BinaryFile(Protocol):
    """An open file of bytes."""

    def read(self) -> bytes:
        """Returns the rest of the file."""


ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryFile | Image.Image | npt.NDArray[Any] | torch.Tensor
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

        Raises as `loadable` and `load_pixels`; of several the message begins with the place.
        """
        several = is_list(images)
        tokens: list[npt.NDArray[Any]] = []
        names: list[str] = []
        for place, image in enumerate(images if several else [images]):
            names.append(_file_name(image) or str(place))
            with _at(f"images[{place}]: " if several else ""):
                content = loadable(image)
                pixels = load_pixels(content, self.side, resize=self.resize, crop=self.crop)
            tokens.append(self.palette.encode(pixels))
        rows = np.reshape(np.array(tokens, np.int64), (-1, self.side**2))
        return TokenizedImages(rows, names, several)

    def known(self, known: Any, n_images: int) -> npt.NDArray[np.bool_]:
        """Reads which pixels are known, of all images or of each of several: (n_images, side ** 2).

        Raises ValueError for another number or shape, and as `read`.
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


def loadable(image: Any) -> bytes | Image.Image:
    """Returns what `load_pixels` takes: the bytes of a path or an open file, an array as a PIL
    image, bytes and PIL images as they are.

    Raises ImageError for a file that cannot be read, ValueError for an array of another shape,
    TypeError for something else than an image.
    """
    if isinstance(image, bytes | Image.Image):
        return image
    if isinstance(image, np.ndarray) or is_tensor(image):
        return _array_image(image)
    if _is_path(image) or _is_file(image):
        return _content(image)
    several = "; next: list(...) of it for several" if isinstance(image, Iterable) else ""
    raise TypeError(
        "expected an image as a path, encoded bytes, open file, PIL image or array, found "
        f"{type(image).__name__}{several}"
    )


def _array_image(array: Any) -> Image.Image:
    """Makes an RGB image of an array or tensor (H, W), (H, W, C) or (C, H, W), which of the two by
    where 1, 3 or 4 channels are; last if in doubt."""
    shape = tuple(array.shape)
    channels_last = len(shape) == 2 or (len(shape) == 3 and shape[2] in _CHANNELS)
    channels_first = not channels_last and len(shape) == 3 and shape[0] in _CHANNELS
    if not (channels_last or channels_first):
        raise ValueError(
            "expected an image (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, found an "
            f"array {shape}; next: a list for several images"
        )
    layout = "channels_last" if channels_last else "channels_first"
    return next(rgb_images(array, input_data_format=layout))


def _content(source: Any) -> bytes:
    """Reads the file of a path, or what is left of an open one."""
    try:
        content = Path(source).read_bytes() if _is_path(source) else source.read()
    except OSError as error:
        # Only now: a folder may be called s3: too. A URL may hold secrets, so it is not shown.
        if _is_path(source) and (url := _URL.match(os.fspath(source))):
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
    return isinstance(value, list | tuple | Iterator) and not _is_file(value)


def _as_list(value: Any) -> list[Any]:
    """Returns a list of one or several as a list."""
    return list(value) if is_list(value) else [value]


def _is_path(image: Any) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(image, str | os.PathLike)


def _is_file(image: Any) -> bool:
    return hasattr(image, "read")


def _file_name(image: Any) -> str | None:
    """Returns the name of an image's file, None where it has none; of some open files it is a
    number."""
    source = getattr(image, "name", None) if _is_file(image) else image
    return os.path.basename(source) if _is_path(source) else None
