"""Small photographs that tests make for themselves, and what `photos` of conftest.py holds."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 8


def photo(seed: int, *, size=(40, 30)) -> Image.Image:
    """Draws a smooth color gradient with noise: unlike any other seed's."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    smooth = Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)
    noise = rng.integers(-20, 21, (*size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def write_photos(folder: Path, names: Sequence[str]) -> None:
    """Writes a photo of its own under each of these names, with the folders in them."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(i)))


def as_struct(image: Image.Image) -> dict[str, bytes | None]:
    """Returns an image as a value of a Parquet column in the Hub's layout."""
    return {"bytes": encoded(image), "path": None}


# Of the fixture `photos`.
GOOD = 20
BAD = {"truncated.jpg", "text.png", "empty.png", "dangling.png"}
