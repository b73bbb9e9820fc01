"""Masks: which pixels of an image are known beside its upper part."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igpt_core.generation.known_pixels import known_in_mask
from igpt_core.images.pixels import Crop, load_pixels
from igpt_core.images.raster_formats import ImageError
from pipeline.errors import UsageError
from pipeline.rows import RowError
from pipeline.storage.filesystem import (
    absolute,
    join,
    kind,
    open_location,
    read_bytes,
    require_folder,
    store_errors,
)
from pipeline.storage.redact import redacted, redacted_line

STAGE = "mask"


@dataclass(frozen=True)
class Mask:
    """Where masks lie, and what identifies them: the content of a file, the place of a folder."""

    location: str
    identity: str


def find_mask(location: str | None, options: Mapping[str, Any]) -> Mask | None:
    """Finds the image, or folder of images, that --mask names. Raises UsageError."""
    if location is None:
        return None
    location = absolute(location)
    fs, path = open_location(location, options)
    try:
        found = kind(fs, path)
        content = read_bytes(fs, path) if found == "file" else b""
        if content:
            load_pixels(content, 1)
    except store_errors(ImageError) as error:
        raise UsageError(
            f"cannot read --mask {redacted(location)}: {redacted_line(error)}"
        ) from error
    if found is None:
        raise UsageError(
            f"expected --mask to be an image, or a folder of images, found nothing at "
            f"{redacted(location)}"
        )
    digest = hashlib.sha256(content).hexdigest()[:32]
    return Mask(location, digest if found == "file" else redacted(location))


class Masks:
    """Reads masks: pixels darker than half are known, the others are to be sampled.

    Args:
        location: an image for all rows; or a folder, in which the mask of a row has the row's id
            as its name, or the same with .png for its ending.
        image_size: pixels a side, to which a mask is made as images are.
        crop: as in `load_pixels`.
        options: fsspec options of the location.
    """

    def __init__(
        self, location: str, *, image_size: int, crop: Crop, options: Mapping[str, Any]
    ) -> None:
        self._fs, self._path = open_location(location, options)
        self._size, self._crop = image_size, crop
        is_file = kind(self._fs, self._path) == "file"
        self._one_for_all = self._load(self._path) if is_file else None

    def known(self, ids: Sequence[str]) -> list[NDArray[np.bool_] | RowError]:
        """Returns (image_size ** 2,) bool for each id, true for known pixels, or why there is
        none. Raises OutOfReach where the folder is gone."""
        if self._one_for_all is not None:
            return [self._one_for_all] * len(ids)
        return [self._find(id_) for id_ in ids]

    def _find(self, id_: str) -> NDArray[np.bool_] | RowError:
        if ".." in id_.split("/") or id_.startswith("/"):
            return RowError(STAGE, "MissingMask", "the id is no name of a file in the mask folder")
        names = dict.fromkeys([id_, os.path.splitext(id_)[0] + ".png"])
        for name in names:
            try:
                return self._load(join(self._path, name))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
            except store_errors(ImageError) as error:
                return RowError.of(STAGE, error)
        require_folder(self._fs, self._path)
        return RowError(STAGE, "MissingMask", f"expected {' or '.join(names)} in the mask folder")

    def _load(self, path: str) -> NDArray[np.bool_]:
        return known_in_mask(read_bytes(self._fs, path), self._size, crop=self._crop)
