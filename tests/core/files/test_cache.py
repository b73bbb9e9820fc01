"""What is kept on a machine: listed as it was written, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from igpt_core.files.cache import cached
from igpt_core.files.model_files import model_files
from igpt_core.images.palette import Palette


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def size_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(len(file.read_bytes()) for file in files)


def test_there_is_nothing_at_first(folder):
    assert cached() == []
    assert not folder.exists()


def test_all_that_igpt_writes_is_found_and_removed_and_what_others_wrote_stays(folder):
    """Written by what writes it, so a file with another name would be missed here."""
    import fsspec

    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (4, 3)))
    palette.encode(np.zeros((2, 2, 3), np.uint8))
    remote = fsspec.filesystem("memory")
    remote.pipe("/models/one/config.json", b"{}")
    model_files("memory://models/one", ["config.json"])
    (folder / f".nearest-{palette.fingerprint}.npy.0123456789abcdef.tmp").write_bytes(b"cut")
    foreign = [folder / name for name in ("notes.txt", "models/mine/weights", "nearest-.npy")]
    ours = {path for path in folder.rglob("*") if path.is_file()}
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    found = cached()
    assert [each.kind for each in found] == ["unfinished table", "model", "color table"]
    assert found[2].name == palette.fingerprint
    assert found[2].size > 32 << 20
    for each in found:
        assert each.size == size_on_disk(each.path)
    listed = {
        path
        for each in found
        for path in ([each.path] if each.path.is_file() else each.path.rglob("*"))
    }
    assert listed == ours
    for each in found:
        each.remove()
        each.remove()
    assert cached() == []
    assert {path for path in folder.rglob("*") if path.is_file()} == set(foreign)
    again = palette.encode(np.zeros((2, 2, 3), np.uint8))
    assert again.shape == (2, 2)
