"""Photographs for the demo: those that scikit-image carries, whole and cut into tiles."""

from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from pipeline.errors import UsageError

# In scikit-image's wheel, so no network is needed; `camera` is grey.
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "grass", "motorcycle_left")
# Left, upper, right and lower edge of each tile, as shares of the photo.
TILES = {
    "whole": (0.0, 0.0, 1.0, 1.0),
    "middle": (0.25, 0.25, 0.75, 0.75),
    "upper-left": (0.0, 0.0, 0.5, 0.5),
    "upper-right": (0.5, 0.0, 1.0, 0.5),
}


def write_tiles(folder: Path) -> int:
    """Write each photo's tiles as `folder/PHOTO/TILE.png`; returns how many.

    Raises UsageError where scikit-image is not installed.
    """
    if find_spec("skimage") is None:
        raise UsageError(
            "the demo takes its photographs from scikit-image, which is not installed; next: "
            "pip install 'igpt[demo]'"
        )
    for name in PHOTOS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        with as_file(files("skimage") / "data" / f"{name}.png") as path, Image.open(path) as photo:
            for tile, edges in TILES.items():
                box = [round(edge * size) for edge, size in zip(edges, photo.size * 2, strict=True)]
                photo.crop(tuple(box)).save(folder / name / f"{tile}.png")
    return len(PHOTOS) * len(TILES)
