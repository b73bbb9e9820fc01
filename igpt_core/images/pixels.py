"""Encoded images and PIL images of any mode to 8-bit RGB pixels, and pixels to PNG.

Every mode becomes RGB by one rule:

    RGB                          untouched
    transparency of any kind     composed on white
    1, L, P, CMYK, YCbCr,        as Pillow converts them; embedded color profiles are ignored
      HSV, RGBX
    LAB                          by CIE 15 and sRGB, see `exact_colors`
    I;16 (any byte order)        rint(v / 257): 0..65535 to 0..255; of a 12-bit TIFF
                                 rint(v * 255 / 4095)
    I, F                         by their range, see `to_uint8`

Of a TIFF whose zero is white, gray levels are inverted; 8- and 16-bit signed ones are refused, as
nothing says which is black. Colors of 16 bits are cut to their upper 8 by Pillow, within one gray
level; with transparency, and inks, they are put together at 16 bits first. JPEG 2000 is read at 8
bits, gray at 8 to 16; its signed levels are shifted to their full range by Pillow.

EXIF orientation is applied, also to PIL images that carry it. An animation gives its first frame.
Metadata that is large or damaged does not matter to a PNG's pixels: `png_metadata`. Which formats
are read: `raster_formats`.
"""

import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from igpt_core.errors import check_whole
from igpt_core.images.depths import TiffLayout, check_jpeg2000, tiff_layout
from igpt_core.images.exact_colors import deep_kind, deep_to_rgb, lab_to_rgb
from igpt_core.images.raster_formats import (
    ImageError,
    check_format,
    damaged_xmp_aside,
    one_line,
    open_raster,
)

MAX_PIXELS = 89_478_485  # 256 MiB as RGB; beyond it Pillow itself suspects a decompression bomb

Pixels = npt.NDArray[np.uint8]
Resize = Literal["exact", "fast"]
Crop = Literal["squash", "center"]
Box = tuple[float, float, float, float]  # left, top, right, bottom

# EXIF orientation (Exif 2.32, tag 0x0112) -> what makes the picture upright: swap the axes, then
# mirror left-right, then mirror top-bottom
_UPRIGHT = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def load_pixels(
    image: bytes | Image.Image, size: int, *, resize: Resize = "exact", crop: Crop = "squash"
) -> Pixels:
    """Loads an image as pixels (size, size, 3) uint8.

    `resize="exact"` decodes in full, then resizes with Pillow's antialiased bilinear filter, as the
    reference does. `"fast"` lets libjpeg decode encoded JPEGs at 1/2, 1/4 or 1/8, never
    below 2 * `size`, before the same filter: pixels move by half a gray level on average.
    PIL images and other formats give the same in both.
    `crop="squash"` resizes both axes on their own, as the reference does; `"center"` takes
    the largest centered square first.

    Raises ImageError as `open_rgb` does, ValueError for a wrong option, TypeError for a size that
    is no whole number.
    """
    size = check_whole("size", size)
    if size < 1:
        raise ValueError(f"expected a size of at least 1, found {size}")
    check_resize_and_crop(resize, crop)
    decoded = _decode(image, draft_side=2 * size if resize == "fast" else None)
    box = decoded.box if crop == "squash" else decoded.middle_square()
    return resize_rgb(decoded.rgb, size, size, box=box)


def check_resize_and_crop(resize: Resize, crop: Crop) -> None:
    """Raises ValueError for options that `load_pixels` does not have."""
    if resize not in ("exact", "fast"):
        raise ValueError(f"expected resize 'exact' or 'fast', found {resize!r}")
    if crop not in ("squash", "center"):
        raise ValueError(f"expected crop 'squash' or 'center', found {crop!r}")


def resize_rgb(
    image: Image.Image,
    height: int,
    width: int,
    *,
    resample: int = Image.Resampling.BILINEAR,
    box: Box | None = None,
) -> Pixels:
    """Resizes an RGB image, or the part in `box`, by a Pillow filter: (height, width, 3) uint8."""
    if box is not None:
        # Cropped first, since the filter of resize(box=...) reads pixels outside of the box too.
        left, top = math.floor(box[0]), math.floor(box[1])
        outer = (left, top, math.ceil(box[2]), math.ceil(box[3]))
        if outer != (0, 0, *image.size):
            image = image.crop(outer)
        box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return np.array(image.resize((width, height), Image.Resampling(resample), box=box))


def open_rgb(image: bytes | Image.Image) -> Image.Image:
    """Decodes an image in full to upright RGB; a PIL image that is so already is returned itself.

    Raises ImageError: not an image of a format that is read, zero bytes, truncated or damaged,
    more than MAX_PIXELS pixels, none, or gray levels of an unknown scale.
    """
    return _decode(image, draft_side=None).rgb


