"""JPEG files without metadata that is cut short, for which Pillow refuses the whole picture."""

from collections.abc import Iterator

_START = b"\xff\xd8"
_SCAN = 0xDA  # from here on pixels
_EXIF, _ADOBE, _COMMENT = 0xE1, 0xEE, 0xFE
_METADATA = {*range(0xE0, 0xF0), _COMMENT}
_ADOBE_BYTES = 16  # with marker and length; its last byte says what the colors are


def without_metadata(image: bytes) -> bytes:
    """Returns a JPEG without its metadata but for EXIF (the orientation) and a whole Adobe segment
    (the colors). Other bytes stay as they are."""
    if not image.startswith(_START):
        return image
    kept = [_START]
    end = len(_START)
    for kind, start, end in _segments(image):
        whole_adobe = kind == _ADOBE and end - start >= _ADOBE_BYTES
        if kind not in _METADATA or kind == _EXIF or whole_adobe:
            kept.append(image[start:end])
    return b"".join([*kept, image[end:]])


def _segments(image: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields the marker, start and end of each whole segment before the pixels."""
    start = len(_START)
    while start + 4 <= len(image) and image[start] == 0xFF:
        if (kind := image[start + 1]) == 0xFF:  # fills up
            start += 1
            continue
        end = start + 2 + int.from_bytes(image[start + 2 : start + 4], "big")
        if kind == _SCAN or end > len(image):
            return
        yield kind, start, end
        start = end
