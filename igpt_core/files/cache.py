"""What igpt keeps on a machine: where it lies, what is there, and how it is removed.

One folder, $IGPT_CACHE or else ~/.cache/igpt, holds it all:

    nearest-FINGERPRINT.npy   the color table of a palette
    models/DIGEST/            a model's files that were fetched from a URI
    .nearest-*.tmp            a table whose writer was killed
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TABLE = re.compile(r"nearest-([0-9a-f]+)\.npy")
_UNFINISHED = re.compile(r"\.nearest-[0-9a-f]+\.npy\.[0-9a-f]+\.tmp")
_MODEL = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Cached:
    """A file or a folder that igpt keeps: `color table`, `model` or `unfinished table`; its name
    (a palette's fingerprint, or a digest), its path, and the bytes of its files."""

    kind: str
    name: str
    path: Path
    size: int

    def remove(self) -> None:
        """Deletes it; nothing where it is gone. Raises OSError."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Returns the folder, which need not be there. Raises RuntimeError where there is neither
    $IGPT_CACHE nor a home folder."""
    return Path(os.environ.get("IGPT_CACHE") or Path.home() / ".cache" / "igpt")


def table_path(fingerprint: str) -> Path:
    """Returns where the color table of a palette lies. Raises RuntimeError as `cache_folder`."""
    return cache_folder() / f"nearest-{fingerprint}.npy"


def models_folder() -> Path:
    """Returns where fetched models lie. Raises RuntimeError as `cache_folder`."""
    return cache_folder() / "models"


def cached() -> list[Cached]:
    """Lists what is kept, by path, and nothing else that lies there. Raises RuntimeError as
    `cache_folder`, and OSError where it cannot be read."""
    return sorted([*_tables(), *_models()], key=lambda each: each.path)


def _tables() -> Iterator[Cached]:
    for path in _entries(cache_folder()):
        if (table := _TABLE.fullmatch(path.name)) and path.is_file():
            yield Cached("color table", table[1], path, path.stat().st_size)
        elif _UNFINISHED.fullmatch(path.name) and path.is_file():
            yield Cached("unfinished table", path.name, path, path.stat().st_size)


def _models() -> Iterator[Cached]:
    for path in _entries(models_folder()):
        if _MODEL.fullmatch(path.name) and path.is_dir():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            yield Cached("model", path.name, path, size)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
