"""What is installed: the packages that are named in pyproject.toml, the files of the wheel, and the
command in an environment of its own."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pictures import photo
from pipeline.submit.package import PACKAGES, is_needed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
INSTALLED = importlib.metadata.packages_distributions()  # module: its distributions
RAYS_OWN = {"psutil"}  # a copy of which lies in Ray
TORCHS_OWN = {"triton"}  # which torch for CUDA brings; see test_architecture.py for who imports it
NOT_FOR_USERS = {"test", "docs", "all"}


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def named(requirements: list[str]) -> set[str]:
    return {normalized(re.match(r"[\w.-]+", text)[0]) for text in requirements}


DEPENDENCIES = named(PROJECT["dependencies"])
OPTIONAL = named(
    text
    for extra, requirements in PROJECT["optional-dependencies"].items()
    if extra not in NOT_FOR_USERS
    for text in requirements
)


def imported(source: str) -> tuple[set[str], set[str]]:
    """Packages of others that a file imports: those at its import, and those in its functions."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found: tuple[set[str], set[str]] = set(), set()
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        found[id(node) in inside].update(module.partition(".")[0] for module in modules)
    ours = {*PACKAGES, *sys.stdlib_module_names}
    return found[0] - ours, found[1] - ours


def distributions(modules: set[str]) -> set[str]:
    """The distributions that modules come from, by what is installed."""
    return {normalized(INSTALLED[name][0]) if name in INSTALLED else name for name in modules}


def test_imports_are_read_from_where_they_stand():
    source = "import os, a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    import h, jobs.x\n"
    assert imported(source) == ({"a", "c"}, {"h"})


def test_what_is_imported_is_a_dependency_and_nothing_else_is():
    sources = [
        path.read_text("utf-8") for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")
    ]
    found = [tuple(map(distributions, imported(source))) for source in sources]
    at_import, later = (set().union(*names) for names in zip(*found, strict=True))
    assert at_import <= DEPENDENCIES | TORCHS_OWN
    assert later <= DEPENDENCIES | OPTIONAL | RAYS_OWN
    assert not DEPENDENCIES - at_import - later


def test_all_is_every_extra_for_whoever_works_on_igpt():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == {*extras} - {"docs", "all"}


def source_files() -> list[str]:
    """Files of the three packages, as an installation should have them."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    inner = [path.relative_to(ROOT) for path in files]
    return sorted(
        path.as_posix()
        for path in inner
        if not any(part.startswith((".", "__pycache__")) for part in path.parts)
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools would add what earlier builds left beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        hidden = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, folder / name, ignore=hidden)
    pip("wheel", "--no-build-isolation", f"--wheel-dir={folder}", str(folder))
    (built,) = folder.glob("*.whl")
    return built


def pip(command: str, *words: str, of: Path = Path(sys.executable)) -> None:
    alone = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(of), command, *alone, *words], check=True
    )


def test_the_wheel_holds_every_file_of_the_packages_and_the_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inner = [name for name in names if ".dist-info/" not in name]
    assert sorted(inner) == source_files()
    assert {f"{name}/py.typed" for name in PACKAGES} <= set(inner)
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_a_submitted_job_ships_every_file_that_it_reads():
    left = [name for name in source_files() if not is_needed(Path(name))]
    assert left == [f"{name}/py.typed" for name in sorted(PACKAGES)]


@pytest.mark.slow
def test_the_command_runs_in_a_folder_with_other_modules_of_the_same_names(
    wheel, tmp_path, monkeypatch
):
    """Past bug: Ray puts the current folder first on its workers' path, where they found another
    `pipeline`, and the run ended without a cause."""
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    pip("install", str(wheel), of=python)
    (site,) = environment.glob("lib/python*/site-packages")
    # What igpt needs, without what is installed there in development mode.
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    place = tmp_path / "place"
    (place / "pipeline").mkdir(parents=True)
    for name in ("pipeline/__init__.py", "jobs.py", "igpt_core.py"):
        (place / name).write_text("raise RuntimeError('not of igpt')")
    (place / "photos").mkdir()
    for i in range(5):
        photo(i).save(place / "photos" / f"{i}.png")

    for name in ("PYTHONPATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    words = ["quantize", "--input=photos", "--output=out", "--cpu-actors=1", "--json"]
    igpt = environment / "bin" / "igpt"
    done = subprocess.run([igpt, *words], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(place / "out" / "data")
    assert rows["id"].to_pylist() == [f"{i}.png" for i in range(5)]
    report = json.loads((place / "out" / "report.json").read_text())
    assert (report["rows"], report["errors"]) == (5, 0)
