"""Colors that Pillow itself converts roughly, each level here the nearest one to its exact value:
channels of 16 bits with opacity, inks of 16 bits (off by up to two levels, as Pillow cuts them to 8
bits before it puts them together), CIELAB (by up to 18 near the edge of sRGB)."""

import re
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from igpt_core.images.raster_formats import damaged_xmp_aside, open_raster

Floats = NDArray[np.float64]

_BAND_PIXELS = 1 << 18  # computed at once: of large images all would take gigabytes
# Pillow's raw modes: channels, and the order of their bytes (N: that of the machine).
_DEEP = re.compile("(LA|RGBA|RGBa|CMYK);16([BLN])")

# CIE 15: L*a*b* of the white D50 to XYZ.
_WHITE = np.array([0.96422, 1.0, 0.82521])
_EPSILON, _KAPPA = 216 / 24389, 24389 / 27
# XYZ to linear sRGB (IEC 61966-2-1), adapted from D50 to D65 by Bradford's matrix: Lindbloom.
_TO_SRGB = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


def lab_to_rgb(image: Image.Image, *, in_planes: bool = False) -> Image.Image:
    """Converts an image of mode LAB to RGB; colors outside sRGB are cut channel by channel.

    Of a TIFF `in_planes` Pillow leaves a and b as they are stored, signed; elsewhere it adds 128.
    """
    stored = np.asarray(image)
    if in_planes:
        stored = stored ^ np.array([0, 128, 128], np.uint8)
    return _by_bands(_lab_shares, stored)


def _lab_shares(stored: NDArray[np.uint8]) -> Floats:
    a, b = stored[..., 1].astype(np.int8), stored[..., 2].astype(np.int8)
    fy = (stored[..., 0] / 2.55 + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = np.where(f**3 > _EPSILON, f**3, (116 * f - 16) / _KAPPA) * _WHITE
    linear = (xyz @ _TO_SRGB.T).clip(0, 1)
    low, high = 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    return np.asarray(np.where(linear <= 0.0031308, low, high))


def deep_kind(image: Image.Image) -> str | None:
    """Returns the raw mode of an image whose pixels are not read yet, where it is one of those of
    16 bits that `deep_to_rgb` takes: "LA;16B", "RGBa;16N" ..."""
    if not isinstance(image, ImageFile) or not image.tile:
        return None
    args = image.tile[0].args
    raw_mode = args[0] if isinstance(args, tuple) and args else args
    return raw_mode if isinstance(raw_mode, str) and _DEEP.fullmatch(raw_mode) else None


def deep_to_rgb(data: bytes, kind: str) -> tuple[Image.Image, Image.Image]:
    """Decodes an encoded image of this `deep_kind`, by reading both bytes of each channel one after
    the other.

    Returns:
        The image with its pixels as one of the readings left them, and the RGB image composed on
        white.
    """
    found = _DEEP.fullmatch(kind)
    assert found is not None
    channels, order = found.groups()
    if channels == "LA":  # four bytes a pixel: gray and opacity, each with its lower one
        image = _read(data, "RGBA")
        four = np.asarray(image)
        high, low = four[..., [0, 0, 0, 2]], four[..., [1, 1, 1, 3]]
    else:
        stored = channels.replace("a", "A")  # without a division by the opacity
        image = _read(data, f"{stored};16B")
        high, low = np.asarray(image), np.asarray(_read(data, f"{stored};16L"))
        if order == "L" or (order == "N" and sys.byteorder == "little"):
            high, low = low, high
    return image, _by_bands(lambda *both: _composed(channels, *both), high, low)


def _read(data: bytes, raw_mode: str) -> Image.Image:
    """Reads an image as if its pixels were stored in this raw mode."""
    image = open_raster(data)
    assert isinstance(image, ImageFile)
    for i, tile in enumerate(image.tile):
        args = (raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode
        image.tile[i] = tile._replace(args=args)
    with damaged_xmp_aside(image):
        image.load()
    return image


def _composed(channels: str, high: NDArray[np.uint8], low: NDArray[np.uint8]) -> Floats:
    shares = (high * 256.0 + low) / 65535
    colors, last = shares[..., :3], shares[..., 3:]  # opacity, or black ink
    if channels == "CMYK":
        return (1 - colors) * (1 - last)
    if channels == "RGBa":  # colors are multiplied by the opacity already
        return (colors + 1 - last).clip(0, 1)
    return colors * last + 1 - last


def _by_bands(shares: Callable[..., Floats], *arrays: NDArray[np.uint8]) -> Image.Image:
    """Makes an RGB image of the shares of 255 that a function gives for rows of arrays."""
    height, width = arrays[0].shape[:2]
    rgb = np.empty((height, width, 3), np.uint8)
    step = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, step):
        band = slice(top, top + step)
        rgb[band] = np.rint(255 * shares(*(array[band] for array in arrays)))
    return Image.fromarray(rgb)