def encode_png(pixels: Pixels) -> bytes:
    """Encodes pixels (H, W, 3) uint8, or (H, W, 4) with opacity, as PNG; the same bytes for
    the same versions of Pillow and zlib."""
    n_channels = pixels.shape[2] if pixels.ndim == 3 else 0
    if pixels.dtype != np.uint8 or n_channels not in (3, 4) or not pixels.size:
        raise ValueError(f"expected (H, W, 3) uint8 pixels, found {pixels.shape} {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def to_uint8(values: npt.NDArray[Any]) -> Pixels:
    """Scales gray levels or channel values (...) of any bool, integer or float dtype to uint8.

    uint8 stays; False and True become 0 and 255. For the others the range that holds all values
    decides: floats in [0, 1] are times 255, values in [0, 255] stay, those in [0, 65535] are 16-bit
    and divided by 257. Results are rounded, none is clipped: ImageError for values elsewhere, NaN
    included.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf" or not values.size:
        raise ImageError(f"expected numeric pixels, found {values.shape} {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:  # false for NaN
        unit = values.dtype.kind == "f" and high <= 1
        return _scaled(values, 255 if unit else 1 if high <= 255 else 1 / 257)
    raise ImageError(
        f"expected pixel values in [0, 1], [0, 255] or [0, 65535], found {low:g} to {high:g}"
    )


def _scaled(values: npt.NDArray[Any], factor: float) -> Pixels:
    return np.rint(values.astype(np.float64) * factor).astype(np.uint8)


@dataclass(frozen=True)
class _Decoded:
    """An upright RGB image at 1 / `shrink` of its size; `box` is where the whole picture lies in
    it: a side that `shrink` does not divide ends within the last pixel."""

    rgb: Image.Image
    box: Box
    shrink: int

    def middle_square(self) -> Box:
        """Computes the largest centered square, its corner on a whole pixel of the full size."""
        left, top, right, bottom = self.box
        width, height = right - left, bottom - top
        side = min(width, height)
        left += math.floor((width - side) * self.shrink / 2) / self.shrink
        top += math.floor((height - side) * self.shrink / 2) / self.shrink
        return left, top, left + side, top + side


def _decode(image: bytes | Image.Image, *, draft_side: int | None) -> _Decoded:
    """Decodes to upright RGB; JPEGs may shrink while both sides stay `draft_side` long at least."""
    if not isinstance(image, bytes | Image.Image):
        raise ImageError(f"expected encoded bytes or a PIL image, found {type(image).__name__}")
    found = "image"
    try:
        source = _open(image)
        width, height = source.size
        found = f"{source.format or source.mode} image of {width} x {height}"
        if not 0 < width * height <= MAX_PIXELS:
            raise ImageError(f"expected 1 to {MAX_PIXELS} pixels, found a {found}")
        with damaged_xmp_aside(source):
            return _decode_opened(source, image, draft_side)
    except ImageError:
        raise
    except Exception as error:
        # One image's decode: the format readers raise OSError, SyntaxError, struct.error,
        # zlib.error, MemoryError and more for data that is cut short or damaged.
        raise ImageError(
            f"expected a whole {found}, found truncated or damaged data: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def _decode_opened(
    source: Image.Image, image: bytes | Image.Image, draft_side: int | None
) -> _Decoded:
    width, tiff = source.width, tiff_layout(source)
    check_jpeg2000(source)
    draft = None
    if draft_side and isinstance(image, bytes) and isinstance(source, JpegImageFile):
        draft = source.draft(None, (draft_side, draft_side))
    if isinstance(image, bytes) and (kind := deep_kind(source)):
        source, decoded = deep_to_rgb(image, kind)
    else:
        source.load()
        decoded = _to_rgb(source, tiff)
    box: Box = draft[1] if draft else (0, 0, *source.size)
    shrink = round(width / box[2]) if draft else 1
    rgb, box = _turn(decoded, box, _orientation(source))
    return _Decoded(rgb, box, shrink)


def _open(image: bytes | Image.Image) -> Image.Image:
    """Reads the header of encoded bytes, the pixels not yet; an open image is checked alone."""
    try:
        if isinstance(image, bytes):
            return open_raster(image)
        check_format(image)
        return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"expected at most {MAX_PIXELS} pixels: {one_line(error)}") from error


def _to_rgb(image: Image.Image, tiff: TiffLayout | None) -> Image.Image:
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        return _gray_to_rgb(image, tiff)
    if mode == "LAB":
        return lab_to_rgb(image, in_planes=tiff is not None and tiff.in_planes)
    if not image.has_transparency_data:
        return image if mode == "RGB" else image.convert("RGB")
    rgba = (image.convert("LA") if mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def _gray_to_rgb(image: Image.Image, tiff: TiffLayout | None) -> Image.Image:
    """Converts modes I, I;16 and F, which Pillow's own conversion clips to 0..255."""
    levels = np.asarray(image)
    # the readers of these two formats leave integers of more than 8 bits on a scale of 65535
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    white = 4095 if tiff and tiff.bits == 12 else 65535
    gray = _scaled(levels, 255 / white) if deep else to_uint8(levels)
    if tiff and tiff.zero_is_white:  # of fewer bits Pillow inverts them itself
        gray = 255 - gray
    if "transparency" in image.info:
        gray = np.where(levels == image.info["transparency"], np.uint8(255), gray)
    return Image.fromarray(gray).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Reads the EXIF orientation, 1 where there is none or the EXIF block is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of this one image: its pixels are whole, and viewers ignore such blocks too
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _turn(image: Image.Image, box: Box, orientation: int) -> tuple[Image.Image, Box]:
    """Turns an image upright; returns it, and where `box` comes to lie in it."""
    if orientation == 1:
        return image, box
    swap, mirror_x, mirror_y = _UPRIGHT[orientation]
    left, top, right, bottom = box
    if swap:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        left, top, right, bottom = top, left, bottom, right
    if mirror_x:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, right = image.width - right, image.width - left
    if mirror_y:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        top, bottom = image.height - bottom, image.height - top
    image.info.clear()  # it would still say how to turn the image
    return image, (left, top, right, bottom)
