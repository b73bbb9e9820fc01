"""PNG files without their metadata.

Pillow refuses a whole picture for what has nothing to do with its pixels: text of more than 1 MiB,
a color profile or a date that is damaged. So such chunks are left out before it reads the file.
"""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Where Pillow looks for the orientation: EXIF, its hexadecimal form by ImageMagick, and XMP.
_ORIENTATION = {
    b"eXIf": (b"",),
    b"tEXt": (b"Raw profile type exif\0",),
    b"zTXt": (b"Raw profile type exif\0",),
    b"iTXt": (b"XML:com.adobe.xmp\0\0",),  # \0: not compressed, as the XMP specification demands
}
_MOST_METADATA = 1 << 20  # bytes of a chunk, and of its text


def without_metadata(image: bytes) -> bytes:
    """Returns a PNG's chunks that hold pixels or the orientation; of an animation those of its
    first picture. Other bytes, and from where a PNG is damaged on, stay as they are."""
    if not image.startswith(_SIGNATURE):
        return image
    kept = [_SIGNATURE]
    end = len(_SIGNATURE)
    for kind, start, end in _chunks(image):
        if kind in _PIXELS or _is_orientation(kind, memoryview(image)[start:end]):
            kept.append(image[start:end])
    return b"".join([*kept, image[end:]])


def _chunks(image: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the kind, start and end of each whole chunk up to the last one, IEND."""
    start, kind = len(_SIGNATURE), b""
    while kind != b"IEND" and start + 12 <= len(image):
        (length,) = struct.unpack_from(">I", image, start)
        kind, end = image[start + 4 : start + 8], start + 12 + length
        if end > len(image) or not kind.isalpha():
            return
        yield kind, start, end
        start = end


def _is_orientation(kind: bytes, chunk: memoryview) -> bool:
    """Tells whether a chunk may say how to turn the picture, and is whole and small."""
    body = bytes(chunk[8:-4]) if len(chunk) <= _MOST_METADATA else b""
    if not body or not body.startswith(_ORIENTATION.get(kind, ())):
        return False
    if zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
        return False
    if kind != b"zTXt":
        return True
    try:
        reader = zlib.decompressobj()
        reader.decompress(body.split(b"\0", 1)[1][1:], _MOST_METADATA)
    except zlib.error:
        return False
    return not reader.unconsumed_tail
