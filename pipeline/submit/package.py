"""What ships with a submitted job: the three packages of igpt, and nothing else of their folder."""

import importlib.metadata
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGES = ("igpt_core", "pipeline", "jobs")
_SUFFIXES = {".py", ".css", ".j2"}  # modules, and the report's style sheet and template


@contextmanager
def packaged() -> Iterator[str]:
    """Yields a temporary folder from which `python -m jobs` runs: the packages as they are imported
    here, with the shipped model."""
    here = Path(__file__).resolve().parents[2]  # where the three lie, side by side
    with TemporaryDirectory(prefix="igpt-") as folder:
        for name in PACKAGES:
            source = here / name
            for file in filter(Path.is_file, source.rglob("*")):
                inner = file.relative_to(source)
                if is_needed(inner):
                    target = Path(folder, name, inner)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
        _write_version(Path(folder))
        yield folder


def is_needed(file: Path) -> bool:
    """Tells whether a run reads a file of a package, given by its path within the package."""
    hidden = any(part.startswith((".", "__pycache__")) for part in file.parts)
    return not hidden and (file.suffix in _SUFFIXES or "assets" in file.parts)


def _write_version(folder: Path) -> None:
    """Writes the metadata in which nodes without an installed igpt find its version."""
    version = importlib.metadata.version("igpt")
    target = folder / f"igpt-{version}.dist-info" / "METADATA"
    target.parent.mkdir()
    target.write_text(f"Metadata-Version: 2.1\nName: igpt\nVersion: {version}\n")
