"""`igpt cache`: what it lists and deletes, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from runs import igpt, refusal

FINGERPRINT, DIGEST = "ab12", "0123456789abcdef" * 2


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    (folder / "models" / DIGEST).mkdir(parents=True)
    (folder / f"nearest-{FINGERPRINT}.npy").write_bytes(bytes(2_000_000))
    (folder / "models" / DIGEST / "config.json").write_bytes(bytes(500))
    (folder / "notes.txt").write_text("mine")
    monkeypatch.setenv("IGPT_CACHE", str(folder))
    return folder


def lines(capsys, *words: str, quiet: bool = False) -> list[str]:
    capsys.readouterr()
    igpt("cache", *words, quiet=quiet)
    return capsys.readouterr().out.splitlines()


def test_what_is_kept_is_listed_with_paths_and_sizes(folder, capsys):
    model, table, total = lines(capsys)
    assert model.split() == ["model", "500", "B", f"{folder}/models/{DIGEST}"]
    assert table.split() == ["color", "table", "2.00", "MB", f"{folder}/nearest-{FINGERPRINT}.npy"]
    assert total == f"2 kept in {folder}, 2.00 MB"
    assert lines(capsys, quiet=True) == [total]
    assert (folder / f"nearest-{FINGERPRINT}.npy").exists()


def test_only_what_is_listed_is_deleted(folder, capsys):
    *_, total = lines(capsys, "--clear")
    assert total == f"2 deleted from {folder}, 2.00 MB"
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["notes.txt"]
    assert lines(capsys) == [f"0 kept in {folder}, 0.00 B"]


def test_what_cannot_be_deleted_is_one_line(folder, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    message = refusal(capsys, "cache", "--clear", code=1)
    assert f"cannot delete {folder}/nearest-{FINGERPRINT}.npy: Permission denied; next" in message


def test_neither_torch_nor_ray_is_waited_for(folder):
    script = (
        "import sys\n"
        "from jobs.__main__ import main\n"
        "main(['cache'])\n"
        "print(sorted({'torch', 'ray', 'numpy', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [f"2 kept in {folder}, 2.00 MB", "[]"], done.stderr
