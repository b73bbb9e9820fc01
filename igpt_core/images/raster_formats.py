"""The formats of encoded images that are read, and the one place that opens them.

Each is decoded to pixels within this process. Left out of what Pillow knows: EPS starts
Ghostscript; WMF, BUFR, GRIB, HDF5 and MPEG are only identified; IPTC opens what it wraps in any
format; FITS and MCIDAS hold measurements whose scale Pillow does not read.
"""

import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from igpt_core.images import gif_metadata, jpeg_metadata, png_metadata

# The most frequent first, those without a signature of their own last, as Pillow tries them.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000"),
    *("BLP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "ICNS", "ICO", "MSP", "PCX"),
    *("PIXAR", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "XVTHUMB"),
    *("IM", "IMT", "PCD", "SPIDER", "TGA"),
)


class ImageError(ValueError):
    """One image cannot be used. The message is one line: what was expected, what was found."""


@functools.cache
def raster_formats() -> tuple[str, ...]:
    """Returns Pillow's names of the formats that are read here: HEIF where pillow-heif is."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def raster_extensions() -> frozenset[str]:
    """Returns the extensions of the formats that are read, in lower case with their dot."""
    formats = {*raster_formats(), "MPO"}  # MPO is what Pillow calls a JPEG that holds several
    return frozenset(e for e, name in Image.registered_extensions().items() if name in formats)


def open_raster(source: bytes | str | os.PathLike[str]) -> Image.Image:
    """Reads the header of an encoded image, given as bytes or as a local path; the pixels not yet.

    Raises ImageError for bytes of no format that is read, and what Pillow raises for sizes beyond
    its limit and for files that cannot be opened.
    """
    if not isinstance(source, bytes):
        return Image.open(source, formats=raster_formats())
    if not source:
        raise ImageError("expected an encoded image, found zero bytes")
    data = png_metadata.without_metadata(source)
    try:
        return _identify(data)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"expected an encoded image, found {len(source)} bytes starting with {source[:12]!r}: "
            f"{_reason(data)}"
        ) from error


def _identify(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=raster_formats())
    except UnidentifiedImageError:
        lean = gif_metadata.without_metadata(jpeg_metadata.without_metadata(data))
        if len(lean) == len(data):
            raise
        return Image.open(io.BytesIO(lean), formats=raster_formats())


def check_format(image: Image.Image) -> None:
    """Raises ImageError for a PIL image opened from a format that is not read: its pixels may be
    still to come, and from another program."""
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*raster_formats(), "MPO"):
        raise ImageError(
            f"expected an image of a raster format that is read, found {image.format}; "
            "next: image.convert('RGB')"
        )


@contextmanager
def damaged_xmp_aside(image: Image.Image) -> Iterator[None]:
    """Leaves what is no XMP out of where Pillow looks for the orientation, as long as the image is
    decoded."""
    xmp = image.info.get("xmp", b"")
    if isinstance(xmp, bytes):
        yield
        return
    del image.info["xmp"]
    try:
        yield
    finally:
        image.info["xmp"] = xmp


def _reason(data: bytes) -> str:
    """Finds why no format takes the bytes: what the reader of the one they begin like says."""
    for name in raster_formats():
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]) is True:
            try:
                factory(io.BytesIO(data), "")
            except Exception as error:  # of this one image: readers raise many kinds
                return f"{name} that is not supported, or cut short: {one_line(error)}"
    return "not a format that is read, or cut short"


def one_line(error: BaseException) -> str:
    """Returns the beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:200]
