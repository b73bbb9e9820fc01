"""GIF files without extensions that are cut short, for which Pillow refuses the whole picture."""

from collections.abc import Iterator

_SIGNATURE = b"GIF8"
_HEADER_BYTES = 13  # with the size of the screen
_EXTENSION, _GRAPHIC_CONTROL = 0x21, 0xF9
_CONTROL_BYTES = 4  # of them one says which color is transparent


def without_metadata(image: bytes) -> bytes:
    """Returns a GIF without the extensions before its first picture, but for whole graphic control
    (transparency). Other bytes stay as they are."""
    if not image.startswith(_SIGNATURE) or len(image) < _HEADER_BYTES:
        return image
    n_colors = 2 << (image[10] & 7) if image[10] & 0x80 else 0
    end = _HEADER_BYTES + 3 * n_colors
    kept = [image[:end]]
    first = end
    for start, end in _extensions(image, first):
        is_whole = image[start + 2] == _CONTROL_BYTES and end == start + 4 + _CONTROL_BYTES
        if image[start + 1] == _GRAPHIC_CONTROL and is_whole:
            kept.append(image[start:end])
    return b"".join([*kept, image[end:]])


def _extensions(image: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each whole extension before another block (GIF89a, 23 to 26)."""
    while image[start : start + 1] == bytes([_EXTENSION]):
        end = start + 2
        while end < len(image) and image[end]:  # blocks with their lengths, up to one of none
            end += 1 + image[end]
        if end >= len(image):
            return
        yield start, end + 1
        start = end + 1
