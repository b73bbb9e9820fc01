"""The demo's photographs: those of scikit-image, whole and in tiles."""

import numpy as np
import pytest
import skimage.data
from PIL import Image

from jobs import demo
from jobs.demo import PHOTOS, TILES, write_tiles
from pipeline.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "photos"
    assert write_tiles(folder) == len(PHOTOS) * len(TILES)
    return folder


def test_every_photo_has_every_tile_and_nothing_else_is_written(folder):
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {f"{photo}/{tile}.png" for photo in PHOTOS for tile in TILES}


@pytest.mark.parametrize("name", ["camera", "coffee"])  # gray, and wider than it is high
def test_tiles_are_parts_of_the_photo(folder, name):
    photo = getattr(skimage.data, name)()
    height, width = photo.shape[:2]
    rows, columns = slice(height // 4, height * 3 // 4), slice(width // 4, width * 3 // 4)
    expected = {
        "whole": photo,
        "middle": photo[rows, columns],
        "upper-left": photo[: height // 2, : width // 2],
        "upper-right": photo[: height // 2, width // 2 :],
    }
    for tile, pixels in expected.items():
        found = np.asarray(Image.open(folder / name / f"{tile}.png"))
        assert np.array_equal(found, pixels), tile


def test_writing_them_again_changes_nothing(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    write_tiles(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


def test_without_scikit_image_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'igpt\[demo\]'"):
        write_tiles(tmp_path / "photos")
    assert not (tmp_path / "photos").exists()
