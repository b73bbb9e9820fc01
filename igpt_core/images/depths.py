"""What Pillow does not say of the depth of an image, or gets wrong: of TIFF and JPEG 2000."""

import struct
from dataclasses import dataclass

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.TiffImagePlugin import TiffImageFile

from igpt_core.images.raster_formats import ImageError


@dataclass(frozen=True)
class TiffLayout:
    """What a TIFF says of its samples that its PIL mode does not."""

    bits: int
    zero_is_white: bool
    in_planes: bool


def tiff_layout(image: Image.Image) -> TiffLayout | None:
    """Reads the layout of a TIFF (TIFF 6.0, sections 3 and 19), None for other images.

    Raises ImageError for those that Pillow reads as something else.
    """
    if not isinstance(image, TiffImageFile):
        return None
    tags = image.tag_v2
    bits, sample_format = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
    if sample_format == 2 and bits < 32:
        raise ImageError(f"expected a TIFF of unsigned samples, found {bits}-bit signed ones")
    n_samples, in_planes = tags.get(277, 1), tags.get(284) == 2
    if bits > 8 and in_planes and n_samples > 1 and (n_samples > 3 or tags.get(259, 1) == 1):
        raise ImageError(
            f"expected a TIFF of 8 bits or of interleaved samples, found {n_samples} planes of "
            f"{bits} bits, with opacity, of inks or not compressed"
        )
    return TiffLayout(bits, zero_is_white=tags.get(262) == 0, in_planes=in_planes)


def check_jpeg2000(image: Image.Image) -> None:
    """Raises ImageError for the depths of JPEG 2000 that Pillow scales wrongly: colors of more than
    8 bits, whose white wraps to black, and less than 8, whose white is gray.

    Reads the marker SIZ of ISO/IEC 15444-1, A.5.1; of a decoded image nothing is left to read.
    """
    if not isinstance(image, Jpeg2KImageFile) or image.fp is None:
        return
    place = image.fp.tell()
    image.fp.seek(0)
    found = image.fp.read()
    image.fp.seek(place)
    start = found.find(b"\xff\x4f\xff\x51")  # SOC, SIZ
    if start < 0:
        raise ImageError("expected a whole JPEG 2000 image, found none of its headers")
    (n_components,) = struct.unpack_from(">H", found, start + 40)
    depths = found[start + 42 : start + 42 + 3 * n_components : 3]
    bits = {(depth & 0x7F) + 1 for depth in depths}
    if bits != {8} and not (n_components == 1 and min(bits) > 8):
        raise ImageError(
            f"expected a JPEG 2000 image of 8 bits, or gray of 8 to 16, found {n_components} "
            f"components of {' and '.join(map(str, sorted(bits)))} bits"
        )
